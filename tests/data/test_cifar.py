from __future__ import annotations

import io
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nispa.data import cifar
from nispa.data.catalog import CATALOG
from nispa.data.cifar import read_cifar
from nispa.data.finding import CIFAR_FILES
from nispa.data.sources import load
from nispa.errors import DataError
from tests.data.makers import labels, number, pixels, python2_batch, read_or_refuse, text

PYTHON10 = CIFAR_FILES["cifar10"]


def write_python(folder: Path, classes: int, count: int = 4) -> Path:
    folder.mkdir()
    key = "labels" if classes == 10 else "fine_labels"
    for place, name in enumerate(CIFAR_FILES[f"cifar{classes}"]):
        batch = python2_batch(pixels(count, 3072, seed=place), key, labels(count, 2).tolist())
        (folder / name).write_bytes(batch)
    (folder / "meta").write_bytes(b"")
    return folder


def write_binary(folder: Path, classes: int, count: int = 4) -> Path:
    folder.mkdir()
    for place, name in enumerate(CIFAR_FILES[f"cifar{classes}"]):
        columns = [labels(count, 2)[:, None], pixels(count, 3072, seed=place)]
        if classes == 100:  # the coarse label first; 77 would be wrong as a fine one in this file
            columns.insert(0, np.full((count, 1), 77, np.uint8))
        (folder / f"{name}.bin").write_bytes(np.concatenate(columns, axis=1).tobytes())
    return folder


def pack(folder: Path, archive: Path, inside: str) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, inside)
    return archive


def test_the_hand_made_pickle_has_the_form_of_the_published_files() -> None:
    batch = python2_batch(pixels(2, 3072), "labels", [3, 7])
    seen = {opcode.name for opcode, _, _ in pickletools.genops(batch)}
    assert {"PROTO", "REDUCE", "BUILD", "BINSTRING", "SHORT_BINSTRING", "GLOBAL"} <= seen


def read_pickle(folder: Path, content: bytes) -> tuple[Any, Any]:
    (folder / "test_batch").write_bytes(content)
    ((images, classes),), _ = read_cifar(folder, ["test_batch"], classes=10, binary=False)
    return images, classes


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_every_form_gives_the_same(
    tmp_path: Path, classes: int, binary: bool, packed: bool
) -> None:
    files = tmp_path / "files"
    (write_binary if binary else write_python)(files, classes)
    if packed:
        kind = "binary" if binary else "python"
        (tmp_path / "data").mkdir()
        pack(files, tmp_path / "data" / f"cifar-{classes}-{kind}.tar.gz", "some folder")
        before = sorted((tmp_path / "data").rglob("*"))
        data = load(f"cifar{classes}", folder=tmp_path / "data", download=False)
        assert sorted((tmp_path / "data").rglob("*")) == before  # nothing was unpacked
    else:
        data = load(f"cifar{classes}", folder=files, download=False)
    batches = len(CIFAR_FILES[f"cifar{classes}"])
    assert data.shape == (3, 32, 32)
    assert data.train_labels.tolist() == [0, 1, 0, 1] * (batches - 1)
    assert np.array_equal(data.train_images[:4].numpy().reshape(4, -1), pixels(4, 3072, seed=0))
    last = pixels(4, 3072, seed=batches - 1)
    assert np.array_equal(data.test_images.numpy().reshape(4, -1), last)
    assert len(data.class_names) == classes
    assert not data.identity.canonical
    assert "4 instead of 10,000 test images" in data.identity.note


