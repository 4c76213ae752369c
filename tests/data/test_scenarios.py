from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nispa.base.seeding import stream
from nispa.data.arrays import from_arrays
from nispa.data.dataset import ImageData, digest, share_of
from nispa.data.digits import load_digits
from nispa.data.own_tasks import from_tasks
from nispa.data.permuted import permuted, pixel_order
from nispa.data.scenarios import Scenario, channel_statistics, efmnist, split
from nispa.errors import DataError, ScenarioError
from tests.data.makers import labels, pixels


def make(classes: int = 6, each: int = 20, shape: tuple[int, ...] = (2, 2)) -> ImageData:
    """Data whose first pixel is the number of the image."""
    count = classes * each
    x = pixels(count, *shape)
    x[:, 0, 0] = np.arange(count) % 256
    return from_arrays(x, labels(count, classes), x[:classes], labels(classes, classes), name="toy")


def same(one: Scenario, other: Scenario) -> bool:
    """Whether two scenarios have the same samples in every task."""
    pairs = zip(one.tasks, other.tasks, strict=True)
    return all(
        torch.equal(getattr(a, part).batch(slice(None))[which],
                    getattr(b, part).batch(slice(None))[which])
        for a, b in pairs
        for part in ("train", "validation", "test")
        for which in (0, 1)
        if len(getattr(a, part)) == len(getattr(b, part))
    )  # fmt: skip


def test_digits() -> None:
    data = load_digits()
    assert (len(data.train_labels) + len(data.test_labels), data.shape) == (1797, (1, 8, 8))
    assert (int(data.train_images.max()), data.scale) == (16, 1 / 16)
    # A fifth of each class, rounded down: there are 178, 182, 177, 183, 181, 182, 181, 179, 174
    # and 180 images of the digits 0 to 9.
    counted = torch.bincount(data.test_labels).tolist()
    assert counted == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert data.identity.canonical
    assert "scikit-learn has no split" in data.identity.note
    assert json.loads(json.dumps(data.identity.as_json()))["name"] == "digits"


def test_identity_is_of_the_content() -> None:
    data, again = make(), make()
    assert data.identity == again.identity
    again.test_images[0, 0, 0, 0] += 1
    assert make().identity.sha256 == data.identity.sha256
    assert replace(again).identity.sha256 != data.identity.sha256
    # SHA-256 of the text "uint8(2,)" and the bytes 1, 2, by sha256sum.
    known = "c7a22b22691b51f68c26d6f6c9ad74be83d0d28bb5aa62c63b5072e21c91f20b"
    assert digest(torch.tensor([1, 2], dtype=torch.uint8)) == known


def test_labels_outside_the_classes() -> None:
    x = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 2])
    with pytest.raises(DataError, match="label 2 of image 1 is outside its 2 classes"):
        ImageData("toy", x, bad, x, good, ("a", "b"), 1.0, "test")
    with pytest.raises(DataError, match="2 images but 3 labels"):
        ImageData("toy", x, torch.tensor([0, 1, 1]), x, good, ("a", "b"), 1.0, "test")


def test_split_in_natural_order() -> None:
    scenario = split(make(), classes_per_task=2, seed=0)
    assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert [task.name for task in scenario.tasks] == ["0-1", "2-3", "4-5"]
    assert [task.index for task in scenario.tasks] == [0, 1, 2]
    assert (scenario.outputs, scenario.input_shape) == (6, (1, 2, 2))
    for task in scenario.tasks:
        assert (len(task.train), len(task.validation), len(task.test)) == (36, 4, 2)
        for part in (task.train, task.validation, task.test):
            assert set(part.labels.tolist()) <= set(task.classes)


def test_images_keep_their_labels_and_share_one_pool() -> None:
    data = make()
    for task in split(data, seed=1).tasks:
        numbers, classes = task.train.batch(slice(None))
        numbers = (numbers[:, 0, 0, 0] * 255).round().to(torch.int64)
        assert (numbers % 6).tolist() == classes.tolist()  # image n has the label n mod 6
        assert task.train.images is data.train_images
        assert task.train.images.dtype == torch.uint8


def test_last_task_may_be_smaller_but_not_of_one_class() -> None:
    tasks = split(make(), classes_per_task=4).tasks
    assert [task.classes for task in tasks] == [(0, 1, 2, 3), (4, 5)]
    with pytest.raises(ScenarioError, match="leave a last task of one class"):
        split(make(), classes_per_task=5)
    with pytest.raises(ScenarioError, match="classes_per_task=1 must be at least 2"):
        split(make(), classes_per_task=1)


