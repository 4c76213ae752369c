from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nispa.data.emnist import read_zip, stored_names
from nispa.data.idx import idx_md5, image_pair, read_idx
from nispa.errors import DataError
from tests.data.makers import idx_bytes, labels, pixels, read_or_refuse

SHARED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_reads_plain_and_gzip_alike(tmp_path: Path) -> None:
    content = b"\x00\x00\x08\x03" + struct.pack(">III", 2, 1, 3) + bytes([1, 2, 3, 4, 5, 6])
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(gzip.compress(content))  # no .gz in its name
    for name in ("plain", "packed"):
        assert read_idx(tmp_path / name, dims=3).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


def test_md5_is_that_of_the_file(tmp_path: Path) -> None:
    # The MD5 of 00 00 08 01 00 00 00 02 07 09, by md5sum.
    assert idx_md5(torch.tensor([7, 9])) == "1e811a5578e179d1441be42edd440758"


def test_emnist_is_turned_upright() -> None:
    stored = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    images, classes = image_pair(
        stored, torch.tensor([26], dtype=torch.uint8), transposed=True, first_label=1
    )
    assert images.tolist() == [[[[1, 3], [2, 4]]]]
    assert classes.tolist() == [25]
    assert classes.dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "starts with 89504e47, expected 00000803"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x01" + struct.pack(">I", 2) + b"ab", "1 dimensions, but images have 3"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated in its header"),
        (b"\x00\x00\x08\x03" + struct.pack(">III", 0, 28, 28), "0×28×28, which is empty"),
        (idx_bytes(pixels(3, 4, 4))[:-1], "promises 3×4×4 = 48 bytes, but there are only 47"),
        (idx_bytes(pixels(3, 4, 4)) + b"x", "promises 3×4×4 = 48 bytes, but there are more"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_names_what_is_wrong(tmp_path: Path, content: bytes, reason: str, pack: object) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(content))  # type: ignore[operator]
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path, dims=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_huge_promise_takes_no_memory(tmp_path: Path, pack: object) -> None:
    header = b"\x00\x00\x08\x03" + struct.pack(">III", 1 << 20, 1 << 10, 1 << 10)
    path = tmp_path / "images"
    path.write_bytes(pack(header + bytes(100)))  # type: ignore[operator]
    with pytest.raises(
        DataError, match=r"1099511627776 bytes, but there are only 100|unpacks to 1024.0 GiB"
    ):
        read_idx(path, dims=3)


def test_gzip_bomb_is_read_no_further_than_promised(tmp_path: Path) -> None:
    bomb = gzip.compress(idx_bytes(pixels(1, 2, 2)) + bytes(50_000_000))
    assert len(bomb) < 100_000
    (tmp_path / "bomb").write_bytes(bomb)
    with pytest.raises(DataError, match="but there are more"):
        read_idx(tmp_path / "bomb", dims=3)


def test_missing_file_and_damaged_gzip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nothing", dims=3)
    packed = gzip.compress(idx_bytes(pixels(3, 4, 4)))
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged or truncated gzip data"):
        read_idx(tmp_path / "cut", dims=3)


@SHARED
@given(data=st.data(), packed=st.booleans())
def test_damage_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    good = idx_bytes(pixels(3, 4, 4))
    content = bytearray(gzip.compress(good, mtime=0) if packed else good)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "fuzzed"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    values = read_or_refuse(lambda: read_idx(path, dims=3))
    assert values is None or values.numel() == 48


def make_zip(path: Path) -> tuple[np.ndarray, Path]:
    images = pixels(4, 28, 28)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, name in enumerate(stored_names("letters")):
            values = images if place % 2 == 0 else labels(4, 2)
            archive.writestr(f"gzip/{name}.gz", gzip.compress(idx_bytes(values)))
    return images, path


def test_emnist_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    images, path = make_zip(tmp_path / "gzip.zip")
    stored = read_zip(path, stored_names("letters"))
    assert np.array_equal(stored[0].numpy(), images)
    assert stored[1].tolist() == [0, 1, 0, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["gzip.zip"]
    with pytest.raises(DataError, match=r"holds no emnist-digits-train-images-idx3-ubyte\.gz"):
        read_zip(path, stored_names("digits"))


@SHARED
@given(data=st.data())
def test_damaged_archive(tmp_path: Path, data: st.DataObject) -> None:
    _, path = make_zip(tmp_path / "gzip.zip")
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    read_or_refuse(lambda: read_zip(path, stored_names("letters")))
