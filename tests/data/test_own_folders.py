"""People's own folders: names of parts, layouts, kinds of images, photos, what is decoded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from nispa.data import images as images_module
from nispa.data.dataset import ImageData
from nispa.data.named import build_scenario
from nispa.data.scenarios import split
from nispa.data.shaping import Shaping, parse_resize, shape_data
from nispa.data.sources import load
from nispa.data.unlabelled import read_unlabelled
from nispa.errors import ConfigError, DataError, ScenarioError
from tests.data.makers import image_bytes, pixels
from tests.data.test_pictures import table, write, write_folders


def sizes(data: ImageData) -> tuple[int, int]:
    return len(data.train_labels), len(data.test_labels)


# Names of parts.


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training.parquet", "testing.parquet"),
        ("train-00000-of-00001.parquet", "eval-00000-of-00001.parquet"),
        ("my_train_v2.parquet", "my_evaluation_v2.parquet"),
        ("train1.parquet", "test1.parquet"),
        ("train.parquet", "dev.parquet"),
        ("train.parquet", "val.parquet"),
        ("train/0000.parquet", "valid/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/training/0000.parquet", "default/testing/0000.parquet"),
    ],
)
def test_names_of_parts_in_parquet(tmp_path: Path, train: str, test: str) -> None:
    write(tmp_path / "own" / train, table(20))
    write(tmp_path / "own" / test, table(6))
    (tmp_path / "own" / "README.md").write_text("")
    assert sizes(load(tmp_path / "own")) == (20, 6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("extra.parquet", r"extra\.parquet: its name does not say whether it is train, test"),
        ("unsupervised/0000.parquet", "unsupervised: its name does not say"),
        ("train-test.parquet", "its name stands for test and train"),
    ],
)
def test_a_file_of_no_known_part_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path / "train.parquet", table(20))
    write(tmp_path / name, table(6))
    with pytest.raises(DataError, match=reason):
        load(tmp_path)


def test_several_configurations_and_no_training_part(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write(tmp_path / name / "train-00000-of-00001.parquet", table(4))
    with pytest.raises(DataError, match=r"Parquet files in large, small; give the folder of one"):
        load(tmp_path)
    write(tmp_path / "x" / "test.parquet", table(4))
    write(tmp_path / "x" / "val.parquet", table(4))
    with pytest.raises(DataError, match="has test and validation but no training part"):
        load(tmp_path / "x")


def test_hidden_test_labels(tmp_path: Path) -> None:
    hidden = table(6).set_column(1, "label", pa.array([-1] * 6))
    names = json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})
    for schema in ({}, {"huggingface": names}):
        root = tmp_path / str(len(schema))
        write(root / "train.parquet", table(20).replace_schema_metadata(schema))
        write(root / "test.parquet", hidden.replace_schema_metadata(schema))
        with pytest.raises(DataError, match=r"-1 does not occur .* test\.parquet are hidden"):
            load(root)
        write(root / "validation.parquet", table(8).replace_schema_metadata(schema))
        data = load(root)
        assert sizes(data) == (20, 8)
        assert "test labels are hidden" in data.note
    other = table(6).set_column(1, "label", pa.array([0, 1, 2] * 2))
    write(tmp_path / "other" / "train.parquet", table(20))
    write(tmp_path / "other" / "test.parquet", other)
    with pytest.raises(DataError, match="test label 2 does not occur among the training labels"):
        load(tmp_path / "other")


# Folders of images.


@pytest.mark.parametrize("test", ["test", "testing", "eval", "val", "valid", "validation", "dev"])
def test_names_of_parts_in_folders(tmp_path: Path, test: str) -> None:
    write_folders(tmp_path / "Train", ["a", "b"], 4)
    write_folders(tmp_path / test, ["a", "b"], 2)
    data = load(tmp_path)
    assert (sizes(data), data.class_names) == ((8, 4), ("a", "b"))
    assert ("validation images serve" in data.note) == (test[0] in "vd")


@pytest.mark.parametrize(
    ("train", "test"),
    [("training_set", "test_set"), ("train_images", "val images"), ("seg_train", "seg-test")],
)
def test_words_in_the_names_of_folders(tmp_path: Path, train: str, test: str) -> None:
    write_folders(tmp_path / train, ["a", "b"], 4)
    write_folders(tmp_path / test, ["a", "b"], 2)
    data = load(tmp_path)
    assert (sizes(data), data.class_names) == ((8, 4), ("a", "b"))


def test_classes_may_have_the_words_of_parts(tmp_path: Path) -> None:
    for root, names in (("flat", ["test tube", "train"]), ("deep", ["test tube/1", "glass/1"])):
        write_folders(tmp_path / root, names, 5)
        assert len(load(tmp_path / root).class_names) == 2
    write_folders(tmp_path / "my test photos", ["a", "b"], 5)
    assert load(tmp_path / "my test photos").class_names == ("a", "b")


def test_both_validation_and_test_folders(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 3), ("test", 2)):
        write_folders(tmp_path / part, ["a", "b"], count)
    data = load(tmp_path)
    assert (sizes(data), data.note) == ((8, 4), "its validation images are not used")
    write_folders(tmp_path / "more", ["a", "b"])
    with pytest.raises(DataError, match="more: its name does not say whether it is train, test"):
        load(tmp_path)


def test_parts_that_cannot_be_told_apart(tmp_path: Path) -> None:
    write_folders(tmp_path / "a" / "train", ["a", "b"])
    write_folders(tmp_path / "a" / "training", ["a", "b"])
    with pytest.raises(DataError, match=r"training: is train as .*train is; put them together"):
        load(tmp_path / "a")
    write_folders(tmp_path / "b" / "test", ["a", "b"])
    write_folders(tmp_path / "b" / "val", ["a", "b"])
    with pytest.raises(DataError, match="has test, val, but no train/"):
        load(tmp_path / "b")
    write_folders(tmp_path / "c" / "train", ["a", "b"])
    (tmp_path / "c" / "test").mkdir()
    (tmp_path / "c" / "test" / "1.png").write_bytes(image_bytes(pixels(1, 6, 5)[0]))
    with pytest.raises(DataError, match="test: holds images but no class folders"):
        load(tmp_path / "c")
    write_folders(tmp_path / "d", ["train", "tram", "val"])  # classes that are called like parts
    assert load(tmp_path / "d").class_names == ("train", "tram", "val")


def test_a_class_without_test_images_in_folders_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["a", "b", "c"], 4)
    write_folders(tmp_path / "test", ["a", "b"], 2)
    assert "no test images of class c" in load(tmp_path).identity.note


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "webp", "gif", "ico", "tga", "pcx", "jp2"])
def test_whatever_pillow_reads_is_read(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deeper" / "still").mkdir(parents=True)
        for number in range(5):
            end = kind.upper() if number % 2 else kind
            inner = tmp_path / name / ("deeper/still" if number == 4 else ".")
            image = Image.fromarray(pixels(1, 16, 16, 3, seed=number)[0])
            image.save(inner / f"{number}.{end}")
    data = load(tmp_path)
    assert sizes(data) == (8, 2)
    assert data.shape == (3, 16, 16)
    assert "left out" not in data.identity.note


def test_heic_where_its_library_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    assert ".heic" in images_module.suffixes()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = Image.fromarray(pixels(1, 40, 60, 3, seed=number)[0])
            image.save(tmp_path / name / f"{number}.heic")
    data = load(tmp_path)
    assert (sizes(data), data.shape) == ((8, 2), (3, 40, 60))
    assert "stored as HEIC, which is lossy" in data.note


def test_what_is_left_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {end: kind for end, kind in images_module.suffixes().items() if kind != "HEIF"}
    monkeypatch.setattr("nispa.data.folders.suffixes", lambda: known)
    write_folders(tmp_path, ["a", "b"])
    for place in ("a/1.txt", "a/2.txt", "b/x.heic", "b/noend", "b/.DS_Store"):
        (tmp_path / place).write_bytes(b"")
    (tmp_path / "c.png").write_bytes(b"")
    note = load(tmp_path).note
    assert "2 .txt" in note
    assert "1 .heic (to read them: pip install 'nispa[heic]')" in note
    assert "1 without an ending" in note
    assert "1 image beside the class folders" in note
    assert "DS_Store" not in note
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"c: class folder without images.*1 \.heic"):
        load(tmp_path)


def test_a_folder_around_everything_and_links(tmp_path: Path) -> None:
    write_folders(tmp_path / "elsewhere", ["a"], 5)
    inner = write_folders(tmp_path / "own" / "around", ["b"], 5)
    (inner / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (inner / "b" / "up").symlink_to(inner)  # a circle
    data = load(tmp_path / "own")
    assert data.class_names == ("a", "b")
    assert int((data.train_labels == 0).sum()) == 4


def test_moving_and_transparent_images_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            frames = [Image.fromarray(each) for each in pixels(2, 6, 5, seed=number)]
            frames[0].save(
                tmp_path / name / f"{number}.gif", save_all=True, append_images=frames[1:]
            )
    data = load(tmp_path)
    assert "of 10 images with several frames the first was read" in data.note
    Image.new("RGBA", (5, 6), (1, 2, 3, 100)).save(tmp_path / "a" / "clear.png")
    assert "what is transparent in 1 images was laid over white" in load(tmp_path).note


def test_dark_images_of_sixteen_bits(tmp_path: Path) -> None:
    for name, most in (("a", 4000), ("b", 3000)):
        (tmp_path / name).mkdir()
        for number in range(5):
            values = np.full((4, 4), most + number, np.uint16)
            Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match="reach 4004 of 65535 at most, which 8 bits cannot show"):
        load(tmp_path)
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "a" / "bright.png")
    assert "of 11 images of 16 bits the upper 8 are used" in load(tmp_path).note


def test_a_folder_to_predict_is_read_as_one_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "far", ["a", "b"], 3)
    near = write_folders(tmp_path / "near", ["c"], 1)
    (near / "b").symlink_to(tmp_path / "far" / "b")
    (near / "c" / "notes.pdf").write_bytes(b"x")
    (found,) = read_unlabelled([near], (3, 6, 5))
    assert len(found.names) == 4
    (near / "c" / "x.heic").write_bytes(b"x")
    known = {end: kind for end, kind in images_module.suffixes().items() if kind != "HEIF"}
    monkeypatch.setattr("nispa.data.folders.suffixes", lambda: known)
    with pytest.raises(DataError, match=r"x\.heic: to read 1 such files: pip install"):
        read_unlabelled([near], (3, 6, 5))


def test_dark_images_to_predict_are_not_taken_for_black(tmp_path: Path) -> None:
    for level in (200, 60000):
        Image.fromarray(np.full((6, 5), level, np.uint16)).save(tmp_path / f"{level}.png")
    with pytest.raises(DataError, match="reach 200 of 65535"):
        read_unlabelled([tmp_path / "200.png"], (1, 6, 5))
    assert read_unlabelled([tmp_path], (1, 6, 5))[0].images.max() == 60000 >> 8


# Photos.


def gradient(height: int, width: int) -> Image.Image:
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(0, 255, width)
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def test_mixed_sizes_need_a_size_and_the_orientation_is_applied(tmp_path: Path) -> None:
    upright = gradient(40, 60)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            upright.save(tmp_path / name / f"{number}.png")
    for number, turn in enumerate(
        (
            None,
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_90,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_270,
        ),
        1,
    ):
        exif = Image.Exif()
        exif[0x0112] = number  # what is stored, turned so, is upright
        stored = upright if turn is None else upright.transpose(turn)
        for end in ("png", "webp"):
            content = io.BytesIO()
            lossless = {"lossless": True, "exact": True} if end == "webp" else {}
            stored.save(content, end, exif=exif, **lossless)
            shown = images_module.decode(content.getvalue(), "x").pixels
            assert np.array_equal(shown, np.asarray(upright)), (number, end)
    gradient(60, 40).save(tmp_path / "b" / "9.png")
    with pytest.raises(
        DataError, match=r"40×60 pixels, but .*a/0\.png has 60×40.*resize=\(32, 32\)"
    ):
        load(tmp_path)
    data = load(tmp_path, shaping=Shaping(resize=(8, 8)))
    assert data.shape == (3, 8, 8)
    assert "scaled to 8×8" in data.identity.note


def test_crop_grey_and_resize() -> None:
    photo = gradient(40, 60)
    square = Shaping(crop=True)(photo)
    assert square.size == (40, 40)
    assert np.array_equal(np.asarray(square), np.asarray(photo)[:, 10:50])
    wide = Shaping(crop=True, resize=(10, 40))(photo)  # a strip of 15 × 60, scaled
    assert wide.size == (40, 10)
    assert np.asarray(wide)[..., 1].min() > 70  # rows 12 to 26 of 0 to 39
    grey = Shaping(grey=True)(photo)
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), np.asarray(photo.convert("L")))
    with pytest.raises(ConfigError, match=r"resize=\(0, 5\) must have sides from 1"):
        Shaping(resize=(0, 5))


@pytest.mark.parametrize(
    ("text", "size"), [("32", (32, 32)), ("32x48", (32, 48)), (" 8×9 ", (8, 9))]
)
def test_sizes_from_text(text: str, size: tuple[int, int]) -> None:
    assert parse_resize(text) == size


@pytest.mark.parametrize("text", ["", "0", "32x", "x", "-3", "5000", "3.5", "32x0", "99999999"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a side or HEIGHTxWIDTH"):
        build_scenario("split-digits", seed=0, options={"resize": text})


def test_arrays_are_shaped_as_files_are(tmp_path: Path) -> None:
    write_folders(tmp_path / "p", ["a", "b"], 5, 12, 9, 3)
    shaping = Shaping(resize=(5, 5), crop=True, grey=True)
    files, later = load(tmp_path / "p", shaping=shaping), shape_data(load(tmp_path / "p"), shaping)
    assert files.identity.sha256 == later.identity.sha256
    assert files.shape == (1, 5, 5)
    digits = load("digits", shaping=Shaping(resize=(4, 4)))
    assert (digits.shape, digits.canonical) == ((1, 4, 4), False)
    assert "scaled to 4×4" in digits.note


def test_options_of_shape_stand_in_the_record_only_where_given() -> None:
    plain = build_scenario("split-digits", seed=0)
    assert not {"resize", "crop", "grey", "label"} & set(plain.settings["options"])
    small = build_scenario("split-digits", seed=0, options={"resize": 4, "crop": "true"})
    assert small.input_shape == (1, 4, 4)
    options = small.settings["options"]
    assert (options["resize"], options["crop"]) == ("4", True)
    again = build_scenario("split-digits", seed=0, options=options)
    assert again.identity == small.identity


# Only what is asked for.


def test_only_the_classes_asked_for_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "folder", ["a", "b", "c", "d"], 6, 4, 4)
    images = [{"bytes": image_bytes(each), "path": None} for each in pixels(40, 4, 4)]
    content = pa.table({"img": images, "label": [number % 4 for number in range(40)]})
    pa.parquet.write_table(content, tmp_path / "own.parquet", row_group_size=7)
    seen: list[str] = []
    true = images_module.decode

    def counting(content: Any, name: str, shaping: Shaping = Shaping()) -> Any:  # noqa: B008
        seen.append(name)
        return true(content, name, shaping)

    monkeypatch.setattr(images_module, "decode", counting)
    for name, all_of_them in (("folder", 24), ("own.parquet", 40)):
        seen.clear()
        options = {"dataset": str(tmp_path / name), "tasks": [[3, 1]]}
        some = build_scenario("split", seed=5, options=options)
        assert len(seen) == all_of_them // 2
        whole = split(load(tmp_path / name, seed=5), tasks=[[3, 1]], seed=5)
        for part in ("train", "validation", "test"):
            mine, other = getattr(some.tasks[0], part), getattr(whole.tasks[0], part)
            for one, two in zip(mine.batch(slice(None)), other.batch(slice(None)), strict=True):
                assert torch.equal(one, two)
        assert some.class_names == whole.class_names
        assert "2 of its 4 classes were read" in some.identity[0].note
        assert some.identity[0].sha256 != whole.identity[0].sha256
        with pytest.raises(ScenarioError, match=r"class 4 is unknown; .* has the classes 0 to 3"):
            build_scenario("split", seed=5, options=options | {"tasks": [[0, 4]]})
        normalised = build_scenario("split", seed=5, options=options | {"normalise": True})
        assert (
            normalised.tasks[0].train.mean
            == split(load(tmp_path / name, seed=5), normalise=True).tasks[0].train.mean
        )


def test_the_first_damaged_image_is_named_whatever_thread_meets_it(tmp_path: Path) -> None:
    write_folders(tmp_path, ["a", "b"], 60)
    for number in (7, 40, 55):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a/40\.png: not a readable image"):  # "40" before "7"
        load(tmp_path)
