"""Training one data set: ``fit`` runs epochs, ``accuracy`` measures.

``fit`` knows no algorithm. A method passes it a ``step``, a function that takes one :class:`Batch`,
updates the network and returns the loss; whatever an algorithm does to losses or gradients
(penalties, projections, memories, path integrals) stands in its own step. ``fit`` is a generator:
it yields an :class:`EpochEnd` after each epoch, and whoever drives it may show, record, stop, or
leave it and take it up later (:mod:`nispa.training.pausing`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.base.config import setting, settings
from nispa.errors import DivergedError
from nispa.kernels.adam import Adam, AdamW
from nispa.kernels.graphs import Recorded
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.operations import Ledger, count_updates, counting, current, purpose
from nispa.training.pausing import (
    Carried,
    EpochEnd,
    FitBegin,
    FitPause,
    FitState,
    Progress,
    best_of,
)

PAUSE_S = 1.0
"""Seconds between two places within an epoch where a fit may be left."""

EVALUATION_BATCH = 512
"""Images per batch outside training, the same for all, so that logits compare bit by bit."""


@dataclass(frozen=True)
class Batch:
    """Some images of the training set, in the order in which they were drawn.

    Attributes:
        images: What the data set's ``batch`` gives: ``(n, channels, height, width)`` float32, or
            what stands for it in a prepared set.
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


def of_epoch(data: DataSet, generator: torch.Generator) -> DataSet:
    """What an epoch learns from: images that may vary are varied anew, from its stream."""
    vary: Callable[[torch.Generator], DataSet] | None = getattr(data, "for_epoch", None)
    return data if vary is None else vary(generator)


Step = Callable[[Batch], Tensor]
"""From a batch to its loss, a detached scalar, after updating the network."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""A mean over samples, from logits ``(n, outputs)`` and what they should be, ``(n, ...)``."""


@settings
class OptimiserConfig:
    """How values are updated: shared by every method."""

    optimiser: Literal["adam", "adamw", "sgd", "adadelta"] = setting(
        "adam", "update rule", aliases=("optimizer",)
    )
    learning_rate: float = setting(
        0.01, "step size of the optimiser", gt=0, le=100, aliases=("lr",), hint="0.01 is usual"
    )
    batch_size: int = setting(128, "images per training step", ge=1, le=10_000_000)
    momentum: float = setting(0.9, "momentum, for sgd only", ge=0, lt=1)
    weight_decay: float = setting(0.0, "weight decay of plastic values", ge=0)
    decay: Literal["none", "linear"] = setting(
        "none", "the learning rate stays, or falls evenly to 0 within each fit"
    )


def make_optimiser(
    config: OptimiserConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """A fresh optimiser over ``parameters``, less the empty ones, in one pass over each value."""
    learning = [parameter for parameter in parameters if parameter.numel()]
    rate, decay = config.learning_rate, config.weight_decay
    if not learning:  # a network without plastic values: every optimiser does nothing
        learning = [nn.Parameter(torch.zeros(0))]
    gpu = learning[0].is_cuda
    if config.optimiser == "adam":
        adam = Adam if gpu else torch.optim.Adam
        return adam(learning, lr=rate, weight_decay=decay, fused=True, capturable=gpu)
    if config.optimiser == "adamw":
        adamw = AdamW if gpu else torch.optim.AdamW
        return adamw(learning, lr=rate, weight_decay=decay, fused=True, capturable=gpu)
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            learning, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True
        )
    return torch.optim.Adadelta(learning, lr=rate, weight_decay=decay, capturable=gpu)


Rates = Callable[[float], float]
"""From the share of a fit that is over, in [0, 1), to the learning rate of the next step."""


def falling_rate(config: OptimiserConfig) -> Rates | None:
    """The learning rate as the fit goes on; None where it stays."""
    if config.decay == "none":
        return None
    return lambda done: config.learning_rate * (1.0 - done)


@dataclass(frozen=True)
class FitResult:
    """What a whole fit came to: the accuracy of the epoch kept, its number, and images seen."""

    accuracy: float | None
    epoch: int
    epochs: int
    samples: int


