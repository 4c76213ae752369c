from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.data.tasks import JoinedSamples, Samples, Task, TaskInfo, pack, unpack
from nispa.errors import FormatError, ScenarioError


def bytes_pool() -> Tensor:
    """Four images of one channel, 1x2 pixels: 0 and 10, 20 and 30, 40 and 50, 60 and 70."""
    return torch.arange(0, 80, 10, dtype=torch.uint8).view(4, 1, 1, 2)


def samples(**changes: Any) -> Samples:
    return replace(Samples(bytes_pool(), torch.tensor([3, 4, 5, 6]), scale=0.1), **changes)


def test_a_batch_is_scaled_to_floats() -> None:
    images, labels = samples().batch(torch.tensor([2, 0]))
    assert images.dtype == torch.float32
    assert images.flatten(1).tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert labels.tolist() == [5, 3]


def test_rows_name_places_in_the_pool() -> None:
    chosen = samples(rows=torch.tensor([3, 1]), labels=torch.tensor([8, 9]))
    assert len(chosen) == 2
    for index in (slice(0, 2), torch.tensor([0, 1])):
        images, labels = chosen.batch(index)
        assert images.flatten(1).tolist() == [[6.0, 7.0], [2.0, 3.0]]
        assert labels.tolist() == [8, 9]


def test_a_subset_of_a_subset_shares_the_pool() -> None:
    whole = samples()
    part = whole.subset(torch.tensor([3, 2, 0])).subset(torch.tensor([1, 2]))
    images, labels = part.batch(slice(None))
    assert images.flatten(1).tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert labels.tolist() == [5, 3]
    assert part.images is whole.images


def test_mean_and_deviation_are_applied_per_channel_after_scaling() -> None:
    pool = torch.tensor([[[[10]], [[20]]]], dtype=torch.uint8)
    scaled = Samples(pool, torch.tensor([0]), scale=0.1, mean=(0.5, 1.0), std=(0.5, 4.0))
    images, _ = scaled.batch(slice(None))
    assert images.flatten().tolist() == [1.0, 0.25]  # (1 - 0.5) / 0.5 and (2 - 1) / 4


def test_a_pixel_order_says_which_stored_value_each_input_takes() -> None:
    pool = torch.arange(1, 5, dtype=torch.float32).view(1, 2, 1, 2)  # channels (1 2) and (3 4)
    order = torch.tensor([3, 0, 0, 1])
    images, _ = Samples(pool, torch.tensor([0]), pixel_order=order).batch(slice(None))
    assert images.tolist() == [[[[4.0, 1.0]], [[1.0, 2.0]]]]


def test_a_pixel_order_comes_before_the_mean() -> None:
    pool = torch.tensor([[[[1.0]], [[2.0]]]])
    swapped = Samples(pool, torch.tensor([0]), pixel_order=torch.tensor([1, 0]), mean=(10.0, 20.0))
    assert swapped.batch(slice(None))[0].flatten().tolist() == [-8.0, -19.0]


def test_batches_cover_everything_in_order() -> None:
    found = [(len(images), labels.tolist()) for images, labels in samples().batches(3)]
    assert found == [(3, [3, 4, 5]), (1, [6])]
    assert list(samples().subset(torch.zeros(0, dtype=torch.int64)).batches(3)) == []


def test_an_empty_batch_keeps_the_shape_of_images() -> None:
    ordered = samples(pixel_order=torch.tensor([1, 0]))
    images, labels = ordered.batch(torch.zeros(0, dtype=torch.int64))
    assert images.shape == (0, 1, 1, 2)
    assert labels.shape == (0,)


def test_the_pool_is_never_written_to() -> None:
    pool = bytes_pool()
    Samples(pool, torch.tensor([0] * 4), scale=0.5, mean=(1.0,), std=(2.0,)).batch(slice(None))
    assert torch.equal(pool, bytes_pool())


def test_samples_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        samples().scale = 2.0  # type: ignore[misc]


def test_the_shape_is_that_of_one_image() -> None:
    assert samples().shape == (1, 1, 2)


