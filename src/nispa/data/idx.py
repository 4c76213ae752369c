"""Reads the IDX format of MNIST and its relatives, with or without gzip, not trusting headers.

Layout (http://yann.lecun.com/exdb/mnist/): two zero bytes, a type byte (8 = unsigned byte), the
number of dimensions, each dimension as a big-endian 32-bit number, then the values row by row.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nispa.data.archives import check_regular, check_unpacked
from nispa.errors import DataError
from nispa.files import wording

UNSIGNED_BYTE = 0x08
CHUNK_BYTES = 1 << 20


def read_idx(path: Path, dims: int) -> Tensor:
    """The values of an IDX file of unsigned bytes, as uint8 in the shape given by its header.

    The first two bytes, not the name, show whether it is gzip.

    Args:
        path: The file.
        dims: The dimensions it must have: 3 for images, 1 for labels.

    Raises:
        DataError: It cannot be read, or does not match its header. Memory grows only with the bytes
            that the file actually holds.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return read_idx_stream(file, dims, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_four(files: Sequence[Path]) -> list[Tensor]:
    """Images and labels, alternating, from the four files of a data set in MNIST's layout."""
    return [read_idx(file, (3, 1)[place % 2]) for place, file in enumerate(files)]


def read_idx_stream(file: io.BufferedReader, dims: int, name: str) -> Tensor:
    """As :func:`read_idx`, from the current position of an open file.

    It reads from start to end once, so the file may be a member of an archive.
    """
    try:
        if file.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as plain:
                return _parse(plain, dims, name, packed=True)
        return _parse(file, dims, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: damaged or truncated gzip data ({wording(error)}); get the file again"
        ) from None


def _parse(file: io.BufferedIOBase, dims: int, name: str, *, packed: bool = False) -> Tensor:
    """Header and values of decompressed IDX bytes; takes memory as they come, not as promised."""
    header = file.read(4 + 4 * dims)
    if len(header) < 4 or header[:2] != b"\x00\x00" or header[2] != UNSIGNED_BYTE:
        found = header[:4].hex() or "nothing"
        raise DataError(
            f"{name}: not an IDX file of unsigned bytes (it starts with {found}, "
            f"expected 000008{dims:02x})"
        )
    if header[3] != dims:
        kind = "images" if dims == 3 else "labels"
        raise DataError(f"{name}: has {header[3]} dimensions, but {kind} have {dims}")
    if len(header) < 4 + 4 * dims:
        raise DataError(f"{name}: truncated in its header; get the file again")
    shape = struct.unpack(f">{dims}I", header[4:])
    promised = math.prod(shape)
    shown = "×".join(str(side) for side in shape)
    if not promised:
        raise DataError(f"{name}: its header says {shown}, which is empty")
    if packed:
        check_unpacked(promised, name, "unpack it with gunzip")
    values = bytearray()
    while len(values) <= promised:  # one byte more than promised, to notice what is too much
        chunk = file.read(min(CHUNK_BYTES, promised + 1 - len(values)))
        if not chunk:
            break
        values += chunk
    if len(values) != promised:
        found = f"only {len(values)}" if len(values) < promised else "more"
        raise DataError(
            f"{name}: its header promises {shown} = {promised} bytes, but there are {found}; "
            "it is truncated or damaged"
        )
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8).reshape(shape))


def idx_md5(values: Tensor) -> str:
    """MD5 of the IDX file that would hold ``values`` (uint8), whatever file they came from."""
    array = np.ascontiguousarray(values.numpy().astype(np.uint8, copy=False))
    header = bytes([0, 0, UNSIGNED_BYTE, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    total = hashlib.md5(header, usedforsecurity=False)
    total.update(array.data)
    return total.hexdigest()


def image_pair(
    images: Tensor, labels: Tensor, *, transposed: bool = False, first_label: int = 0
) -> tuple[Tensor, Tensor]:
    """Images as ``(n, 1, height, width)`` uint8 and labels as int64 from 0.

    Args:
        images: ``(n, height, width)`` as stored.
        labels: ``(n,)`` as stored.
        transposed: Whether images are stored transposed, as in EMNIST, and must be turned upright.
        first_label: The lowest label stored (1 for the letters of EMNIST).
    """
    upright = images.transpose(1, 2).contiguous() if transposed else images
    return upright.unsqueeze(1), labels.to(torch.int64) - first_label
