"""``nispa report``: runs as one HTML page. Needs no PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nispa.cli.options import PATH
from nispa.errors import OutputError

EXAMPLES = """\b
Examples:
  nispa report runs/split-digits-nispa-default-s0
  nispa report runs/efmnist-* --out efmnist.html
  nispa report runs/"""


@click.command(short_help="Make one HTML page of one run or many.", epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    default=Path("report.html"),
    metavar="FILE",
    show_default=True,
    help="The page to write; an earlier report is replaced, another file is not.",
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Make one HTML page of one run or many.

    RUNS are folders of runs, their record.json, or folders that hold several runs; they may be
    somebody else's. The page needs no network and runs nothing that it holds. Records that cannot
    be read are left out and named.
    """
    from nispa.files import shown, write_atomic
    from nispa.webpage import MAX_RUNS, find_folders, page, read_runs

    _check(out)
    found, left_out = read_runs(find_folders(runs, MAX_RUNS))
    write_atomic(out, page(found, left_out))
    for fault in left_out:
        click.echo(f"left out: {fault}", err=True)
    click.echo(f"Report: {shown(out)}")


def _check(out: Path) -> None:
    """Refuses to replace anything but an earlier report."""
    from nispa.errors import InputError
    from nispa.files import read_limited, shown
    from nispa.webpage import MARK, MAX_BYTES

    if not os.path.lexists(out):
        return
    try:
        earlier = read_limited(out, 4 * MAX_BYTES).startswith(MARK.encode())
    except InputError:
        earlier = False
    if not earlier:
        raise OutputError(
            f"--out={shown(out)} is there and no report of nispa; choose another name, such as "
            "--out report.html"
        )