def test_moving_to_a_device_moves_every_tensor() -> None:
    full = samples(rows=torch.tensor([0, 1, 2, 3]), pixel_order=torch.tensor([1, 0]))
    moved = full.to(torch.device("meta"))
    tensors = (moved.images, moved.labels, moved.rows, moved.pixel_order)
    assert [tensor.device.type for tensor in tensors if tensor is not None] == ["meta"] * 4
    assert samples().to(torch.device("cpu")).rows is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4)}, r"shape \(4,\) must be \(n, channels, height, width\)"),
        ({"images": torch.tensor(1.0)}, r"shape \(\) must be"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "4 images but labels of shape"),
        ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, "one label per image"),
        ({"rows": torch.tensor([0])}, "1 images but labels of shape"),
        ({"labels": torch.zeros(4)}, "type torch.float32 must be torch.int64"),
        ({"pixel_order": torch.tensor([0])}, "must name 2 inputs"),
        ({"mean": (0.1, 0.2, 0.3)}, r"must have one value per channel \(1\)"),
        ({"std": ()}, "std=.* must have one value per channel"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        samples(**changes)


# Packing.


def test_packing_keeps_the_rows_in_use_alone() -> None:
    part = samples(
        rows=torch.tensor([3, 1]),
        labels=torch.tensor([8, 9]),
        pixel_order=torch.tensor([1, 0]),
        mean=(0.5,),
        std=(2.0,),
    )
    tensors, values = pack(part, "train.0.")
    assert set(tensors) == {"train.0.images", "train.0.labels", "train.0.pixel_order"}
    assert tensors["train.0.images"].flatten().tolist() == [60, 70, 20, 30]
    again = unpack(tensors, {**values, "mean": [0.5]}, "train.0.")  # JSON makes lists of tuples
    for index in (slice(None), torch.tensor([1, 0])):
        for found, expected in zip(again.batch(index), part.batch(index), strict=True):
            assert torch.equal(found, expected)
    assert again.images.dtype == torch.uint8


def test_packing_without_extras() -> None:
    tensors, values = pack(samples(), "x.")
    assert set(tensors) == {"x.images", "x.labels"}
    again = unpack(tensors, values, "x.")
    assert (again.rows, again.pixel_order, again.mean, again.std) == (None, None, None, None)
    assert again.scale == 0.1


@pytest.mark.parametrize(
    ("damaged", "values"),
    [
        ({"x.images": None}, {}),
        ({"x.labels": None}, {}),
        ({"x.labels": torch.zeros(1, dtype=torch.int64)}, {}),
        ({"x.labels": torch.zeros(4)}, {}),
        ({"x.pixel_order": torch.tensor([0])}, {}),
        ({"x.images": torch.zeros(4)}, {}),
        ({}, {"scale": "big"}),
        ({}, {"scale": None}),
        ({}, {"mean": 3}),
        ({}, {"mean": [1.0, 2.0, 3.0]}),
        ({}, {"std": ["x"]}),
    ],
)
def test_damaged_samples_are_refused(
    damaged: dict[str, Tensor | None], values: dict[str, Any]
) -> None:
    tensors, good = pack(samples(), "x.")
    mixed = {**tensors, **damaged}
    kept = {name: tensor for name, tensor in mixed.items() if tensor is not None}
    with pytest.raises(FormatError, match=r"saved samples 'x\.' are damaged"):
        unpack(kept, {**good, **values}, "x.")


@pytest.mark.parametrize("values", [None, [], {}, "text"])
def test_values_that_are_no_mapping_are_refused(values: Any) -> None:
    tensors, _ = pack(samples(), "x.")
    with pytest.raises(FormatError):
        unpack(tensors, values, "x.")


# Joined samples.


def joined() -> JoinedSamples:
    second = Samples(torch.full((2, 1, 1, 2), 7.0), torch.tensor([0, 1]))
    return JoinedSamples((samples(), second))


def test_joined_samples_read_as_one() -> None:
    assert len(joined()) == 6
    assert joined().labels.tolist() == [3, 4, 5, 6, 0, 1]
    images, labels = joined().batch(torch.tensor([5, 0, 3, 4, 0]))
    assert images.flatten(1).tolist() == [[7, 7], [0, 1], [6, 7], [7, 7], [0, 1]]
    assert labels.tolist() == [1, 3, 6, 0, 3]
    assert labels.dtype == torch.int64


def test_joined_batches_go_part_by_part() -> None:
    assert [labels.tolist() for _, labels in joined().batches(3)] == [[3, 4, 5], [6], [0, 1]]


def test_an_empty_part_is_passed_over() -> None:
    empty = samples().subset(torch.zeros(0, dtype=torch.int64))
    images, labels = JoinedSamples((empty, samples())).batch(torch.tensor([1]))
    assert images.flatten().tolist() == [2.0, 3.0]
    assert labels.tolist() == [4]


def test_a_task_without_its_data() -> None:
    task = Task(2, "3-6", (3, 4, 5, 6), samples(), samples(), samples())
    assert task.info == TaskInfo(2, (3, 4, 5, 6))
