"""Small files that promise much: refused, or read without taking what they promise."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from nispa import tensorfile
from nispa.data.cifar import read_cifar
from nispa.data.idx import read_idx
from nispa.data.images import decode as read_image
from nispa.data.npz import read_npz
from nispa.data.sources import load_path
from nispa.errors import FormatError, NispaError
from nispa.methods.saving import FORMAT, MAX_TASKS, decode
from nispa.reading.imports import imported_record, read_matrix
from nispa.runs.folder import RunFolder
from nispa.runs.record import RECORD, read_record
from tests.fuzz_kinds import KINDS
from tests.fuzzing import bounded, guarded

MOST = 96 * 2**20
"""Bytes that reading one of these files, each smaller than 128 KB, may take.

An image of 2^24 pixels, the most that is read, takes 64 MiB before its pixels are found to be
missing.
"""

Read = Callable[[Path], Any]


def _safetensors(header: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def _npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _zip_of(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("y.npy", _npy_header("(1,)"))
    return out.getvalue()


def _png(width: int, height: int) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )


def _tar(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("test_batch.bin")
    info.size, info.type = size, kind
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def _sparse() -> bytes:
    """A member of 400 MB of which the archive holds nothing, as GNU tar writes it."""
    info = tarfile.TarInfo("test_batch.bin")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    real = 3073 * 130_000
    block[386:410] = b"%011o\x00%011o\x00" % (real, 0)
    block[483:495] = b"%011o\x00" % real
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    return gzip.compress(bytes(block) + bytes(2048))


def _network_header(tmp: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A learner whose header says something else, with the checksum that belongs to it."""
    path = next(kind for kind in KINDS if kind.name == "network of er").make(tmp)
    tensors, header = tensorfile.read(path, FORMAT, "learner")
    change(header)
    header["sha256"] = tensorfile.digest(header, tensors)
    return safetensors.torch.save(tensors, {"nispa": json.dumps(header)})


def _wide(header: dict[str, Any]) -> None:
    header["problem"]["input_shape"] = [1, 2**31, 2**31]


def _outputs(header: dict[str, Any]) -> None:
    header["problem"]["outputs"] = 2**31


def _memory(header: dict[str, Any]) -> None:
    header["config"]["method"]["memory"] = 10_000_000
    header["problem"]["input_shape"] = [1, 1000, 1000]


def _layers(header: dict[str, Any]) -> None:
    header["config"]["network"]["hidden"] = [1] * 20_000


def _classes(header: dict[str, Any]) -> None:
    header["learned"][0]["classes"], header["labels"][0] = [0] * 8_000, ["a"] * 8_000


def _tasks(header: dict[str, Any]) -> None:
    header["learned"] = [{"index": index, "classes": []} for index in range(MAX_TASKS + 1)]
    header["labels"] = [[]] * (MAX_TASKS + 1)


def _places(header: dict[str, Any]) -> None:
    header["learned"][0]["index"] = 2**31


TENSOR = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
PICKLES = {
    "text": b"\x80\x02}(T\xff\xff\xff\x7f",
    "unicode": b"\x80\x02}(X\xff\xff\xff\xff",
    "long": b"\x80\x02}(\x8b\xff\xff\xff\x7f",
    "place": b"\x80\x02]r\xff\xff\xff\x7f",
    "digits": b"I" + b"9" * 60_000 + b"\n.",
    "nested": b"(" * 60_000 + b"t" * 60_000 + b".",
}


def _read_cifar(path: Path) -> Any:
    return read_cifar(path.parent, [path.name], classes=10, binary=False)


def _read_tar(path: Path) -> Any:
    return read_cifar(path, ["test_batch.bin"], classes=10, binary=True)


def _read_image(path: Path) -> Any:
    return read_image(path, "image")


