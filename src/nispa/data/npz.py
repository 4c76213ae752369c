"""NumPy ``.npz`` and ``.npy`` files, read without pickle and without trusting what they claim."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from nispa.data.archives import DAMAGED_ZIP, check_members, check_regular, check_unpacked
from nispa.data.arrays import from_arrays
from nispa.data.dataset import ImageData
from nispa.data.idx import MOST_DEFLATE
from nispa.errors import DataError
from nispa.files import wording

WITH_TEST = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
WITHOUT_TEST = (
    ("x_train", "y_train"),
    ("x", "y"),
    ("images", "labels"),
    ("train_images", "train_labels"),
    ("features", "labels"),
    ("data", "labels"),
    ("data", "target"),
)
HEADER = re.compile(
    r"\{'descr': '([<>|=]?[biufU][0-9]{1,4})', 'fortran_order': (True|False), "
    r"'shape': \(([0-9L, ]*)\),? *\}[ \n]*"
)


def read_npz(path: Path, *, seed: int, channels_first: bool | None = None) -> ImageData:
    """A data set from an ``.npz`` file.

    Its keys are ``x_train, y_train, x_test, y_test`` (or ``train_images``, …), or ``x, y`` (or
    ``images, labels``), of which the seed holds out a fifth of each class for testing.

    Args:
        path: The file.
        seed: Decides the test split where there is none.
        channels_first: See :func:`nispa.data.arrays.as_images`.

    Raises:
        DataError: It is damaged, lacks the keys, or its arrays cannot be used.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            keys = _choose_keys(members, str(path))
            packed = [members[key] for key in keys if members[key].compress_type]
            check_unpacked(
                sum(info.file_size for info in packed), str(path), "save it with numpy.savez"
            )
            arrays = [_read_member(archive, members[key], f"{path}: {key}") for key in keys]
    except DataError:
        raise
    except DAMAGED_ZIP as error:
        raise DataError(f"{path}: not a readable .npz file ({wording(error)})") from None
    return from_arrays(
        *arrays, name=path.stem, seed=seed, channels_first=channels_first, source=".npz file"
    )


def read_npy(
    files: Sequence[Path],
    *,
    name: str,
    seed: int,
    asked_for: Path | None = None,
    channels_first: bool | None = None,
) -> ImageData:
    """A data set from ``.npy`` files called like the keys of an ``.npz`` file.

    Args:
        files: Some files; their names without ending, small or large, are the keys.
        name: Name of the data set.
        seed: Decides the test split where there is none.
        asked_for: One of the files that must be among those that are read.
        channels_first: See :func:`nispa.data.arrays.as_images`.

    Raises:
        DataError: As :func:`read_npz`.
    """
    members = {file.stem.lower(): file for file in files}
    keys = _choose_keys(members, str(files[0].parent))
    if asked_for is not None and asked_for.stem.lower() not in keys:
        beside = " and ".join(f"{key}.npy" for key in keys)
        raise DataError(
            f"{asked_for}: {beside} beside it would be read instead; give it the name of one of "
            "these, or a folder of its own"
        )
    arrays = []
    for key in keys:
        file = members[key]
        check_regular(file)
        try:
            with file.open("rb") as opened:
                arrays.append(_read_array(opened, file.stat().st_size, str(file)))
        except (OSError, MemoryError, OverflowError) as error:
            raise DataError(f"{file}: cannot be read ({wording(error)})") from None
    return from_arrays(
        *arrays, name=name, seed=seed, channels_first=channels_first, source=".npy files"
    )


def _choose_keys(members: Mapping[str, Any], path: str) -> tuple[str, ...]:
    for keys in WITH_TEST + WITHOUT_TEST:
        if all(key in members for key in keys):
            return keys
        if len(keys) == 4 and sum(key in members for key in keys) == 3:
            lacking = next(key for key in keys if key not in members)
            raise DataError(f"{path}: lacks the array {lacking}, which belongs to the other three")
    found = wording(", ".join(sorted(members))) if members else "none"
    raise DataError(
        f"{path}: needs the arrays x_train, y_train, x_test, y_test, or x, y; it has {found}"
    )


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> np.ndarray[Any, Any]:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: is encrypted or compressed in a way that NumPy does not write")
    if info.file_size > MOST_DEFLATE * info.compress_size:
        raise DataError(f"{name}: claims more bytes than its file can hold; it is damaged")
    with archive.open(info) as file:
        return _read_array(file, info.file_size, name)


def _read_array(file: IO[bytes], size: int, name: str) -> np.ndarray[Any, Any]:
    """One array; its header is read by a fixed pattern, so that no code and no pickle can hide."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise DataError(f"{name}: not a NumPy array")
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(file.read(width), "little")
    header = file.read(length).decode("latin-1") if length <= 10_000 else ""
    match = HEADER.fullmatch(header)
    if not match:
        raise DataError(
            f"{name}: not an array of numbers or texts (arrays of objects need pickle, which "
            "is not safe)"
        )
    descr, fortran, sides = match.groups()
    shape = tuple(int(side.strip(" L")) for side in sides.split(",") if side.strip(" L"))
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise DataError(f"{name}: unknown type {descr}") from None
    promised = math.prod(shape) * dtype.itemsize
    left = size - 8 - width - length
    if promised != left:
        raise DataError(
            f"{name}: its header promises {promised} bytes, but there are {left}; it is "
            "truncated or damaged"
        )
    content = file.read(promised + 1)
    if len(content) != promised:
        raise DataError(f"{name}: truncated; {len(content)} of {promised} bytes")
    try:
        array = np.frombuffer(content, dtype=dtype)
        return array.reshape(shape, order="F" if fortran == "True" else "C")
    except ValueError as error:
        raise DataError(f"{name}: its header does not fit its content ({wording(error)})") from None
