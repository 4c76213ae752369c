"""``nispa play``: a page to teach NISPA and watch it learn. Needs the extra ``serve``."""

from __future__ import annotations

from pathlib import Path

import click

from nispa.cli.exits import stopped
from nispa.cli.options import data_option, threads_option
from nispa.cli.serve import cores, port_option, require

HOST = "127.0.0.1"  # whoever can open the page can teach and start again


@click.command(epilog="\b\nExample:\n  nispa play")
@port_option(8766)
@data_option
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@threads_option("CPU threads for PyTorch; by default all cores but one.")
def play(port: int, data: Path | None, opens: bool, threads: int | None) -> None:
    """Teach NISPA in a browser and watch it learn.

    The page is served by this machine and needs no network: choose digits or draw characters, see
    units become stable and connections move, and the same network forget without NISPA. Clothes
    can be taught, too, where --data has fashion-mnist. Ctrl-C stops it; nothing is written.
    """
    require()
    import torch

    from nispa.serve.classroom import Classroom
    from nispa.serve.gate import Door
    from nispa.serve.play_app import application
    from nispa.serve.running import LOCAL, address, bound, run

    torch.set_num_threads(threads or max(1, cores() - 1))
    with bound(HOST, port) as listening:
        app, closing = application(Classroom(data), Door(LOCAL, None))

        def ready() -> None:
            click.echo(f"Open {address(listening)} in a browser; Ctrl-C stops.")
            if opens:
                import webbrowser

                webbrowser.open(address(listening))

        try:
            run(app, listening, ready, closing.set)
        except KeyboardInterrupt as stop:
            raise stopped(stop, "nothing was written") from None
