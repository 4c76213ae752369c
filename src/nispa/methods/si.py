"""SI (synaptic intelligence): held where a value's moves made the loss fall.

Zenke et al. 2017, arXiv 1703.04200. During a task, over its steps k,

    omega_i = - sum_k g_k,i (theta_k+1,i - theta_k,i)

with g the gradient of the task's loss alone, not of the penalty. After it, with Delta_i how far the
value moved over the whole task,

    Omega_i <- max(0, Omega_i + omega_i / (Delta_i^2 + damping)),  theta* <- the values now.

For small steps without a penalty, sum_i omega_i is how much the loss fell. When the best epoch's
values are restored, so is the path up to it.

Differences from the paper: it does not say what to do with a negative sum, which arises from moves
against the gradient; its authors' code clips it at 0, as here. Differences from the published
comparison: it does not clip, and it keeps the last epoch (``keep=last``) with the whole path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.regularised import Regularised, RegularisedConfig, Values, copies, gradients_of
from nispa.network.models import SparseNetwork
from nispa.training.fit import Batch, Step, batch_gradients


@settings
class SiConfig(RegularisedConfig):
    """Settings of SI."""

    strength: float = setting(
        100.0,
        "weight of the penalty",
        ge=0,
        aliases=("lambda", "reg_coef", "c"),
        hint="0: finetune",
    )
    damping: float = setting(
        0.1, "added to squared moves before dividing by them", gt=0, aliases=("xi",)
    )


class Travelled(nn.Module):
    """A network and the path of its values in one module, so that both are restored together."""

    def __init__(self, network: SparseNetwork, values: Sequence[Tensor]) -> None:
        """A path of length zero for some of the network's values."""
        super().__init__()
        self.network = network
        for number, value in enumerate(values):
            self.register_buffer(f"path{number}", torch.zeros_like(value))

    @property
    def path(self) -> list[Tensor]:
        """The path so far, one tensor for each of the values."""
        return list(self.buffers(recurse=False))


class Si(Regularised):
    """Importance from the path of learning."""

    name = "si"
    published = "Zenke et al., ICML 2017"
    config_class = SiConfig
    config: SiConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task, summing its path, then turns the path into importances."""
        start = copies(self.plastic())
        travelled = Travelled(self.network, list(start.values()))
        train = self.prepare(self.network, task.train)
        report = yield from self.train_by(
            self.step(task, travelled), task, train, self.config.keep, holder=travelled
        )
        self.hold(self.weigh(start, travelled.path))
        return report

    def weigh(self, start: Values, path: Sequence[Tensor]) -> Values:
        """All importances, after a task that began at ``start`` and took a path."""
        importance: Values = {}
        for (name, value), omega in zip(self.plastic().items(), path, strict=True):
            moved = value.detach() - start[name]
            importance[name] = omega / (moved.square() + self.config.damping)
            if self.importance:
                importance[name] += self.importance[name]
            importance[name].clamp_(min=0)
        return importance

    def step(self, task: Task, travelled: Travelled) -> Step:
        """An update under the penalty that also extends the path."""
        optimiser = self.fresh_optimiser()
        gradients = batch_gradients(self.network, self.competing(task).loss)
        values = list[Tensor](self.plastic().values())
        path, penalty = travelled.path, self.penalty()

        @torch.no_grad()
        def step(batch: Batch) -> Tensor:
            with torch.enable_grad():
                loss = gradients(batch.images, batch.labels)
            loss_gradient = gradients_of(values)
            before = [value.clone() for value in values]
            if penalty is not None:  # which is added to these very tensors
                loss_gradient = [gradient.clone() for gradient in loss_gradient]
                loss = loss + penalty.add()
            optimiser.step()
            move = torch._foreach_sub(values, before)
            torch._foreach_addcmul_(path, loss_gradient, move, value=-1.0)
            return loss

        return step
