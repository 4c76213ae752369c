"""``nispa serve``: a learner that answers over HTTP and learns new tasks meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nispa.cli.exits import CommandError, stopped
from nispa.cli.options import (
    PATH,
    Decorator,
    device_option,
    model_option,
    threads_option,
    whole_number,
)
from nispa.errors import needs

TOKEN_VARIABLE = "NISPA_TOKEN"
MAX_TOKEN_BYTES = 10_000
MAX_PIXELS = 89_000_000

EXAMPLES = """\b
Examples:
  nispa serve digits.safetensors
  curl --data-binary @seven.png -H 'Content-Type: image/png' 'localhost:8765/predict?top=3'"""


def port_option(default: int) -> Decorator:
    """``--port N``."""
    return click.option(
        "--port",
        callback=whole_number(0, 65_535, "[0, 65535]", "0 takes a free one"),
        default=str(default),
        metavar="N",
        show_default=True,
        help="Port to listen on; 0 takes a free one and says which.",
    )


@click.command(short_help="Answer over HTTP, and learn meanwhile.", epilog=EXAMPLES)
@click.argument("learner", type=PATH, metavar="LEARNER")
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    show_default=True,
    help="Address to listen on. By default only this machine can ask; any other one needs a token.",
)
@port_option(8765)
@click.option(
    "--token-file",
    type=PATH,
    metavar="FILE",
    help=f"File with the token that clients must show; ${TOKEN_VARIABLE} by default.",
)
@click.option("--read-only", is_flag=True, help="Answer only; nothing can be taught.")
@click.option(
    "--allow-forgetting",
    is_flag=True,
    help="Keep a task although it changes old answers; by default such a task is dropped.",
)
@click.option("--fit", is_flag=True, help="Cut, scale and grey pictures until they fit.")
@click.option(
    "--max-mb",
    callback=whole_number(1, 4096, "[1, 4096]", "64 is the default"),
    default="64",
    metavar="N",
    show_default=True,
    help="Largest body of a request, in MiB.",
)
@click.option(
    "--max-pixels",
    callback=whole_number(1, MAX_PIXELS, f"[1, {MAX_PIXELS:,}]", "4000000 is the default"),
    default="4000000",
    metavar="N",
    show_default=True,
    help="Most pixels of a picture.",
)
@click.option(
    "--queue",
    callback=whole_number(1, 100, "[1, 100]", "4 is the default"),
    default="4",
    metavar="N",
    show_default=True,
    help="Most tasks that wait or are being learned.",
)
@threads_option("CPU threads that learning uses; by default all cores but one, which answers.")
@model_option("The function that the learner was made with, if it was: package.module:function.")
@device_option("As for nispa run.")
def serve(
    learner: Path,
    host: str,
    port: int,
    token_file: Path | None,
    read_only: bool,
    allow_forgetting: bool,
    fit: bool,
    max_mb: int,
    max_pixels: int,
    queue: int,
    threads: int | None,
    model: str | None,
    device: str,
) -> None:
    """Answer over HTTP with LEARNER, and learn new tasks meanwhile.

    LEARNER is a file that Learner.save wrote; a run's folder can be served with --read-only. Each
    task that is learned is written to the file, whole or not at all. Ctrl-C stops the server.
    """
    require()
    import torch

    from nispa.serve.app import Limits, application
    from nispa.serve.running import address, bound, door_for, run
    from nispa.serve.service import Service, Setup

    door = door_for(host, _token(token_file))
    setup = Setup(
        learner,
        device=device,
        model=model,
        teach=not read_only,
        forgetting=allow_forgetting,
        queue=queue,
        threads=threads or max(1, cores() - 1),
    )
    torch.set_num_threads(1)  # more would compete with what is being learned
    with bound(host, port) as listening:
        service = Service(setup)
        limits = Limits(max_mb * 2**20, max_pixels, fit)
        count = len(service.learner.tasks)
        tasks = f"{count} task{'' if count == 1 else 's'}"
        known = f"{tasks} learned{'; read-only' if read_only else ''}"
        dropped = 0
        try:
            run(
                application(service, limits, door),
                listening,
                lambda: click.echo(f"Serving {address(listening)} ({known}); Ctrl-C stops."),
            )
        except KeyboardInterrupt as stop:
            dropped = len(service.close())
            raise stopped(stop, _kept(dropped, len(service.learner.tasks), learner)) from None
        finally:
            service.close()
    raise CommandError(1, "the server ended by itself; its log above says why")


def _kept(dropped: int, count: int, path: Path) -> str:
    """What a stopped server leaves."""
    from nispa.files import shown

    whole = f"{shown(path)} is whole and holds {count} task{'' if count == 1 else 's'}"
    return whole + (f"; tasks not yet learned and dropped: {dropped}" if dropped else "")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require() -> None:
    """Refuses to begin without the packages that serve.

    Raises:
        MissingPackageError: One is missing.
    """
    with needs("serve", "serving"):
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401


def _token(file: Path | None) -> str | None:
    from nispa.files import read_limited

    if file is not None:
        return read_limited(file, MAX_TOKEN_BYTES).decode("utf-8", "replace").strip()
    return os.environ.get(TOKEN_VARIABLE) or None