PROMISES: dict[str, tuple[str, bytes, Read]] = {
    "idx": ("a", b"\0\0\x08\x03" + b"\xff" * 12, lambda path: read_idx(path, 3)),
    "idx.gz": ("a", gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff"), lambda path: read_idx(path, 1)),
    "safetensors length": ("a", _safetensors({}, 2**62), decode),
    "safetensors length, less": ("a", _safetensors({}, 90_000_000), decode),
    "safetensors tensor": ("a", _safetensors({"x": TENSOR}), decode),
    "npz": ("a.npz", _zip_of("x.npy", _npy_header(f"({2**40},)")), lambda p: read_npz(p, seed=0)),
    "npz, overflow": (
        "a.npz",
        _zip_of("x.npy", _npy_header(f"({2**62}, {2**62}, 4)")),
        lambda path: read_npz(path, seed=0),
    ),
    "npy": ("a.npy", _npy_header("(1000, 1000)"), read_matrix),
    "npy, nested": ("a.npy", _npy_header("(" * 60_000), read_matrix),
    "npy, signs": ("a.npy", _npy_header("-" * 60_000 + "1"), read_matrix),
    "npz matrix": (
        "a.npz",
        _zip_of("x.npy", _npy_header(f"({2**40}, 1)")),
        lambda path: read_matrix(path, array="x"),
    ),
    "PNG": ("a.png", _png(2**31 - 1, 2**31 - 1), _read_image),
    "PNG of 16 million pixels": ("a.png", _png(4096, 4096), _read_image),
    "tar": ("a.tar.gz", _tar(8 * 2**30 - 1), _read_tar),
    "tar, long name": ("a.tar.gz", _tar(8 * 2**30 - 1, tarfile.GNUTYPE_LONGNAME), _read_tar),
    "tar, sparse": ("a.tar.gz", _sparse(), _read_tar),
    "csv": ("a.csv", b"0.5," * 15_000, read_matrix),
    "csv, digits": ("a.csv", b"1" * 120_000 + b"x,1", read_matrix),
    "csv, points": ("a.csv", b"1" * 120_000 + b"." + b"1" * 1_000 + b"x,1", read_matrix),
    "csv, empty lines": ("a.csv", b"\n" * 120_000, read_matrix),
    "record": (RECORD, b'{"schema":' * 6_000, read_record),
    "record of many tasks": (
        RECORD,
        b'{"schema": "nispa-record/1", "tasks": [' + b"{}," * 20_000,
        read_record,
    ),
    **{f"pickle, {name}": ("test_batch", data, _read_cifar) for name, data in PICKLES.items()},
}


def check_refused(path: Path, read: Read) -> None:
    assert path.stat().st_size < 128_000
    with bounded(MOST), guarded(), pytest.raises(NispaError) as caught:
        read(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_takes_no_memory(name: str, tmp_path: Path) -> None:
    file, content, read = PROMISES[name]
    (tmp_path / file).write_bytes(content)
    check_refused(tmp_path / file, read)


def test_the_largest_matrix_is_imported_in_seconds(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((1000, 1000))
    text = "\n".join(",".join(map("{:.29f}".format, row)) for row in matrix)
    (tmp_path / "a.csv").write_text(text)
    began = time.process_time()
    with bounded(2**29):
        found = read_matrix(tmp_path / "a.csv")
        made = imported_record(found, file="a.csv", tool="x", method="y", seed=0)
        RunFolder.create(tmp_path / "run", made)
    assert time.process_time() - began < 15
    assert np.abs(found.matrix - matrix).max() < 1e-15
    assert len(read_record(tmp_path / "run").accuracy_matrix) == 1000


@pytest.mark.parametrize("change", [_wide, _outputs, _memory, _layers, _classes, _places])
def test_a_network_is_no_larger_than_its_file(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(_network_header(tmp_path, change))
    check_refused(path, decode)


def test_a_network_has_a_most_of_tasks(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(_network_header(tmp_path, _tasks))
    with guarded(), pytest.raises(FormatError, match=r"learned: .* at most 100000 items"):
        decode(path)


@pytest.mark.parametrize("depth", [33, 500, *range(960, 1001, 2), 5_000, 100_000])
@pytest.mark.parametrize("form", [("[", "", "]"), ('{"a": ', "1", "}")])
def test_headers_that_nest_are_refused(
    tmp_path: Path, depth: int, form: tuple[str, str, str]
) -> None:
    """At each depth: what reads JSON and what writes it come to the end of the stack elsewhere."""
    first, middle, last = form
    header = {"format": FORMAT, "values": "here"}
    text = json.dumps(header).replace('"here"', first * depth + middle + last * depth)
    (tmp_path / "bad").write_bytes(safetensors.torch.save({"x": torch.ones(1)}, {"nispa": text}))
    with pytest.raises(FormatError):
        decode(tmp_path / "bad")


class Evil:
    """What pickle would call, and with what, where anything unpickled it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("name", ["matrix.npy", "matrix.npz", "data.npz"])
def test_an_array_of_objects_runs_nothing(name: str, tmp_path: Path) -> None:
    objects = np.array([[Evil(tmp_path / "witness")]], dtype=object)
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, objects)
    else:
        save: Any = np.savez
        save(path, x=objects, y=objects) if name == "data.npz" else save(path, objects)
    check_refused(path, read_matrix if name.startswith("matrix") else load_own)
    np.load(path, allow_pickle=True)  # what it would have done
    if name.endswith("npz"):
        np.load(path, allow_pickle=True)["x" if name == "data.npz" else "arr_0"]
    assert (tmp_path / "witness").exists()


def load_own(path: Path) -> Any:
    return load_path(path)
