"""Methods that predict a task with a part of one network: its connections, and no others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nispa.data.tasks import Task, TaskInfo
from nispa.errors import NotLearnedError
from nispa.methods.base import Method, MethodState, load_network
from nispa.network.isolation import check_isolation
from nispa.network.models import SparseNetwork
from nispa.network.traced import TracedNetwork


class TaskNetworks(Method):
    """A method whose tasks share one network and predict with a part of it each.

    A subclass lists ``Derived("_view")`` among its parts, and sets ``_view`` to None where values
    that an earlier task predicts with may have changed.
    """

    shares_classes: ClassVar[bool] = False
    task_agnostic: ClassVar[bool] = False
    _view: tuple[TaskInfo, SparseNetwork] | None  # the task last predicted, and its network

    @abstractmethod
    def task_network(self, task: TaskInfo) -> SparseNetwork:
        """The network of a task that was learned; see :meth:`part_with`."""

    def network_for(self, task: TaskInfo | None) -> SparseNetwork:
        """The network of one task. Its logits of other classes mean nothing.

        Raises:
            NotLearnedError: That task has not been learned.
        """
        assert task is not None  # refused by choices
        if task.index not in {info.index for info in self.learned}:
            raise NotLearnedError(f"the task with classes {task.classes} has not been learned yet")
        if self._view is None or self._view[0] != task:
            self._view = task, self.task_network(task)
        return self._view[1].eval()

    def check_isolated(self, task: Task) -> None:
        """Checks that nothing that can still be learned reaches the outputs of a task just learned.

        Raises:
            IsolationError: Something does.
        """
        if not isinstance(self.network, TracedNetwork):
            return
        network = self.task_network(task.info)
        assert isinstance(network, TracedNetwork)
        check_isolation(network, self._shared(network, task.classes))

    def hold_shared(self, classes: Iterable[int]) -> None:
        """Keeps norms and all else that belongs to no task: of hidden units, and of some outputs.

        As biases, they are those of the first task.
        """
        self.network.hold(self._shared(self.network, classes))

    def shared_held(self, network: SparseNetwork) -> bool:
        """Whether :meth:`hold_shared` was called for the outputs of all tasks learned, if any."""
        classes = {label for task in self.learned for label in task.classes}
        return not classes or network.holds(self._shared(network, classes))

    def _shared(self, network: SparseNetwork, classes: Iterable[int]) -> dict[str, Tensor]:
        units = {
            group.name: torch.ones(group.size, dtype=torch.bool)
            for group in network.topology.groups
        }
        outputs = torch.zeros(network.topology.output.size, dtype=torch.bool)
        outputs[list(classes)] = True
        return {**units, network.topology.output.name: outputs}

    def part_with(self, connections: Mapping[str, tuple[Tensor, Tensor]]) -> SparseNetwork:
        """A copy of the network with some connections alone, all of them frozen.

        Args:
            connections: Flat positions, ``(n,)`` int64 in rising order, and values of each layer.
        """
        values = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        paths = {module: f"network.{path}" for path, module in self.network.named_modules()}
        for name, (index, weight) in connections.items():
            layer = self.network.layers[name]
            values[f"{paths[layer]}.weight"] = layer.weight.detach()[:0]
            values[f"{paths[layer]}.plastic_index"] = layer.plastic_index[:0]
            values[f"{paths[layer]}.frozen_weight"] = weight
            values[f"{paths[layer]}.frozen_index"] = index
        return load_network(self, MethodState(values, {}))
