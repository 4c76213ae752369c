"""MAS (memory aware synapses): held where the outputs are sensitive to a value.

Aljundi et al. 2018, arXiv 1711.09601. After a task, over the batches b of its training set,

    Omega_i <- Omega_i + mean_b | d (mean over samples and outputs of z^2) / d theta_i |
    theta*  <- the values now

with z the outputs that compete while the task is learned. It needs no labels.

Differences from the paper: it averages the absolute gradient of each sample's squared output norm;
``together=1`` does that here, up to the number of outputs. By default the gradient is over a batch,
as in the published comparison: most samples agree in sign, so the two differ mainly in scale. The
published comparison keeps the last epoch (``keep=last``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.regularised import Regularised, RegularisedConfig, Values, gradients_of, zeros
from nispa.network.models import DataSet
from nispa.training.fit import batch_gradients


@settings
class MasConfig(RegularisedConfig):
    """Settings of MAS."""

    strength: float = setting(
        1.0, "weight of the penalty", ge=0, aliases=("lambda", "reg_coef"), hint="0: finetune"
    )
    samples: int | None = setting(
        None, "training images that importances are measured on; none for all", ge=1
    )
    together: int | None = setting(
        None, "images per gradient whose size is taken; 1 in the paper, none for batch_size", ge=1
    )


class Mas(Regularised):
    """Importance from the sensitivity of the outputs."""

    name = "mas"
    published = "Aljundi et al., ECCV 2018"
    config_class = MasConfig
    config: MasConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task, then adds its sensitivities to the importances."""
        train = self.prepare(self.network, task.train)
        report = yield from self.train(task, train)
        importance = self.sensitivity(task, train)
        for name, before in self.importance.items():
            importance[name] += before
        self.hold(importance)
        return report

    def sensitivity(self, task: Task, train: DataSet) -> Values:
        """Sensitivity of the squared outputs to each value, averaged over the task's images."""
        outputs = self.competing(task).classes

        def size(logits: Tensor, labels: Tensor) -> Tensor:
            del labels
            return logits[:, outputs].square().mean()

        self.network.eval()
        gradients = batch_gradients(self.network, size)
        values = self.plastic()
        total = zeros(values)
        chosen = torch.randperm(len(train), generator=stream(self.seed, "importance", task.index))
        chosen = chosen[: self.config.samples].to(self.device)
        batches = chosen.split(self.config.together or self.config.batch_size)
        for index in batches:
            gradients(*train.batch(index))
            size_of = torch._foreach_abs(gradients_of(values.values()))
            torch._foreach_add_(list(total.values()), size_of, alpha=1 / len(batches))
        return total
