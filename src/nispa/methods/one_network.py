"""A method with one network of fixed pattern: all that is not the algorithm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nispa.data.tasks import Task, TaskInfo
from nispa.methods.base import (
    Census,
    Incremental,
    Method,
    MethodState,
    count,
    draw_network,
    load_network,
    network_state,
)
from nispa.training.fit import ClassMask, Loss, make_optimiser


class OneNetwork(Method):
    """Holds ``network``; a method built on it writes ``learn_task``.

    Attributes:
        network: What learns.
        optimiser: What the last fit updated with.
    """

    incremental: ClassVar[tuple[Incremental, ...]] = ("task", "class", "domain")

    def start(self) -> None:
        """A fresh network."""
        self.network = draw_network(self, self.seed)

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        self.network.eval()
        return self._classes(self.choices(task)).predict(self.network(images))

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Logits of the classes that compete; see :class:`Method`."""
        self.network.eval()
        logits: Tensor = self.network(images)
        return logits[:, list(self.choices(task))]

    def state(self) -> MethodState:
        """The network."""
        return MethodState(network_state(self.network), {})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        self.network = load_network(self, state)

    def census(self) -> Census:
        """Connections; see :class:`Method`."""
        return count({"": self.network})

    def fresh_optimiser(self) -> torch.optim.Optimizer:
        """A new optimiser over plastic values, ``optimiser`` from here on."""
        self.optimiser = make_optimiser(self.config, self.network.parameters())
        return self.optimiser

    def competing(self, task: Task) -> ClassMask:
        """The outputs that a sample of ``task`` is scored against while the task is learned.

        Its own, as if each task had a head, or those of all classes seen with it.
        """
        if self.config.incremental == "task":
            return self._classes(task.classes)
        return self._classes(tuple(sorted({*self.classes_seen, *task.classes})))

    def rehearsed(self, task: Task) -> Loss:
        """The loss of samples of any task so far while ``task`` is learned.

        Returns:
            Mean cross-entropy, from logits ``(n, outputs)`` and ``(n, 2)`` int64: the class of each
            sample and the place of its task.
        """
        if self.config.incremental != "task":
            competing = self.competing(task)
            return lambda logits, wanted: competing.loss(logits, wanted[:, 0])
        places = {info.index: info.classes for info in (*self.learned, task.info)}
        own = torch.zeros(max(places) + 1, self.problem.outputs, dtype=torch.bool)
        for place, classes in places.items():
            own[place, list(classes)] = True
        own = own.to(self.device)

        def loss(logits: Tensor, wanted: Tensor) -> Tensor:
            heads = logits.masked_fill(~own[wanted[:, 1]], -torch.inf)
            return functional.cross_entropy(heads, wanted[:, 0])

        return loss

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)
