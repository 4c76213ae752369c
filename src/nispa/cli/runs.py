"""``nispa runs``, ``nispa export`` and ``nispa import``: folders of runs. They need no PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.options import PATH, out_option, seed_option, whole_number
from nispa.errors import InputError, unknown_name

if TYPE_CHECKING:
    from nispa.reading.groups import Value
    from nispa.reading.store import Row

SHOWN = (
    "scenario",
    "method",
    "preset",
    "seed",
    "status",
    "incremental",
    "accuracy",
    "forgetting",
    "parameters",
    "kept_bytes",
    "train_operations",
    "train_s",
    "started",
    "folder",
)
MAX_PROBLEMS = 20

folders_argument = click.argument("folders", nargs=-1, type=PATH, metavar="[FOLDER...]")
where_option = click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only runs that match, such as 'method=ewc*' or 'accuracy>=90%'; may be repeated.",
)
columns_option = click.option(
    "--columns",
    metavar="KEY,KEY...",
    help="Columns or settings, such as seed,method.learning_rate.",
)


@click.command(
    short_help="List runs, filtered and sorted.",
    epilog="\b\nExamples:\n  nispa runs --where 'method=ewc*' --sort -accuracy\n"
    "  nispa runs results/ --where 'method.learning_rate<0.01' --columns seed,accuracy,folder",
)
@folders_argument
@where_option
@click.option("--sort", metavar="KEY", help="Ascending by a column or setting; descending by -KEY.")
@columns_option
@click.option(
    "--limit",
    callback=whole_number(1, 2**31, "[1, 2^31]", "leave it out for all"),
    metavar="N",
    help="Show at most N runs.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with all columns and settings.")
def runs(
    folders: tuple[Path, ...],
    conditions: tuple[str, ...],
    sort: str | None,
    columns: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the runs in each FOLDER and below; in ./runs where none is named.

    Conditions and --columns take every column and every setting in the runs' records.
    """
    from nispa.reading.store import arrange

    found, chosen, keys = _select(folders, conditions, columns)
    if sort is not None and chosen:
        chosen = arrange(chosen, sort)
    shown_runs = chosen[:limit]
    if as_json:
        click.echo(_json(shown_runs, keys if columns else None))
        return
    if shown_runs:
        click.echo("\n".join(_table(shown_runs, keys or SHOWN)))
    _print_problems(shown_runs)
    if len(shown_runs) < len(found) or not found:
        click.echo(f"{len(shown_runs):,} of {len(found):,} runs")


def _select(
    folders: Sequence[Path], conditions: Sequence[str], columns: str | None
) -> tuple[list[Row], list[Row], list[str]]:
    """All runs, those that meet the conditions, and the columns asked for, all checked."""
    from nispa.reading.store import check_keys, choose, find_runs

    if not folders and not Path("runs").is_dir():
        raise InputError(
            "there is no folder ./runs here; name the folder that holds your runs, or make a run "
            "with: nispa run split-digits"
        )
    found = find_runs(folders or [Path("runs")])
    keys = [key.strip() for key in (columns or "").split(",") if key.strip()]
    if columns is not None and not keys:
        raise InputError(f"--columns={columns} names no column; leave it out for the usual ones")
    if found:
        check_keys(found, keys)
    return found, choose(found, conditions), list(dict.fromkeys(keys))


def _json(runs: Sequence[Row], keys: Sequence[str] | None) -> str:
    from nispa.reading.store import COLUMNS

    lines = []
    for run in runs:
        values: dict[str, Any] = {key: run.value(key) for key in keys or COLUMNS}
        if keys is None:
            values["settings"] = dict(run.settings)
        lines.append(json.dumps(values))
    return "[\n" + ",\n".join(lines) + "\n]" if lines else "[]"


