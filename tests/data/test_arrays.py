from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from nispa.data.arrays import as_images, from_arrays
from nispa.data.npz import read_npz
from nispa.data.torch_dataset import from_torch
from nispa.errors import DataError
from tests.data.makers import labels, pixels, read_or_refuse


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (5, 7)),
        ((5, 6, 7), (5, 1, 6, 7)),
        ((5, 6, 7, 3), (5, 3, 6, 7)),
        ((5, 6, 7, 1), (5, 1, 6, 7)),
        ((5, 3, 6, 7), (5, 3, 6, 7)),
        ((5, 1, 6, 7), (5, 1, 6, 7)),
    ],
)
def test_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    images, scale = as_images(pixels(*shape))
    assert tuple(images.shape) == expected
    assert images.dtype == torch.uint8
    assert scale == 1 / 255


def test_channels_last_moves_values() -> None:
    image = np.array([[[[1, 2, 3]], [[4, 5, 6]]]], dtype=np.uint8)  # two rows of one RGB pixel
    assert as_images(image)[0].tolist() == [[[[1], [4]], [[2], [5]], [[3], [6]]]]


@pytest.mark.parametrize("shape", [(5, 3, 7, 3), (5, 1, 7, 3), (5, 4, 7, 2)])
def test_ambiguous_channels_are_asked_for(shape: tuple[int, ...]) -> None:
    values = pixels(*shape)
    with pytest.raises(DataError, match="channels_first=True or False"):
        as_images(values)
    assert tuple(as_images(values, channels_first=True)[0].shape) == shape
    n, h, w, c = shape
    assert tuple(as_images(values, channels_first=False)[0].shape) == (n, c, h, w)


def test_floats_and_bools_are_used_as_they_are() -> None:
    images, scale = as_images(np.array([[-2.5, 300.0]]))
    assert (images.dtype, scale, images.tolist()) == (torch.float32, 1.0, [[-2.5, 300.0]])
    images, scale = as_images(np.array([[True, False]]))
    assert (images.dtype, scale, images.tolist()) == (torch.uint8, 1.0, [[1, 0]])


def test_whole_numbers_are_pixels_of_images_and_columns_of_tables() -> None:
    images, scale = as_images(np.full((2, 3, 3), 255, dtype=np.int64))
    assert (images.dtype, scale, int(images.max())) == (torch.uint8, 1 / 255, 255)
    table, scale = as_images(np.array([[7, -1000]]))
    assert (table.dtype, scale, table.tolist()) == (torch.float32, 1.0, [[7.0, -1000.0]])


def test_pictures_are_read_whatever_their_mode() -> None:
    grey = Image.fromarray(pixels(1, 4, 5)[0])
    for picture in (grey, grey.convert("LA")):
        assert torch.equal(as_images([picture])[0], as_images(pixels(1, 4, 5))[0])
    colours = as_images([grey.convert("P"), grey.convert("RGBA")])[0]
    assert torch.equal(colours, as_images(pixels(1, 4, 5))[0].expand(2, 3, 4, 5))


