"""Fine-tuning: learn each task where the last one left off; nothing protects the old ones.

The lower bound of every comparison. The network is as sparse as NISPA's, its pattern never changes.
"""

from __future__ import annotations

from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.epochs import KeepConfig
from nispa.methods.one_network import OneNetwork
from nispa.training.fit import network_step


class Finetune(OneNetwork):
    """Plain training, task after task, in one network."""

    name = "finetune"
    config_class = KeepConfig
    config: KeepConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone."""
        step = network_step(self.network, self.competing(task).loss, self.fresh_optimiser())
        train = self.prepare(self.network, task.train)
        return self.train_by(step, task, train, self.config.keep)
