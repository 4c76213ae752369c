"""Import accuracy matrices of other tools as runs.

Nothing in a file is executed: CSV is text, and NumPy arrays are read without pickle.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nispa.errors import FormatError, InputError, either
from nispa.files import one_line, read_limited, shown, wording
from nispa.reading.cells import original
from nispa.reading.groups import IMPORTED
from nispa.runs.record import (
    MAX_TASKS,
    Environment,
    Record,
    ScenarioEntry,
    TaskEntry,
    as_rows,
    measured,
)

Matrix = NDArray[np.float64]

MAX_MATRIX_BYTES = 32 * 2**20
MAX_LINES = 4 * (MAX_TASKS + 1)  # empty lines included
MAX_CELL = 400  # characters; numbers have a tenth, but names of tasks may be long


@dataclass(frozen=True)
class Imported:
    """An accuracy matrix as read, and the assumptions made.

    Attributes:
        matrix: ``(rows, tasks)`` fractions, ``[i][j]`` on task j after task i; NaN if missing.
        names: A name per task; empty if the file has none.
        percent: Whether the file held per cent.
        sha256: Hash of the file, 64 hexadecimal digits.
        remarks: Assumptions and doubts, a sentence each.
    """

    matrix: Matrix
    names: tuple[str, ...]
    percent: bool
    sha256: str
    remarks: tuple[str, ...]


def read_matrix(path: str | Path, *, rows: str = "after", array: str | None = None) -> Imported:
    """Reads an accuracy matrix from a ``.csv``, ``.npy`` or ``.npz`` file.

    Args:
        path: The file; at most 32 MiB.
        rows: ``"after"`` if row i was measured after task i, ``"task"`` if row j is task j.
        array: Name of the array in an ``.npz`` file.

    Raises:
        InputError: There is no such file, or ``rows`` is unknown.
        FormatError: The file holds no matrix of accuracies, or contradicts ``rows``.
    """
    path = Path(path)
    name = shown(path)
    if rows not in ("after", "task"):
        raise InputError(
            f"{_rows(rows)} must be after (row i was measured after task i) or task "
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
            f"{name} has {given} rows after a task and {tasks} tasks with {_rows(rows)}; there "
            f"must be 1 to {MAX_TASKS:,} tasks and no more rows than tasks: see "
            f"{either('rows', '--rows')}"
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


def _rows(rows: str) -> str:
    """The argument ``rows`` as the user gave it."""
    rows = one_line(rows)
    return either(f"rows={rows!r}", f"--rows {rows}")


def _orientation(matrix: Matrix, name: str, rows: str) -> list[str]:
    """Remarks on a matrix that may be transposed; refuses one that must be."""
    other = "task" if rows == "after" else "after"
    below, above = np.tril_indices_from(matrix, -1), np.triu_indices_from(matrix, 1)
    early, late = matrix[above], matrix[below]
    if not late.size:
        return []
    if np.isnan(late).all() and not np.isnan(early).all():
        raise FormatError(
            f"{name} has nothing measured after later tasks, only before a task was learned, so "
            f"{_rows(rows)} contradicts it; pass {_rows(other)}"
        )
    if not np.nan_to_num(late).any() and np.nan_to_num(early).any():
        return [
            "All accuracies after later tasks are 0, and those before a task was learned are not: "
            f"if the matrix is transposed, pass {_rows(other)}."
        ]
    if early.size and not np.isnan(early).any() and not early.any():
        return [
            "The zeros before a task was learned were kept as measured; leave them empty in the "
            "file if they are not."
        ]
    return []


_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
MISSING = ("", "nan", "none", "null", "na", "n/a", "-")


def _from_csv(data: bytes, name: str) -> tuple[Matrix, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The numbers of a CSV file, and the names of its columns and rows."""
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        mark = max(",;\t", key=first.count)
        lines: list[list[str]] = []
        for number, line in enumerate(csv.reader(io.StringIO(text), delimiter=mark)):
            if max(len(line), len(lines)) > MAX_TASKS + 1 or number > MAX_LINES:
                raise FormatError(f"{name} is too large; there must be 1 to {MAX_TASKS:,} tasks")
            if max(map(len, line), default=0) > MAX_CELL:
                long = one_line(max(line, key=len), 40)
                raise FormatError(
                    f"{name} holds '{long}' of more than {MAX_CELL} letters; shorten it"
                )
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
    values = [[_number(cell, name) for cell in line] for line in lines]
    return np.array(values, dtype=np.float64).reshape(len(lines), -1), (_names(head), _names(side))


