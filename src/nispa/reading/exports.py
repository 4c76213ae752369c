"""Runs as files for other programs: CSV, Parquet, LaTeX.

Records may be somebody else's: a text never becomes a formula of a spreadsheet nor a command of
LaTeX.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from nispa.errors import InputError, either
from nispa.files import one_line, shown
from nispa.reading.store import COLUMNS, IMPORTED, Run, Value, as_text
from nispa.runs.metrics import percent
from nispa.runs.record import (
    Record,
    read_record,
)

Table = dict[str, list[Value]]

MAX_LONG_ROWS = 5_000_000
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
LONG: dict[str, str] = {
    "folder": "text",
    "scenario": "text",
    "method": "text",
    "preset": "text",
    "seed": "whole",
    "incremental": "text",
    "task_learned": "whole",
    "name_learned": "text",
    "task_measured": "whole",
    "name_measured": "text",
    "accuracy_told": "share",
    "accuracy_untold": "share",
}


# --- Tables --------------------------------------------------------------------------------------


def wide(runs: Sequence[Run], keys: Sequence[str] = tuple(COLUMNS)) -> Table:
    """One row per run with the columns or settings ``keys``."""
    return {key: [run.value(key) for run in runs] for key in keys}


def long(runs: Iterable[Run]) -> tuple[Table, list[str]]:
    """One row per run, task learned and task measured (from 0), and which runs had to be left out.

    ``accuracy_told`` and ``accuracy_untold`` are fractions: the method was told the task, or not.
    Entries measured neither way have no row.

    Raises:
        InputError: The table would have more than 5,000,000 rows.
    """
    table: Table = {key: [] for key in LONG}
    missed: list[str] = []
    for run in runs:
        try:
            record = read_record(run.location)
        except InputError as error:
            missed.append(str(error))
            continue
        head = [run.value(key) for key in list(LONG)[:6]]
        for row in _entries(record):
            for column, value in zip(table.values(), [*head, *row], strict=True):
                column.append(value)
        if len(table["folder"]) > MAX_LONG_ROWS:
            raise InputError(
                f"the long form would have more than {MAX_LONG_ROWS:,} rows; "
                f"choose fewer runs{either('', ' with --where')}"
            )
    return table, missed


def _entries(record: Record) -> Iterable[list[Value]]:
    told, untold = record.accuracy_matrix, record.accuracy_matrix_task_agnostic or ()
    names = [one_line(task.name) for task in record.tasks]
    for learned in range(max(len(told), len(untold))):
        for task, name in enumerate(names):
            both = [rows[learned][task] if learned < len(rows) else None for rows in (told, untold)]
            if both != [None, None]:
                yield [learned, names[learned], task, name, *both]


def as_csv(table: Table) -> bytes:
    """A table as CSV in UTF-8: what is not known is empty, numbers read back to the same value.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(key) for key in table])
    writer.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return out.getvalue().encode()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value.lstrip().startswith(FORMULA):
        return f"'{value}"
    return as_text(value)


def as_parquet(table: Table, kinds: Mapping[str, str]) -> bytes:
    """A table as Parquet, typed by ``kinds`` (text, whole, number, share; None is null).

    A column that has no kind is a setting: typed by its values, and text where they differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}
    types |= {"share": pa.float64(), "truth": pa.bool_()}
    columns = {}
    for key, values in table.items():
        kind = kinds.get(key) or _kind(values)
        cells: list[Any] = values
        if kind == "text":
            cells = [None if value is None else as_text(value) for value in values]
        columns[key] = pa.array(cells, types[kind])
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _kind(values: Iterable[Value]) -> str:
    found = {type(value) for value in values if value is not None}
    if found == {bool}:
        return "truth"
    if found == {int}:
        return "whole"
    return "number" if found and found <= {int, float} else "text"


# --- LaTeX ---------------------------------------------------------------------------------------

RISING = ("accuracy", "bwt", "fwt")  # of every other number the least is the best
HEADS = {
    "method": "Method",
    "preset": "Preset",
    "accuracy": r"Accuracy (\%)",
    "forgetting": r"Forgetting (\%)",
    "bwt": r"Backward transfer (\%)",
    "fwt": r"Forward transfer (\%)",
    "parameters": "Live parameters",
    "model_bytes": "Model (bytes)",
    "kept_bytes": "Kept (bytes)",
    "peak_bytes": "Peak memory (bytes)",
    "train_operations": "Training (FLOP)",
    "inference_operations": "Inference (FLOP)",
    "train_s": "Training (s)",
    "train_cpu_s": "Training (CPU s)",
    "eval_s": "Evaluation (s)",
    "eval_cpu_s": "Evaluation (CPU s)",
}
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{\char34}"}
_LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}"}  # after a line's end they would be read as options


def escape_latex(text: str) -> str:
    """A text that LaTeX prints as it is; nothing in it is a command."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def as_latex(
    runs: Sequence[Run],
    values: Sequence[str] = ("accuracy", "forgetting"),
    by: Sequence[str] = (),
) -> bytes:
    """A table of mean ± sample standard deviation over seeds, for the package booktabs.

    A row per method and preset, and per value of the settings ``by``; a block per scenario, with
    the best mean of each column in bold. Fractions become per cent. Only complete runs may come.

    Raises:
        InputError: There is no run; a value is no number; or runs of one row have the same seed or
            differ in a setting, so that their mean would not be one over seeds.
    """
    if not runs:
        raise InputError("no complete run is left for the table; see nispa runs")
    for key in values:
        if key not in COLUMNS or COLUMNS[key].kind == "text":
            raise InputError(f"a LaTeX table has means of numbers, not of '{key}'; leave it out")
    presets = any(run.summary.preset is not None for run in runs)
    keys = ["method", *(["preset"] if presets else []), *by]
    blocks = _grouped(runs, ("scenario", "incremental"))
    width = len(keys) + 1 + len(values)
    heads = [HEADS.get(key) or escape_latex(key) for key in (*keys, "Seeds", *values)]
    lines = ["% Mean and sample standard deviation over seeds; needs \\usepackage{booktabs}."]
    if any(run.summary.canonical == "no" for run in runs):
        lines.append("% Not all of this was measured on the canonical data: see nispa show.")
    lines.append(rf"\begin{{tabular}}{{{'l' * len(keys)}{'r' * (1 + len(values))}}}")
    lines += [r"\toprule", " & ".join(heads) + r" \\"]
    for (scenario, incremental), block in blocks:
        lines.append(r"\midrule")
        if len(blocks) > 1:
            title = escape_latex(f"{as_text(scenario)}, {as_text(incremental)}-incremental")
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{{title}}} \\")
        lines += _block(block, keys, values)
    lines += [r"\bottomrule", r"\end{tabular}"]
    return ("\n".join(lines) + "\n").encode()


