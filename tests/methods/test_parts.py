"""A method's list of what it carries: starting, saving, loading and counting follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.base.config import build
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import Learning, Method, MethodState, Part
from nispa.methods.epochs import KeepConfig
from nispa.methods.finetune import Finetune
from nispa.methods.parts import Derived, Network, PerValue, PositiveNumber
from nispa.network.models import NetworkConfig

from .toy import NETWORKS, finish, same_tensors, toy_problem, toy_task


class Names(Part):
    """A kind of its own: names of the tasks."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> list[str]:
        assert set(parts) == {"network"}, "parts listed before, and no others"
        return []

    def save(self, value: list[str]) -> MethodState:
        return MethodState({"seen": torch.zeros(len(value))}, {self.name: list(value)})

    def load(self, state: MethodState, method: Method, parts: Mapping[str, Any]) -> list[str]:
        if not isinstance(state.values.get(self.name), list):
            raise FormatError("no names")
        return list(state.values[self.name])


class Anchored(Finetune):
    """Fine-tuning that remembers more than its network."""

    name = "anchored"
    config_class = KeepConfig
    carries = (
        Network(),
        Names("names", "importance"),
        PerValue("anchor", "importance"),
        PositiveNumber("distance"),
        Derived("cache"),
    )
    names: list[str]
    anchor: dict[str, Tensor]
    distance: float
    cache: str | None

    def learn_task(self, task: Task) -> Learning:
        report = yield from super().learn_task(task)
        self.names.append(task.name)
        self.anchor = {name: value.detach().clone() for name, value in self.plastic().items()}
        self.distance, self.cache = 1.5, "known"
        return report

    def check_parts(self, parts: dict[str, Any]) -> None:
        if bool(parts["names"]) != bool(parts["anchor"]):
            raise FormatError("names and anchors do not fit each other")


def anchored(cls: type[Anchored] = Anchored) -> Anchored:
    config = build(KeepConfig, {"epochs": 1, "batch_size": 8})
    return cls(toy_problem(), build(NetworkConfig, NETWORKS["mlp"]), config, seed=0)


def test_what_is_listed_starts_is_saved_loaded_and_counted() -> None:
    method = anchored()
    method.start()
    assert (method.names, method.anchor, method.distance, method.cache) == ([], {}, 0.0, None)
    finish(method.learn(toy_task(0)))
    state = method.state()
    assert state.values == {"names": ["toy 0"], "distance": 1.5}
    values = sum(value.numel() for value in method.network.parameters())
    assert method.census().storage == {"importance": 4 * (values + 1)}  # float32 each

    other = anchored()
    other.learned = list(method.learned)
    other.load_state(state)
    assert (other.names, other.distance, other.cache) == (["toy 0"], 1.5, None)
    assert same_tensors(other.anchor, method.anchor)
    assert other.census() == method.census()
    for each in (method, other):
        finish(each.learn(toy_task(1)))
    assert same_tensors(method.state().tensors, other.state().tensors)


def test_parts_that_do_not_fit_each_other_are_refused_and_nothing_changes() -> None:
    method = anchored()
    method.start()
    finish(method.learn(toy_task(0)))
    state, before = method.state(), anchored()
    before.start()
    drawn = before.state()
    damaged = MethodState(state.tensors, {**state.values, "names": []})
    with pytest.raises(FormatError, match="fit each other"):
        before.load_state(damaged)
    assert same_tensors(before.state().tensors, drawn.tensors)


def test_a_way_to_predict_of_its_own_brings_scores_of_its_own_or_none() -> None:
    class First(Anchored):
        def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
            return torch.full((len(images),), self.choices(task)[0])

    method = anchored(First)
    method.start()
    images = toy_task(0).test.batch(slice(None))[0]
    assert set(method.predict(images, TaskInfo(0, (0, 1))).tolist()) == {0}
    with pytest.raises(ConfigError, match="no scores, only classes"):
        method.scores(images, TaskInfo(0, (0, 1)))
