"""Small files in the formats that the readers know, made byte by byte."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nispa.errors import DataError

Bytes = NDArray[np.uint8]
T = TypeVar("T")


def read_or_refuse(read: Callable[[], T]) -> T | None:
    """What a reader makes of fuzzed bytes; None where it refuses them with an error of one line.

    Anything else that it raises reaches the test.
    """
    try:
        return read()
    except DataError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


def idx_bytes(values: Bytes) -> bytes:
    """An IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def pixels(count: int, *shape: int, seed: int = 0) -> Bytes:
    """Random pixels ``(count, *shape)``."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int) -> Bytes:
    """0, 1, …, classes - 1, 0, 1, …"""
    return (np.arange(count) % classes).astype(np.uint8)


def write_mnist(folder: Path, train: int = 20, test: int = 10, *, end: str = ".gz") -> Path:
    """MNIST's four files with random images of 28×28 and ten classes."""
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if end == ".gz" else bytes
    for name, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images = idx_bytes(pixels(count, 28, 28, seed=seed))
        (folder / f"{name}-images-idx3-ubyte{end}").write_bytes(pack(images))
        (folder / f"{name}-labels-idx1-ubyte{end}").write_bytes(pack(idx_bytes(labels(count, 10))))
    return folder


def image_bytes(values: Bytes, kind: str = "PNG") -> bytes:
    """An image file of ``(height, width)`` or ``(height, width, 3)`` pixels."""
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def text(value: str) -> bytes:
    """A pickled text as Python 2 wrote it."""
    return b"U" + bytes([len(value)]) + value.encode()


def number(value: int) -> bytes:
    """A pickled whole number of one or two bytes."""
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def python2_batch(data: Bytes, key: str, classes: list[int]) -> bytes:
    """A batch file of CIFAR's Python version, as the cPickle of Python 2 wrote it (protocol 2).

    ``{"batch_label": …, key: [labels], "data": array of bytes, "filenames": [names]}``
    """
    reconstruct = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06"
        + number(0) + b"\x85" + text("b") + b"\x87q\x07Rq\x08"
    )  # fmt: skip
    dtype = (
        b"cnumpy\ndtype\nq\x09" + text("u1") + number(0) + number(1) + b"\x87q\x0aRq\x0b("
        + number(3) + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    )  # fmt: skip
    content = b"T" + struct.pack("<I", data.size) + data.tobytes()
    state = (
        b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86"
        + dtype + b"\x89" + content + b"tb"
    )  # fmt: skip
    names = b"".join(text(f"image_{place}.png") for place in range(len(classes)))
    return (
        b"\x80\x02}q\x01("
        + text("batch_label") + b"q\x02" + text("training batch 1 of 5")
        + text(key) + b"q\x03]q\x04(" + b"".join(number(each) for each in classes) + b"e"
        + text("data") + reconstruct + state
        + text("filenames") + b"](" + names + b"e"
        + b"u."
    )  # fmt: skip
