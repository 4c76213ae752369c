"""Runs as files for other programs (CSV, Parquet, LaTeX), and matrices of other tools as runs.

Everything written or read here may come from somebody else's records: a text never becomes a
formula of a spreadsheet nor a command of LaTeX, and nothing in a matrix file is executed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import statistics
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nispa.errors import FormatError, InputError
from nispa.files import one_line, read_limited, shown, wording
from nispa.metrics import percent
from nispa.results import (
    MAX_TASKS,
    Environment,
    Parameters,
    Record,
    ScenarioEntry,
    TaskEntry,
    as_rows,
    measured,
    now,
    read_record,
)
from nispa.store import COLUMNS, IMPORTED, Run, Value, as_text

Table = dict[str, list[Value]]
Matrix = NDArray[np.float64]

MAX_LONG_ROWS = 5_000_000
MAX_MATRIX_BYTES = 32 * 2**20
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
                "choose fewer runs with --where"
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
    "kept_bytes": "Kept (bytes)",
    "train_s": "Training (s)",
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
                    f"--by {key}, or choose with --where"
                )
        if twin is not run:
            raise InputError(
                f"two runs of {label} have seed {run.value('seed')}: {shown(twin.folder)} and "
                f"{shown(run.folder)}; choose one with --where"
            )


Mean = tuple[str, str]  # mean and spread as they are shown


def _mean(group: Sequence[Run], key: str) -> Mean:
    values = [run.value(key) for run in group]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values):
        return "", ""
    show = percent if COLUMNS[key].kind == "share" else _grouped_digits
    spread = show(statistics.stdev(numbers)) if len(numbers) > 1 else ""
    return show(statistics.fmean(numbers)), spread


def _grouped_digits(value: float) -> str:
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


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


# --- Matrices of other tools ---------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """An accuracy matrix as read, and what had to be assumed.

    Attributes:
        matrix: ``(rows, tasks)`` fractions, ``[i][j]`` on task j after task i, NaN where missing.
        names: A name per task; empty where the file has none.
        percent: Whether the file held per cent.
        sha256: Of the file, 64 hexadecimal digits.
        remarks: What a reader should know, a sentence each.
    """

    matrix: Matrix
    names: tuple[str, ...]
    percent: bool
    sha256: str
    remarks: tuple[str, ...]


def read_matrix(path: str | Path, *, rows: str = "after", array: str | None = None) -> Imported:
    """An accuracy matrix from a ``.csv``, ``.npy`` or ``.npz`` file.

    Args:
        path: The file; at most 32 MiB.
        rows: ``"after"`` where row i was measured after task i, ``"task"`` where row j is task j.
        array: Which array of an ``.npz`` file.

    Raises:
        InputError: There is no such file, or ``rows`` is unknown.
        FormatError: It is not a matrix of accuracies, or contradicts ``rows``.
    """
    path = Path(path)
    name = shown(path)
    if rows not in ("after", "task"):
        raise InputError(
            f"--rows {one_line(rows)} must be after (row i was measured after task i) or task "
            "(row j holds task j)"
        )
    data = read_limited(path, MAX_MATRIX_BYTES)
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    if path.suffix.lower() == ".csv":
        values, names = _from_csv(data, name)
    elif path.suffix.lower() in (".npy", ".npz"):
        values = _from_numpy(data, name, array)
    else:
        raise FormatError(f"{name} has an unknown ending; give a .csv, .npy or .npz file")
    if rows == "task":
        values, names = values.T, names[::-1]
    given, tasks = values.shape
    if not 1 <= tasks <= MAX_TASKS or not 1 <= given <= tasks:
        raise FormatError(
            f"{name} has {given} rows after a task and {tasks} tasks with --rows {rows}; there "
            f"must be 1 to {MAX_TASKS:,} tasks and no more rows than tasks: see --rows"
        )
    fractions, hundred, remark = _as_fractions(values, name)
    remarks = [remark, *_orientation(fractions, name, rows)]
    return Imported(fractions, names[0], hundred, hashlib.sha256(data).hexdigest(), tuple(remarks))


def _as_fractions(values: Matrix, name: str) -> tuple[Matrix, bool, str]:
    there = values[~np.isnan(values)]
    if not there.size:
        raise FormatError(f"{name} holds no accuracy; every entry is missing")
    low, high = float(there.min()), float(there.max())
    most = 100.0 if high > 1.5 else 1.0
    if low < 0 or high > most:
        wrong = low if low < 0 else high
        raise FormatError(
            f"{name} holds {wrong:g}, which is no accuracy: fractions lie in [0, 1], per cent in "
            "[0, 100], and values above 1.5 are taken to mean per cent"
        )
    unit = "per cent" if most == 100 else "fractions"
    return values / most, most == 100, f"Values up to {high:g} were taken for {unit}."


def _orientation(matrix: Matrix, name: str, rows: str) -> list[str]:
    """Remarks on a matrix that may lie the wrong way round; refuses one that must."""
    other = "task" if rows == "after" else "after"
    below, above = np.tril_indices_from(matrix, -1), np.triu_indices_from(matrix, 1)
    early, late = matrix[above], matrix[below]
    if not late.size:
        return []
    if np.isnan(late).all() and not np.isnan(early).all():
        raise FormatError(
            f"{name} has nothing measured after later tasks, only before a task was learned, so "
            f"--rows {rows} contradicts it; pass --rows {other}"
        )
    if not np.nan_to_num(late).any() and np.nan_to_num(early).any():
        return [
            "All accuracies after later tasks are 0, and those before a task was learned are not: "
            f"if the matrix lies the other way round, pass --rows {other}."
        ]
    if early.size and not np.isnan(early).any() and not early.any():
        return [
            "The zeros before a task was learned were kept as measured; leave them empty in the "
            "file if they are not."
        ]
    return []


MISSING = ("", "nan", "none", "null", "na", "n/a", "-")


def _from_csv(data: bytes, name: str) -> tuple[Matrix, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The numbers of a CSV file, and the names over its columns and before its rows."""
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        mark = max(",;\t", key=first.count)
        lines: list[list[str]] = []
        for line in csv.reader(io.StringIO(text), delimiter=mark):
            if max(len(line), len(lines)) > MAX_TASKS + 1:
                raise FormatError(f"{name} is too large; there must be 1 to {MAX_TASKS:,} tasks")
            if any(line):
                lines.append([cell.strip() for cell in line])
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{name} is not a CSV file in UTF-8 ({wording(error)})") from None
    width = max(map(len, lines), default=0)
    lines = [line + [""] * (width - len(line)) for line in lines]
    head = lines.pop(0) if lines and _is_head(lines[0]) else []
    if not lines:
        raise FormatError(f"{name} holds no numbers")
    side = [line[0] for line in lines]
    if (head and (head[0] == "" or _counts(side))) or not any(map(_is_number, side)):
        lines, head = [line[1:] for line in lines], head[1:]
    else:
        side = []
    for line in lines:
        for cell in line:
            if not _is_number(cell):
                raise FormatError(f"{name} holds '{one_line(cell, 40)}' where a number belongs")
    values = [
        [float("nan") if c.casefold() in MISSING else float(c) for c in line] for line in lines
    ]
    return np.array(values, dtype=np.float64).reshape(len(lines), -1), (_names(head), _names(side))


