"""One step of training: a batch, its loss and gradients, the update.

A method that does something of its own to losses or gradients writes its own step; those here are
the fastest ways to the usual ones. On a GPU they record the work once and replay it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nispa.kernels.graphs import Recorded
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.operations import counting, current


@dataclass(frozen=True)
class Batch:
    """Some images of the training set, in the order in which they were drawn.

    Attributes:
        images: ``(n, channels, height, width)`` float32, or rows of a prepared data set.
        labels: Their classes, ``(n,)`` int64.
        index: Their places in the training set, ``(n,)`` int64.
        epoch: Number of the epoch, from 1.
        number: Number of the batch in its epoch, from 1.
    """

    images: Any
    labels: Tensor
    index: Tensor
    epoch: int
    number: int

    def __len__(self) -> int:
        return len(self.index)


def batch_of(data: DataSet, index: Tensor, epoch: int = 1, number: int = 1) -> Batch:
    """The batch of the samples at ``index``, ``(n,)`` int64."""
    return Batch(*data.batch(index), index, epoch, number)


Step = Callable[[Batch], Tensor]
"""From a batch to its loss, a detached scalar, after updating the network."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""A mean over samples, from logits ``(n, outputs)`` and what they should be, ``(n, ...)``."""


def gradient_step(loss: Callable[[Any, Tensor], Tensor], optimiser: torch.optim.Optimizer) -> Step:
    """A step with any loss: the gradient of ``loss(images, labels)``, then the optimiser."""

    def step(batch: Batch) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        value = loss(batch.images, batch.labels)
        if value.requires_grad:  # nothing to do where every value is frozen
            value.backward()
            optimiser.step()
        return value.detach()

    return step


def network_step(
    network: SparseNetwork,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    penalty: Callable[[], Tensor] | None = None,
    pull: Callable[[], Tensor] | None = None,
) -> Step:
    """The fastest step, for a loss of logits and labels; see :func:`batch_update`."""
    update = batch_update(network, loss, optimiser, penalty, pull)

    def step(batch: Batch) -> Tensor:
        return update(batch.images, batch.labels)

    return step


def batch_update(
    network: SparseNetwork,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    penalty: Callable[[], Tensor] | None = None,
    pull: Callable[[], Tensor] | None = None,
) -> Callable[[Any, Tensor], Tensor]:
    """The fastest way to many updates by one loss that is a mean over samples.

    Args:
        network: The network.
        loss: From logits ``(n, outputs)`` and labels ``(n, ...)`` to a scalar.
        optimiser: Over the network's values.
        penalty: A term of the loss that depends on the values alone, as a scalar for autograd.
        pull: Such a term that adds its gradient to the ``grad`` of the values itself.

    Returns:
        From images and labels of a batch to its loss, detached, after the update.
    """

    def update(images: Any, labels: Tensor) -> Tensor:
        value = network.gradients(images, labels, loss, reuse=True)
        if penalty is not None:
            extra = penalty()
            if extra.requires_grad:  # in the first task there is nothing to penalise yet
                extra.backward()
            value = value + extra.detach()
        if pull is not None:
            value = value + pull()
        optimiser.step()
        return value

    if not _on_gpu(network):
        return update

    def updated() -> None:  # a replay calls no hooks, such as the one that counts updates
        for hook in optimiser._optimizer_step_post_hooks.values():
            hook(optimiser, (), {})

    recorded = counted_once(network, Recorded(update, network.parameters(), updated))
    device = next(network.parameters()).device
    rates = [torch.zeros((), device=device) for _ in optimiser.param_groups]

    def at_rate(images: Any, labels: Tensor) -> Tensor:
        # A number would be recorded as a constant; a tensor's value is read at each replay.
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            if group["lr"] is not rate:
                group["lr"] = rate.fill_(group["lr"])
        return recorded(images, labels)

    return at_rate


def batch_gradients(network: SparseNetwork, loss: Loss) -> Callable[[Any, Tensor], Tensor]:
    """The fastest way to many gradients of one loss.

    Returns:
        From images and labels of a batch to its loss, detached. It makes the gradient the ``grad``
        of every plastic value, and may write it over the one before.
    """
    return _gradients_by(network, loss, reuse=True)


def _gradients_by(
    network: SparseNetwork, loss: Loss, *, reuse: bool = False
) -> Callable[[Any, Tensor], Tensor]:
    def gradients(images: Any, labels: Tensor) -> Tensor:
        return network.gradients(images, labels, loss, reuse=reuse)

    if not _on_gpu(network):
        return gradients
    return counted_once(network, Recorded(gradients, network.parameters()))


def _on_gpu(network: SparseNetwork) -> bool:
    """Whether steps are recorded on a GPU and replayed."""
    return network.records and next(network.parameters()).is_cuda


def counted_once(
    network: SparseNetwork, recorded: Callable[[Any, Tensor], Tensor]
) -> Callable[[Any, Tensor], Tensor]:
    """Counts a recorded computation as one forward and one backward pass of its batch.

    Recording and replaying run the network more often than once, or not at all.
    """

    def replayed(images: Any, labels: Tensor) -> Tensor:
        with counting(None):
            value = recorded(images, labels)
        ledger = current()
        if ledger is not None:
            cost = network.per_sample()
            ledger.forward(len(labels), cost, learning=True)
            ledger.backward(len(labels), cost)
        return value

    return replayed


@dataclass(frozen=True)
class Term:
    """A term of a loss: images with their targets, a loss function, and a weight.

    Attributes:
        images: ``(n, channels, height, width)`` float32, or rows of a prepared data set.
        wanted: Targets, ``(n, ...)``: classes, or earlier logits.
        loss: A mean over samples.
        weight: Its factor in the sum.
    """

    images: Any
    wanted: Tensor
    loss: Loss
    weight: float = 1.0


Ways = dict[Loss, Callable[[Any, Tensor], Tensor]]
"""The fastest way to the gradients of each loss; see :func:`gradient_of`."""


def gradient_of(network: SparseNetwork, terms: Sequence[Term], ways: Ways | None = None) -> Tensor:
    """Sets the ``grad`` of every plastic value to the gradient of a weighted sum of terms.

    Each term is a pass of its own, so terms may differ in batch size and loss.

    Args:
        network: The network.
        terms: The terms of the sum.
        ways: Recorded computations, for terms whose losses are distinct functions and the same at
            every step: pass one dictionary, empty at first. It makes steps faster.

    Returns:
        The sum, a detached scalar.
    """
    values = [value for value in network.parameters() if value.numel()]
    total = values[0].new_zeros(()) if values else torch.zeros(())
    summed: list[Tensor] | None = None
    assert ways is None or len({term.loss for term in terms}) == len(terms)  # they share memory
    for term in terms:
        if ways is None:
            value = network.gradients(term.images, term.wanted, term.loss)
        else:
            if term.loss not in ways:
                ways[term.loss] = _gradients_by(network, term.loss)
            value = ways[term.loss](term.images, term.wanted)
        total = total + term.weight * value
        here = [torch.zeros_like(each) if each.grad is None else each.grad for each in values]
        if term.weight != 1.0:
            torch._foreach_mul_(here, term.weight)
        if summed is None:
            summed = here
        else:
            torch._foreach_add_(summed, here)
    for value, gradient in zip(values, summed or [], strict=True):
        value.grad = gradient
    return total
