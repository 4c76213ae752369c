"""Single-task learning: a fresh sparse network for each task, as dense as NISPA's one network.

A bound without forgetting and without reuse: its live parameters grow with the number of tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.seeding import derive, stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError, NotLearnedError
from nispa.methods.base import (
    Census,
    Learning,
    Method,
    MethodState,
    count,
    draw_network,
    load_network,
    network_state,
)
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.network.models import SparseNetwork
from nispa.training.fit import ClassMask, accuracy


class Stl(Method):
    """One network per task.

    Attributes:
        networks: By the task's place in the sequence.
    """

    name = "stl"
    config_class = KeepConfig
    task_agnostic = False
    config: KeepConfig

    def start(self) -> None:
        """No network yet."""
        self.networks: dict[int, SparseNetwork] = {}

    def learn_task(self, task: Task) -> Learning:
        """Trains a network of its own for the task."""
        network = draw_network(self, derive(self.seed, "network", task.index))
        classes = self._classes(task.classes)
        validation = task.validation.to(self.device)
        report = yield from learn_in_epochs(
            network,
            classes.loss,
            self.prepare(network, task.train),
            lambda: accuracy(network, classes.predict, validation),
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
        )
        self.networks[task.index] = network
        return report

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        classes = self.choices(task)
        return self._classes(classes).predict(self._network_of(task)(images))

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Logits of the task's classes; see :class:`Method`."""
        classes = self.choices(task)
        logits: Tensor = self._network_of(task)(images)
        return logits[:, list(classes)]

    def _network_of(self, task: TaskInfo | None) -> SparseNetwork:
        assert task is not None  # choices refuses None
        if task.index not in self.networks:
            raise NotLearnedError(
                f"no network has learned the task with classes {task.classes} yet"
            )
        return self.networks[task.index].eval()

    def state(self) -> MethodState:
        """All networks."""
        tensors: dict[str, Tensor] = {}
        for task, network in self.networks.items():
            tensors |= network_state(network, f"network{task}.")
        return MethodState(tensors, {"networks": sorted(self.networks)})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        tasks = state.values.get("networks")
        if not isinstance(tasks, list) or not all(type(task) is int for task in tasks):
            raise FormatError("'networks' must list the tasks that have one")
        if len(set(tasks)) != len(tasks):
            raise FormatError("'networks' names a task twice")
        self.networks = {task: load_network(self, state, f"network{task}.") for task in tasks}

    def census(self) -> Census:
        """Connections of all networks; see :class:`Method`."""
        return count({f"task{task}/": network for task, network in self.networks.items()})

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)
