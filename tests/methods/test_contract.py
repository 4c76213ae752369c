"""What every method must do, whichever it is. A new method is tested by being registered."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nispa.base.config import describe
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import CapacityError, ConfigError, FormatError, NotLearnedError, ScenarioError
from nispa.methods import METHODS, method_class
from nispa.methods.base import (
    Event,
    LearnReport,
    Method,
    MethodState,
    PhaseEnd,
    PhaseStart,
)
from nispa.methods.presets import Settings, resolve
from nispa.methods.saving import decode, encode
from nispa.training.pausing import EpochEnd

from .toy import FREEZES, accuracy_on, brief, finish, same_tensors, toy_domain, toy_method, toy_task

pytestmark = pytest.mark.parametrize("name", METHODS)


@dataclass(frozen=True)
class Step:
    """A task that was learned: what was told of it, how well it was known then, what was kept.

    Attributes:
        events: What ``learn`` told.
        report: Its report.
        took: Seconds.
        accuracy: On the task.
        scores: Of the first task's test images, told this task.
        chosen: The classes predicted for these images then, not told the task, if that can be.
        kept: The state after the task.
        then: A copy of its tensors, made at once.
        file: The method as a file.
    """

    events: list[Event]
    report: LearnReport
    took: float
    accuracy: float
    scores: Tensor
    chosen: set[int]
    kept: MethodState
    then: dict[str, Tensor]
    file: bytes


@functools.cache
def story(name: str) -> tuple[Method, list[Step]]:
    """A method that has learned three tasks, for tests that change nothing of it."""
    with one_thread():
        return told(name)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread, so that sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def told(name: str) -> tuple[Method, list[Step]]:
    method = toy_method(name)
    method.start()
    images, _ = toy_task(0).test.batch(slice(None))
    steps = []
    for index in range(3):
        task = toy_task(index)
        began = time.perf_counter()
        events, report = finish(method.learn(task))
        took, state = time.perf_counter() - began, method.state()
        then = {key: tensor.clone() for key, tensor in state.tensors.items()}
        accuracy, scores = accuracy_on(method, task), method.scores(images, task.info)
        chosen = set(method.predict(images, None).tolist()) if method.task_agnostic else set()
        file = encode(method, settings_of(method))
        steps.append(Step(events, report, took, accuracy, scores, chosen, state, then, file))
    return method, steps


def learned_once(name: str) -> Method:
    """The method of the story."""
    return story(name)[0]


def test_learns_each_task(name: str) -> None:
    method, steps = story(name)
    assert min(step.accuracy for step in steps) >= 0.9
    assert [info.classes for info in method.learned] == [(0, 1), (2, 3), (4, 5)]
    assert_agnostic(method)


def assert_agnostic(method: Method) -> None:
    """Not told the task, a method chooses among the classes that it has seen, if it can at all."""
    images, _ = toy_task(1).test.batch(slice(None))
    if method.task_agnostic:
        assert set(method.predict(images, None).tolist()) <= set(method.classes_seen)


def test_what_freezes_does_not_forget(name: str) -> None:
    if name not in FREEZES:
        pytest.skip("this method may forget")
    method, steps = story(name)
    images, _ = toy_task(0).test.batch(slice(None))
    for index, step in enumerate(steps):
        assert torch.equal(method.scores(images, toy_task(index).info), step.scores)


def test_it_says_what_it_needs_and_promises(name: str) -> None:
    cls, kept = method_class(name), learned_once(name).state().tensors
    samples = [key for key in kept if key.startswith(("train.", "validation."))]
    assert cls.stores_samples() == bool(samples or "memory.images" in kept)
    assert cls.forgets_nothing in ("yes", "no") or "=" in cls.forgets_nothing
    key, _, value = cls.forgets_nothing.partition("=")
    assert not value or key in {field.name for field in describe(cls.config_class)}


@pytest.mark.parametrize("incremental", ["task", "class", "domain"])
def test_learns_what_it_says_it_can(name: str, incremental: str) -> None:
    if incremental not in method_class(name).incremental:
        with pytest.raises(ConfigError, match=rf"cannot learn with incremental={incremental}; it"):
            resolve(name, "default", "split-digits", (1, 8, 8), {"incremental": incremental})
        return
    if incremental == "task":  # test_learns_each_task has learned so
        return
    method = toy_method(name, incremental=incremental)
    method.start()
    make = toy_domain if incremental == "domain" else toy_task
    for index in range(2):
        task = make(index)
        finish(method.learn(task))
        assert accuracy_on(method, task) >= 0.9
    assert_agnostic(method)


@pytest.mark.parametrize("incremental", ["task", "class", "domain"])
def test_refuses_classes_that_do_not_fit(name: str, incremental: str) -> None:
    cls = method_class(name)
    if incremental not in cls.incremental or (incremental == "task" and cls.shares_classes):
        pytest.skip("this method learns all classes, or not so")
    method = toy_method(name, incremental=incremental, **brief(name))
    method.start()
    finish(method.learn(toy_task(0)))
    unfit = toy_task(1) if incremental == "domain" else replace(toy_task(0), index=1)
    message = "other classes than" if incremental == "domain" else "classes seen before"
    with pytest.raises(ScenarioError, match=message):
        finish(method.learn(unfit))
    assert len(method.learned) == 1


def test_bytes_beside_the_network_are_counted(name: str) -> None:
    method = learned_once(name)
    parts = {"memory": ("memory.", "train.", "validation."), "masks": ("mask.",)}
    parts["importance"] = ("importance.", "anchor.")
    storage, tensors = method.census().storage, method.state().tensors
    assert set(storage) <= set(parts)
    for purpose, prefixes in parts.items():
        kept = [tensor.nbytes for key, tensor in tensors.items() if key.startswith(prefixes)]
        assert storage.get(purpose, 0) == sum(kept)


def test_same_seed_same_result(name: str) -> None:
    method = toy_method(name)
    method.start()
    for index, step in enumerate(story(name)[1][:2]):
        with one_thread():
            finish(method.learn(toy_task(index)))
        assert same_tensors(method.state().tensors, step.then)
        assert method.state().values == step.kept.values


def test_another_seed_another_result(name: str) -> None:
    method = toy_method(name, seed=4)
    method.start()
    finish(method.learn(toy_task(0)))
    assert not same_tensors(method.state().tensors, story(name)[1][0].then)


def test_events_tell_a_whole_story(name: str) -> None:
    step = story(name)[1][0]
    events, report, took = step.events, step.report, step.took
    starts = [event for event in events if isinstance(event, PhaseStart)]
    ends = [event for event in events if isinstance(event, PhaseEnd)]
    epochs = [event for event in events if isinstance(event, EpochEnd)]
    assert len(starts) == len(ends) == report.phases
    assert [start.phase for start in starts] == list(range(1, report.phases + 1))
    assert [end.phase for end in ends] == list(range(1, report.phases + 1))
    assert sum(epoch.samples for epoch in epochs) == report.samples_trained
    assert report.phases <= starts[0].phases
    assert report.stop_reason
    assert 0 < sum(end.seconds for end in ends) <= took


def settings_of(method: Method) -> Settings:
    return Settings(method.name, "default", method.network_config, method.config)


def test_scores_choose_what_is_predicted(name: str) -> None:
    method = learned_once(name)
    images, _ = toy_task(1).test.batch(slice(None))
    infos: list[TaskInfo | None] = [toy_task(0).info, toy_task(1).info]
    for info in [*infos, None] if method.task_agnostic else infos:
        scores, classes = method.scores(images, info), torch.tensor(method.choices(info))
        assert scores.shape == (len(images), len(classes))
        assert not scores.requires_grad
        assert bool(scores.isfinite().all())
        assert torch.equal(classes[scores.argmax(1)], method.predict(images, info))


def test_counts_what_is_live(name: str) -> None:
    method = learned_once(name)
    census = method.census()
    stored = [
        tensor.numel()
        for key, tensor in method.state().tensors.items()
        if re.fullmatch(r"network\d*\..*\.(frozen_)?(weight|bias)", key)
    ]
    assert census.live == sum(stored)
    assert 0 < census.live < census.total
    for live, frozen, total in census.connections.values():
        assert 0 <= frozen <= live <= total
    for stable, size in census.stable.values():
        assert 0 <= stable <= size


def test_refuses_what_does_not_fit(name: str) -> None:
    method = toy_method(name, tasks=2)
    method.start()
    task = toy_task(0)
    with pytest.raises(CapacityError, match="outputs 0 to 3"):
        finish(method.learn(toy_task(2)))
    empty = task.train.subset(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ScenarioError, match="no validation images"):
        finish(method.learn(Task(0, "t", (0, 1), task.train, empty, task.test)))
    with pytest.raises(ScenarioError, match="one class"):
        finish(method.learn(Task(0, "t", (0,), task.train, task.validation, task.test)))
    assert method.learned == []


def test_predicting_before_learning_is_an_error(name: str) -> None:
    method = toy_method(name)
    method.start()
    images, _ = toy_task(0).test.batch(slice(None))
    with pytest.raises(NotLearnedError):
        method.predict(images, None)


def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    state = learned_once(name).state()
    shorter = dict(state.tensors)
    shorter.pop(next(key for key in shorter if key.endswith("bias_index")))
    with pytest.raises(FormatError):
        toy_method(name).load_state(MethodState(shorter, state.values))


def test_a_state_with_anything_missing_is_refused_and_changes_nothing(name: str) -> None:
    method = learned_once(name)
    state = method.state()
    whole = [MethodState(state.tensors, state.values)]
    for key in state.tensors:
        left = {other: tensor for other, tensor in state.tensors.items() if other != key}
        whole.append(MethodState(left, state.values))
    for key in state.values:
        rest = {other: value for other, value in state.values.items() if other != key}
        whole.append(MethodState(state.tensors, rest))
    other = toy_method(name)
    other.start()
    other.learned = list(method.learned)
    before = other.state()
    for damaged in whole[1:]:
        with pytest.raises(FormatError):
            other.load_state(damaged)
        assert same_tensors(other.state().tensors, before.tensors)
    other.load_state(whole[0])
    assert same_tensors(other.state().tensors, state.tensors)
    assert other.census() == method.census()


def test_the_state_is_a_copy(name: str) -> None:
    _, steps = story(name)
    assert not same_tensors(steps[0].then, steps[2].then)
    assert all(same_tensors(step.kept.tensors, step.then) for step in steps)


def test_predicts_classes_of_the_task(name: str) -> None:
    method, steps = story(name)
    images, _ = toy_task(0).test.batch(slice(None))
    assert set(method.predict(images, TaskInfo(1, (2, 3))).tolist()) <= {2, 3}
    assert steps[0].chosen <= {0, 1}
    assert steps[1].chosen <= {0, 1, 2, 3}


def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    method = learned_once(name)
    data = bytearray(encode(method, settings_of(method)))
    data[-1] ^= 1
    file = tmp_path / "method.safetensors"
    file.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        decode(file)
