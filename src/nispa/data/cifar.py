"""CIFAR-10 and CIFAR-100, binary and Python version, from a folder or straight from the archive.

The Python version is a pickle, and unpickling runs whatever a file asks for. So the pickle is never
loaded: :mod:`nispa.data.pickles` walks its opcodes and copies out one array and one list.

Layout: https://www.cs.toronto.edu/~kriz/cifar.html (a record is one label byte, or a coarse and a
fine one, then 3,072 bytes: the red, the green and the blue plane of a 32×32 image).
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.data.pickles import read_batch
from nispa.errors import DataError
from nispa.files import wording

PIXELS = 3 * 32 * 32
MOST_BYTES = 512 << 20  # of a file, or an archive unpacked; the largest canonical has 186 MB


def read_cifar(
    path: Path, files: Collection[str], *, classes: int, binary: bool
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Images and labels of each file in turn, and the MD5 of each.

    Args:
        path: The folder that holds the files, or a ``.tar.gz`` of it.
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
    """Members by the name of their file, wherever they lie; nothing is written to disk."""
    try:
        with gzip.open(path) as packed:
            plain = _Bounded(packed)
            yield from _members(plain, files, path)
            while plain.read(1 << 20):  # to the end, where the checksum stands
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
    """A stream that gives no more than :data:`MOST_BYTES`, whatever its packed size."""

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
    shape, values, labels = read_batch(content, key, where)
    if len(shape) != 2 or shape[1] != PIXELS or not shape[0]:
        raise DataError(f"{where}: its data has the shape {shape}, expected (n, {PIXELS})")
    if len(labels) != shape[0]:
        raise DataError(f"{where}: {shape[0]} images but {len(labels)} labels")
    images = np.frombuffer(bytearray(values), dtype=np.uint8).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64)
