"""Piggyback: each task switches off connections of one fixed network.

Mallya, Davis and Lazebnik, "Piggyback: Adapting a Single Network to Multiple Tasks by Learning to
Mask Weights", ECCV 2018, arXiv 1801.06519, section 3.

The first task trains the whole network, which is then fixed: the backbone. Every later task is
learned so:

1. Each hidden connection gets a real number r, at first ``first_value``. Its mask m is 1 where r is
   above ``threshold``, else 0. The network computes with w m, w the fixed weight.
2. With g the gradient of the loss by w m, the gradient of r is, straight-through, g w.
3. The numbers are trained together with the task's outputs; then only m is kept.

A task is predicted with w m of its own mask, the first one with w. All of it is frozen, out of the
optimiser's reach, so the logits of a task stay the same, bit for bit, whatever is learned later.

The head has no masks, as in the paper, where each task has a classifier of its own: the connections
into a task's outputs, with these outputs' biases, are trained with the task and frozen at its end.
Hidden biases are the backbone's, as in the paper.

Differences from the paper and from the published code:
- The paper's backbone is trained on ImageNet, which serves no task of its own. Here it is the first
  task's network, so the data of the first task decide how well later ones go.
- A connection into a convolution is a whole kernel with one number; the paper masks single weights.
  For Linear layers the two are the same.
- The published code divides the step size by 10 after 15 of 30 epochs; here it stays, or falls
  evenly (``decay``).
- Best epochs are chosen by validation images; the published code looks at the test set.
- With a density below 1, connections outside the first pattern are never live.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.errors import ConfigError
from nispa.methods.base import Learning
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.parts import hidden_layers
from nispa.methods.subnetworks import Numbered, Subnetworks, chosen


@settings
class PiggybackConfig(KeepConfig):
    """Settings of Piggyback."""

    mask_rate: float = setting(
        0.001,
        "step size of the optimiser after the first task, for masks and outputs; published: 0.0001",
        gt=0,
        le=100,
    )
    threshold: float = setting(
        0.005, "a connection is used where its number is above this", ge=-1000, le=1000
    )
    first_value: float = setting(0.01, "each number at the start of a task", ge=-1000, le=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_value <= self.threshold:
            raise ConfigError(
                f"first_value={self.first_value:g} must be above threshold={self.threshold:g}, "
                "since a task begins with every connection of the backbone"
            )


class Piggyback(Subnetworks):
    """Task-incremental Piggyback."""

    name = "piggyback"
    forgets_nothing = "yes"
    published = "Mallya et al., ECCV 2018"
    config_class = PiggybackConfig
    config: PiggybackConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains the backbone on the first task, a mask of it on any other."""
        if not self.masks.tasks:
            report = yield from self.learn_backbone(task)
            bits = {name: torch.ones_like(each) > 0 for name, each in self.first_numbers().items()}
        else:
            numbered = Numbered(self.network, self.first_numbers())
            config = dataclasses.replace(self.config, learning_rate=self.config.mask_rate)
            report = yield from self.train_masked(task, numbered, self.choose, slope, config)
            bits = chosen(numbered, self.choose)
        self.own(task, bits)
        return report

    def learn_backbone(self, task: Task) -> Learning:
        """Trains all weights on a task."""
        network, classes = self.network, self.class_mask(task.classes)
        train, validation = self.prepare_both(network, task)
        measure = self.validator(network, classes, validation)
        return learn_in_epochs(
            network, classes.loss, train, measure, self.config, self.shuffle(task)
        )

    def first_numbers(self) -> dict[str, Tensor]:
        """The number of each hidden connection at the start of a task, by layer, ``(live,)``."""
        return {
            name: torch.full((layer.live_count,), self.config.first_value, device=self.device)
            for name, layer in hidden_layers(self.network).items()
        }

    def choose(self, numbers: Tensor) -> Tensor:
        """The mask of a layer."""
        return numbers > self.config.threshold


def slope(number: Tensor, of_bit: Tensor) -> Tensor:
    """The straight-through gradient of numbers, from that of their bits."""
    return of_bit
