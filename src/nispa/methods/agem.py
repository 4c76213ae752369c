"""A-GEM (averaged GEM): steps that do not raise the mean loss on a batch from memory.

Chaudhry et al. 2019, arXiv 1812.00420. With g the gradient of a batch's loss and r that of the mean
loss on some samples drawn from the memory of all earlier tasks,

    x = g                        where g . r >= 0,
    x = g - (g . r / r . r) r    elsewhere,

the vector nearest to g that has no negative inner product with r. It is GEM with one constraint,
for the mean over tasks, instead of one for each of them; no step costs more the more tasks there
are.

Differences from the paper: it makes one pass over the data and gives each class of each task a
fixed share of the memory, filled with its last samples; here the memory is shared among the classes
so far, and samples are drawn at random when a task has been learned. The first-order argument is
for plain SGD, which the paper uses; with momentum or Adam a step is not along x.

Known weakness: where classes compete with all seen (class-incremental learning), one averaged
constraint that only projects holds back far less forgetting than rehearsing the same samples does.
"""

from __future__ import annotations

from torch import Tensor

from nispa.base.config import settings
from nispa.data.tasks import Task
from nispa.methods.gem import Constraints, Projecting, flat_gradient
from nispa.methods.replay import ReplayConfig
from nispa.training.fit import Batch, batch_gradients


@settings
class AGemConfig(ReplayConfig):
    """Settings of A-GEM."""


class AGem(Projecting):
    """Gradients projected onto what does not harm the past on average."""

    name = "a-gem"
    config_class = AGemConfig
    config: ReplayConfig

    def constraints(self, task: Task) -> Constraints:
        """The gradient of a batch from memory."""
        way, values = batch_gradients(self.network, self.rehearsed(task)), self.plastic()

        def gradient(batch: Batch) -> Tensor:
            remembered = self.recall(task, batch, self.config.memory_batch)
            if not len(remembered):
                return flat_gradient(values).new_zeros(0, sum(each.numel() for each in values))
            way(remembered.images, remembered.wanted)
            return flat_gradient(values).unsqueeze(0)

        return gradient

    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The nearest gradient that meets the one constraint; see :func:`project`."""
        return project(gradient, past[0])


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """The vector nearest to a gradient that has no negative inner product with a reference.

    Args:
        gradient: ``(values,)``, with a negative one.
        reference: ``(values,)``.
    """
    return gradient - (gradient @ reference) / (reference @ reference) * reference
