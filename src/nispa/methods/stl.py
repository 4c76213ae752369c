"""Single-task learning: a fresh sparse network for each task, as dense as NISPA's one network.

A bound without forgetting and without reuse: its live parameters grow with the number of tasks.
"""

from __future__ import annotations

from nispa.base.seeding import derive
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import NotLearnedError
from nispa.methods.base import Learning, Method, draw_network
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.parts import TaskNetworks
from nispa.network.models import SparseNetwork


class Stl(Method):
    """One network per task.

    Attributes:
        networks: By the task's number.
    """

    name = "stl"
    forgets_nothing = "yes"
    config_class = KeepConfig
    carries = (TaskNetworks("networks"),)
    task_agnostic = False
    any_network = True
    config: KeepConfig
    networks: dict[int, SparseNetwork]

    def learn_task(self, task: Task) -> Learning:
        """Trains a network of its own for the task."""
        network = draw_network(self, derive(self.seed, "network", task.index))
        classes = self.class_mask(task.classes)
        report = yield from learn_in_epochs(
            network,
            classes.loss,
            self.prepare(network, task.train),
            self.validator(network, classes, task.validation.to(self.device)),
            self.config,
            self.shuffle(task),
        )
        self.networks[task.index] = network
        return report

    def network_for(self, task: TaskInfo | None) -> SparseNetwork:
        """The network that learned the task."""
        assert task is not None  # refused by choices
        if task.index not in self.networks:
            raise NotLearnedError(
                f"no network has learned the task with classes {task.classes} yet"
            )
        return self.networks[task.index]
