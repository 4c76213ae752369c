"""A method of one's own, without touching the package: L2 towards the weights of the last task.

The simplest regularisation there is: learning a task may move the weights, but each step away from
where the tasks before left them costs ``strength`` times its square. Below stands all that the
contract `nispa.methods.base.Method` asks for. Run it with ``python examples/own_method.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.named import build_scenario
from nispa.data.tasks import Task, TaskInfo
from nispa.methods import METHODS
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
from nispa.methods.presets import resolve
from nispa.runs.metrics import percent
from nispa.runs.record import read_record
from nispa.runs.runner import Experiment, TaskEnd, run
from nispa.training.fit import ClassMask, accuracy


@settings
class L2Config(KeepConfig):
    """The settings of training in epochs, and one more."""

    strength: float = setting(0.01, "weight of the penalty (lambda)", ge=0)


class L2(Method):
    """Fine-tuning with a quadratic penalty on every step away from the last task's weights."""

    name = "l2"
    config_class = L2Config
    config: L2Config

    def start(self) -> None:
        """A fresh network."""
        self.network = draw_network(self, self.seed)

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone, held by a spring to where it began."""
        classes = self._classes(task.classes)
        validation = task.validation.to(self.device)
        strength = self.config.strength if self.learned else 0.0
        anchors = [(value, value.detach().clone()) for value in self.network.parameters()]

        def spring() -> Tensor:
            distances = [(value - anchor).square().sum() for value, anchor in anchors]
            return strength * torch.stack(distances).sum()

        return learn_in_epochs(
            self.network,
            classes.loss,
            self.prepare(self.network, task.train),
            lambda: accuracy(self.network, classes.predict, validation),
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
            spring,
        )

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """The highest logit among the task's classes, or among all classes seen."""
        self.network.eval()
        return self._classes(self.choices(task)).predict(self.network(images))

    def state(self) -> MethodState:
        """The network; the anchor is where the next task will find it."""
        return MethodState(network_state(self.network), {})

    def load_state(self, state: MethodState) -> None:
        """Takes over what ``state`` gave."""
        self.network = load_network(self, state)

    def census(self) -> Census:
        """Connections per layer."""
        return count({"": self.network})

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)


METHODS[L2.name] = L2  # from here on Learner("l2", ...), resolve("l2", ...) and files know it

scenario = build_scenario("split-digits", seed=0)
plain = {"learning_rate": 0.01, "batch_size": 32, "epochs": 8}
with tempfile.TemporaryDirectory() as folder:
    for strength in (0.0, 0.003):
        given = {**plain, "strength": strength}
        method = resolve("l2", "default", scenario.name, scenario.input_shape, given)
        out = Path(folder) / f"l2-{strength}"
        for event in run(Experiment(scenario, method, seed=0), out):
            if isinstance(event, TaskEnd):
                print(f"  strength {strength}, task {event.task}: {event.accuracies[-1]:.3f}")
        found = {name: metric.value for name, metric in read_record(out).metrics.items()}
        print(f"strength {strength}: accuracy {percent(found['acc'])} %,", end=" ")
        print(f"forgetting {percent(found['forgetting'])} %")
