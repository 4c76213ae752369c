"""Arguments from Python: what is meant is taken, whatever its type; the rest is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nispa import Learner
from nispa.base.arguments import image_shape, path_of, share, whole_number
from nispa.data.arrays import from_arrays
from nispa.data.named import build_scenario
from nispa.data.scenarios import split
from nispa.errors import ConfigError, DeviceError, InputError, NispaError, NotLearnedError
from nispa.methods.presets import resolve
from nispa.runs.record import read_record
from nispa.runs.runner import Experiment, run
from tests.test_learner import arrays

USUAL: dict[str, Any] = {"input_shape": (1, 4, 4), "classes": 4, "hidden": (8,), "epochs": 1}


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_whole_number_of_any_type(value: Any) -> None:
    found = whole_number("n", value, 0, 3, "")
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    "value", [True, np.True_, 1.0, np.float64(1), "1", None, -1, 4, 2**70, torch.tensor(True)]
)
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^n=.* must be 0 to 3; pass 1$"):
        whole_number("n", value, 0, 3, "0 to 3; pass 1")


def test_a_share() -> None:
    assert [share("v", each, "") for each in (0, 0.5, np.float32(0.25))] == [0.0, 0.5, 0.25]
    for value in (1, -0.1, float("nan"), "0.1", None, True, np.True_, [0.1]):
        with pytest.raises(ConfigError, match=r"must be a number in \[0, 1\); 0.1 is usual"):
            share("v", value, "0.1 is usual")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((3, 32, 16), (3, 32, 16)),
        ([1, 8, 8], (1, 8, 8)),
        (np.array([1, 8, 8]), (1, 8, 8)),
        (torch.Size([1, 8, 8]), (1, 8, 8)),
        (torch.tensor([1, 8, 8]), (1, 8, 8)),
        ((np.int64(1), 8, 8), (1, 8, 8)),
        ((64,), (64,)),
        (64, (64,)),
        (np.int32(64), (64,)),
        ([3, 100], (3, 100)),
        ((8, 100, 1), (8, 100, 1)),  # a series of eight channels
        ((4, 5, 3), (4, 5, 3)),
        ((3, 3, 3), (3, 3, 3)),
    ],
)
def test_a_shape_of_samples(value: Any, expected: tuple[int, ...]) -> None:
    found = image_shape(value)
    assert found == expected
    assert all(type(size) is int for size in found)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "input_shape=None must be"),
        ("64", "input_shape='64' must be"),
        ((28, 0), "whole numbers from 1"),
        ((1, 0, 8), "whole numbers from 1"),
        ((1, 8.0, 8), "whole numbers from 1"),
        ((True, 8, 8), "whole numbers from 1"),
        ((1, 1, 8, 8), r"of a single image is \(1, 8, 8\)"),
        ((1, 2, 3, 8, 8), "or \\(channels, depth, height, width\\) for volumes"),
        ((), "input_shape="),
        ({1, 8}, "input_shape="),
        (2.5, "whole numbers from 1"),
        ((32, 32, 3), r"looks like channels last; pass \(3, 32, 32\)"),
        ((16, 64, 64, 3), r"looks like channels last; pass \(3, 16, 64, 64\)"),
        ([48, 64, 3], r"looks like channels last; pass \(3, 48, 64\)"),
        ((28, 28, 1), r"looks like channels last; pass \(1, 28, 28\)"),
    ],
)
def test_no_shape_of_images(value: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        image_shape(value)


def test_a_path() -> None:
    assert path_of("a") == path_of(Path("a")) == path_of(b"a") == Path("a")
    for value in (None, 3, object()):
        with pytest.raises(InputError, match="is no path"):
            path_of(value)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": np.int64(3)},
        {"classes": np.int64(4)},
        {"tasks": np.int64(2)},
        {"input_shape": [1, 4, 4]},
        {"input_shape": np.array([1, 4, 4])},
        {"device": torch.device("cpu")},
        {"density": np.float32(0.5)},
        {"hidden": np.array([8, 6])},
        {"hidden": [np.int64(8)]},
        {"epochs": np.int64(2)},
        {"epochs": torch.tensor(2)},
        {"incremental": np.str_("class")},
    ],
    ids=str,
)
def test_what_is_taken_is_learned_saved_and_loaded(change: dict[str, Any], tmp_path: Path) -> None:
    made = Learner("finetune", **(USUAL | change))
    images, labels = arrays(0, 24)
    made.learn(images, labels)
    made.save(tmp_path / "one")
    again = Learner.load(tmp_path / "one", device=torch.device("cpu"))
    assert (again.predict(images) == made.predict(images)).all()
    assert again.settings == made.settings
    assert again.seed == made.seed


@pytest.mark.parametrize(
    "change",
    [
        {"seed": True},
        {"seed": 1.5},
        {"seed": None},
        {"classes": 4.0},
        {"classes": "4"},
        {"classes": 10**12},
        {"tasks": 0},
        {"tasks": True},
        {"input_shape": None},
        {"device": None},
        {"device": 0},
        {"device": torch.device("meta")},
        {"method": None},
        {"preset": 3},
        {"epochs": True},
        {"density": True},
        {"density": None},
        {"hidden": 8},
        {"incremental": 1},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_at_once(change: dict[str, Any]) -> None:
    given = {"method": "finetune"} | USUAL | change
    with pytest.raises((ConfigError, DeviceError, InputError)) as refused:
        Learner(**given)
    assert next(iter(change)) in str(refused.value)


def test_arguments_of_methods() -> None:
    made = Learner("finetune", **USUAL)
    images, labels = arrays(0, 24)
    for wrong in ({"validation": "0.1"}, {"validation": None}, {"watch": 3}):
        with pytest.raises(ConfigError):
            made.learn(images, labels, **wrong)
    made.learn(images, labels, validation=np.float64(0.25))
    assert made.accuracy(images, labels, np.int64(0)) == made.accuracy(images, labels, 0)
    for task in (True, "0", 0.0, 1):
        with pytest.raises(NotLearnedError, match="learned are: 0 to 0"):
            made.predict(images, task)  # type: ignore[arg-type]
    nowhere: Any = None
    for use in (made.save, Learner.load):
        with pytest.raises(NispaError, match="is no path"):
            use(nowhere)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (np.int64(3), {}),
        (0, {"seed": np.int64(3)}),
        (0, {"tasks": np.array([[0, 1], [2, 3]])}),
        (0, {"validation": np.float32(0.25), "classes_per_task": np.int64(2)}),
    ],
    ids=["seed", "scenario's seed", "tasks", "options"],
)
def test_a_run_takes_numpys_numbers(seed: Any, options: dict[str, Any], tmp_path: Path) -> None:
    images, labels = arrays(0, 40)
    data = from_arrays(np.concatenate([images, images]), np.concatenate([labels, labels + 2]))
    scenario = split(data, **options)
    given = {"hidden": (4,), "epochs": np.int64(1)}
    settings = resolve("finetune", "default", "", scenario.input_shape, given)
    for _ in run(Experiment(scenario, settings, seed), str(tmp_path / "run")):  # type: ignore[arg-type]
        pass
    record = read_record(tmp_path / "run")
    assert record.status == "complete"
    assert (record.seed, type(record.seed)) == (seed, int)


@pytest.mark.parametrize("seed", [True, 1.5, None, -1, "0"])
def test_a_run_refuses_what_is_no_seed(seed: Any) -> None:
    images, labels = arrays(0, 40)
    data = from_arrays(images, labels)
    settings = resolve("finetune", "default", "", data.shape, {})
    for make in (
        lambda: Experiment(split(data), settings, seed),
        lambda: split(data, seed=seed),
        lambda: build_scenario("split-digits", seed=seed),
    ):
        with pytest.raises(ConfigError, match="must be a whole number in"):
            make()
