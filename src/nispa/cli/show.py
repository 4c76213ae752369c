"""``nispa show``: a run's record as tables. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.options import PATH
from nispa.errors import needs

if TYPE_CHECKING:
    from nispa.runs.record import Record


@click.command(epilog="\b\nExample:\n  nispa show runs/split-digits-nispa-default-s0")
@click.argument("run", type=PATH, metavar="RUN")
@click.option("--settings", is_flag=True, help="Every setting it ran with, as well.")
def show(run: Path, settings: bool) -> None:
    """Show what a run learned, kept and took.

    RUN is the folder of a run, or the record.json in it; it may be somebody else's.
    """
    from nispa.runs.record import read_record

    record = read_record(run)
    print_report(record, run if run.is_dir() else run.parent, settings=settings)


def print_end(record: Record, folder: Path) -> None:
    """Prints what a run came to: its report, or two lines where tables cannot be printed."""
    from nispa.errors import installed
    from nispa.files import shown
    from nispa.runs.metrics import acc, percent

    if installed("rich"):
        print_report(record, folder)
        return
    accuracy = acc(record.main_matrix)
    if accuracy is not None:
        click.echo(f"mean accuracy {percent(accuracy)} %")
    click.echo(f'run: {shown(folder)}; to see it as tables: pip install "nispa[reports]"')


def print_report(record: Record, folder: Path, *, settings: bool = False) -> None:
    """Prints a record, its settings if asked for, and the paths of the run's files."""
    with needs("reports", "a table on the terminal"):
        from rich.console import Console

    from nispa.cli.tables import show as show_parts
    from nispa.files import shown
    from nispa.reading.tables import render, settings_table
    from nispa.runs.folder import EVENTS, NETWORK, PICTURE
    from nispa.runs.record import RECORD

    console = Console(highlight=False)
    parts = [render(record, console.width), *([settings_table(record)] if settings else []), ""]
    show_parts(parts, console)
    files = {"Record": RECORD, "Picture": PICTURE, "Network": NETWORK, "Events": EVENTS}
    for label, name in files.items():
        if (folder / name).is_file():
            line = f"{label + ':':<9}{shown(folder / name)}"
            console.print(line, markup=False, soft_wrap=True)
