from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nispa.base.config import describe
from nispa.data.named import SCENARIOS, build_scenario, parse_tasks, resolve_options
from nispa.errors import ConfigError, DataError, ScenarioError, UnknownNameError
from tests.data.makers import labels, pixels, write_mnist


@pytest.fixture
def npz(tmp_path: Path) -> str:
    path = tmp_path / "mine.npz"
    x, y = pixels(120, 3, 3), labels(120, 5)
    np.savez(path, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    return str(path)


def test_split_digits() -> None:
    scenario = build_scenario("split-digits", seed=0)
    assert scenario.name == "split-digits"
    assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    # 178 + 182 images of 0 and 1, of which 35 + 36 are for testing; a tenth of 289 validates.
    assert (len(scenario.tasks[0].train), len(scenario.tasks[0].validation)) == (261, 28)


def test_settings_rebuild_the_scenario(npz: str) -> None:
    made = build_scenario(
        "split",
        seed=7,
        options={"dataset": npz, "tasks": "[[0, 1], [2, 3, 4]]", "validation": "0.25"},
    )
    kept = json.loads(json.dumps(made.settings))
    again = build_scenario(kept["scenario"], seed=kept["seed"], options=kept["options"])
    assert again.settings == made.settings
    for one, other in zip(made.tasks, again.tasks, strict=True):
        assert one.train.rows is not None
        assert other.train.rows is not None
        assert one.train.rows.tolist() == other.train.rows.tolist()
    assert [len(task.validation) for task in made.tasks] == [12, 18]
    assert kept["resolved"]["tasks"] == [[0, 1], [2, 3, 4]]


def test_tasks_may_be_lists_in_python(npz: str) -> None:
    made = build_scenario("split", seed=0, options={"dataset": npz, "tasks": [[0, 1], [2, 3, 4]]})
    assert [task.classes for task in made.tasks] == [(0, 1), (2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "options", "error", "reason"),
    [
        ("split-digit", {}, UnknownNameError, "did you mean 'split-digits'"),
        ("split-digits", {"clases_per_task": 2}, UnknownNameError, "did you mean"),
        ("efmnist", {"classes_per_task": 2}, UnknownNameError, "unknown setting"),
        ("split", {}, ConfigError, "data set: pass options="),
        ("split", {"dataset": "digitz"}, UnknownNameError, "did you mean 'digits'"),
        ("split", {"dataset": "./no/such"}, DataError, "does not exist"),
        ("split-digits", {"classes_per_task": 1}, ConfigError, "classes_per_task=1 must be"),
        ("split-digits", {"classes_per_task": "two"}, ConfigError, "classes_per_task=two must"),
        ("split-digits", {"classes_per_task": 3}, ScenarioError, "last task of one class"),
        ("split-digits", {"tasks": "[[0,1],[1,2]]"}, ScenarioError, "class 1 is in task 0 and"),
        ("split-digits", {"tasks": "[[0,1],[9,10]]"}, ScenarioError, "class 10 is unknown"),
        ("split-digits", {"tasks": "[[0,1],[2]]"}, ScenarioError, "task 1 has 1 class"),
        ("split-digits", {"tasks": "0,1"}, ConfigError, "must be lists of classes"),
        ("split-digits", {"tasks": 5}, ConfigError, "tasks=5 must be lists of classes"),
        ("split-digits", {"class_order": "random"}, UnknownNameError, "class_order"),
        ("split-digits", {"validation": 1.0}, ConfigError, r"validation=1.0 must be .* \[0, 1\)"),
        ("split-digits", {"validation": "nan"}, ConfigError, "validation=nan must be"),
        (
            "split-digits",
            {"tasks": "[[0,1]]", "classes_per_task": 3},
            ConfigError,
            "tasks and classes_per_task=3 contradict",
        ),
        (
            "partly-permuted-mnist",
            {"shares": "0,1", "tasks": 3},
            ConfigError,
            "shares and tasks=3 contradict",
        ),
        ("permuted-mnist", {"share": 2}, ConfigError, r"share=2 must be .* \[0, 1\]"),
    ],
)
def test_wrong_options(
    name: str, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        build_scenario(name, seed=0, options=options, download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "0"])
def test_wrong_seeds(seed: Any) -> None:
    with pytest.raises(ConfigError, match="must be a whole number in"):
        build_scenario("split-digits", seed=seed)


@pytest.mark.parametrize("text", ["", "[", "[0]", "[[0,1.5]]", "[[true,false]]", "{}", "null"])
def test_tasks_that_are_no_lists_of_classes(text: str) -> None:
    with pytest.raises(ConfigError, match="must be lists of classes"):
        parse_tasks(text)


def test_every_named_scenario_has_valid_defaults() -> None:
    assert {"split", "split-digits", "split-cifar100", "efmnist", "permuted-mnist"} <= set(
        SCENARIOS
    )
    for known in SCENARIOS.values():
        chosen = resolve_options(known, {})
        assert known.doc
        for name, value in known.defaults.items():
            assert getattr(chosen, name) == value
        assert all(each.doc for each in describe(known.options))


def test_other_classes_per_task_replace_the_usual_tasks() -> None:
    known = SCENARIOS["split-emnist-balanced"]
    usual = resolve_options(known, {})
    assert [len(group) for group in parse_tasks(getattr(usual, "tasks", ""))] == [10, 13, 13, 11]
    assert getattr(resolve_options(known, {"classes_per_task": 5}), "tasks", "") is None


def test_permuted_scenarios(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", train=40)
    made = build_scenario("permuted-mnist", seed=0, folder=tmp_path, options={"tasks": 3})
    assert (len(made), made.outputs) == (3, 30)
    made = build_scenario("partly-permuted-mnist", seed=0, folder=tmp_path)
    assert [task.name for task in made.tasks] == [
        "as it is",
        "25% permuted",
        "50% permuted",
        "75% permuted",
        "100% permuted",
    ]
    made = build_scenario(
        "permuted-mnist",
        seed=0,
        folder=tmp_path,
        options={"shares": "0, 0.5", "shared_classes": "true"},
    )
    assert (len(made), made.outputs) == (2, 10)
    kept = json.loads(json.dumps(made.settings))
    again = build_scenario(
        kept["scenario"], seed=kept["seed"], folder=tmp_path, options=kept["options"]
    )
    assert again.settings == made.settings


def test_efmnist_on_the_real_files(data_dir: Path) -> None:
    made = build_scenario("efmnist", seed=0, folder=data_dir, download=False)
    assert [len(task.train) for task in made.tasks] == [21_600, 15_591, 17_487, 15_348, 54_000]
    assert [len(task.test) for task in made.tasks] == [1_000, 1_300, 1_300, 1_100, 10_000]
    assert made.tasks[4].classes == tuple(range(47, 57))
    assert (made.outputs, made.input_shape) == (57, (1, 28, 28))
    assert [each.canonical for each in made.identity] == [False, True]
    # Options that came later are recorded only if they are given: old runs keep their identity.
    assert set(made.settings["options"]) == {"validation", "normalise"}

    options = {"class_order": "seeded"}
    other = build_scenario("efmnist", seed=0, folder=data_dir, download=False, options=options)
    assert options.items() <= other.settings["options"].items()
    assert [task.classes for task in other.tasks] != [task.classes for task in made.tasks]
