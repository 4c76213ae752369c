"""Parquet files: images in the schema of the Hugging Face hub, or a table of features.

The schema has a column ``img`` or ``image`` of ``{bytes, path}`` and a column ``label``,
``fine_label`` or ``labels`` of class numbers or texts, in one or several files per part, such as
``train-00000-of-00002.parquet``. Without an image column the other columns are features; see
:mod:`nispa.data.tables`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.data.archives import check_regular, check_unpacked
from nispa.data.arrays import number_labels
from nispa.data.csv_files import parse_csv
from nispa.data.dataset import ImageData, Progress, check_wanted
from nispa.data.images import ImageStack, Source, data_of
from nispa.data.label_column import check_names, label_column
from nispa.data.shaping import AS_STORED, Reading, Shaping
from nispa.data.splits import TRAIN, by_part, choose_labelled_test
from nispa.data.tables import from_tables, rows_of
from nispa.errors import DataError, needs
from nispa.files import wording

IMAGE_COLUMNS = ("img", "image", "images")
BATCH_ROWS = 1024
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
MOST_ROWS = 20_000_000  # a file of kilobytes can claim any number


def read_parquet(
    files: Sequence[Path],
    *,
    name: str,
    seed: int = 0,
    class_names: tuple[str, ...] = (),
    progress: Progress | None = None,
    shaping: Shaping = AS_STORED,
    only: Collection[int] | None = None,
    label: str | None = None,
    series: bool = False,
) -> ImageData:
    """A data set from Parquet files; their names or those of their folders mark the parts.

    Without a test part, or if its labels are hidden, the validation part takes its place; without
    that, the seed holds out a fifth of each class.

    Args:
        files: All files of the data set; a single file is all of it, whatever its name.
        name: Name of the data set.
        seed: Determines the test split if there is none.
        class_names: Names of the classes; by default those in the file's schema, or the labels that
            occur.
        progress: Called as ``progress(what, done, total)`` while images are decoded.
        shaping: How to crop and scale each image.
        only: Numbers of the classes to read; None for all. Tables are read whole.
        label: Name of a table's column of labels, if it has none of the usual names.
        series: Whether a table holds series; see :mod:`nispa.data.tables`.

    Raises:
        DataError: A file is damaged or missing, has other columns, or an image cannot be decoded.
    """
    how = Reading(seed, progress, shaping, only, label, series)
    groups = {TRAIN: list(files)} if len(files) == 1 else by_part(files)
    for group in groups.values():
        _check_shards(group)
    opened = {part: [_open(file) for file in group] for part, group in groups.items()}
    path, first = opened[TRAIN][0]
    check_names(first.schema_arrow.names, str(path))
    image = _image_column(first)
    column = label_column(first.schema_arrow.names, how.label, str(path), features=image is None)
    class_names = class_names or _names_in_schema(first, column)
    source = "Parquet files"
    if image is None:
        tables = {part: _whole(group) for part, group in opened.items()}
        table: dict[str, Any] = {"source": source, "class_names": class_names, "series": series}
        return from_tables(tables, name=name, seed=how.seed, label=column, **table)
    labels = {part: _labels(group, column) for part, group in opened.items()}
    test_part, notes = choose_labelled_test(labels, name, files=groups)
    parts = [TRAIN] if test_part is None else [TRAIN, test_part]
    encoded, names = number_labels(name, [labels[part] for part in parts], class_names)
    check_wanted(name, how.only, len(names))
    read = [
        _read(opened[part], image, numbers, name, how)
        for part, numbers in zip(parts, encoded, strict=True)
    ]
    return data_of(name, read, names, how, source=source, notes=notes)


def read_rows(
    file: Path, *, label: str | None = None, series: bool = False, columns: Sequence[str] = ()
) -> Any:
    """The features in a CSV or Parquet file, without labels; see :func:`nispa.data.tables.rows_of`.

    Raises:
        DataError: It is damaged, or holds no features.
    """
    if file.suffix.lower() == ".parquet":
        check_regular(file)
        table = _whole([_open(file)])
    else:
        table = parse_csv(file, label)
    return rows_of(table, name=str(file), label=label, series=series, columns=columns)


def _check_shards(files: Sequence[Path]) -> None:
    """Refuses files if a shard promised by a name such as ``train-00000-of-00002`` is missing."""
    shards: dict[tuple[str, int], set[int]] = {}
    for file in files:
        match = SHARD.fullmatch(file.stem)
        if match:
            shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), present in shards.items():
        missing = set(range(min(count, len(present) + 1))) - present
        if missing:
            raise DataError(
                f"{files[0].parent}: shard {stem}-{min(missing):05d}-of-{count:05d} is missing"
            )


def _open(file: Path) -> tuple[Path, Any]:
    with needs("data", "reading Parquet files"):
        import pyarrow
        from pyarrow import parquet
    try:
        return file, parquet.ParquetFile(file, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({wording(error)})") from None


def _image_column(opened: Any) -> str | None:
    """The image column: one with a usual name, or the only column of bytes; else None."""
    names = opened.schema_arrow.names
    usual = next((each for each in IMAGE_COLUMNS if each in names), None)
    of_bytes = [each for each in names if _binary(opened.schema_arrow.field(each).type)]
    return usual or (of_bytes[0] if len(of_bytes) == 1 else None)


def _binary(kind: Any) -> bool:
    """Whether a column contains the bytes of files, with or without paths."""
    with needs("data", "reading Parquet files"):
        import pyarrow

    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _names_in_schema(opened: Any, column: str) -> tuple[str, ...]:
    """The class names that the Hugging Face library writes into the schema, if any."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(text)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    valid = isinstance(names, list) and all(isinstance(each, str) for each in names)
    return tuple(names) if valid else ()


