"""A method with one network whose pattern stays: everything except the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from nispa.data.tasks import Task
from nispa.methods.base import Incremental, Learning, Method, Part
from nispa.methods.epochs import EpochsConfig, Keep, learn_by_steps
from nispa.methods.parts import Network, plastic_values
from nispa.network.models import DataSet
from nispa.training.fit import ClassMask, Loss, Step, make_optimiser
from nispa.training.pausing import Carried


class OneNetwork(Method):
    """Carries ``network``; a subclass writes ``learn_task``.

    Attributes:
        optimiser: The optimiser of the last fit.
    """

    carries: ClassVar[tuple[Part, ...]] = (Network(),)
    incremental: ClassVar[tuple[Incremental, ...]] = ("task", "class", "domain")
    any_network: ClassVar[bool] = True
    config: EpochsConfig

    def fresh_optimiser(self) -> torch.optim.Optimizer:
        """A new optimiser of the plastic values, also kept as ``optimiser``."""
        self.optimiser = make_optimiser(self.config, self.network.parameters())
        return self.optimiser

    def train_by(
        self,
        step: Step,
        task: Task,
        train: DataSet,
        keep: Keep,
        *,
        holder: nn.Module | None = None,
        carried: Sequence[Carried] = (),
    ) -> Learning:
        """Trains the network on a task with a step of the method's own.

        Args:
            step: One update, by ``optimiser``.
            task: The task; its validation images are told from all classes that compete.
            train: Its training images, or more than these.
            keep: The epoch whose values stay.
            holder: A module that holds the network and whatever else an epoch to keep restores.
            carried: What else the step changes.
        """
        validation = task.validation.to(self.device)
        return learn_by_steps(
            self.network if holder is None else holder,
            step,
            train,
            self.validator(self.network, self.competing(task), validation),
            self.config,
            self.shuffle(task),
            self.optimiser,
            keep,
            carried,
        )

    def plastic(self) -> dict[str, nn.Parameter]:
        """The tensors of live plastic values, by name, without the empty ones."""
        return plastic_values(self.network)

    def competing(self, task: Task) -> ClassMask:
        """The outputs that compete for a sample of ``task`` while the task is learned.

        Its own, as if each task had a head, or those of all classes seen so far.
        """
        if self.config.incremental == "task":
            return self.class_mask(task.classes)
        return self.class_mask(sorted({*self.classes_seen, *task.classes}))

    def rehearsed(self, task: Task) -> Loss:
        """The loss of samples of any task so far while ``task`` is learned.

        Returns:
            Mean cross-entropy, from logits ``(n, outputs)`` and ``(n, 2)`` int64: class and task of
            each sample.
        """
        if self.config.incremental != "task":
            competing = self.competing(task)
            return lambda logits, wanted: competing.loss(logits, wanted[:, 0])
        heads = self.heads(task)

        def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            head = logits.masked_fill(~heads[wanted[:, 1]], -torch.inf)
            return functional.cross_entropy(head, wanted[:, 0])

        return loss

    def heads(self, task: Task) -> torch.Tensor:
        """The outputs that compete for samples of each task up to ``task``, ``(tasks, outputs)``.

        With outputs of its own a task's classes, otherwise all classes seen so far.
        """
        infos = [*self.learned, task.info]
        seen = {label for info in infos for label in info.classes}
        own_heads = self.config.incremental == "task"
        heads = torch.zeros(
            max(info.index for info in infos) + 1, self.problem.outputs, dtype=torch.bool
        )
        for info in infos:
            heads[info.index, sorted(info.classes if own_heads else seen)] = True
        return heads.to(self.device)