def _table(runs: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """A line per run, numbers to the right."""
    columns = []
    for key in keys:
        values = [run.value(key) for run in runs]
        cells = [key, *(_cell(key, value) for value in values)]
        width = max(map(len, cells))
        numbers = any(isinstance(value, (int, float)) for value in values)
        place: Callable[[str, int], str] = str.rjust if numbers else str.ljust
        columns.append([place(cell, width) for cell in cells])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _cell(key: str, value: Value) -> str:
    from nispa.reading.groups import as_text
    from nispa.reading.store import COLUMNS
    from nispa.runs.metrics import percent

    if value is None:
        return "-"
    kind = COLUMNS[key].kind if key in COLUMNS else None
    if kind == "share" and isinstance(value, float):
        return f"{percent(value, signed=key in ('bwt', 'fwt'))}%"
    if kind == "number" and key.endswith("operations"):
        return f"{value:.3g}"
    if kind == "number":
        return f"{value:,.1f}"
    return f"{value:,}" if kind == "whole" and key != "seed" else as_text(value)


def _print_problems(runs: Sequence[Row]) -> None:
    problems = [run for run in runs if run.value("problem") is not None]
    for run in problems[:MAX_PROBLEMS]:
        click.echo(f"unreadable: {run.value('problem')}")
    if len(problems) > MAX_PROBLEMS:
        click.echo(f"... and {len(problems) - MAX_PROBLEMS:,} more: --where status=unreadable")


@click.command(
    short_help="Write runs to a CSV, Parquet or LaTeX file.",
    epilog="\b\nExamples:\n  nispa export --to runs.csv\n"
    "  nispa export results/ --to table.tex --where 'scenario=efmnist'",
)
@folders_argument
@click.option(
    "--to",
    required=True,
    type=PATH,
    metavar="FILE",
    help="Ends in .csv, .parquet or .tex; an older file of that name is replaced.",
)
@where_option
@columns_option
# Rows are by all settings that differ; command lines from before may still name some.
@click.option("--by", multiple=True, hidden=True, expose_value=False)
@click.option(
    "--long",
    "is_long",
    is_flag=True,
    help="With .csv and .parquet: a row per run, task learned and task measured.",
)
def export(
    folders: tuple[Path, ...],
    to: Path,
    conditions: tuple[str, ...],
    columns: str | None,
    is_long: bool,
) -> None:
    """Write the runs in each FOLDER (./runs where none is named) to a file.

    CSV and Parquet have a row per run. LaTeX has mean and standard deviation over seeds of
    complete runs, a row per method and settings; --columns says of which numbers.
    """
    from nispa.files import shown, write_atomic

    ending = to.suffix.lower()
    if ending not in (".csv", ".parquet", ".tex"):
        raise InputError(f"--to {shown(to)} has no known ending; use .csv, .parquet or .tex")
    if is_long and (ending == ".tex" or columns):
        raise InputError("--long goes with .csv and .parquet and without --columns; leave it out")
    found, chosen, keys = _select(folders, conditions, columns)
    if not chosen:
        raise InputError(f"none of {len(found):,} runs is left to export; see nispa runs")
    if ending == ".tex":
        data, count = _latex(chosen, keys)
    else:
        data, count = _rows(chosen, keys, is_long, ending)
    write_atomic(to, data)
    click.echo(f"{count} to {shown(to)}")


def _latex(chosen: Sequence[Row], keys: Sequence[str]) -> tuple[bytes, str]:
    from nispa.reading.exports import as_latex

    complete = [run for run in chosen if run.value("status") == "complete"]
    data = as_latex(complete, keys or ("accuracy", "forgetting"))
    if left_out := len(chosen) - len(complete):
        what = (
            "run that is not complete was" if left_out == 1 else "runs that are not complete were"
        )
        click.echo(f"{left_out:,} {what} left out", err=True)
    if any(run.value("canonical") == "no" for run in complete):
        click.echo("not all of it was measured on canonical data; see column canonical", err=True)
    return data, f"{len(complete):,} runs"


def _rows(
    chosen: Sequence[Row], keys: Sequence[str], is_long: bool, ending: str
) -> tuple[bytes, str]:
    from nispa.reading.exports import LONG, as_csv, as_parquet, long, wide
    from nispa.reading.store import COLUMNS

    kinds: dict[str, str] = {key: column.kind for key, column in COLUMNS.items()}
    if is_long:
        table, missed = long(chosen)
        for problem in missed:
            click.echo(f"left out: {problem}", err=True)
        kinds = LONG
    else:
        table = wide(chosen, keys or list(COLUMNS))
    count = f"{len(next(iter(table.values()))):,} rows"
    return (as_csv(table) if ending == ".csv" else as_parquet(table, kinds)), count


@click.command(
    name="import",
    short_help="Make a run of another tool's accuracy matrix.",
    epilog="\b\nExample:\n  nispa import matrix.csv --name avalanche --method ewc --seed 0 "
    "--scenario split-mnist",
)
@click.argument("file", type=PATH, metavar="FILE")
@click.option("--name", required=True, metavar="NAME", help="The tool, such as avalanche.")
@click.option("--method", required=True, metavar="NAME", help="Listed as NAME:METHOD.")
@seed_option("The seed that it ran with.", default=None)
@click.option(
    "--rows",
    default="after",
    show_default=True,
    metavar="after|task",
    help="after: row i was measured after task i; task: row j holds task j.",
)
@click.option("--array", metavar="NAME", help="Which array of an .npz file.")
@click.option(
    "--scenario", default="imported", metavar="NAME", show_default=True, help="Name of its tasks."
)
@click.option(
    "--incremental",
    default="task",
    show_default=True,
    metavar="task|class|domain",
    help="What a task adds; with class and domain the method was not told the task.",
)
@out_option("New folder for the record; by default one in ./runs.")
def import_matrix(
    *,
    file: Path,
    name: str,
    method: str,
    seed: int,
    rows: str,
    array: str | None,
    scenario: str,
    incremental: str,
    out: Path | None,
) -> None:
    """Make a run of the accuracy matrix in FILE: .csv, .npy or .npz.

    Missing entries are empty or NaN. Values above 1.5 mean per cent.
    """
    from nispa.files import shown
    from nispa.reading.imports import imported_record, read_matrix
    from nispa.runs.folder import RunFolder, fresh_name

    for option, text in (("name", name), ("method", method), ("scenario", scenario)):
        if not text.strip() or len(text) > 100 or not text.isprintable():
            raise InputError(f"--{option}={text} must be a text of 1 to 100 letters on one line")
    if incremental not in ("task", "class", "domain"):
        raise unknown_name("--incremental", incremental, ("task", "class", "domain"))
    matrix = read_matrix(file, rows=rows, array=array)
    record = imported_record(
        matrix,
        file=file.name,
        tool=name,
        method=method,
        seed=seed,
        scenario=scenario,
        incremental=incremental,
        rows=rows,
    )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{scenario}-{name}-{method}-s{seed}")
    folder = out or fresh_name("runs", stem)
    RunFolder.create(folder, record)
    for remark in matrix.remarks:
        click.echo(remark)
    click.echo(f"{len(record.tasks)} tasks, {record.status}: {shown(folder)}")