def test_explicit_tasks_close_ranks() -> None:
    scenario = split(make(), tasks=[[5, 1], [2, 4]])
    assert [task.classes for task in scenario.tasks] == [(0, 3), (1, 2)]
    assert scenario.outputs == 4
    assert scenario.class_names == ("1", "2", "4", "5")
    assert scenario.settings["tasks"] == [[5, 1], [2, 4]]
    numbers, outputs = scenario.tasks[0].test.batch(slice(None))
    numbers = (numbers[:, 0, 0, 0] * 255).round()
    assert dict(zip(numbers.tolist(), outputs.tolist(), strict=True)) == {1.0: 0, 5.0: 3}


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([[0, 1], [1, 2]], "class 1 is in task 0 and in task 1"),
        ([[0, 0]], "class 0 is in task 0 and in task 0"),
        ([[0, 1], [2]], "task 1 has 1 class; a task needs at least 2"),
        ([[0, 1], []], "task 1 has 0 classes"),
        ([[0, 6]], "class 6 is unknown; toy has the classes 0 to 5"),
        ([[0, -1]], "class -1 is unknown"),
        ([], "needs at least one task"),
    ],
)
def test_impossible_tasks(tasks: list[list[int]], reason: str) -> None:
    with pytest.raises(ScenarioError, match=reason):
        split(make(), tasks=tasks)


def test_seeded_class_order() -> None:
    orders = {
        seed: [task.classes for task in split(make(), class_order="seeded", seed=seed).tasks]
        for seed in range(6)
    }
    for groups in orders.values():
        assert sorted(label for group in groups for label in group) == [0, 1, 2, 3, 4, 5]
    assert len({str(groups) for groups in orders.values()}) > 1
    again = split(make(), class_order="seeded", seed=3)
    assert [task.classes for task in again.tasks] == orders[3]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), each=st.integers(2, 40), share=st.integers(0, 99))
def test_validation_is_drawn_once_and_partitions(seed: int, each: int, share: int) -> None:
    data = make(4, each)
    validation = share / 100
    held = share * 2 * each // 100
    if share and not held:
        with pytest.raises(ScenarioError, match="leaves it no validation image"):
            split(data, seed=seed, validation=validation)
        return
    scenario = split(data, seed=seed, validation=validation)
    assert same(scenario, split(data, seed=seed, validation=validation))
    for task in scenario.tasks:
        assert len(task.validation) == min(held, 2 * (each - 1))  # each class keeps one
        assert set(task.train.labels.tolist()) == set(task.classes)
        assert task.train.rows is not None
        assert task.validation.rows is not None
        both = torch.cat([task.train.rows, task.validation.rows]).sort().values
        expected = torch.nonzero(torch.isin(data.train_labels, torch.tensor(task.classes)))
        assert torch.equal(both, expected.flatten())


def unbalanced(*counts: int) -> ImageData:
    """Data with so many training images of each class, and two test images of each."""
    y = np.repeat(np.arange(len(counts)), counts)
    tests = np.repeat(np.arange(len(counts)), 2)
    return from_arrays(pixels(len(y), 2, 2), y, pixels(len(tests), 2, 2), tests, name="rare")


def test_the_draw_is_plain_where_each_class_has_a_hundred_images() -> None:
    task = split(unbalanced(130, 100), seed=7).tasks[0]
    order = torch.randperm(230, generator=stream(7, "validation", 0))
    assert task.validation.rows is not None
    assert torch.equal(task.validation.rows, order[:23].sort().values)
    other = split(unbalanced(130, 99), seed=7).tasks[0]
    assert torch.bincount(other.validation.labels).tolist() == [13, 9]


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_class_is_never_lost_to_validation(seed: int) -> None:
    task = split(unbalanced(100, 1), seed=seed).tasks[0]
    assert torch.bincount(task.train.labels).tolist() == [90, 1]
    assert "class 1 (1); give more images" in task.note
    few = split(unbalanced(100, 4), seed=seed).tasks[0]
    assert torch.bincount(few.train.labels).tolist() == [91, 3]  # 10 in all, one of the rare
    assert torch.bincount(few.validation.labels).tolist() == [9, 1]
    assert few.note == ""
    most = split(unbalanced(120, 120), seed=seed, validation=0.99).tasks[0]
    assert torch.bincount(most.train.labels, minlength=2).min() >= 1


def test_a_class_too_small_to_validate_on_is_told_by_its_name() -> None:
    y = np.array(["cat"] * 30 + ["yak"])
    task = from_tasks([(pixels(31, 2, 2), y, pixels(2, 2, 2), ["cat", "yak"])]).tasks[0]
    assert "class yak (1)" in task.note


