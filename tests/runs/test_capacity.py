"""A network that fills up says so once, when it is nearly full and when it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nispa.learner import Learner
from nispa.runs import capacity
from nispa.runs.capacity import fullness, warning
from nispa.runs.record import Record, TaskResult, UnitCount
from nispa.runs.recording import capacity_note
from nispa.runs.runner import Notice, TaskEnd
from tests.records import record
from tests.runs.test_runner import experiment, finish


@pytest.mark.parametrize(
    ("stable", "level"),
    [((0, 0), 0), ((89, 44), 0), ((90, 0), 1), ((0, 45), 1), ((99, 49), 1), ((100, 0), 2)],
)
def test_the_layer_with_the_least_room_counts(stable: tuple[int, int], level: int) -> None:
    assert fullness({"fc1": (stable[0], 100), "fc2": (stable[1], 50)}) == level


def test_a_network_without_such_units_is_never_full() -> None:
    assert fullness({}) == fullness({"none": (0, 0)}) == 0


def test_each_level_is_told_once_with_its_layers() -> None:
    empty, nearly, full = ({"fc1": (n, 20), "fc2": (0, 9)} for n in (0, 18, 20))
    assert warning({}, empty) == warning(nearly, nearly) == warning(full, full) == ""
    assert "nearly full" in warning(empty, nearly)
    assert "fc1 (2 of 20)" in warning(empty, nearly)
    said = warning(nearly, full)
    assert "is full" in said
    assert "fc1" in said
    assert "fc2" not in said
    assert "is full" in warning(empty, full)


def after(*stable: int, planned: int = 2) -> Record:
    results = tuple(
        TaskResult(
            phases=1,
            samples_trained=1,
            train_s=0,
            eval_s=0,
            stable_units={"fc1": UnitCount(stable=count, size=10)},
        )
        for count in stable
    )
    tasks = (record().tasks * planned)[:planned]
    return record(per_task=results, accuracy_matrix=[], tasks=tasks)


def test_nothing_is_said_after_the_last_task() -> None:
    assert len(record().tasks) == 2
    assert "after task 1 of 2 the network is full" in capacity_note(after(10))
    assert capacity_note(after(5, 10)) == ""


def test_the_task_that_fills_a_network_is_named() -> None:
    assert capacity_note(after(5, planned=4)) == ""
    assert capacity_note(after(5, 10, planned=4)).startswith("after task 2 of 4 the network is fu")
    assert capacity_note(after(5, 5, 9, planned=4)).startswith("after task 3 of 4 the network is n")
    assert capacity_note(after(5, 10, 10, planned=4)) == ""


def test_a_run_keeps_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit of two is stable from the first task on; with so few, half is nearly nothing."""
    monkeypatch.setattr(capacity, "NEARLY", 0.5)
    events, made = finish(experiment(hidden=(2,), density=1.0), tmp_path / "run")
    assert [task.stable_units["fc1"].stable for task in made.per_task] == [1, 1, 1]
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.task == 0
    assert notice.text.startswith("after task 1 of 3 the network is nearly full")
    assert made.notes == (notice.text,)
    assert events.index(notice) > 0
    assert isinstance(events[events.index(notice) - 1], TaskEnd)


def test_a_learner_in_python_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "NEARLY", 0.5)
    small: dict[str, Any] = {"hidden": (2,), "density": 1.0, "batch_size": 8, "k": 6}
    learner = Learner(input_shape=(1, 4, 4), classes=6, accuracy_drop=5, **small)
    images = np.random.default_rng(0).random((60, 4, 4))
    labels = np.arange(60) % 2
    images[labels == 1, :2] += 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="nearly full"):
            learner.learn(images, labels)
    assert not learner.tasks
    assert not learner.labels
    with pytest.warns(UserWarning, match="nearly full: few units are plastic in fc1"):
        learner.learn(images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.learn(images[:, ::-1].copy(), labels)
