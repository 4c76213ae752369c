"""ER: learn each batch together with one drawn from a reservoir of all earlier samples.

Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486; the
reservoir is that of Riemer et al. 2019, arXiv 1810.11910. For each batch B

    M' = samples drawn from the memory, each at most once
    theta <- theta - rate * gradient of the mean loss over B and M' together
    every sample of B is offered to the reservoir

Differences from the paper, which sees each sample once:
- Training may take several epochs. Each offers its samples again, as in common implementations, so
  the memory may hold a sample more than once, and each pass counts for the reservoir.
- In the paper each task has outputs of its own. Here ``incremental`` decides which classes compete;
  with ``class``, those seen so far, but no later ones.
"""

from __future__ import annotations

from torch import Tensor

from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.replay import Replay, ReplayConfig, with_remembered
from nispa.training.fit import Batch, batch_update


class Er(Replay):
    """Experience replay."""

    name = "er"
    published = "Chaudhry et al., arXiv 2019"
    config_class = ReplayConfig
    config: ReplayConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and the memory, which takes up the task's samples as they pass."""
        train = task.train.to(self.device)
        update = batch_update(self.network, self.rehearsed(task), self.fresh_optimiser())

        def step(batch: Batch) -> Tensor:
            drawn = self.recall(task, batch, self.config.memory_batch)
            loss = update(*with_remembered(batch, task, drawn))
            generator = stream(self.seed, "reservoir", task.index, batch.epoch, batch.number)
            self.memory.offer(train, batch.index, task.index, generator)
            return loss

        return self.rehearse_by(step, task, train)