def _is_head(row: Sequence[str]) -> bool:
    """Whether a first row names columns: only texts, or numbers that count up.

    Other numbers among texts make it a row of data, so that a typing error is never ignored.
    """
    if _counts(row[1:]):
        return row[0] == "" or not _is_number(row[0])
    return not any(cell and _is_number(cell) for cell in row) and any(row)


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number or marks a missing one."""
    return cell.casefold() in MISSING or _NUMBER.fullmatch(cell) is not None


def _number(cell: str, name: str) -> float:
    if _NUMBER.fullmatch(cell) is not None:
        return float(cell)
    if cell.casefold() not in MISSING:
        raise FormatError(f"{name} holds '{one_line(cell, 40)}' where a number belongs")
    return float("nan")


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells count up from 0 or from 1."""
    return bool(cells) and any(
        list(cells) == [str(start + at) for at in range(len(cells))] for start in (0, 1)
    )


def _names(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(original(cell), 100) for cell in cells)


_MAX_HEADER_BYTES = 1_000  # a matrix needs a tenth; deep nesting could overflow the stack


def _from_numpy(data: bytes, name: str, array: str | None) -> Matrix:
    try:
        if data[:4] == b"PK\x03\x04":
            data = _member(data, name, array)
        values = np.lib.format.read_array(
            io.BytesIO(data), allow_pickle=False, max_header_size=_MAX_HEADER_BYTES
        )
    except FormatError:
        raise
    except Exception as error:  # noqa: BLE001 - NumPy parses headers as Python, which raises anything
        raise FormatError(f"{name} is not a readable NumPy file ({wording(error)})") from None
    if values.dtype.kind not in "iuf" or values.ndim != 2 or max(values.shape) > MAX_TASKS:
        raise FormatError(
            f"{name} holds an array of shape {values.shape} and type {values.dtype}; there must "
            f"be a matrix of numbers with at most {MAX_TASKS:,} tasks"
        )
    return np.asarray(values, dtype=np.float64)


def _member(data: bytes, name: str, array: str | None) -> bytes:
    """The bytes of the chosen array, unpacked up to a bound."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if array is None and len(members) == 1:
            array = next(iter(members))
        if array not in members:
            found = one_line(", ".join(sorted(members))) or "none"
            fix = either("array=", "--array NAME")
            raise FormatError(f"{name} holds the arrays {found}; choose one with {fix}")
        if members[array].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"{name} is compressed in a way that NumPy does not write")
        with archive.open(members[array]) as file:
            content = file.read(MAX_MATRIX_BYTES + 1)
    if len(content) > MAX_MATRIX_BYTES:
        raise FormatError(f"{name} is larger than {MAX_MATRIX_BYTES:,} bytes when unpacked")
    return content


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
    """A record of another tool's matrix, for the same tables as nispa's own runs.

    The method is called ``TOOL:METHOD``, the environment is "imported", and a note names the
    source. Samples, parameters, costs, threads and times are unknown, so None.
    """
    from nispa import __version__

    tasks = given.matrix.shape[1]
    names = given.names if len(given.names) == tasks else ("",) * tasks
    untold = incremental != "task"
    matrix = as_rows(given.matrix)
    complete = len(matrix) == tasks and None not in matrix[-1]
    notes = [
        f"Imported from {one_line(file)} ({one_line(tool)}, {one_line(method)}), sha256 "
        f"{given.sha256}; nispa measured nothing of it.",
        *given.remarks,
    ]
    return Record(
        version=__version__,
        status="complete" if complete else "interrupted",
        started=None,
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
            TaskEntry(
                name=name or f"task {n + 1}", classes=(), train=None, validation=None, test=None
            )
            for n, name in enumerate(names)
        ),
        accuracy_matrix=() if untold else matrix,
        accuracy_matrix_task_agnostic=matrix if untold else None,
        metrics=measured(() if untold else matrix),
        metrics_task_agnostic=measured(matrix) if untold else None,
        parameters=None,
        environment=Environment(
            threads=None,
            **dict.fromkeys(
                ("nispa", "python", "torch", "numpy", "cpu", "device", "platform", "kernels"),
                IMPORTED,
            ),
        ),
        notes=tuple(notes),
    )
