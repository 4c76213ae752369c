"""A method of your own, without touching the package: a spring towards the last task's weights.

The simplest regularisation: learning a task may move the weights, but every step away from where
the last task left them costs ``strength`` times its square. A method writes ``learn_task``, and
lists in ``carries`` what it keeps from task to task. Predicting, saving, loading and counting
follow from that; `nispa.methods.base.Method` has the whole contract. Run it with
``python examples/own_method.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.named import build_scenario
from nispa.data.tasks import Task
from nispa.methods import METHODS
from nispa.methods.base import Learning, Method
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.parts import Network
from nispa.methods.presets import resolve
from nispa.runs.metrics import percent
from nispa.runs.record import read_record
from nispa.runs.runner import Experiment, TaskEnd, run


@settings
class SpringConfig(KeepConfig):
    """The settings of training in epochs, and one more."""

    strength: float = setting(0.01, "weight of the penalty (lambda)", ge=0)


class Spring(Method):
    """Fine-tuning with a quadratic penalty on every step away from the last task's weights."""

    name = "spring"
    config_class = SpringConfig
    carries = (Network(),)  # the spring's other end is where the next task finds the network
    config: SpringConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone, held by a spring to where it began."""
        classes = self.class_mask(task.classes)
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
            self.validator(self.network, classes, validation),
            self.config,
            self.shuffle(task),
            spring,
        )


METHODS[Spring.name] = (
    Spring  # now Learner("spring", ...), resolve("spring", ...) and files know it
)

scenario = build_scenario("split-digits", seed=0)
plain = {"learning_rate": 0.01, "batch_size": 32, "epochs": 8}
with tempfile.TemporaryDirectory() as folder:
    for strength in (0.0, 0.003):
        given = {**plain, "strength": strength}
        method = resolve("spring", "default", scenario.name, scenario.input_shape, given)
        out = Path(folder) / f"spring-{strength}"
        for event in run(Experiment(scenario, method, seed=0), out):
            if isinstance(event, TaskEnd):
                print(f"  strength {strength}, task {event.task}: {event.accuracies[-1]:.3f}")
        found = {name: metric.value for name, metric in read_record(out).metrics.items()}
        print(f"strength {strength}: accuracy {percent(found['acc'])} %,", end=" ")
        print(f"forgetting {percent(found['forgetting'])} %")
