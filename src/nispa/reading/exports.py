"""Export runs to CSV, Parquet and LaTeX.

Records may come from anyone: no text becomes a spreadsheet's formula or a LaTeX command.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nispa.errors import InputError, either, needs
from nispa.files import one_line, shown
from nispa.reading.cells import harmless
from nispa.reading.groups import Group, Run, Value, as_text, group_runs, labels
from nispa.reading.statistics import mean_of_all, spread
from nispa.reading.store import COLUMNS, Row
from nispa.runs.metrics import percent
from nispa.runs.record import Record, read_record

Table = dict[str, list[Value]]

MAX_LONG_ROWS = 5_000_000
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


def wide(runs: Sequence[Row], keys: Sequence[str] = tuple(COLUMNS)) -> Table:
    """A table with a row per run and a column per column or setting in ``keys``."""
    return {key: [run.value(key) for run in runs] for key in keys}


def long(runs: Iterable[Row]) -> tuple[Table, list[str]]:
    """A table with a row per run, task learned and task measured (from 0).

    ``accuracy_told`` and ``accuracy_untold`` are fractions: the method was told the task, or not.
    Entries measured neither way have no row.

    Returns:
        The table, and for each record that can no longer be read what is wrong with it.

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
    """A table as CSV in UTF-8. Unknown values are empty; numbers read back to the same value.

    A text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(key) for key in table])
    writer.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return out.getvalue().encode()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return harmless(value) if isinstance(value, str) else as_text(value)


def as_parquet(table: Table, kinds: Mapping[str, str]) -> bytes:
    """A table as Parquet, typed by ``kinds`` (text, whole, number, share); None becomes null.

    A column without a kind is a setting: its values decide, and mixed types become text.
    """
    with needs("data", "writing Parquet files"):
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

HIGHER_IS_BETTER = ("accuracy", "bwt", "fwt")  # lower is better for every other number
HEADS = {
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
_LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}"}  # at the start of a row they would be options


def escape_latex(text: str) -> str:
    """A text escaped so that LaTeX prints it literally."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def as_latex(runs: Sequence[Row], values: Sequence[str] = ("accuracy", "forgetting")) -> bytes:
    """A table of mean ± sample standard deviation over seeds, for the package booktabs.

    Runs form a row if they differ in nothing but the seed (:func:`nispa.reading.groups.key_of`).

    Args:
        runs: Complete runs.
        values: Columns to average; fractions become per cent, the best mean is bold.

    Raises:
        InputError: There is no run; a column is not numeric; or a row's runs repeat a seed.
    """
    if not runs:
        raise InputError("no complete run is left for the table; see nispa runs")
    for key in values:
        if key not in COLUMNS or COLUMNS[key].kind == "text":
            raise InputError(f"a LaTeX table has means of numbers, not of '{key}'; leave it out")
    blocks: dict[str, list[Group]] = {}
    for group in group_runs([Run(run.folder, read_record(run.location)) for run in runs]):
        title = f"{group.record.scenario.name}, {group.record.incremental}-incremental"
        blocks.setdefault(title, []).append(group)
    heads = ["Method", "Seeds", *(HEADS.get(key) or escape_latex(key) for key in values)]
    lines = ["% Mean and sample standard deviation over seeds; needs \\usepackage{booktabs}."]
    if any(run.value("canonical") == "no" for run in runs):
        lines.append("% Not all of this was measured on the canonical data: see nispa show.")
    lines.append(rf"\begin{{tabular}}{{l{'r' * (1 + len(values))}}}")
    lines += [r"\toprule", " & ".join(heads) + r" \\"]
    for title, groups in sorted(blocks.items()):
        lines.append(r"\midrule")
        if len(blocks) > 1:
            lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{{escape_latex(title)}}} \\")
        lines += _block(groups, runs, values)
    lines += [r"\bottomrule", r"\end{tabular}"]
    return ("\n".join(lines) + "\n").encode()


def _block(groups: Sequence[Group], runs: Sequence[Row], values: Sequence[str]) -> Iterable[str]:
    """The rows of groups that learned the same."""
    names = labels([group.record for group in groups])
    rows = [[runs[place - 1] for place, _ in group.members] for group in groups]
    for name, members in zip(names, rows, strict=True):
        _check_seeds(name, members)
    columns = [[_mean(members, key) for members in rows] for key in values]
    best = [_best(key, column) for key, column in zip(values, columns, strict=True)]
    for index in sorted(range(len(names)), key=names.__getitem__):
        cells = [escape_latex(names[index]), str(len(rows[index]))]
        for column, chosen in zip(columns, best, strict=True):
            cells.append(_mean_and_deviation(*column[index], chosen))
        yield " & ".join(cells) + r" \\"


def _check_seeds(label: str, group: Sequence[Row]) -> None:
    """Refuses runs whose mean would not be one over seeds."""
    seeds: dict[Value, Row] = {}
    for run in group:
        twin = seeds.setdefault(run.value("seed"), run)
        if twin is not run:
            raise InputError(
                f"two runs of {label} have seed {run.value('seed')}: {shown(twin.folder)} and "
                f"{shown(run.folder)}; choose one{either('', ' with --where')}"
            )


Mean = tuple[str, str]  # mean and standard deviation as text


def _mean(group: Sequence[Row], key: str) -> Mean:
    values = [run.value(key) for run in group]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values):
        return "", ""
    show = percent if COLUMNS[key].kind == "share" else _grouped_digits
    if key.endswith("_operations"):
        show = _three_digits
    mean, deviation = mean_of_all(numbers), spread(numbers)
    return "" if mean is None else show(mean), "" if deviation is None else show(deviation)


def _grouped_digits(value: float) -> str:
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _best(key: str, column: Sequence[Mean]) -> str:
    """The best mean as text: means that look equal are equally good."""
    means = [mean for mean, _ in column if mean]
    pick: Callable[..., str] = max if key in HIGHER_IS_BETTER else min
    return pick(means, key=lambda mean: float(mean.replace(",", ""))) if len(means) > 1 else ""


def _mean_and_deviation(mean: str, deviation: str, best: str) -> str:
    if not mean:
        return "--"
    shown_mean = rf"\mathbf{{{_digits(mean)}}}" if mean == best else _digits(mean)
    return f"${shown_mean}$" if not deviation else rf"${shown_mean} \pm {_digits(deviation)}$"


def _digits(text: str) -> str:
    """A number in LaTeX's math mode, with its exponent and thousands separators."""
    base, _, exponent = text.replace(",", "{,}").partition("e")
    return rf"{base} \cdot 10^{{{int(exponent)}}}" if exponent else base