def test_later_writes_do_not_reach_the_samples() -> None:
    for mine in (np.zeros((2, 3), np.float32), torch.zeros(2, 3)):
        images, _ = as_images(mine)
        mine[0, 0] = 9.0
        assert float(images.sum()) == 0.0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((2, 3, 3), 256), "whole numbers are pixels from 0 to 255, but these go from 256"),
        (np.full((2, 3, 3), -1), "these go from -1 to -1; pass floats in"),
        (np.array([[1.0], [np.nan]]), "row 1 has a value that is not a finite"),
        (np.array([[1.0], [1e300]]), "row 1 has a value that is not a finite"),
        (np.array([[[1.0]], [[np.inf]]]), "image 1 has a value that is not a finite"),
        (np.full((2, 3, 3), 255.0), "reach 255; scale them to .* images / 255"),
        (np.full((2, 3, 3), -3000.0), "reach 3000; .* images / 4095"),
        (np.zeros(3), r"shape \(3,\) must be"),
        (np.zeros((0, 3)), "is empty"),
        (np.zeros((2, 0)), "is empty"),
        ([[1.0], [1.0, 2.0]], "rows of different length"),
        (np.array([["a"]]), "type <U1 must be uint8"),
        (np.array([[1, "a"]], dtype=object), "row 0, column 1 is 'a', not a number"),
    ],
)
def test_unusable_images(values: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        as_images(values)


def test_labels_become_0_1_2_in_sorted_order() -> None:
    x = pixels(6, 4)
    data = from_arrays(x, [10, -3, 7, 10, -3, 7], x, [7, 7, 7, 10, 10, -3])
    assert data.class_names == ("-3", "7", "10")
    assert data.train_labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert data.test_labels.tolist() == [1, 1, 1, 2, 2, 0]
    data = from_arrays(x, ["b", "a", "b", "a", "b", "a"])
    assert data.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((pixels(3, 4), [0, 1]), "3 images but 2 labels"),
        ((pixels(2, 4), [0.5, 1.0]), "type float64 must be whole numbers or texts"),
        ((pixels(2, 4), [[0, 1], [1, 0]]), r"shape \(2, 2\) must be \(n,\)"),
        ((pixels(2, 4), [0, 1], pixels(2, 4)), "x_test and y_test must be given together"),
        ((pixels(2, 4), [0, 1], pixels(1, 4), [2]), "test label 2 does not occur"),
        ((pixels(2, 4), [0, 1], pixels(1, 5), [1]), "images are 4 but test images 5"),
        ((pixels(2, 4), [0, 1], np.zeros((1, 4)), [1]), "different types"),
        ((pixels(2, 4), [0, 1], pixels(1, 4), ["0"]), "some are numbers and some are texts"),
        ((pixels(3, 4), [0, 0, 1]), "class '1' has one image"),
        ((pixels(2, 4), [2**70, 1]), "must be whole numbers or texts"),
    ],
)
def test_unusable_arrays(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        from_arrays(*arguments)


def test_test_set_is_a_fifth_of_each_class_by_the_seed() -> None:
    x, y = np.arange(60, dtype=np.float32)[:, None], labels(60, 3)
    first, again, other = (from_arrays(x, y, seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(first.test_labels).tolist() == [4, 4, 4]
    together = torch.cat([first.train_images, first.test_images]).flatten().sort().values
    assert together.tolist() == list(range(60))
    assert first.identity == again.identity
    assert first.identity.sha256 != other.identity.sha256
    assert "seed 0" in first.identity.note


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path: Path) -> None:
    x, y = pixels(20, 5, 5), labels(20, 2)
    path = save(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    data = read_npz(path, seed=0)
    assert (data.name, data.source) == ("mine", ".npz file")
    assert np.array_equal(data.train_images[:, 0].numpy(), x)
    assert data.test_labels.tolist() == [0, 1, 0, 1]
    np.savez_compressed(tmp_path / "two.npz", x=np.asfortranarray(x), y=y.astype(">i4"))
    assert len(read_npz(tmp_path / "two.npz", seed=0).train_labels) == 16
    names = np.array(["cat", "dog"] * 10)
    data = read_npz(save(tmp_path / "texts.npz", images=x, labels=names), seed=0)
    assert data.class_names == ("cat", "dog")


def test_npz_with_objects_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object), y=[0, 1])
    with pytest.raises(DataError, match="need pickle, which is not safe"):
        read_npz(path, seed=0)


def test_npz_without_the_keys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has a, b"):
        read_npz(save(tmp_path / "other.npz", a=[1], b=[2]), seed=0)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        read_npz(tmp_path / "text.npz", seed=0)


def test_npz_with_a_part_of_its_arrays_is_refused(tmp_path: Path) -> None:
    """It would be split by seed, as if no test set had been meant."""
    arrays: dict[str, Any] = {"x_train": pixels(8, 2, 2), "y_train": labels(8, 2)}
    path = save(tmp_path / "a.npz", **arrays, y_test=labels(4, 2))
    with pytest.raises(DataError, match="lacks the array x_test, which belongs to the other three"):
        read_npz(path, seed=0)
    path = save(tmp_path / "a.npz", **arrays, x_test=pixels(4, 2, 2), y_test=labels(4, 2))
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)  # y_train's entry
    content = bytearray(whole)
    content[at + 32] = 2 * (46 + len("x_test.npy"))  # its comment would be the two entries left
    path.write_bytes(content)
    with pytest.raises(DataError, match="its table of contents is damaged"):
        read_npz(path, seed=0)
    content = bytearray(whole.replace(b"_test.npy", b"_tesu.npy"))
    content[: whole.index(b"PK\x01\x02")] = whole[: whole.index(b"PK\x01\x02")]
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable"):
        read_npz(path, seed=0)


def test_npz_huge_promise_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(10)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", member)
    with pytest.raises(DataError, match="x: not an array of numbers"):
        read_npz(tmp_path / "huge.npz", seed=0)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), packed=st.booleans())
def test_damaged_npz(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    out = io.BytesIO()
    arrays: dict[str, Any] = {"x": pixels(8, 2, 2), "y": labels(8, 2)}
    (np.savez_compressed if packed else np.savez)(out, **arrays)
    content = bytearray(out.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "fuzzed.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    read_or_refuse(lambda: read_npz(path, seed=0))


def test_torch_datasets() -> None:
    images = torch.rand(10, 3, 4, 5)
    data = from_torch(TensorDataset(images, torch.arange(10) % 2))
    assert (data.name, data.shape, data.scale) == ("TensorDataset", (3, 4, 5), 1.0)
    assert len(data.train_labels) == 8
    pictures = [(Image.fromarray(each), place % 2) for place, each in enumerate(pixels(6, 4, 5, 3))]
    data = from_torch(pictures, pictures[:2], name="pictures")
    assert (data.name, data.shape, data.scale) == ("pictures", (3, 4, 5), 1 / 255)
    assert data.train_images[1, :, 0, 0].tolist() == pixels(6, 4, 5, 3)[1, 0, 0].tolist()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ([], "is empty"),
        (iter([]), "has no length"),
        ([1], r"item 0 must be \(image, label\), not int"),
        ([("picture", 0)], "str is no tensor"),
        ([(torch.zeros(1, 2, 2), None)], "label None must be"),
        ([(torch.zeros(2, 2), 0), (torch.zeros(2, 3), 1)], r"item 1 is float32 \(1, 2, 3\)"),
        ([(torch.zeros(1, 1, 1, 1, 4), 0)], "must have 1 to 4 dimensions"),
        ([(torch.zeros(()), 0)], "must have 1 to 4 dimensions"),
    ],
)
def test_unusable_torch_datasets(dataset: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        from_torch(dataset)


def test_a_torch_data_set_may_be_a_table() -> None:
    data = from_torch(TensorDataset(torch.rand(10, 6), torch.arange(10) % 2))
    assert data.shape == (6,)
