"""Folders of images and Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from nispa.data.folders import read_folder
from nispa.data.images import decode
from nispa.data.parquet import read_parquet
from nispa.data.sources import load
from nispa.errors import DataError
from tests.data.makers import image_bytes, pixels, read_or_refuse


def write_folders(root: Path, classes: list[str], count: int = 5, *size: int) -> Path:
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(pixels(count, *(size or (6, 5, 3)), seed=place)):
            (root / name / f"{number}.png").write_bytes(image_bytes(image))
    return root


def table(count: int, *, seed: int = 0, column: str = "img", label: str = "label") -> pa.Table:
    images = [{"bytes": image_bytes(each), "path": None} for each in pixels(count, 4, 3, seed=seed)]
    return pa.table({column: images, label: [number % 2 for number in range(count)]})


def write(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path)
    return path


def test_class_folders_split_by_the_seed(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", ["dog", "cat", "10"])
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".hidden").mkdir()
    data = load(tmp_path / "pets", seed=3)
    assert (data.name, data.class_names, data.shape) == ("pets", ("10", "cat", "dog"), (3, 6, 5))
    assert (len(data.train_labels), len(data.test_labels)) == (12, 3)
    assert data.test_labels.tolist() == [0, 1, 2]
    stored = {each.tobytes() for each in pixels(5, 6, 5, 3, seed=1).transpose(0, 3, 1, 2)}
    cats = data.train_images[data.train_labels == 1].numpy()
    assert {np.ascontiguousarray(each).tobytes() for each in cats} < stored


def test_class_folders_with_train_and_test(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["2", "10"], 3)
    write_folders(tmp_path / "test", ["10", "2"], 2)
    data = read_folder(tmp_path, name="own")
    assert data.class_names == ("2", "10")  # as numbers, since all are
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "test" / "11").mkdir()
    (tmp_path / "test" / "11" / "a.png").write_bytes(image_bytes(pixels(1, 6, 5, 3)[0]))
    with pytest.raises(DataError, match="test/11 has no partner in train/"):
        read_folder(tmp_path)


def test_class_folders_inside_train_alone_are_split_by_the_seed(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["cat", "dog"])
    data = read_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train_labels), len(data.test_labels)) == (8, 2)


def test_grey_and_colour_become_colour_in_any_order(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", ["grey", "rgb"], 2, 2, 2)
    colour = np.array([[[1, 2, 3]] * 2] * 2, dtype=np.uint8)
    for name in ("0.png", "1.png"):
        (tmp_path / "a" / "rgb" / name).write_bytes(image_bytes(colour))
    data = read_folder(tmp_path / "a")
    assert data.shape == (3, 2, 2)
    grey = data.train_images[0]
    assert grey[0].tolist() == grey[1].tolist() == grey[2].tolist()
    assert data.train_images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", ["cat", "dog"])
    odd = root / "dog" / "9.png"
    odd.write_bytes(image_bytes(pixels(1, 7, 5, 3)[0]))
    with pytest.raises(DataError, match=r"dog/9\.png: 5×7 pixels, but .*cat/0\.png has 5×6"):
        read_folder(root)
    odd.write_bytes(image_bytes(pixels(1, 6, 5, 3)[0])[:40])
    with pytest.raises(DataError, match=r"dog/9\.png: not a readable image"):
        read_folder(root)
    odd.unlink()
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="empty: class folder without images"):
        read_folder(root)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no data set"):
        load(tmp_path / "nothing")


def test_sixteen_bits_become_eight_and_huge_images_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 255], [256, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        image = decode(tmp_path / name, name)
        assert image.pixels.tolist() == [[0, 0], [1, 255]]
        assert image.brightest == 65535
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: mode F must be grey or colour"):
        decode(tmp_path / "float.tif", "float.tif")
    Image.new("1", (9_450, 9_450)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="9450×9450 pixels is too large"):
        decode(tmp_path / "huge.png", "huge.png")


def test_palettes_transparency_and_print_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 8, 7])
    palette.save(tmp_path / "palette.png")
    assert decode(tmp_path / "palette.png", "x").pixels.tolist() == [[[9, 8, 7]]]
    palette.info["transparency"] = b"\x00"
    palette.save(tmp_path / "clear.png")
    clear = decode(tmp_path / "clear.png", "x")
    assert (clear.pixels.tolist(), clear.clear) == ([[[255, 255, 255]]], True)
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [200, 0, 0, 51]]], np.uint8)
    Image.fromarray(ink, "RGBA").save(tmp_path / "ink.png")  # black on nothing, and a fifth of red
    shown = decode(tmp_path / "ink.png", "x").pixels.tolist()
    assert shown == [[[255, 255, 255], [0, 0, 0], [244, 204, 204]]]
    Image.fromarray(ink[:, 1:2], "RGBA").save(tmp_path / "opaque.png")
    assert not decode(tmp_path / "opaque.png", "x").clear
    Image.new("LA", (1, 1), (7, 0)).save(tmp_path / "la.png")
    assert decode(tmp_path / "la.png", "x").pixels.tolist() == [[255]]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red = decode(tmp_path / "print.jpg", "x").pixels.reshape(-1, 3).mean(0)
    assert red[0] > 200 > 60 > red[1:].max()


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "ICO", "TGA"]),
)
def test_damaged_images(data: st.DataObject, kind: str) -> None:
    content = bytearray(image_bytes(pixels(1, 6, 5, 3)[0], kind))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content)))
    read_or_refuse(lambda: decode(bytes(content[:cut]), "fuzzed"))


def test_parquet_shards_of_train_and_test(tmp_path: Path) -> None:
    first = write(tmp_path / "mine" / "train-00000-of-00002.parquet", table(3, seed=1))
    second = write(tmp_path / "mine" / "train-00001-of-00002.parquet", table(4, seed=2))
    write(tmp_path / "mine" / "test-00000-of-00001.parquet", table(2, seed=3))
    data = load(tmp_path / "mine")
    assert (data.name, data.source, data.shape) == ("mine", "Parquet files", (1, 4, 3))
    expected = np.concatenate([pixels(3, 4, 3, seed=1), pixels(4, 4, 3, seed=2)])
    assert np.array_equal(data.train_images[:, 0].numpy(), expected)
    assert data.train_labels.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert data.test_labels.tolist() == [0, 1]
    first.unlink()
    with pytest.raises(DataError, match="shard train-00000-of-00002 is missing"):
        load(tmp_path / "mine")
    write(first, table(3))
    second.unlink()
    with pytest.raises(DataError, match="shard train-00001-of-00002 is missing"):
        load(tmp_path / "mine")


def test_parquet_layouts(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", table(20, column="image"))
    data = load(one)
    assert (len(data.train_labels), len(data.test_labels)) == (16, 4)
    both = [
        write(tmp_path / "own" / "train" / "0000.parquet", table(4)),
        write(tmp_path / "own" / "validation" / "0000.parquet", table(2)),
    ]
    data = load(tmp_path / "own")
    assert len(data.test_labels) == 2
    assert data.note == "its validation images serve as the test set"
    write(tmp_path / "own" / "test" / "0000.parquet", table(3))
    data = load(tmp_path / "own")
    assert len(data.test_labels) == 3
    assert data.note == "its validation images are not used"
    assert read_parquet(both, name="x").class_names == ("0", "1")


def test_parquet_class_names_come_from_the_schema(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"}}
    text = json.dumps({"info": {"features": features}})
    named = table(10).replace_schema_metadata({"huggingface": text})
    assert load(write(tmp_path / "a.parquet", named)).class_names == ("cat", "dog", "fox")
    for odd in ("[" * 100_000, '{"info": 1}', "no JSON"):  # then the labels are the names
        path = write(
            tmp_path / "odd.parquet", table(10).replace_schema_metadata({"huggingface": odd})
        )
        assert load(path).class_names == ("0", "1")
    fine = table(10, label="fine_label").append_column("coarse_label", pa.array([5] * 10))
    assert load(write(tmp_path / "b.parquet", fine)).train_labels.max() == 1


def test_lossy_images_are_named_in_the_record(tmp_path: Path) -> None:
    images = [{"bytes": image_bytes(each, "JPEG")} for each in pixels(8, 8, 8, 3)]
    path = write(tmp_path / "a.parquet", pa.table({"img": images, "label": [0, 1] * 4}))
    assert "stored as JPEG, which is lossy" in load(path).identity.note


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pa.table({"x": [1]}), "needs a column of labels called fine_label, label"),
        (table(2).rename_columns(["img", "z"]), "say which one with label="),
        (table(4).slice(0, 0), "has no rows"),
        (pa.table({"img": [1, 2], "label": [0, 1]}), "expected struct<bytes, path>"),
        (
            pa.table({"img": [{"bytes": b"GIF89a"}] * 2, "label": [0, 1]}),
            "row 0: not a readable image",
        ),
        (
            pa.table({"img": pa.array([{"bytes": None}], table(1).schema.field("img").type),
                      "label": [0]}),
            "row 0 holds no image bytes",
        ),
        (table(2).set_column(1, "label", pa.array([0, None])), "row 1 has no valid label"),
        (table(2).set_column(1, "label", pa.array([0.5, 1.5])), "whole numbers or texts, not 0.5"),
        (
            table(2).set_column(1, "label", pa.array([0, 7])).replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a"]}}}})}
            ),
            "label 7 of image 1 is outside its 1 classes",
        ),
    ],
)  # fmt: skip
def test_unusable_parquet(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load(write(tmp_path / "a.parquet", content))


def test_truncated_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(path)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(2, 30), seed=st.integers(0, 2**31))
def test_no_image_is_lost_or_doubled(tmp_path: Path, count: int, seed: int) -> None:
    images = [{"bytes": image_bytes(each)} for each in pixels(2 * count, 4, 4)]
    content = pa.table({"img": images, "label": [0, 1] * count})
    data = load(write(tmp_path / "a.parquet", content), seed=seed)
    seen = np.concatenate([data.train_images.numpy(), data.test_images.numpy()])[:, 0]
    assert sorted(each.tobytes() for each in seen) == sorted(
        each.tobytes() for each in pixels(2 * count, 4, 4)
    )
