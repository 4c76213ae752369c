"""Plain rehearsal: as many remembered samples as new ones in every step.

The plainest baseline with a memory. It holds samples of the tasks before this one, the same number
of each class, drawn at random when a task ends. With a memory, for each batch B

    M' = as many samples as B has, drawn from the memory
    theta <- theta - rate * gradient of the mean loss over B and M' together

and without one, in the first task, M' is empty. A sample is drawn twice in a step only where the
memory holds fewer samples than B, three times only where all others were drawn twice, and so on.

There is no one publication; this is what comparisons call rehearsal or naive rehearsal, where old
samples are mixed one to one into the data of the new task.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.replay import MemoryConfig, Replay, together
from nispa.training.fit import Batch, batch_update
from nispa.training.memory import Remembered


class Rehearsal(Replay):
    """Training on new and remembered samples, half and half."""

    name = "rehearsal"
    config_class = MemoryConfig
    balanced = True

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and on what is remembered; then remembers some of the task."""
        train = task.train.to(self.device)
        update = batch_update(self.network, self.rehearsed(task), self.fresh_optimiser())

        def step(batch: Batch) -> Tensor:
            return update(*together(batch, task, self.as_many(task, batch)))

        report = yield from self.train_by(step, task, train)
        self.memory.balance(train, task.index, stream(self.seed, "memory", task.index))
        return report

    def as_many(self, task: Task, batch: Batch) -> Remembered:
        """As many remembered samples as a batch has new ones; none while there are none."""
        generator = stream(self.seed, "memory batch", task.index, batch.epoch, batch.number)
        held = len(self.memory)
        rounds = math.ceil(len(batch) / held) if held else 1
        order = torch.cat([torch.randperm(held, generator=generator) for _ in range(rounds)])
        return self.memory.take(order[: len(batch)].to(self.device))