def test_a_class_without_test_images_is_named() -> None:
    x, y = pixels(40, 2, 2), np.repeat(["ape", "bee"], 20)
    data = from_arrays(x, y, x[:20], y[:20], name="mine")
    assert "no test images of class bee" in split(data).identity[0].note
    assert from_arrays(x, y, x, y).identity.note == ""


def test_another_seed_draws_other_validation_images() -> None:
    assert not same(split(make(), seed=0), split(make(), seed=1))


def test_share_is_decimal() -> None:
    assert int(0.29 * 100) == 28  # what binary makes of it
    assert share_of(0.29, 100) == 29
    assert share_of(0.1, 17323) == 1732


def test_normalise() -> None:
    images = torch.tensor([[[[0, 10]], [[7, 7]]], [[[20, 30]], [[7, 7]]]], dtype=torch.uint8)
    found = channel_statistics(images, scale=0.1)
    assert found["mean"] == pytest.approx((1.5, 0.7))
    assert found["std"] == pytest.approx((1.118034, 1.0))  # √1.25; a constant channel keeps 1
    data = make()
    task = split(data, normalise=True, validation=0).tasks[0]
    plain = split(data, validation=0).tasks[0]
    mean = float(data.train_images.to(torch.float64).mean()) / 255
    std = float(data.train_images.to(torch.float64).std(correction=0)) / 255
    expected = (plain.train.batch(slice(None))[0] - mean) / std
    assert torch.allclose(task.train.batch(slice(None))[0], expected, atol=1e-5)


def test_efmnist_numbers_its_outputs() -> None:
    x = np.zeros((47 * 3, 2, 2), np.uint8)
    x[:, 0, 0] = labels(47 * 3, 47)
    emnist = from_arrays(x, labels(47 * 3, 47), x, labels(47 * 3, 47), name="emnist")
    y = np.full((30, 2, 2), 99, np.uint8)
    fashion = from_arrays(y, labels(30, 10), y, labels(30, 10), name="fashion")
    scenario = efmnist(emnist, fashion, validation=0)
    firsts = [(task.classes[0], task.classes[-1]) for task in scenario.tasks]
    assert firsts == [(0, 9), (10, 22), (23, 35), (36, 46), (47, 56)]
    assert scenario.outputs == len(scenario.class_names) == 57
    for task in scenario.tasks[:4]:
        values, outputs = task.train.batch(slice(None))
        assert (values[:, 0, 0, 0] * 255).round().tolist() == outputs.tolist()
    assert set(scenario.tasks[4].train.labels.tolist()) == set(range(47, 57))
    assert [each.name for each in scenario.identity] == ["emnist", "fashion"]
    with pytest.raises(ScenarioError, match="efmnist needs 47 classes, but fashion has 10"):
        efmnist(fashion, fashion)

    seeded = [efmnist(emnist, fashion, class_order="seeded", seed=seed) for seed in range(3)]
    for other in seeded:
        sizes = sorted(len(task.classes) for task in other.tasks)
        assert sizes == [10, 10, 11, 13, 13]
        assert sorted(label for task in other.tasks for label in task.classes) == [*range(57)]
        for task in other.tasks:
            values, outputs = task.train.batch(slice(None))
            shown = torch.where(outputs < 47, outputs, 99)  # Fashion-MNIST's are all 99
            assert (values[:, 0, 0, 0] * 255).round().tolist() == shown.tolist()
    assert len({tuple(task.classes for task in other.tasks) for other in seeded}) == 3
    assert len({[task.name for task in other.tasks].index("fashion-mnist") for other in seeded}) > 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    task=st.integers(0, 9),
    share=st.integers(0, 100),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
)
def test_pixel_order_is_a_permutation(
    seed: int, task: int, share: int, shape: tuple[int, int, int]
) -> None:
    channels, height, width = shape
    count = height * width
    order = pixel_order(shape, share / 100, seed=seed, task=task)
    assert sorted(order.tolist()) == list(range(channels * count))
    moved = (order[:count] != torch.arange(count)).sum()
    assert int(moved) <= share * count // 100
    planes = order.view(channels, count)
    assert torch.equal(planes, planes[0] + count * torch.arange(channels).unsqueeze(1))


