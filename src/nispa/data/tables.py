"""Tables: a column of labels, and every other column is a feature.

Features become ``(n, features)`` float32, unchanged. As series, ``(n, channels, length)``, each
column of lists is a channel; without lists, the columns are the steps of a single channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nispa.data.arrays import as_label_array, check_rounding, number_labels
from nispa.data.csv_files import parse_csv
from nispa.data.dataset import ImageData, assemble, listed
from nispa.data.label_column import check_names, label_column, usual_label
from nispa.data.splits import TRAIN, by_part, choose_labelled_test
from nispa.errors import DataError, either, needs
from nispa.files import one_line

UNNAMED = re.compile("|Unnamed: ?[0-9]+|__index_level_[0-9]+__")
MOST_FEATURES = 1_000_000


def read_csv(
    files: Sequence[Path],
    *,
    name: str,
    seed: int,
    label: str | None = None,
    series: bool = False,
) -> ImageData:
    """A data set from one CSV file, or one for each part; see :func:`from_tables`.

    The separator is a comma, semicolon, tab or bar, whichever is most frequent in the first line,
    which names the columns.

    Args:
        files: The files; a single file is all of the data, whatever its name.
        name: Name of the data set.
        seed: Determines the test split if there is none.
        label: Name of the column of labels, if it has none of the usual names.
        series: Whether the columns are the steps of a series.

    Raises:
        DataError: A file is damaged, or a column cannot be used.
    """
    groups = {TRAIN: list(files)} if len(files) == 1 else by_part(files)
    tables = {}
    for part, group in groups.items():
        if len(group) > 1:
            raise DataError(f"{group[1]}: is {part} as {group[0].name} is; put them together")
        tables[part] = parse_csv(group[0], label)
    column = label_column(tables[TRAIN].column_names, label, str(groups[TRAIN][0]))
    how: dict[str, Any] = {"source": "CSV file", "series": series}
    return from_tables(tables, name=name, seed=seed, label=column, **how)


def rows_of(
    table: Any, *, name: str, label: str | None, series: bool, columns: Sequence[str] = ()
) -> NDArray[np.float32]:
    """The features of a table, ``(n, features)`` or ``(n, channels, length)``, without labels.

    Args:
        table: An Arrow table.
        name: The file, for the error.
        label: The column of labels, if there is one; None for one with a usual name.
        series: See :func:`from_tables`.
        columns: Names of the features, in order; without them, all columns but the labels.

    Raises:
        DataError: A column is not a feature or lacks, or a value is missing.
    """
    labels = usual_label(table.column_names) if label is None else label
    columns = columns or [
        each for each in table.column_names if each != labels and not UNNAMED.fullmatch(each)
    ]
    if not columns:
        raise DataError(f"{name}: has no column of features")
    return (_series if series else _features)(table, columns, name)


def from_tables(
    tables: Mapping[str, Any],
    *,
    name: str,
    seed: int,
    label: str,
    source: str,
    class_names: tuple[str, ...] = (),
    series: bool = False,
) -> ImageData:
    """A data set from Arrow tables by part; without one for test the seed holds out a fifth.

    Args:
        tables: For training, and optionally for test or validation.
        name: Name of the data set.
        seed: Determines the test split if there is none.
        label: Name of the column of labels.
        source: The kind of files the tables were read from.
        class_names: Names of the classes by number, if known.
        series: Whether to read the columns as series; see this module's text.

    Raises:
        DataError: A column is not a feature, a value is missing, or the tables do not match.
    """
    columns = [each for each in tables[TRAIN].column_names if each != label]
    unnamed = [each for each in columns if UNNAMED.fullmatch(each)]
    columns = [each for each in columns if not UNNAMED.fullmatch(each)]
    if not columns:
        raise DataError(f"{name}: has no column of features beside {label}")
    groups = {part: _labels(table, label, name) for part, table in tables.items()}
    test_part, of_parts = choose_labelled_test(groups, name, "rows")
    parts = [TRAIN] if test_part is None else [TRAIN, test_part]
    read = _series if series else _features
    features = [torch.from_numpy(read(tables[part], columns, name)) for part in parts]
    encoded, names = number_labels(name, [groups[part] for part in parts], class_names)
    low, high = float(features[0].min()), float(features[0].max())
    notes = [f"features {listed(columns)}, from {low:g} to {high:g}, as they are"]
    if unnamed:
        notes.append("a column without a name was left out")
    pairs = list(zip(features, encoded, strict=True))
    notes += of_parts
    made = assemble(name, pairs, names, 1.0, seed=seed, source=source, notes=notes)
    return replace(made, columns=tuple(columns))


def _labels(table: Any, column: str, name: str) -> NDArray[Any]:
    if column not in table.column_names:
        raise DataError(
            f"{name}: a table has no column {column}, which holds the labels; move its file away"
        )
    _check(table, name)
    values = table.column(column).to_pylist()
    missing = next((row for row, value in enumerate(values) if value in (None, "")), None)
    if missing is not None:
        raise DataError(f"{name}: row {missing} has no label; fill it in or leave the row out")
    whole = [_as_label(value) for value in values]
    wrong = next((v for v in whole if not isinstance(v, (int, str))), None)
    if wrong is not None:
        raise DataError(
            f"{name}: column {column} has {one_line(str(wrong), 40)} as a label; labels must be "
            "whole numbers or texts"
        )
    return as_label_array(np.array(whole), f"{name}: {column}")


def _as_label(value: Any) -> Any:
    """A value as a label: booleans become texts, whole floats become integers."""
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _features(table: Any, columns: Sequence[str], name: str) -> NDArray[np.float32]:
    """The features ``(n, features)``."""
    return np.ascontiguousarray(np.concatenate(_columns(table, columns, name), axis=1))


def _series(table: Any, columns: Sequence[str], name: str) -> NDArray[np.float32]:
    """The series ``(n, channels, length)``."""
    parts = _columns(table, columns, name)
    lengths = [part.shape[1] for part in parts]
    if len(set(lengths)) > 1:
        shown = ", ".join(f"{column} {n}" for column, n in zip(columns, lengths, strict=True))
        raise DataError(
            f"{name}: the channels of series must be equally long, but the columns hold "
            f"{one_line(shown, 80)} numbers a row; leave the others out, or leave out "
            f"{either('series', '--series')}"
        )
    if lengths[0] == 1:
        return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, None])
    return np.ascontiguousarray(np.stack(parts, axis=1))


def _columns(table: Any, columns: Sequence[str], name: str) -> list[NDArray[np.float32]]:
    """Each column as ``(n, features)``."""
    _check(table, name)
    places = {each: place for place, each in enumerate(table.column_names)}
    lacking = [each for each in columns if each not in places]
    if lacking:
        raise DataError(f"{name}: has no column {listed(lacking)}, as the training table has")
    parts = [_numbers(table.column(places[each]), each, name) for each in columns]
    width = sum(part.shape[1] for part in parts)
    if width > MOST_FEATURES:
        raise DataError(f"{name}: {width:,} features are more than {MOST_FEATURES:,}, the most")
    return parts


def _check(table: Any, name: str) -> None:
    if not len(table):
        raise DataError(f"{name}: a table has no rows")
    check_names(table.column_names, name)


def _numbers(column: Any, title: str, name: str) -> NDArray[np.float32]:
    """A column of numbers, or of lists of equal length, as ``(n, features)``."""
    with needs("data", "reading tables"):
        from pyarrow import types

    where = f"{name}: column {one_line(title, 40)}"
    column = column.combine_chunks()
    count, kind = len(column), column.type
    _refuse_missing(column, where)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        flat = column.flatten()
        width = len(flat) // count if count else 0
        if any(len(each) != width for each in column):
            raise DataError(f"{where} holds lists of different length")
        column, kind = flat, flat.type
        _refuse_missing(column, where)
    if types.is_decimal(kind):
        column = column.cast("double")
        kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        shown = one_line(str(column[0]), 40) if len(column) else str(kind)
        raise DataError(
            f"{where} holds '{shown}' where a feature is a number; turn it into numbers, take it "
            f"away, or say with {either('label=', '--label')} that it holds the labels"
        )
    exact = column.to_numpy(zero_copy_only=False).reshape(count, -1)
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = exact.astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise DataError(f"{where} has a value that is not a finite number (value {row})")
    check_rounding(exact, where)
    return values


def _refuse_missing(column: Any, where: str) -> None:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(
            f"{where} has no value in row {row}; fill it in, or leave the row or the column out"
        )
