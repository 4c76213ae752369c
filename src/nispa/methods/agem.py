"""A-GEM (averaged GEM): steps that do not raise the mean loss on a batch from memory.

Chaudhry et al. 2019, arXiv 1812.00420. With g the gradient of a batch's loss and r that of the mean
loss on some samples drawn from the memory of all earlier tasks,

    x = g                        where g . r >= 0,
    x = g - (g . r / r . r) r    elsewhere,

the vector nearest to g without a negative inner product with r. It is GEM with one constraint, for
the mean over tasks, instead of one for each task, so the cost of a step does not grow with tasks.

Differences from the paper: it makes one pass over the data and gives each class of each task a
fixed share of the memory, filled with its last samples; here the memory is shared among the classes
so far, and samples are drawn at random at a task's end. The first-order argument is for plain SGD,
which the paper uses; with momentum or Adam a step is not along x.

Known weakness: in class-incremental learning, one averaged constraint that only projects prevents
far less forgetting than rehearsal of the same samples.
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
    """Gradients projected so that earlier tasks are not harmed on average."""

    name = "a-gem"
    published = "Chaudhry et al., ICLR 2019"
    config_class = AGemConfig
    config: ReplayConfig

    def constraints(self, task: Task) -> Constraints:
        """The gradient on a batch from memory."""
        gradient_on = batch_gradients(self.network, self.rehearsed(task))
        values = list(self.plastic().values())

        def gradient(batch: Batch) -> Tensor:
            remembered = self.recall(task, batch, self.config.memory_batch)
            if not len(remembered):
                return flat_gradient(values).new_zeros(0, sum(each.numel() for each in values))
            gradient_on(remembered.images, remembered.wanted)
            return flat_gradient(values).unsqueeze(0)

        return gradient

    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The nearest gradient that satisfies the constraint; see :func:`project`."""
        return project(gradient, past[0])


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """The vector nearest to a gradient without a negative inner product with a reference.

    Args:
        gradient: ``(values,)``, whose inner product with it is negative.
        reference: ``(values,)``.
    """
    return gradient - (gradient @ reference) / (reference @ reference) * reference
