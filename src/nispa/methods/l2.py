"""L2: every value is held to where the task before left it.

    Omega_i = 1,  theta* = the values after the last task

The simplest quadratic penalty, and the one that Kirkpatrick et al. 2017 (arXiv 1612.00796) compare
EWC with.

Differences from the published comparison: its code has this agent, but no published run uses it.
In both, all values count, even those of outputs that later tasks will use; these are held to their
initial values until then.
"""

from __future__ import annotations

import torch

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.regularised import Regularised, RegularisedConfig


@settings
class L2Config(RegularisedConfig):
    """Settings of L2."""

    strength: float = setting(
        0.01, "weight of the penalty", ge=0, aliases=("lambda", "reg_coef"), hint="0 is finetune"
    )


class L2(Regularised):
    """Importance 1 for every value."""

    name = "l2"
    config_class = L2Config
    config: L2Config

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task, then holds every value where it is."""
        train = self.prepare(self.network, task.train)
        report = yield from self.train(task, train)
        self.hold({name: torch.ones_like(value) for name, value in self.plastic().items()})
        return report
