"""Parquet files in the image-classification schema of the Hugging Face hub.

A column ``img`` or ``image`` of ``{bytes, path}`` and a column ``label``, ``fine_label`` or
``labels`` of class numbers (or texts); one or several files a split, such as
``train-00000-of-00002.parquet``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.data.arrays import encode_labels
from nispa.data.dataset import (
    BYTE_SCALE,
    ImageData,
    Progress,
    check_labels,
    split_by_seed,
)
from nispa.data.images import ImageStack, lossy_note, same_channels
from nispa.errors import DataError
from nispa.files import wording

IMAGE_COLUMNS = ("img", "image", "images")
LABEL_COLUMNS = ("fine_label", "label", "labels")
BATCH_ROWS = 1024
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
ROLES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}


def read_parquet(
    files: Sequence[Path],
    *,
    name: str,
    seed: int,
    class_names: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> ImageData:
    """A data set from Parquet files; the names of the files or of their folders tell the split.

    Without a ``test`` file ``validation`` takes its place; without that one the seed holds out a
    fifth of each class.

    Args:
        files: All files of the data set.
        name: Name of the data set.
        seed: Decides the test split where there is none.
        class_names: Names of the classes; by default those that the file's schema carries, or the
            labels that occur.
        progress: Called while images are decoded.

    Raises:
        DataError: A file is damaged or missing, has other columns, or an image cannot be decoded.
    """
    roles = _roles(files)
    train_files = roles.get("train") or roles.get("")
    if not train_files:
        raise DataError(f"{files[0].parent}: has no train-*.parquet")
    known = class_names or _names_in_schema(train_files[0])
    stack, labels = _read(train_files, name, progress)
    test_role = next((role for role in ("test", "validation") if role in roles), None)
    source = "Parquet files"
    if test_role is None:
        (encoded,), names = _encode(name, known, labels)
        return split_by_seed(
            name,
            stack.finish(),
            encoded,
            names,
            BYTE_SCALE,
            seed=seed,
            source=source,
            note=lossy_note(stack),
        )
    test_stack, test_labels = _read(roles[test_role], name, progress)
    (encoded, encoded_tests), names = _encode(name, known, labels, test_labels)
    images, test_images = same_channels(stack.finish(), test_stack.finish())
    notes = [lossy_note(stack, test_stack)]
    if test_role == "validation":
        notes.append("its validation images serve as the test set")
    elif "validation" in roles:
        notes.append("its validation images are not used")
    return ImageData(
        name,
        images,
        encoded,
        test_images,
        encoded_tests,
        names,
        BYTE_SCALE,
        source,
        note="; ".join(filter(None, notes)),
    )


def _roles(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by split; ``""`` for files whose name and folder tell none."""
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        word = re.split("[-._]", file.stem.lower(), maxsplit=1)[0]
        role = ROLES.get(word) or ROLES.get(file.parent.name.lower(), "")
        found.setdefault(role, []).append(file)
    for group in found.values():
        _check_shards(group)
    return found


def _check_shards(files: Sequence[Path]) -> None:
    """Each of the shards that a name such as ``train-00000-of-00002`` promises must be there."""
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


def _open(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({wording(error)})") from None


def _columns(opened: Any, file: Path) -> tuple[str, str]:
    """The names of the image and of the label column."""
    names = opened.schema_arrow.names
    found = []
    for choices in (IMAGE_COLUMNS, LABEL_COLUMNS):
        column = next((each for each in choices if each in names), None)
        if column is None:
            known = wording(", ".join(names))
            raise DataError(f"{file}: needs a column {' or '.join(choices)}; it has {known}")
        found.append(column)
    return found[0], found[1]


def _names_in_schema(file: Path) -> tuple[str, ...]:
    """The class names that the Hugging Face library writes into the schema, or none."""
    opened = _open(file)
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    _, column = _columns(opened, file)
    try:
        names = json.loads(text)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    valid = isinstance(names, list) and all(isinstance(each, str) for each in names)
    return tuple(names) if valid else ()


def _read(
    files: Sequence[Path], name: str, progress: Progress | None
) -> tuple[ImageStack, np.ndarray[Any, Any]]:
    opened = [_open(file) for file in files]
    total = sum(each.metadata.num_rows for each in opened)
    if not total:
        raise DataError(f"{files[0]}: has no rows")
    stack = ImageStack(total, name)
    labels: list[Any] = []
    for file, each in zip(files, opened, strict=True):
        count = each.metadata.num_rows
        before = len(labels)
        for row, (content, label) in enumerate(_rows(each, file)):
            if row == count:
                raise DataError(f"{file}: has more rows than the {count} it claims")
            if content is None:
                raise DataError(f"{file}: row {row} holds no image bytes")
            stack.add(content, f"{file}: row {row}")
            labels.append(label)
            if progress and len(labels) % BATCH_ROWS == 0:
                progress(f"decoding {name}", len(labels), total)
        if len(labels) - before < count:
            found = len(labels) - before
            raise DataError(f"{file}: claims {count} rows but has {found}; it is damaged")
    return stack, _label_array(labels, files[0])


def _rows(opened: Any, file: Path) -> Iterator[tuple[bytes | None, Any]]:
    """Image bytes and label of each row, a batch of rows in memory at a time."""
    import pyarrow

    image_column, label_column = _columns(opened, file)
    kind = opened.schema_arrow.field(image_column).type
    nested = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    binary = kind.field("bytes").type if nested else kind
    if not (pyarrow.types.is_binary(binary) or pyarrow.types.is_large_binary(binary)):
        raise DataError(
            f"{file}: column {image_column} is {wording(kind)}, expected struct<bytes, path>"
        )
    try:
        for batch in opened.iter_batches(BATCH_ROWS, columns=[image_column, label_column]):
            images = batch.column(batch.schema.get_field_index(image_column))
            labels = batch.column(batch.schema.get_field_index(label_column)).to_pylist()
            contents = (images.field("bytes") if nested else images).to_pylist()
            yield from zip(contents, labels, strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged or truncated ({wording(error)})") from None


def _label_array(labels: list[Any], file: Path) -> np.ndarray[Any, Any]:
    for row, label in enumerate(labels):
        if label is None or not isinstance(label, type(labels[0])):
            raise DataError(f"{file}: row {row} has no valid label ({wording(label)})")
    if isinstance(labels[0], (int, str)):
        return np.array(labels)
    raise DataError(f"{file}: labels must be whole numbers or texts, not {labels[0]!r}")


def _encode(
    name: str, class_names: tuple[str, ...], *groups: np.ndarray[Any, Any]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels from 0, and the names of the classes; numbers are kept where names are known."""
    encoded, occurring = encode_labels(*groups)
    if not class_names or any(group.dtype.kind == "U" for group in groups):
        return encoded, occurring
    kept = [torch.from_numpy(group.astype(np.int64)) for group in groups]
    for labels in kept:
        check_labels(name, labels, len(class_names))
    return kept, class_names
