"""Plain rehearsal: as many remembered samples as new ones in every step.

The simplest baseline with a memory. The memory holds samples of earlier tasks, equally many of each
class, drawn at random when a task ends. For each batch B

    M' = as many samples as B has, drawn from the memory
    theta <- theta - rate * gradient of the mean loss over B and M' together

In the first task M' is empty. If the memory is smaller than B, its samples are repeated equally
often, up to one.

There is no single publication; comparisons call this rehearsal or naive rehearsal: old samples are
mixed one to one into the data of the new task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.replay import MemoryConfig, Replay, with_remembered
from nispa.training.fit import Batch, batch_update
from nispa.training.memory import Remembered


class Rehearsal(Replay):
    """Training on new and remembered samples, half and half."""

    name = "rehearsal"
    config_class = MemoryConfig
    balanced = True

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and the memory, then stores samples of the task."""
        train = task.train.to(self.device)
        update = batch_update(self.network, self.rehearsed(task), self.fresh_optimiser())

        def step(batch: Batch) -> Tensor:
            return update(*with_remembered(batch, task, self.as_many(task, batch)))

        report = yield from self.rehearse_by(step, task, train)
        self.memory.balance(train, task.index, stream(self.seed, "memory", task.index))
        return report

    def as_many(self, task: Task, batch: Batch) -> Remembered:
        """As many remembered samples as a batch has new ones; none from an empty memory."""
        generator = stream(self.seed, "memory batch", task.index, batch.epoch, batch.number)
        held = len(self.memory)
        rounds = math.ceil(len(batch) / held) if held else 1
        order = torch.cat([torch.randperm(held, generator=generator) for _ in range(rounds)])
        return self.memory.take(order[: len(batch)].to(self.device))