def _whole(files: Sequence[tuple[Path, Any]]) -> Any:
    """All rows of the files as one table."""
    with needs("data", "reading Parquet files"):
        import pyarrow

    parts = []
    for file, opened in files:
        groups = [opened.metadata.row_group(at) for at in range(opened.metadata.num_row_groups)]
        cells = opened.metadata.num_rows * opened.metadata.num_columns
        promised = max(4 * cells, sum(group.total_byte_size for group in groups))
        check_unpacked(promised, str(file), "give fewer rows or columns, or an .npy file")
        try:
            parts.append(opened.read())
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: damaged or truncated ({wording(error)})") from None
    try:
        return pyarrow.concat_tables(parts)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{files[0][0].parent}: its files have different columns ({wording(error)})"
        ) from None


def _labels(files: Sequence[tuple[Path, Any]], column: str) -> np.ndarray[Any, Any]:
    """The labels of all rows of the files."""
    labels: list[Any] = []
    for file, opened in files:
        before, count = len(labels), opened.metadata.num_rows
        if count > MOST_ROWS:
            raise DataError(f"{file}: {count:,} rows are more than {MOST_ROWS:,}, the most")
        for batch in _batches(file, opened, column):
            labels += batch.to_pylist()
            if len(labels) - before > count:
                raise DataError(f"{file}: has more rows than the {count} it claims")
        if len(labels) - before < count:
            found = len(labels) - before
            raise DataError(f"{file}: claims {count} rows but has {found}; it is damaged")
    if not labels:
        raise DataError(f"{files[0][0]}: has no rows")
    return _label_array(labels, files[0][0])


def _batches(file: Path, opened: Any, column: str, **which: Any) -> Iterator[Any]:
    """A column, a batch of rows at a time."""
    with needs("data", "reading Parquet files"):
        import pyarrow

    if column not in opened.schema_arrow.names:
        known = wording(", ".join(opened.schema_arrow.names))
        raise DataError(f"{file}: needs a column {column}, as the other files have; it has {known}")
    try:
        for batch in opened.iter_batches(BATCH_ROWS, columns=[column], **which):
            yield batch.column(batch.schema.get_field_index(column))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged or truncated ({wording(error)})") from None


def _read(
    files: Sequence[tuple[Path, Any]], column: str, labels: Tensor, name: str, how: Reading
) -> tuple[ImageStack, Tensor]:
    """The images of the requested classes, and their labels."""
    wanted = torch.ones(len(labels), dtype=torch.bool)
    if how.only is not None:
        wanted = torch.isin(labels, torch.tensor(sorted(how.only), dtype=torch.int64))

    def items() -> Iterator[tuple[Source, str]]:
        start = 0
        for file, opened in files:
            count = opened.metadata.num_rows
            chosen = wanted[start : start + count].tolist()
            for row, content in _contents(file, opened, column, chosen):
                if content is None:
                    raise DataError(f"{file}: row {row} holds no image bytes")
                yield content, f"{file}: row {row}"
            start += count

    stack = ImageStack(int(wanted.sum()), name, how.shaping)
    stack.fill(items(), how.progress)
    return stack, labels[wanted]


def _contents(
    file: Path, opened: Any, column: str, chosen: Sequence[bool]
) -> Iterator[tuple[int, bytes | None]]:
    """Row number and image bytes of each chosen row; row groups without one are not read."""
    kind = opened.schema_arrow.field(column).type if column in opened.schema_arrow.names else None
    if kind is not None and not _binary(kind):
        raise DataError(f"{file}: column {column} is {wording(kind)}, expected struct<bytes, path>")
    row = 0
    for group in range(opened.metadata.num_row_groups):
        end = row + opened.metadata.row_group(group).num_rows
        if not any(chosen[row:end]):
            row = end
            continue
        for batch in _batches(file, opened, column, row_groups=[group]):
            contents = batch.field("bytes") if hasattr(batch, "field") else batch
            for content in contents:
                if row < end and chosen[row]:
                    yield row, content.as_py()
                row += 1
        if row != end:
            raise DataError(f"{file}: has other rows than the {len(chosen)} it claims")


def _label_array(labels: list[Any], file: Path) -> np.ndarray[Any, Any]:
    for row, label in enumerate(labels):
        if label is None or not isinstance(label, type(labels[0])):
            raise DataError(f"{file}: row {row} has no valid label ({wording(label)})")
    if isinstance(labels[0], (int, str)):
        return np.array(labels)
    raise DataError(f"{file}: labels must be whole numbers or texts, not {labels[0]!r}")
