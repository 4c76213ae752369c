"""Standardised with the first task alone: closed forms, and nothing of later tasks is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nispa.data import standardise
from nispa.data.arrays import from_arrays
from nispa.data.named import build_scenario
from nispa.data.own_tasks import from_tasks
from nispa.data.scenarios import split
from nispa.data.standardise import Inputs, inputs_from, standardised, statistics
from nispa.data.tasks import Form, Samples
from nispa.errors import ConfigError, DataError, FormatError


def samples(values: Any, **more: Any) -> Samples:
    pool = torch.tensor(values)
    return Samples(pool, torch.zeros(len(pool), dtype=torch.int64), **more)


def test_each_feature_of_a_row_has_its_own_mean_and_deviation() -> None:
    found = statistics(samples([[1.0, 10.0], [3.0, 10.0]]))
    assert (found.mean, found.std) == ((2.0, 10.0), (1.0, 1.0))  # a constant keeps its scale
    found = statistics(
        samples([[1.0, 2.0], [3.0, -2.0], [99.0, 99.0]]).subset(torch.tensor([0, 1]))
    )
    assert (found.mean, found.std) == ((2.0, 0.0), (1.0, 2.0))


def test_each_channel_of_a_series_or_an_image() -> None:
    series = samples([[[1.0, 3.0], [0.0, 0.0]], [[1.0, 3.0], [4.0, 4.0]]])
    found = statistics(series)
    assert (found.mean, found.std) == ((2.0, 2.0), (1.0, 2.0))
    bytes_ = torch.tensor([[[[0, 255]]], [[[255, 0]]]], dtype=torch.uint8).transpose(2, 3)
    image = Samples(bytes_, torch.zeros(2, dtype=torch.int64), scale=1 / 255)
    found = statistics(replace(image, images=bytes_.repeat(1, 1, 1, 2)))
    assert found.mean == pytest.approx((0.5,))
    assert found.std == pytest.approx((0.5,))


def test_many_samples_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    whole = statistics(samples(values))
    monkeypatch.setattr(standardise, "_VALUES", 21)
    parts = statistics(samples(values))
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.std == pytest.approx(tuple(values.std(0).tolist()))


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -1e-20])
def test_a_constant_is_one_whatever_rounding_does(value: float) -> None:
    assert statistics(samples([[value]] * 7)).std == (1.0,)


def test_a_small_deviation_beside_a_large_mean_counts() -> None:
    rng = np.random.default_rng(0)
    values = (1000 + rng.normal(0, 0.1, (500, 1))).astype(np.float32)
    assert statistics(samples(values)).std == pytest.approx((float(values.std()),), rel=1e-3)


def tasks_of(later: float, test: float) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(0)
    first, second = rng.normal([0, 50], [1, 900], (40, 2)), rng.normal([5, 50], [1, 900], (40, 2))
    labels = np.arange(40) % 2
    tests = rng.normal(0, 1, (10, 2)) * test, np.arange(10) % 2
    return [(first, labels, *tests), (second * later, labels + 2, tests[0], tests[1] + 2)]


def test_only_the_training_samples_of_the_first_task_count() -> None:
    made = standardised(from_tasks(tasks_of(1, 1), seed=0))
    train = made.tasks[0].train
    values = train.batch(slice(None))[0]
    assert torch.allclose(values.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(values.std(0, correction=0), torch.ones(2), atol=1e-5)
    form = train.form
    every = [part for t in made.tasks for part in (t.train, t.validation, t.test)]
    assert all(part.form == form for part in every)
    again = standardised(from_tasks(tasks_of(2, 3), seed=0))  # other later tasks, other tests
    assert again.tasks[1].test.form == form
    held = made.tasks[0].validation
    pool = train.images.clone()
    assert held.rows is not None
    pool[held.rows] += 100  # nor do validation samples count
    assert statistics(replace(train, images=pool)).mean == form.mean


def test_an_option_of_every_scenario() -> None:
    found = build_scenario("split-digits", seed=0, options={"standardise": True})
    assert found.tasks[4].test.form == found.tasks[0].train.form != Form(1 / 16)
    assert found.settings["options"]["standardise"] is True
    assert "standardise" not in build_scenario("split-digits", seed=0).settings["options"]
    with pytest.raises(ConfigError, match="normalise and standardise contradict"):
        build_scenario("split-digits", seed=0, options={"standardise": True, "normalise": True})


def test_a_feature_that_moves_takes_its_deviation_along() -> None:
    from nispa.data.permuted import permuted

    rng = np.random.default_rng(0)
    rows = rng.normal([0, 40, 500], [1, 9, 100], (60, 3))
    data = from_arrays(rows, np.arange(60) % 2)
    made = standardised(permuted(data, tasks=3, seed=1))
    plain = made.tasks[0].test.batch(slice(None))[0]
    for task in made.tasks[1:]:
        assert task.test.pixel_order is not None
        values = task.test.batch(slice(None))[0]
        assert torch.equal(values, plain[:, task.test.pixel_order])


def test_bytes_of_a_table_are_normalised_by_one_mean_as_ever() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (80, 3), dtype=np.uint8)
    data = from_arrays(rows, np.arange(80) % 4)
    form = split(data, normalise=True).tasks[0].train.form
    assert form.mean is not None
    assert len(set(form.mean)) == 1
    assert form.mean[0] == pytest.approx(float(data.train_images.double().mean()) / 255)


# What a file keeps.

ONE, OTHER = Form(1.0, (1.0, 2.0), (3.0, 4.0)), Form(1.0, (0.0, 0.0), (1.0, 1.0))


def test_inputs_read_back() -> None:
    for inputs in (Inputs(True), Inputs(False, (ONE, OTHER, ONE)), Inputs(True, (ONE, ONE))):
        assert inputs
        assert inputs_from(inputs.as_json(), len(inputs.forms), (2,)) == inputs
    assert len(Inputs(True, (ONE, ONE)).as_json()["forms"]) == 1
    assert not Inputs(False, (Form(), Form(0.5)))


@pytest.mark.parametrize(
    "change",
    [
        {"forms": None},
        {"forms": [{"scale": 1.0, "mean": [1.0], "std": [0.0]}]},
        {"forms": [{"scale": 1.0, "mean": [1.0] * 3, "std": None}]},
        {"forms": [{"scale": float("nan"), "mean": None, "std": None}]},
        {"tasks": [0, 1]},
        {"tasks": [-1]},
        {"tasks": ["0"]},
        {"tasks": []},
        {"standardise": 1},
    ],
)
def test_damaged_inputs_are_refused(change: dict[str, Any]) -> None:
    values = Inputs(True, (ONE,)).as_json()
    with pytest.raises(FormatError, match="preparation of inputs is damaged"):
        inputs_from(values | change, 1, (2,))


def test_unlike_tasks_must_be_told_apart() -> None:
    rows = samples([[1.0, 2.0]])
    unlike = Inputs(False, (ONE, OTHER))
    assert unlike.of(1, rows).form == OTHER
    with pytest.raises(DataError, match="prepared in different ways"):
        unlike.of(None, rows)
    assert Inputs(False, (ONE, ONE)).of(None, rows).form == ONE
