"""Forgetting on purpose: the units that one task alone needs become plastic again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nispa.base.seeding import derive
from nispa.data.tasks import TaskInfo
from nispa.errors import IsolationError, NotLearnedError
from nispa.mechanism.room import needed
from nispa.methods.base import Method, MethodState
from nispa.methods.stable import thaw_units
from nispa.network.isolation import check_isolation
from nispa.network.models import restart_plastic
from nispa.network.traced import TracedNetwork


class ForgetsOnPurpose(Method):
    """A method with stable units that can give up a task.

    A task that was given up keeps its place among the tasks learned, so that others keep their
    numbers. Its outputs are plastic, and no later task gets them.

    Attributes:
        stable: Stable units per group, ``(units,)`` bool, outputs of classes learned among them.
    """

    config: Any
    stable: dict[str, Tensor]

    def forget(self, task: TaskInfo, *, dry_run: bool = False) -> dict[str, int]:
        """Gives back the units that a task alone needs; no logit of another task changes.

        The units, the task's outputs and what leads into them become plastic, and all plastic
        values are drawn again. In a network of any module, other values of these units (scales,
        positions) begin with what they were.
        """
        if task not in self.learned:
            raise NotLearnedError(f"the task with classes {task.classes} is not known")
        if self.is_forgotten(task):
            raise _forgotten(task)
        topology = self.network.topology
        others = self.stable[topology.output.name].clone()
        others[list(task.classes)] = False
        kept = needed(topology, self.network.patterns(), others, self.network.tied)
        free = {
            group.name: self.stable[group.name] & ~kept[group.name]
            if group.role != "input"
            else torch.zeros(group.size, dtype=torch.bool)
            for group in topology.groups
        }
        if not dry_run:
            before = self.state() if isinstance(self.network, TracedNetwork) else None
            thaw_units(self.network, free)
            self.stable = {name: units & ~free[name] for name, units in self.stable.items()}
            restart_plastic(
                self.network,
                self.config.restart_init,
                self.network_config.fan,
                seed=derive(self.seed, "forget"),
                task=task.index,
                gain=self.network_config.gain,
            )
            if before is not None:
                self._check(before)
        return {group.name: int(free[group.name].sum()) for group in topology.hidden}

    def _check(self, before: MethodState) -> None:
        """Checks that what is plastic now reaches no other task; else all is as it was before."""
        assert isinstance(self.network, TracedNetwork)
        try:
            check_isolation(self.network, self.stable)
        except IsolationError:
            self.load_state(before)
            raise

    def is_forgotten(self, task: TaskInfo) -> bool:
        """Whether a task was learned and given up by :meth:`forget`."""
        outputs = self.stable[self.network.topology.output.name]
        return task in self.learned and not bool(outputs[list(task.classes)].any())

    def choices(self, task: TaskInfo | None) -> tuple[int, ...]:
        """The classes a prediction may name; none of a forgotten task."""
        if task is not None and self.is_forgotten(task):
            raise _forgotten(task)
        found = super().choices(task)
        if not found:
            raise NotLearnedError("all tasks were forgotten on purpose; call learn first")
        return found

    @property
    def classes_seen(self) -> tuple[int, ...]:
        """The classes of all tasks learned and not forgotten, in rising order."""
        tasks = [task for task in self.learned if not self.is_forgotten(task)]
        return tuple(sorted({label for task in tasks for label in task.classes}))


def _forgotten(task: TaskInfo) -> NotLearnedError:
    return NotLearnedError(f"the task with classes {task.classes} was forgotten on purpose")
