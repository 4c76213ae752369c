"""NumPy ``.npz`` and ``.npy`` files, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from nispa.data.archives import DAMAGED_ZIP, check_members, check_regular, check_unpacked
from nispa.data.arrays import Array, from_arrays
from nispa.data.dataset import ImageData
from nispa.errors import DataError
from nispa.files import wording

WITH_TEST = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
MOST_HEADER = 1_000  # bytes; a long one could nest so deeply that parsing it takes the whole stack
WITHOUT_TEST = (
    ("x_train", "y_train"),
    ("x", "y"),
    ("images", "labels"),
    ("train_images", "train_labels"),
    ("features", "labels"),
    ("data", "labels"),
    ("data", "target"),
)


def read_npz(
    path: Path, *, seed: int, channels_first: bool | None = None, series: bool = False
) -> ImageData:
    """A data set from an ``.npz`` file.

    Its keys are ``x_train, y_train, x_test, y_test`` (or ``train_images``, …), or ``x, y`` (or
    ``images, labels``); then the seed holds out a fifth of each class for testing.

    Args:
        path: The file.
        seed: Determines the test split if there is none.
        channels_first: See :func:`nispa.data.arrays.as_images`.
        series: See :func:`nispa.data.arrays.as_images`.

    Raises:
        DataError: It is damaged, lacks the keys, or its arrays cannot be used.
    """
    arrays = read_members(path, lambda names: _choose_keys(names, str(path)))
    layout: dict[str, Any] = {"channels_first": channels_first, "series": series}
    return from_arrays(*arrays, name=path.stem, seed=seed, source=".npz file", **layout)


def read_members(
    path: Path, choose: Callable[[Collection[str]], Sequence[str]], most: int | None = None
) -> list[Array]:
    """Some arrays of an ``.npz`` file.

    Args:
        path: The file.
        choose: Chooses the arrays to read, given the names of all.
        most: The most bytes that compressed arrays may unpack to; by default
            :data:`~nispa.data.archives.MOST_UNPACKED`.

    Raises:
        DataError: It is damaged or too large, or an array is not of numbers or texts.
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
            keys = choose(members)
            packed = [members[key].file_size for key in keys if members[key].compress_type]
            check_unpacked(sum(packed), str(path), "save it with numpy.savez", most)
            arrays = []
            for key in keys:
                with archive.open(members[key]) as file:
                    arrays.append(read_array(file, f"{path}: {key}"))
            return arrays
    except DataError:
        raise
    except DAMAGED_ZIP as error:
        raise DataError(f"{path}: not a readable .npz file ({wording(error)})") from None


def read_npy(
    files: Sequence[Path],
    *,
    name: str,
    seed: int,
    asked_for: Path | None = None,
    channels_first: bool | None = None,
    series: bool = False,
) -> ImageData:
    """A data set from ``.npy`` files named after the keys of an ``.npz`` file.

    Args:
        files: Files of one folder; their names without extension, in lower case, are the keys.
        name: Name of the data set.
        seed: Determines the test split if there is none.
        asked_for: A file that must be among those that are read.
        channels_first: See :func:`nispa.data.arrays.as_images`.
        series: See :func:`nispa.data.arrays.as_images`.

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
    arrays = [read_file(members[key]) for key in keys]
    layout: dict[str, Any] = {"channels_first": channels_first, "series": series}
    return from_arrays(*arrays, name=name, seed=seed, source=".npy files", **layout)


def read_file(path: Path) -> Array:
    """The array of an ``.npy`` file.

    Raises:
        DataError: It is damaged, or not an array of numbers or texts.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return read_array(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({wording(error)})") from None


def _choose_keys(members: Collection[str], path: str) -> tuple[str, ...]:
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


def read_array(file: IO[bytes], name: str) -> Array:
    """Reads one array in NumPy's format; refuses arrays of objects, which are pickles."""
    try:
        array: Array = np.lib.format.read_array(
            file,
            allow_pickle=False,
            max_header_size=MOST_HEADER,
        )
        if file.read(1):
            raise ValueError("it holds more bytes than its header promises")
    except Exception as error:  # noqa: BLE001 - NumPy parses headers as Python, which raises anything
        why = wording(error)
        if "allow_pickle" in why:
            why = "it holds objects, which need pickle, which is not safe"
        raise DataError(f"{name}: not an array of numbers or texts ({why})") from None
    return array