def test_permuted_tasks_differ_and_the_first_is_as_it_is() -> None:
    data = make(2, 20, (8, 8))
    scenario = permuted(data, tasks=3, seed=0)
    assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert scenario.outputs == 6
    assert scenario.tasks[0].test.pixel_order is None
    second, third = (task.test.pixel_order for task in scenario.tasks[1:])
    assert second is not None
    assert third is not None
    assert not torch.equal(second, third)
    train = scenario.tasks[1].train.pixel_order
    assert train is not None
    assert torch.equal(train, second)
    moved = scenario.tasks[1].test.batch(slice(None))[0].flatten(1)
    still = scenario.tasks[0].test.batch(slice(None))[0].flatten(1)
    assert torch.equal(moved, still[:, second])


def test_partly_permuted() -> None:
    data = make(2, 20, (8, 8))
    scenario = permuted(data, shares=[0, 0.25, 1], shared_classes=True, seed=5)
    assert [task.classes for task in scenario.tasks] == [(0, 1)] * 3
    assert scenario.outputs == 2
    moved = []
    for task in scenario.tasks[1:]:
        assert task.train.pixel_order is not None
        moved.append(int((task.train.pixel_order != torch.arange(64)).sum()))
    assert 10 <= moved[0] <= 16  # a quarter of 64 pixels, of which one or two may fall in place
    assert moved[1] >= 58
    for options in ({"share": 1.5}, {"shares": [0.0, -0.1]}):
        with pytest.raises(ScenarioError, match=r"must be in \[0, 1\]"):
            permuted(data, **options)
    with pytest.raises(ScenarioError, match="10,001 tasks, more than 10,000; name fewer"):
        permuted(data, shares=[0.5] * 10_001)


def task_arrays(*classes: Any, each: int = 10) -> tuple[Any, Any, Any, Any]:
    y = np.repeat(np.array(classes), each)
    return pixels(len(y), 3, 3), y, pixels(len(classes), 3, 3), np.array(classes)


def test_own_tasks() -> None:
    scenario = from_tasks([task_arrays(2, 3), task_arrays(0, 1)])
    assert [task.classes for task in scenario.tasks] == [(2, 3), (0, 1)]
    assert (len(scenario.tasks[0].train), len(scenario.tasks[0].validation)) == (18, 2)
    assert scenario.class_names == ("0", "1", "2", "3")
    held = from_tasks([task_arrays(2, 3)[:2]])
    assert [len(held.tasks[0].test), len(held.tasks[0].train)] == [4, 15]


def test_own_tasks_with_the_same_labels() -> None:
    both = [task_arrays(0, 1), task_arrays(0, 1)]
    with pytest.raises(ScenarioError, match="label 0 occurs in task 0 and in task 1"):
        from_tasks(both)
    own = from_tasks(both, shared_classes=False)
    assert [task.classes for task in own.tasks] == [(0, 1), (2, 3)]
    shared = from_tasks(both, shared_classes=True)
    assert [task.classes for task in shared.tasks] == [(0, 1), (0, 1)]
    assert (own.outputs, shared.outputs) == (4, 2)
    texts = from_tasks([task_arrays("dog", "cat"), task_arrays("ape", "fox")])
    assert texts.class_names == ("ape", "cat", "dog", "fox")
    assert [task.classes for task in texts.tasks] == [(1, 2), (0, 3)]


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([], "needs at least one task"),
        ([task_arrays(0, 1)[:3]], "task 0 has 3 arrays"),
        ([task_arrays(0)], r"task 0 \(task 0\) has 1 class"),
        ([(*task_arrays(0, 1)[:2], pixels(0, 3, 3), [])], "is empty"),
        ([task_arrays(0, 1), (pixels(9, 4, 4), [2, 3, 2] * 3)], "task 1: images of"),
    ],
)
def test_impossible_own_tasks(tasks: Any, reason: str) -> None:
    with pytest.raises((ScenarioError, DataError), match=reason):
        from_tasks(tasks)


def test_a_class_without_images_is_no_task() -> None:
    x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    y = torch.tensor([0, 1, 0, 1])
    names = ("a", "b", "c", "d")
    data = ImageData("toy", x, torch.tensor([0, 1, 2, 2]), x, torch.arange(4), names, 1.0, "test")
    with pytest.raises(ScenarioError, match=r"task 1 \(2-3\) has no training images for output 3"):
        split(data, validation=0)
    data = ImageData("toy", x, y, x, y, names, 1.0, "test")
    with pytest.raises(ScenarioError, match=r"task 1 \(2-3\) has no training images"):
        split(data, validation=0)


def test_digits_are_those_of_scikit_learn_wherever_their_file_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = load_digits()
    monkeypatch.setattr("nispa.data.digits.Path.is_file", lambda _: False)
    loaded = load_digits()
    assert found.canonical
    assert found.identity == loaded.identity
