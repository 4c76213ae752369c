"""Fine-tuning: learn each task where the last one left off, with nothing to hold the old ones.

The lower bound of every comparison. The network is as sparse as NISPA's, its pattern never changes.
"""

from __future__ import annotations

from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.one_network import OneNetwork
from nispa.training.fit import accuracy


class Finetune(OneNetwork):
    """Plain training, task after task, in one network."""

    name = "finetune"
    config_class = KeepConfig
    config: KeepConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone."""
        classes = self.competing(task)
        validation = task.validation.to(self.device)
        return learn_in_epochs(
            self.network,
            classes.loss,
            self.prepare(self.network, task.train),
            lambda: accuracy(self.network, classes.predict, validation),
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
        )
