"""Reads CIFAR-10 and CIFAR-100, binary or Python version, from a folder or the archive itself.

The Python version is a pickle, and unpickling runs whatever a file asks for. So it is never loaded:
its opcodes are listed with :mod:`pickletools`, and one array and one list are copied out of them.

Layout: https://www.cs.toronto.edu/~kriz/cifar.html (a record is one label byte, or a coarse and a
fine one, then 3,072 bytes: the red, the green and the blue plane of a 32×32 image).
"""

from __future__ import annotations

import gzip
import hashlib
import pickletools
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nispa.errors import DataError
from nispa.files import wording

PIXELS = 3 * 32 * 32
MOST_BYTES = 512 << 20  # of a file, or an archive unpacked; the largest canonical has 186 MB
ARRAY_CALLS = (
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
)
KEYS = ("batch_label", "labels", "fine_labels", "coarse_labels", "data", "filenames")


def read_cifar(
    path: Path, files: Collection[str], *, classes: int, binary: bool
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Images and labels of each file, and its MD5.

    Args:
        path: The folder with the files, or a ``.tar.gz`` of it.
        files: Names of the files without folder.
        classes: 10 or 100.
        binary: Whether the files are of the binary version.

    Returns:
        For each file images ``(n, 3, 32, 32)`` uint8 and labels ``(n,)`` int64; and MD5s in hex.

    Raises:
        DataError: A file is missing or damaged, or has a label outside the classes.
    """
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    md5s: dict[str, str] = {}
    members = _from_folder(path, files) if path.is_dir() else _from_tar(path, files)
    for name, content in members:
        where = f"{path}: {name}"
        read = _read_binary if binary else _read_python
        images, labels = read(content, classes, where)
        highest = int(labels.max())
        if int(labels.min()) < 0 or highest >= classes:
            raise DataError(f"{where}: label {highest} is outside its {classes} classes")
        parts[name] = images, labels
        md5s[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    missing = [name for name in files if name not in parts]
    if missing:
        raise DataError(f"{path}: {missing[0]} is missing; get the archive again")
    return [parts[name] for name in files], [md5s[name] for name in files]


def _from_folder(path: Path, files: Collection[str]) -> Iterator[tuple[str, bytes]]:
    for name in files:
        file = path / name
        try:
            size = file.stat().st_size
            if size > MOST_BYTES:
                raise DataError(f"{file}: {size} bytes is too large for a file of CIFAR")
            yield name, file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None


def _from_tar(path: Path, files: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Members by file name, in any folder; nothing is written to disk."""
    try:
        with gzip.open(path) as packed:
            plain = _Bounded(packed)
            yield from _members(plain, files, path)
            while plain.read(1 << 20):  # to the end, where the checksum is
                pass
    except DataError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: damaged or truncated ({wording(error)}); get the archive again"
        ) from None


def _members(plain: Any, files: Collection[str], path: Path) -> Iterator[tuple[str, bytes]]:
    left = set(files)
    with tarfile.open(fileobj=plain, mode="r|") as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if name not in left or not member.isfile() or member.issparse():
                continue
            file = archive.extractfile(member)
            content = file.read() if file else b""
            if len(content) != member.size:
                raise DataError(f"{path}: truncated in {name}; get the archive again")
            yield name, content
            left.discard(name)
            if not left:
                return


class _Bounded:
    """A stream of at most :data:`MOST_BYTES`, whatever its compressed size."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self._left = file, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
        return data


def _read_binary(content: bytes, classes: int, where: str) -> tuple[Tensor, Tensor]:
    labels = 1 if classes == 10 else 2  # CIFAR-100 stores the coarse label before the fine one
    record = labels + PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{where}: {len(content)} bytes is not a multiple of the {record} bytes of a record; "
            "it is truncated or damaged"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    images = rows[:, labels:].reshape(-1, 3, 32, 32).copy()
    return torch.from_numpy(images), torch.from_numpy(rows[:, labels - 1].astype(np.int64))


def _read_python(content: bytes, classes: int, where: str) -> tuple[Tensor, Tensor]:
    key = "labels" if classes == 10 else "fine_labels"
    try:
        values, labels = _literals_of(content, key)
    except (ValueError, IndexError, KeyError, struct.error, MemoryError, Warning) as error:
        raise DataError(f"{where}: not a readable batch of CIFAR ({wording(error)})") from None
    images = np.frombuffer(bytearray(values), dtype=np.uint8).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64)


def _literals_of(content: bytes, label_key: str) -> tuple[bytes, list[int]]:
    """The pixels and labels of a pickled batch, copied out of the opcodes that hold them.

    A batch is a dictionary, so each text that is one of its keys starts a new group of literals:
    under ``data`` the shape, type and bytes of one array, under ``labels`` the numbers.

    Raises:
        ValueError: It holds anything else than a batch.
    """
    groups: dict[str, list[Any]] = {}
    group: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, found, _ in pickletools.genops(content):
        name, argument = opcode.name, cast(Any, found)
        if name == "PROTO" and argument > 2:
            raise ValueError(f"pickle protocol {argument}, expected 2")
        if name == "GLOBAL" and argument not in ARRAY_CALLS:
            raise ValueError(f"it asks for {argument!r}")
        if name.endswith("PUT"):
            memo[argument] = group[-1] if group else None
        elif name.endswith("GET"):
            group.append(memo.get(argument))
        elif name in ("NEWTRUE", "NEWFALSE"):
            group.append(name == "NEWTRUE")
        elif isinstance(argument, str) and argument in KEYS:
            group = groups.setdefault(argument, [])
        elif name != "GLOBAL" and isinstance(argument, (str, int)):
            group.append(argument)
    for key in ("data", label_key):
        if key not in groups:
            raise ValueError(f"it has no '{key}'")
    match groups["data"]:
        case [0, "b", _, int(rows), int(columns), "u1", *_, False, str(values)]:
            # pickletools shows the bytes of Python 2 as Latin-1.
            pixels, labels = values.encode("latin-1"), groups[label_key]
        case _:
            raise ValueError("its 'data' is not an array of unsigned bytes, stored row by row")
    if columns != PIXELS or not rows or len(pixels) != rows * columns:
        raise ValueError(f"its data has the shape {rows, columns}, expected (n, {PIXELS})")
    if not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise ValueError(f"its '{label_key}' is not a list of classes")
    if len(labels) != rows:
        raise ValueError(f"{rows} images but {len(labels)} labels")
    return pixels, labels