def test_class_names() -> None:
    assert CATALOG["cifar10"].class_names[3] == "cat"
    names = CATALOG["cifar100"].class_names
    assert (len(names), names[0], names[99]) == (100, "apple", "worm")
    assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "pickle exhausted"),
        (b"\x80\x04}.", "pickle protocol 4, expected 2"),
        (b"\x80\x02}.", "has no 'data'"),
        (b"\x80\x02}(" + text("data") + b"]" + text("labels") + b"]u.", "is not an array"),
        (python2_batch(pixels(2, 3072), "fine_labels", [1, 2]), "has no 'labels'"),
        (python2_batch(pixels(2, 3072), "labels", [1]), "2 images but 1 labels"),
        (python2_batch(pixels(2, 3071), "labels", [1, 2]), r"shape \(2, 3071\)"),
        (python2_batch(pixels(2, 3072), "labels", [1, 10]), "label 10 is outside its 10 classes"),
        (python2_batch(pixels(2, 3072), "labels", [1, 2])[:-100], "not a readable batch"),
        (python2_batch(pixels(2, 3072), "labels", [1, 2]).replace(b"u1", b"i1"), "unsigned bytes"),
    ],
)
def test_unusable_pickles(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_pickle(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    call = b"cos\nsystem\n(" + text(f"touch {witness}") + b"tR"
    hidden = b"\x80\x02}(" + text("data") + call + text("labels") + b"](" + number(1) + b"eu."
    for content in (call + b".", hidden):
        with pytest.raises(DataError, match="asks for 'os system'"):
            read_pickle(tmp_path, content)
    # A permitted name with hostile arguments is never called, and no array comes of it.
    tricked = b"\x80\x02}(" + text("data") + b"cnumpy\ndtype\n(" + text("O") + b"tR"
    with pytest.raises(DataError, match="is not an array"):
        read_pickle(tmp_path, tricked + text("labels") + b"]u.")
    assert not witness.exists()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_pickles(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(python2_batch(pixels(1, 3072), "labels", [1]))
    places = st.integers(0, 200) | st.integers(len(content) - 60, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    read_or_refuse(lambda: read_pickle(tmp_path, bytes(content[:cut])))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=60))
@example(content=b"S'\\q'\n.")
@example(content=b"L99999999999999999999L\n.")
@example(content=b"]q\x00(h\x00e.")  # a list that holds itself
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError):
        read_pickle(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes is not a multiple of the 3073 bytes"),
        (bytes(3072), "3072 bytes is not a multiple"),
        (b"\x0a" + bytes(3072), "label 10 is outside its 10 classes"),
    ],
)
def test_unusable_binary_files(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_cifar(tmp_path, ["test_batch.bin"], classes=10, binary=True)


def test_missing_files(tmp_path: Path) -> None:
    folder = write_python(tmp_path / "cifar-10-batches-py", 10)
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        load("cifar10", folder=tmp_path, download=False)
    archive = pack(folder, tmp_path / "cifar-10-python.tar.gz", "x")
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        read_cifar(archive, PYTHON10, classes=10, binary=False)


def test_an_archive_is_held_to_its_checksum(tmp_path: Path) -> None:
    """Without it a flipped bit in the packed data is another pixel, and nobody knows."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in ("test_batch.bin", "last.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3073
            tar.addfile(info, io.BytesIO(b"\x01" + pixels(1, 3072).tobytes()))
    content = bytearray(out.getvalue())
    content[-8] ^= 1  # of the CRC-32 at the end
    (tmp_path / "bad.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match="damaged or truncated"):
        read_cifar(tmp_path / "bad.tar.gz", ["test_batch.bin"], classes=10, binary=True)


def test_an_archive_unpacks_to_so_much_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_binary(tmp_path / "files", 100)
    archive = pack(tmp_path / "files", tmp_path / "data.tar.gz", "x")
    monkeypatch.setattr(cifar, "MOST_BYTES", 3 * 10240)
    with pytest.raises(DataError, match="unpacks to more than 30720 bytes"):
        read_cifar(archive, ["train.bin", "test.bin"], classes=100, binary=True)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_archives(tmp_path: Path, data: st.DataObject) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("cifar/test_batch.bin")
        info.size = 3073
        tar.addfile(info, io.BytesIO(b"\x01" + pixels(1, 3072).tobytes()))
    content = bytearray(out.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "fuzzed.tar.gz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    read_or_refuse(lambda: read_cifar(path, ["test_batch.bin"], classes=10, binary=True))