def _grouped(runs: Iterable[Run], keys: Sequence[str]) -> list[tuple[tuple[Value, ...], list[Run]]]:
    def group(run: Run) -> tuple[Value, ...]:
        return tuple(run.value(key) for key in keys)

    def place(run: Run) -> list[tuple[bool, bool, Any]]:
        values = group(run)
        return [(v is not None, isinstance(v, str), 0 if v is None else v) for v in values]

    return [(key, list(part)) for key, part in groupby(sorted(runs, key=place), group)]


def _block(runs: Sequence[Run], keys: Sequence[str], values: Sequence[str]) -> Iterable[str]:
    groups = _grouped(runs, keys)
    for names, group in groups:
        _only_seeds_differ(names, group, keys)
    columns = [[_mean(group, key) for _, group in groups] for key in values]
    best = [_best(key, column) for key, column in zip(values, columns, strict=True)]
    for index, (names, group) in enumerate(groups):
        cells = ["--" if name is None else escape_latex(as_text(name)) for name in names]
        cells.append(str(len(group)))
        for column, chosen in zip(columns, best, strict=True):
            cells.append(_mean_and_spread(*column[index], chosen))
        yield " & ".join(cells) + r" \\"


def _only_seeds_differ(names: Sequence[Value], group: Sequence[Run], keys: Sequence[str]) -> None:
    """Refuses a group whose mean would be over something else than seeds."""
    label = ", ".join(as_text(name) for name in names if name is not None)
    first = group[0]
    seeds: dict[Value, Run] = {}
    for run in group:
        twin = seeds.setdefault(run.value("seed"), run)
        for key in sorted({*first.settings, *run.settings}):
            ours, theirs = first.value(key), run.value(key)
            if ours != theirs and not key.startswith(f"{IMPORTED}.") and key not in keys:
                raise InputError(
                    f"runs of {label} differ in {key} ({as_text(ours)} in {shown(first.folder)}, "
                    f"{as_text(theirs)} in {shown(run.folder)}); give it a row each with "
                    + either(f"by=[{key!r}], or choose", f"--by {key}, or choose with --where")
                )
        if twin is not run:
            raise InputError(
                f"two runs of {label} have seed {run.value('seed')}: {shown(twin.folder)} and "
                f"{shown(run.folder)}; choose one{either('', ' with --where')}"
            )


Mean = tuple[str, str]  # mean and spread as they are shown


def _mean(group: Sequence[Run], key: str) -> Mean:
    values = [run.value(key) for run in group]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values):
        return "", ""
    show = percent if COLUMNS[key].kind == "share" else _grouped_digits
    if key.endswith("_operations"):
        show = _three_digits
    spread = show(statistics.stdev(numbers)) if len(numbers) > 1 else ""
    return show(statistics.fmean(numbers)), spread


def _grouped_digits(value: float) -> str:
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _best(key: str, column: Sequence[Mean]) -> str:
    """The best mean as it is shown: equal texts are equally good."""
    means = [mean for mean, _ in column if mean]
    pick: Callable[..., str] = max if key in RISING else min
    return pick(means, key=lambda mean: float(mean.replace(",", ""))) if len(means) > 1 else ""


def _mean_and_spread(mean: str, spread: str, best: str) -> str:
    if not mean:
        return "--"
    shown_mean = rf"\mathbf{{{_digits(mean)}}}" if mean == best else _digits(mean)
    return f"${shown_mean}$" if not spread else rf"${shown_mean} \pm {_digits(spread)}$"


def _digits(text: str) -> str:
    """A number in LaTeX's mathematics: ``1e-05`` and the commas of thousands."""
    base, _, exponent = text.replace(",", "{,}").partition("e")
    return rf"{base} \cdot 10^{{{int(exponent)}}}" if exponent else base
