"""``nispa compare``: groups of runs side by side, with statistical tests. Needs no PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from nispa.cli.options import PATH
from nispa.errors import ConfigError, InputError, needs

MAX_RUNS = 10_000


@click.command(
    epilog="\b\nExamples:\n  nispa compare runs/split-mnist-*\n"
    "  nispa compare runs/split-mnist-* --metric forgetting --baseline finetune"
)
@click.argument("runs", type=PATH, metavar="RUNS...", nargs=-1)
@click.option(
    "--metric",
    default="acc",
    metavar="acc|forgetting|bwt|fwt",
    help="What to compare; acc if left out.",
)
@click.option(
    "--told/--untold",
    default=None,
    help="Numbers where the method was told the task, or was not; if left out, told for "
    "task-incremental runs and untold for the others.",
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="Compare each group with this one alone: its label or method.",
)
@click.option(
    "--level",
    default="0.05",
    metavar="P",
    help="Level of the tests, in [0.001, 0.5]; intervals hold the rest. 0.05 if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, in fractions.")
def compare(
    runs: tuple[Path, ...],
    metric: str,
    told: bool | None,
    baseline: str | None,
    level: str,
    as_json: bool,
) -> None:
    """Compare methods over the seeds that they have in common.

    RUNS are folders of runs, their record.json, or folders that hold several runs. Runs that differ
    only in their seed form a group. Each group gets its mean, an interval and its costs; each pair
    of groups gets the mean difference, its interval, an effect size and tests.
    """
    if not runs:
        raise InputError("no runs given; pass their folders, such as: nispa compare runs/*")
    share = _share(level)
    from nispa.reading.compare import compare as compared
    from nispa.reading.groups import find_folders, read_runs

    read, faults = read_runs(find_folders(runs, MAX_RUNS), events=False)
    for fault in faults:
        click.echo(f"nispa: warning: left out: {fault}", err=True)
    found = compared(read, metric, told=told, baseline=baseline, level=share)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, allow_nan=False))
        return
    with needs("reports", "a table on the terminal"):
        from rich.console import Console

    from nispa.cli.tables import show
    from nispa.reading.comparison import render

    console = Console(highlight=False)
    show(render(found, console.width), console)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--level={text} must be a number in [0.001, 0.5]; 0.05 is usual"
        ) from None