def fit(
    network: nn.Module,
    step: Step,
    train: DataSet,
    *,
    epochs: int,
    batch_size: int,
    order: Callable[[int], torch.Generator],
    validate: Callable[[], float | None],
    keep: Literal["best", "last"] = "best",
    patience: int | None = None,
    optimiser: torch.optim.Optimizer | None,
    carried: Sequence[Carried] = (),
    rates: Rates | None = None,
) -> Generator[EpochEnd | FitBegin | FitPause, FitState | None, FitResult]:
    """Trains for some epochs and leaves the network with the values of the epoch to keep.

    Args:
        network: What ``step`` updates; its values are kept and put back.
        step: One update.
        train: What to learn from.
        epochs: How many passes over it, at most.
        batch_size: Images per step.
        order: From the epoch's number (from 1) to the stream that shuffles it.
        validate: Fraction right on the validation set, or None where there is none.
        keep: The epoch of the best validation accuracy (the first of equals), or the last one.
        patience: Stop after so many epochs without a better accuracy; None never does.
        optimiser: What ``step`` updates with: its moments are part of a saved state. None where
            it updates without one; to leave one out would let a resumed fit take another course.
        carried: What else ``step`` changes.
        rates: The learning rate of ``optimiser`` as the fit goes on; None leaves it as it is.

    Raises:
        DivergedError: The loss is no longer a finite number.
        FormatError: A state that was sent does not fit.
    """
    device = train.labels.device
    ledger = current() or Ledger()
    before = ledger.table()
    carried = [*carried, Carried(lambda: ({}, ledger.since(before)), lambda _, v: ledger.take(v))]
    at = Progress(torch.zeros((), dtype=torch.float64, device=device))
    pause = FitPause(False, lambda: at.save(network, optimiser, carried))
    sent = yield FitBegin()
    if sent is not None:
        at.load(sent, network, optimiser, carried)
        yield from at.ends
    updates = count_updates(ledger, optimiser)
    while not at.over:
        started = paused = time.perf_counter()
        spent = at.seconds
        network.train()
        generator = order(at.epoch)
        shuffled = torch.randperm(len(train), generator=generator).to(device)
        train = of_epoch(train, generator)
        for number, index in enumerate(shuffled.split(batch_size), 1):
            if number <= at.batches:
                continue
            ledger.step(len(index))
            if rates is not None and optimiser is not None:
                done = (at.epoch - 1 + (number - 1) * batch_size / len(train)) / epochs
                for group in optimiser.param_groups:
                    group["lr"] = rates(done)
            loss = step(batch_of(train, index, at.epoch, number))
            if device.type == "cpu":
                at.loss += loss.double() * len(index)
            else:  # one kernel in place of two
                at.loss.add_(loss.double(), alpha=len(index))
            at.batches, now = number, time.perf_counter()
            if now - paused >= PAUSE_S:
                at.seconds, paused = spent + now - started, now
                yield pause
        mean = float(at.loss) / len(train)
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss became {mean} in epoch {at.epoch}; pass a smaller learning_rate"
            )
        with purpose("validation"):
            accuracy = validate()
        seconds = spent + time.perf_counter() - started
        at.ends.append(EpochEnd(at.epoch, mean, accuracy, len(train), seconds))
        at.best, at.best_epoch = best_of(at.ends)
        if at.best_epoch == at.epoch and keep == "best":
            at.kept = {name: value.clone() for name, value in network.state_dict().items()}
        waited = patience is not None and at.epoch - at.best_epoch >= patience
        at.over = at.epoch == epochs or waited
        if at.over and keep == "best":
            network.load_state_dict(at.kept)
        at.epoch, at.batches, at.seconds = at.epoch + 1, 0, 0.0
        at.loss = torch.zeros_like(at.loss)
        yield at.ends[-1]
        yield FitPause(at.over, pause.state)
    ledger.purpose = ""
    if updates is not None:
        updates.remove()
    last = at.ends[-1]
    if not all(
        bool(value.isfinite().all())
        for value in network.state_dict().values()
        if value.is_floating_point()
    ):  # the last update, which no loss has seen
        raise DivergedError(
            f"a value of the network is no longer finite after epoch {last.epoch}; pass a smaller "
            "learning_rate"
        )
    samples = sum(end.samples for end in at.ends)
    if keep == "best":
        return FitResult(at.best, at.best_epoch, last.epoch, samples)
    return FitResult(last.validation_accuracy, last.epoch, last.epoch, samples)


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
        network: What learns.
        loss: From logits ``(n, outputs)`` and labels ``(n, ...)`` to a scalar.
        optimiser: Over the network's values.
        penalty: What is added to the loss whatever the batch: a scalar from the values themselves.
        pull: The same, where it adds its own gradient to the ``grad`` of the values.

    Returns:
        From images and labels of a batch to its loss, detached, after the update.
    """

    def update(images: Any, labels: Tensor) -> Tensor:
        value = network.gradients(images, labels, loss, reuse=True)
        if penalty is not None:
            more = penalty()
            if more.requires_grad:  # not before there is something to hold on to
                more.backward()
            value = value + more.detach()
        if pull is not None:
            value = value + pull()
        optimiser.step()
        return value

    if not _on_gpu(network):
        return update

    def updated() -> None:  # what listens to the optimiser's steps, such as a ledger
        for hook in optimiser._optimizer_step_post_hooks.values():
            hook(optimiser, (), {})

    recorded = counted_once(network, Recorded(update, network.parameters(), updated))
    device = next(network.parameters()).device
    rates = [torch.zeros((), device=device) for _ in optimiser.param_groups]

    def at_rate(images: Any, labels: Tensor) -> Tensor:  # a number would be recorded as it is
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


def _on_gpu(network: nn.Module) -> bool:
    return next(network.parameters()).is_cuda


def counted_once(
    network: SparseNetwork, recorded: Callable[[Any, Tensor], Tensor]
) -> Callable[[Any, Tensor], Tensor]:
    """A way to gradients that counts as one pass of its batch, whatever it goes through."""

    def replayed(images: Any, labels: Tensor) -> Tensor:
        with counting(None):  # what warms up and records is no work of the method
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
    """A part of a loss: some images, what their logits should be, how that is scored, its weight.

    Attributes:
        images: ``(n, channels, height, width)`` float32, or what stands for it.
        wanted: What ``loss`` compares logits with, ``(n, ...)``: classes, or logits of before.
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
    """Makes the gradient of a weighted sum of terms the ``grad`` of every plastic value.

    Each term is a pass of its own, so batches of any sizes and losses may be put together.

    Args:
        network: What learns.
        terms: What is summed.
        ways: Kept from step to step where the losses are the same functions each time, and each
            another one; empty at first. It makes steps faster.

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


@torch.no_grad()
def accuracy(
    network: nn.Module, predict: Callable[[Tensor], Tensor], samples: DataSet
) -> float | None:
    """Fraction of ``samples`` that a network gets right; None if there are none.

    Args:
        network: From images ``(batch, channels, height, width)`` to logits ``(batch, outputs)``.
        predict: From logits to classes ``(batch,)``.
        samples: What to predict.
    """
    network.eval()
    with purpose("validation"):
        right = sum(
            (predict(network(images)) == labels).sum()
            for images, labels in samples.batches(EVALUATION_BATCH)
        )
    return int(right) / len(samples) if len(samples) else None


class CrossEntropy:
    """Mean cross-entropy among some of the outputs, with its gradient in closed form.

    With p the soft-max of a sample's n logits and y its class, dL/dlogits = (p - onehot(y)) / n.
    """

    def __init__(self, classes: Tensor, mask: Tensor, how: str) -> None:
        """See :class:`ClassMask`; ``mask`` is 1 for the outputs of ``classes``, else 0."""
        self._how, self._classes, self._mask = how, classes, mask
        self._place = torch.full_like(mask, -1, dtype=torch.int64)
        self._place[classes] = torch.arange(len(classes), device=mask.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over ``(batch, outputs)`` logits and ``(batch,)`` classes."""
        return functional.cross_entropy(*self._competing(logits, labels))

    @torch.no_grad()
    def value_and_gradient(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same bits as from autograd, without its graph: a scalar, ``(batch, outputs)``."""
        chosen, places = self._competing(logits, labels)
        logs = torch.log_softmax(chosen, 1)
        value = functional.nll_loss(logs, places)
        slope = torch.zeros_like(logs).scatter_(1, places.unsqueeze(1), -1 / len(labels))
        gradient = torch._log_softmax_backward_data(slope, logs, 1, logs.dtype)
        if self._how == "zero":
            return value, gradient * self._mask
        return value, torch.zeros_like(logits).index_copy_(1, self._classes, gradient)

    def _competing(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._how == "zero":
            return logits * self._mask, labels
        chosen = logits.index_select(1, self._classes)  # whose gradient is faster than indexing's
        return chosen, self._place[labels]


class ClassMask:
    """Restricts logits to the classes of one task.

    ``slice`` takes the logits of those classes alone. ``zero`` (published) multiplies the others by
    0: they stay in the soft-max as e^0 and can win the arg-max when all the task's are negative.

    Attributes:
        loss: Mean cross-entropy of ``(batch, outputs)`` logits against ``(batch,)`` classes.
    """

    def __init__(
        self, classes: tuple[int, ...], outputs: int, how: str, device: torch.device
    ) -> None:
        self.how = how
        self.classes = torch.tensor(classes, device=device)
        self.mask = torch.zeros(outputs, device=device)
        self.mask[self.classes] = 1.0
        self.loss = CrossEntropy(self.classes, self.mask, how)

    def predict(self, logits: Tensor) -> Tensor:
        """The class with the highest logit, ``(batch,)`` int64."""
        if self.how == "zero":
            return (logits * self.mask).argmax(dim=1)
        return self.classes[logits[:, self.classes].argmax(dim=1)]
