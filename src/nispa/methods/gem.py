"""GEM (gradient episodic memory): steps that do not raise the loss on remembered samples.

Lopez-Paz and Ranzato 2017, arXiv 1706.08840. With g the gradient of a batch's loss and g_k that of
the mean loss on all remembered samples of earlier task k, a step along g leaves task k unharmed to
first order if g . g_k >= 0. If that fails for any task, g is replaced by the nearest vector for
which it holds for all (section 3 of the paper),

    min_x 1/2 |x - g|^2  subject to  G x >= 0,  G the matrix of rows g_k,

by way of the dual, with one variable for each earlier task:

    min_v 1/2 v'GG'v + (Gg)'v  subject to  v >= margin,    x = g + G'v.

With v = u + margin that is non-negative least squares in u. A margin above 0 adds at least so much
of every g_k once any constraint is violated. It makes up for two approximations: a whole step is
not first order, and the memory is not the task.

The memory is shared equally among all classes of all tasks. Its samples are drawn at random from a
task's training images at the task's end.

Differences from the paper: it makes one pass over the data and knows the number of tasks, each of
which has a fixed share of the memory, filled with its last samples. Differences from the published
code: it adds 0.001 to the diagonal of GG', whatever the size of gradients. Here gradients are
normalised first and the diagonal grows by 1e-12: enough to make the solution unique for parallel
gradients, and no more than rounding. The first-order argument is for plain SGD, which the paper
uses; with momentum or Adam a step is not along x.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.errors import installed, missing, needs
from nispa.methods.base import Learning
from nispa.methods.replay import MemoryConfig, Replay
from nispa.network.operations import purpose
from nispa.training.fit import Batch, Step, batch_gradients

Constraints = Callable[[Batch], Tensor]
"""From a batch to the current gradients of earlier tasks, ``(constraints, values)``."""


@settings
class GemConfig(MemoryConfig):
    """Settings of GEM."""

    margin: float = setting(
        0.5,
        "least weight of each earlier task's gradient in a projected one",
        ge=0,
        le=1000,
        aliases=("gamma", "memory_strength"),
        hint="0.5 is published; 0 is the projection alone",
    )


class Projecting(Replay):
    """Training along projected gradients; a subclass defines the constraints."""

    balanced = True

    @abstractmethod
    def constraints(self, task: Task) -> Constraints:
        """Gradients of earlier tasks while ``task`` is learned; no row in the first task."""

    @abstractmethod
    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The vector to step along, ``(values,)``, when a constraint is violated."""

    def learn_task(self, task: Task) -> Learning:
        """Trains with projected gradients, then stores samples of the task."""
        train = self.prepare(self.network, task.train)
        report = yield from self.rehearse_by(self.step(task), task, train)
        chance = stream(self.seed, "memory", task.index)
        self.memory.balance(task.train.to(self.device), task.index, chance)
        return report

    def step(self, task: Task) -> Step:
        """An update along a gradient that satisfies the constraints."""
        optimiser, values = self.fresh_optimiser(), list(self.plastic().values())
        batch_gradient = batch_gradients(self.network, self.competing(task).loss)
        constraints = self.constraints(task)

        def step(batch: Batch) -> Tensor:
            with purpose("projection"):
                past = constraints(batch)
            value = batch_gradient(batch.images, batch.labels)
            gradient = flat_gradient(values)
            inner = past @ gradient
            # A gradient that is not finite is left alone: ``fit`` reports it.
            if bool((inner < 0).any() & inner.isfinite().all()):
                put_gradient(values, self.project(gradient, past))
            optimiser.step()
            return value

        return step


class Gem(Projecting):
    """Gradients projected so that no earlier task is harmed."""

    name = "gem"
    published = "Lopez-Paz and Ranzato, NeurIPS 2017"
    config_class = GemConfig
    config: GemConfig

    def start(self) -> None:
        """Makes what is carried, unless what learning needs is missing."""
        if not installed("scipy"):  # it is imported where constraints conflict, amid learning
            raise missing("sklearn", "the method gem", "scipy")
        super().start()

    def constraints(self, task: Task) -> Constraints:
        """The gradient on each earlier task's samples in memory."""
        gradient_on = batch_gradients(self.network, self.rehearsed(task))
        values = list(self.plastic().values())
        places = sorted(set(self.memory.places.tolist()))
        tasks = [self.memory.take(self.memory.select(place=place)) for place in places]
        size = sum(value.numel() for value in values)
        past = torch.zeros(len(tasks), size, device=self.device)

        def gradients(_batch: Batch) -> Tensor:
            for row, remembered in zip(past, tasks, strict=True):
                gradient_on(remembered.images, remembered.wanted)
                row.copy_(flat_gradient(values))
            return past

        return gradients

    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The nearest gradient that satisfies all constraints; see :func:`project`."""
        return project(gradient, past, self.config.margin)


def flat_gradient(values: Sequence[Tensor]) -> Tensor:
    """The ``grad`` of all values as one vector, ``(values,)``; zero where it is None."""
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in values]
    return torch.cat([gradient.flatten() for gradient in gradients] or [torch.zeros(0)])


def put_gradient(values: Sequence[Tensor], gradient: Tensor) -> None:
    """Splits a vector, ``(values,)``, into the ``grad`` of each value."""
    parts = gradient.split([each.numel() for each in values])
    for value, part in zip(values, parts, strict=True):
        value.grad = part.view_as(value)


def project(gradient: Tensor, past: Tensor, margin: float = 0.0) -> Tensor:
    """The vector nearest to a gradient without a negative inner product with any past one.

    Args:
        gradient: ``(values,)``.
        past: Gradients of earlier tasks, ``(tasks, values)``.
        margin: Least weight of each of them in the result.
    """
    rows = past.double()  # inner products over millions of values
    gram, inner = rows @ rows.T, rows @ gradient.double()
    weights = dual_weights(gram.cpu().numpy(), inner.cpu().numpy(), margin)
    return gradient + (torch.from_numpy(weights).to(rows) @ rows).to(gradient)


def dual_weights(
    gram: NDArray[np.float64], inner: NDArray[np.float64], margin: float
) -> NDArray[np.float64]:
    """The weight v of each constraint, ``(tasks,)``, from GG' ``(tasks, tasks)`` and Gg.

    With GG' = R'R, u minimises |R u - b|^2, where R'b = -(Gg + margin GG'1).
    """
    with needs("sklearn", "the method gem"):
        from scipy.optimize import nnls  # half a second to import
    # Normalised gradients: their lengths may differ by orders of magnitude between tasks.
    length = np.sqrt(gram.diagonal())
    length[length == 0] = 1.0
    linear = (inner + margin * gram.sum(axis=1)) / length
    # GG' = V diag(size) V', so R = diag(sqrt(size)) V' and b = -R'^-1 (Gg + margin GG'1).
    size, vectors = np.linalg.eigh(gram / np.outer(length, length))
    root = np.sqrt(size.clip(min=0) + 1e-12)  # rounding may give tiny negative ones
    u, _ = nnls(root[:, None] * vectors.T, -(linear @ vectors) / root)
    weights: NDArray[np.float64] = u / length + margin
    return weights