def _is_head(row: Sequence[str]) -> bool:
    """Whether a first row names columns: texts alone, or a count beside something else.

    One number among texts makes it a row of data, so that a slip of the pen is never passed over.
    """
    if _counts(row[1:]):
        return row[0] == "" or not _is_number(row[0])
    return not any(cell and _is_number(cell) for cell in row) and any(row)


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number or says that one is missing."""
    return cell.casefold() in MISSING or bool(
        re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.ASCII | re.IGNORECASE)
    )


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells number rows or columns, from 0 or from 1."""
    return bool(cells) and any(
        list(cells) == [str(start + at) for at in range(len(cells))] for start in (0, 1)
    )


def _names(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(cell, 100) for cell in cells)


_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


def _from_numpy(data: bytes, name: str, array: str | None) -> Matrix:
    try:
        if data[:4] == b"PK\x03\x04":
            data = _member(data, name, array)
        return _array(data, name)
    except FormatError:
        raise
    except _DAMAGED as error:
        raise FormatError(f"{name} is not a readable NumPy file ({wording(error)})") from None


def _member(data: bytes, name: str, array: str | None) -> bytes:
    """The bytes of the one array that is meant, unpacked up to a bound."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if array is None and len(members) == 1:
            array = next(iter(members))
        if array not in members:
            found = one_line(", ".join(sorted(members))) or "none"
            raise FormatError(f"{name} holds the arrays {found}; choose one with --array NAME")
        if members[array].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"{name} is compressed in a way that NumPy does not write")
        with archive.open(members[array]) as file:
            content = file.read(MAX_MATRIX_BYTES + 1)
    if len(content) > MAX_MATRIX_BYTES:
        raise FormatError(f"{name} is larger than {MAX_MATRIX_BYTES:,} bytes when unpacked")
    return content


def _array(data: bytes, name: str) -> Matrix:
    """A matrix from the bytes of an ``.npy`` file; its header is checked before memory is taken."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise FormatError(f"{name} is in version {version[0]} of NumPy's format; save it anew")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "iuf" or len(shape) != 2 or max(shape) > MAX_TASKS:
        raise FormatError(
            f"{name} holds an array of shape {shape} and type {one_line(str(dtype), 40)}; there "
            f"must be a matrix of numbers with at most {MAX_TASKS:,} tasks"
        )
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False), dtype=np.float64)


