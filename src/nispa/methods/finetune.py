"""Fine-tuning: learn each task where the last one left off; nothing protects the old ones.

The lower bound of every comparison. The network is as sparse as NISPA's, its pattern never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import nn

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.epochs import KeepConfig
from nispa.methods.one_network import OneNetwork
from nispa.training.fit import Step, network_step
from nispa.training.online import Online
from nispa.training.pausing import Carried


@settings
class FinetuneConfig(KeepConfig):
    """Settings of fine-tuning."""

    online: bool = setting(
        False,
        "measure the online accuracy: predict each batch of the first epoch before learning it",
    )


class Finetune(OneNetwork):
    """Plain training, task after task, in one network."""

    name = "finetune"
    config_class: ClassVar[type[KeepConfig]] = FinetuneConfig
    config: KeepConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone."""
        return self.tune(task)

    def tune(
        self,
        task: Task,
        addon: Callable[[Step], Step] | None = None,
        holder: nn.Module | None = None,
        carried: Sequence[Carried] = (),
    ) -> Learning:
        """Trains on the task alone.

        Args:
            task: The task.
            addon: Adds something to each step; it gets images that are not prepared.
            holder: What an epoch to keep restores with the network; see :meth:`train_by`.
            carried: What else the addon changes.
        """
        classes = self.competing(task)
        step = network_step(self.network, classes.loss, self.fresh_optimiser())
        online = Online(self.network, classes.predict, self.device)
        if addon is None:
            train = self.prepare(self.network, task.train)
        else:
            train, step = task.train.to(self.device), addon(step)
        counts = isinstance(self.config, FinetuneConfig) and self.config.online
        report = yield from self.train_by(
            online.around(step) if counts else step,
            task,
            train,
            self.config.keep,
            holder=holder,
            carried=[*carried, online.carried] if counts else carried,
        )
        return replace(report, online_accuracy=online.accuracy)
