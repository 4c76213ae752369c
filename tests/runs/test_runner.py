"""Runs: what the record and the folder hold, and what an interruption leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nispa.base.seeding import MAX_SEED
from nispa.data.own_tasks import from_tasks
from nispa.data.scenarios import Scenario
from nispa.data.tasks import TaskInfo
from nispa.errors import ConfigError, DivergedError, OutputError, ScenarioError
from nispa.methods.one_network import OneNetwork
from nispa.methods.presets import resolve
from nispa.methods.saving import decode
from nispa.network.models import SparseNetwork
from nispa.runs.folder import NETWORK, RunFolder
from nispa.runs.metrics import as_matrix
from nispa.runs.record import Record, comparable, read_record
from nispa.runs.runner import Experiment, Notice, RunEvent, TaskEnd, TaskStart, run

FAST: dict[str, Any] = {"hidden": (16, 12), "density": 0.6, "batch_size": 8}
PHASES: dict[str, Any] = {"epochs_per_phase": 3, "k": 6, "accuracy_drop": 5}


def scenario(*, shared: bool = False) -> Scenario:
    """Three tasks of two easy classes, from arrays."""
    tasks = []
    for index in range(3):
        random = np.random.default_rng(index)
        which = np.arange(100) % 2
        images = random.integers(0, 60, (100, 4, 4), dtype=np.uint8)
        for label in (0, 1):
            images[which == label, :, (2 * label + index) % 4] += 160
        tasks.append((images, which + (0 if shared else 2 * index)))
    return from_tasks(tasks, seed=0, shared_classes=shared)


def experiment(method: str = "nispa", seed: int = 0, **given: Any) -> Experiment:
    fast = FAST | (PHASES if method == "nispa" else {"epochs": 5}) | given
    sequence = scenario()
    settings = resolve(method, "default", sequence.name, sequence.input_shape, fast)
    return Experiment(sequence, settings, seed)


def finish(what: Experiment, out: Path) -> tuple[list[RunEvent], Record]:
    running, events = run(what, out), []
    while True:
        try:
            events.append(next(running))
        except StopIteration as end:
            return events, end.value


def lines_of_tasks(out: Path) -> list[dict[str, int]]:
    """Stable units of each task, from the events."""
    events = RunFolder(out).read_events()
    return [event["stable"] for event in events if event["event"] == "task_end"]


def test_a_run_leaves_a_whole_folder(tmp_path: Path) -> None:
    events, record = finish(experiment(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "events.jsonl",
        "network.safetensors",
        "origin.json",
        "progress.csv",
        "record.json",
    ]
    assert folder.read_record() == record
    assert record.status == "complete"
    assert record.finished is not None
    assert [task.classes for task in record.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert [(task.train, task.validation, task.test) for task in record.tasks] == [(72, 8, 20)] * 3
    assert record.config["network"]["hidden"] == [16, 12]  # type: ignore[index,call-overload]
    assert record.config["method"]["k"] == 6  # type: ignore[index,call-overload]
    assert record.parameters is not None
    assert record.parameters.live < record.parameters.total
    assert lines_of_tasks(tmp_path / "run") == [
        {group: count.stable for group, count in task.stable_units.items()}
        for task in record.per_task
    ]
    assert record.environment.threads == torch.get_num_threads()
    starts = [event for event in events if isinstance(event, TaskStart)]
    assert [(start.task, start.tasks) for start in starts] == [(0, 3), (1, 3), (2, 3)]
    lines = folder.read_events()
    kinds = {"phase_start", "epoch", "phase_end", "task_end"}
    assert {line["event"] for line in lines} == kinds
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"]) for line in lines)
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert sum(line["samples"] for line in epochs) == sum(
        task.samples_trained for task in record.per_task
    )
    assert {line["task"] for line in lines} == {0, 1, 2}


@pytest.mark.parametrize("incremental", ["task", "class"])
def test_the_ends_of_tasks_are_events(tmp_path: Path, incremental: str) -> None:
    what = experiment("finetune", incremental=incremental)
    events, record = finish(what, tmp_path / "run")
    lines = RunFolder(tmp_path / "run").read_events()
    ends = [line for line in lines if line["event"] == "task_end"]
    told = [event for event in events if isinstance(event, TaskEnd)]
    assert [tuple(end["accuracies"]) for end in ends] == [event.accuracies for event in told]
    first, second, third = (event.accuracies for event in told)
    assert ends[1]["mean_accuracy"] == pytest.approx(sum(second) / 2)
    assert ends[0]["forgetting"] is None
    # Before the second task only the first was learned, so its first accuracy is its best.
    assert ends[1]["forgetting"] == pytest.approx(first[0] - second[0])
    assert ends[2]["forgetting"] == record.main_metrics["forgetting"].value
    assert ends[2]["mean_accuracy"] == record.main_metrics["acc"].value == sum(third) / 3
    live = sum(layer.live for layer in record.per_task[2].connections.values())
    assert (ends[2]["live"], ends[2]["frozen"]) == (live, 0)


def test_nispa_forgets_exactly_nothing(tmp_path: Path) -> None:
    _, record = finish(experiment(), tmp_path / "run")
    matrix = as_matrix(record.accuracy_matrix)
    for task in range(3):
        assert len(set(matrix[task:, task].tolist())) == 1
    assert record.metrics["forgetting"].value == 0
    assert record.metrics["bwt"].value == 0
    assert record.metrics["acc"].value == pytest.approx(matrix[-1].mean())
    # The next task is measured, too, for forward transfer; the one after that is not.
    assert not np.isnan(matrix[0, 1])
    assert np.isnan(matrix[0, 2])
    assert record.metrics["fwt"].value is not None
    for before, after in zip(record.per_task, record.per_task[1:], strict=False):
        for group, units in before.stable_units.items():
            assert units.stable <= after.stable_units[group].stable
        for layer, connections in before.connections.items():
            assert connections.frozen <= after.connections[layer].frozen


def test_the_saved_network_predicts_what_the_record_says(tmp_path: Path) -> None:
    what = experiment()
    _, record = finish(what, tmp_path / "run")
    method, settings, _ = decode(tmp_path / "run" / NETWORK)
    assert settings == what.settings
    for task in what.scenario.tasks:
        images, labels = task.test.batch(slice(None))
        right = float((method.predict(images, task.info) == labels).double().mean())
        assert right == record.accuracy_matrix[-1][task.index]


def marked_scenario() -> Scenario:
    """Three tasks of two classes; each image says whether it is a test image, which, and of what.

    That is the brightness of its first three pixels.
    """
    tasks = []
    for index in range(3):
        parts: list[Any] = []
        for mark, count in ((0, 40), (255, 20)):
            labels = 2 * index + np.arange(count) % 2
            images = np.zeros((count, 1, 4), dtype=np.uint8)
            images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = mark, np.arange(count), labels
            parts += [images, labels]
        tasks.append(parts)
    return from_tasks(tasks, seed=0)


def marked_predict(self: OneNetwork, images: Tensor, task: TaskInfo | None) -> Tensor:
    """Right on the first few test images of a task, and on no other image.

    With t tasks learned: on 3t + 2j + 1 of task j when it is told, on t + j when it is not.
    """
    is_test, number, label = (255 * images[:, 0, 0, :3]).round().long().unbind(1)
    learned = len(self.learned)
    right = label // 2 + learned if task is None else 3 * learned + 2 * task.index + 1
    return torch.where((is_test == 255) & (number < right), label, label ^ 1)


@pytest.mark.parametrize("incremental", ["task", "class"])
def test_accuracies_are_those_on_test_images_told_the_task_and_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, incremental: str
) -> None:
    monkeypatch.setattr(OneNetwork, "predict", marked_predict)
    sequence = marked_scenario()
    given = {"hidden": (4,), "density": 1.0, "epochs": 1, "incremental": incremental}
    settings = resolve("finetune", "default", sequence.name, sequence.input_shape, given)
    _, record = finish(Experiment(sequence, settings, 0), tmp_path / "run")
    told = ((4, 6, None), (7, 9, 11), (10, 12, 14))  # of 20, each task and the next one
    untold = ((1, None, None), (2, 3, None), (3, 4, 5))
    found = [record.accuracy_matrix, record.accuracy_matrix_task_agnostic]
    for matrix, counts in zip(found, (told, untold), strict=True):
        assert matrix is not None
        assert matrix == tuple(
            tuple(None if count is None else count / 20 for count in row) for row in counts
        )
    of_kind = {"task": told, "class": untold}[incremental]
    assert record.main_metrics["acc"].value == pytest.approx(sum(of_kind[-1]) / 60)
    assert record.metrics["acc"].value == pytest.approx(36 / 60)
    assert record.metrics_task_agnostic is not None
    assert record.metrics_task_agnostic["acc"].value == pytest.approx(12 / 60)
    last = RunFolder(tmp_path / "run").read_events()[-1]
    assert last["accuracies"] == [count / 20 for count in of_kind[-1] if count is not None]


def test_two_runs_of_one_seed_are_equal_byte_for_byte(tmp_path: Path) -> None:
    _, first = finish(experiment(seed=5), tmp_path / "a")
    _, second = finish(experiment(seed=5), tmp_path / "b")
    _, other = finish(experiment(seed=6), tmp_path / "c")
    assert comparable(first) == comparable(second) != comparable(other)
    networks = [(tmp_path / name / NETWORK).read_bytes() for name in "abc"]
    assert networks[0] == networks[1] != networks[2]


@pytest.mark.parametrize("method", ["finetune", "joint", "stl", "stl-iso"])
def test_every_method_runs_and_is_recorded(method: str, tmp_path: Path) -> None:
    _, record = finish(experiment(method), tmp_path / "run")
    matrix = as_matrix(record.accuracy_matrix)
    assert not np.isnan(matrix[np.tril_indices(3)]).any()
    told_only = method.startswith("stl")
    assert (record.accuracy_matrix_task_agnostic is None) == told_only
    assert (record.metrics["fwt"].value is None) == told_only
    assert record.per_task[0].tau is None


def test_an_interruption_keeps_the_tasks_finished(tmp_path: Path) -> None:
    running = run(experiment(), tmp_path / "run")
    for event in running:
        if isinstance(event, TaskEnd) and event.task == 1:
            break
    next(running)  # the third task has begun
    running.close()
    record = read_record(tmp_path / "run")
    assert record.status == "interrupted"
    assert len(record.accuracy_matrix) == len(record.per_task) == 2
    method, _, _ = decode(tmp_path / "run" / NETWORK)
    assert [task.classes for task in method.learned] == [(0, 1), (2, 3)]


def test_a_diverging_run_is_recorded_as_failed(tmp_path: Path) -> None:
    what = experiment("finetune", optimiser="sgd", learning_rate=100, weight_decay=100)
    with pytest.raises(DivergedError, match="smaller learning_rate"):
        finish(what, tmp_path / "run")
    assert read_record(tmp_path / "run").status == "failed"


def test_nothing_is_created_for_what_cannot_run(tmp_path: Path) -> None:
    sequence = scenario(shared=True)
    settings = resolve("nispa", "default", sequence.name, sequence.input_shape, FAST)
    with pytest.raises(ScenarioError, match="classes seen before"):
        finish(Experiment(sequence, settings, 0), tmp_path / "run")
    for seed in (-1, MAX_SEED + 1):
        with pytest.raises(ConfigError, match=f"seed={seed} must be"):
            experiment(seed=seed)
    assert experiment(seed=MAX_SEED).seed == MAX_SEED
    assert list(tmp_path.iterdir()) == []


def test_a_run_has_no_more_tasks_than_a_record_holds(tmp_path: Path) -> None:
    many = replace(scenario(), tasks=scenario().tasks[:1] * 1_001)
    what = replace(experiment(), scenario=many)
    with pytest.raises(ScenarioError, match="1,001 tasks, more than the 1,000 that a record"):
        next(run(what, tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_paths_is_refused(tmp_path: Path) -> None:
    """A task none of whose outputs is reached is at chance for good, whatever is learned."""
    sparse = experiment(hidden=(40, 40), density=0.003)
    with pytest.raises(ConfigError, match=r"density=0.003 leaves \d of 6 outputs") as error:
        finish(sparse, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = re.search(r"density=([\d.]+) reaches all", str(error.value))
    assert found is not None
    dense = experiment(hidden=(40, 40), density=float(found[1]))
    assert dense.method().unreached == ()


def test_a_path_that_is_missing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseNetwork, "unreached", lambda network: (1, 2))
    events, made = finish(experiment("finetune"), tmp_path / "run")
    assert "to 2 of 6 outputs (classes 1, 2)" in made.notes[0]
    assert events[0] == Notice(0, made.notes[0])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("a", "b", "c", "d", "e", "f"), [["a", "b"], ["c", "d"], ["e", "f"]]),
        (("5", "4", "3", "2", "1", "0"), [[5, 4], [3, 2], [1, 0]]),
        (("0", "01", "2", "3", "4", "\udcff"), [["0", "01"], ["2", "3"], ["4", "?"]]),
    ],
)
def test_classes_keep_their_names(
    names: tuple[str, ...], labels: list[list[object]], tmp_path: Path
) -> None:
    usual = experiment("finetune", epochs=1)
    named = replace(usual, scenario=replace(usual.scenario, class_names=names))
    _, made = finish(named, tmp_path / "run")
    assert made.class_names == tuple(name.encode(errors="replace").decode() for name in names)
    assert decode(tmp_path / "run" / NETWORK)[2] == labels


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    finish(experiment("finetune"), tmp_path / "run")
    before = (tmp_path / "run" / "record.json").read_bytes()
    with pytest.raises(OutputError, match="already holds a run"):
        finish(experiment("finetune"), tmp_path / "run")
    assert (tmp_path / "run" / "record.json").read_bytes() == before
    assert json.loads(before)["status"] == "complete"
