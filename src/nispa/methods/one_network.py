"""A method with one network of fixed pattern: all that is not the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.methods.base import (
    Census,
    Method,
    MethodState,
    count,
    draw_network,
    load_network,
    network_state,
)
from nispa.tasks import TaskInfo
from nispa.training import ClassMask


class OneNetwork(Method):
    """Holds ``network``; a method built on it writes ``learn_task``.

    The logits of other tasks' classes are left out, as if each task had a head of its own.
    """

    def start(self) -> None:
        """A fresh network."""
        self.network = draw_network(self, self.seed)

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        self.network.eval()
        return self._classes(self.choices(task)).predict(self.network(images))

    def state(self) -> MethodState:
        """The network."""
        return MethodState(network_state(self.network), {})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        self.network = load_network(self, state)

    def census(self) -> Census:
        """Connections; see :class:`Method`."""
        return count({"": self.network})

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)