def imported_record(
    given: Imported,
    *,
    file: str,
    tool: str,
    method: str,
    seed: int,
    scenario: str = IMPORTED,
    incremental: str = "task",
    rows: str = "after",
) -> Record:
    """A record for another tool's matrix, so that it stands in the same tables.

    The method is called ``TOOL:METHOD``, the environment says "imported", and notes say what is
    not known. Counts that the format demands and nobody knows (samples, parameters, threads)
    are 0, and the times are those of the import; a note says so.
    """
    from nispa import __version__

    tasks = given.matrix.shape[1]
    names = (
        given.names if len(given.names) == tasks else tuple(f"task {n + 1}" for n in range(tasks))
    )
    untold = incremental != "task"
    matrix = as_rows(given.matrix)
    when = now()
    whole = len(matrix) == tasks and None not in matrix[-1]
    notes = [
        f"Imported from {one_line(file)} ({one_line(tool)}, {one_line(method)}), sha256 "
        f"{given.sha256}; nispa measured nothing of it.",
        "Not known, and 0 here: samples, parameters, threads. The times are those of the import.",
        *given.remarks,
    ]
    return Record(
        version=__version__,
        status="complete" if whole else "interrupted",
        started=when,
        finished=when,
        scenario=ScenarioEntry(name=scenario),
        data=(),
        method=f"{tool}:{method}",
        seed=seed,
        incremental=incremental,  # type: ignore[arg-type]  # pydantic checks it
        config={
            IMPORTED: {
                "file": one_line(file),
                "sha256": given.sha256,
                "rows": rows,
                "values": "per cent" if given.percent else "fractions",
            }
        },
        tasks=tuple(
            TaskEntry(name=name or f"task {n + 1}", classes=(), train=0, validation=0, test=0)
            for n, name in enumerate(names)
        ),
        accuracy_matrix=() if untold else matrix,
        accuracy_matrix_task_agnostic=matrix if untold else None,
        metrics=measured(() if untold else matrix),
        metrics_task_agnostic=measured(matrix) if untold else None,
        parameters=Parameters(live=0, total=0),
        environment=Environment(
            threads=0,
            **dict.fromkeys(
                ("nispa", "python", "torch", "numpy", "cpu", "device", "platform", "kernels"),
                IMPORTED,
            ),
        ),
        notes=tuple(notes),
    )
