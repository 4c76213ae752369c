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
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.errors import DivergedError
from nispa.kernels.adam import AdamInPieces, AdamWInPieces
from nispa.network.models import DataSet
from nispa.network.operations import Ledger, count_updates, current, purpose
from nispa.training.losses import ClassMask, CrossEntropy
from nispa.training.optimisers import SGD, Adadelta, Adam, AdamW
from nispa.training.pausing import (
    Carried,
    EpochEnd,
    FitBegin,
    FitPause,
    FitState,
    Progress,
    best_of,
)
from nispa.training.plateau import Plateau
from nispa.training.steps import (
    Batch,
    Loss,
    Step,
    Term,
    Ways,
    batch_gradients,
    batch_of,
    batch_update,
    counted_once,
    gradient_of,
    gradient_step,
    network_step,
)

__all__ = [
    "EVALUATION_BATCH",
    "PAUSE_S",
    "Batch",
    "ClassMask",
    "CrossEntropy",
    "FitResult",
    "Loss",
    "OptimiserConfig",
    "Rates",
    "Step",
    "Term",
    "Ways",
    "accuracy",
    "batch_gradients",
    "batch_of",
    "batch_update",
    "counted_once",
    "falling_rate",
    "fit",
    "gradient_of",
    "gradient_step",
    "make_optimiser",
    "network_step",
    "of_epoch",
]

PAUSE_S = 1.0
"""Seconds between two points within an epoch where a fit can be interrupted."""

EVALUATION_BATCH = 512
"""Images per batch outside training, the same for all, so that logits compare bit by bit."""


def of_epoch(data: DataSet, generator: torch.Generator) -> DataSet:
    """The data of one epoch: with augmentation, freshly drawn from the epoch's stream."""
    vary: Callable[[torch.Generator], DataSet] | None = getattr(data, "for_epoch", None)
    return data if vary is None else vary(generator)


@settings
class OptimiserConfig:
    """Settings of the optimiser, shared by every method."""

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
    """A new optimiser over the parameters that are not empty, fused: one pass over each value."""
    learning = [parameter for parameter in parameters if parameter.numel()]
    rate, decay = config.learning_rate, config.weight_decay
    if not learning:  # a network without plastic values: every optimiser does nothing
        learning = [nn.Parameter(torch.zeros(0))]
    gpu = learning[0].is_cuda
    if config.optimiser == "adam":
        adam = AdamInPieces if gpu else Adam
        return adam(learning, lr=rate, weight_decay=decay, fused=True, capturable=gpu)
    if config.optimiser == "adamw":
        adamw = AdamWInPieces if gpu else AdamW
        return adamw(learning, lr=rate, weight_decay=decay, fused=True, capturable=gpu)
    if config.optimiser == "sgd":
        return SGD(learning, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True)
    return Adadelta(learning, lr=rate, weight_decay=decay, capturable=gpu)


Rates = Callable[[float], float]
"""From the share of a fit that is done, in [0, 1), to the learning rate of the next step."""


def falling_rate(config: OptimiserConfig) -> Rates | None:
    """The schedule of the learning rate; None where it is constant."""
    if config.decay == "none":
        return None
    return lambda done: config.learning_rate * (1.0 - done)


@dataclass(frozen=True)
class FitResult:
    """The result of a fit: accuracy and number of the kept epoch, epochs run, images seen."""

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
    plateau: Plateau | None = None,
    part: tuple[int, int] | None = None,
) -> Generator[EpochEnd | FitBegin | FitPause, FitState | None, FitResult]:
    """Trains for some epochs and leaves the network with the values of the epoch to keep.

    Args:
        network: The network that ``step`` updates; it ends with the values of the kept epoch.
        step: One update.
        train: The training set.
        epochs: How many passes over it, at most.
        batch_size: Images per step.
        order: From the epoch's number (from 1) to the stream that shuffles it.
        validate: Accuracy on the validation set, or None if there is none.
        keep: The epoch of the best validation accuracy (the first of equals), or the last one.
        patience: Stop after so many epochs without a better accuracy; None never does.
        optimiser: The optimiser of ``step``, if it has one: a resumed fit needs its moments to
            take the same course.
        carried: Other state that ``step`` changes.
        rates: Schedule of the optimiser's learning rate; None leaves it constant.
        plateau: Schedule that follows the validation accuracy and may end the fit, if there are no
            ``rates``.
        part: Epochs of a longer fit before this part of it, and of the whole; numbers of epochs and
            ``rates`` are the longer one's.

    Raises:
        DivergedError: The loss is no longer a finite number.
        FormatError: A state that was sent does not fit.
    """
    device = train.labels.device
    ledger = current() or Ledger()
    before = ledger.table()
    carried = [*carried, Carried(lambda: ({}, ledger.since(before)), lambda _, v: ledger.take(v))]
    earlier, whole = part or (0, epochs)
    at = Progress(torch.zeros((), dtype=torch.float64, device=device))
    pause = FitPause(False, lambda: at.save(network, optimiser, carried))
    sent = yield FitBegin()
    if sent is not None:
        at.load(sent, network, optimiser, carried)
        yield from (_numbered(end, earlier) for end in at.ends)
    updates = count_updates(ledger, optimiser)
    while not at.over:
        started = paused = time.perf_counter()
        spent = at.seconds
        network.train()
        if plateau is not None and optimiser is not None:
            for group in optimiser.param_groups:
                group["lr"] = plateau.rate_after(_accuracies(at.ends))
        generator = order(earlier + at.epoch)
        shuffled = torch.randperm(len(train), generator=generator).to(device)
        train = of_epoch(train, generator)
        for number, index in enumerate(shuffled.split(batch_size), 1):
            if number <= at.batches:
                continue
            ledger.step(len(index))
            if rates is not None and optimiser is not None:
                over = earlier + at.epoch - 1
                done = (over + (number - 1) * batch_size / len(train)) / whole
                for group in optimiser.param_groups:
                    group["lr"] = rates(done)
            loss = step(batch_of(train, index, earlier + at.epoch, number))
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
        settled = plateau is not None and plateau.rate_after(_accuracies(at.ends)) is None
        at.over = at.epoch == epochs or waited or settled
        if at.over and keep == "best":
            network.load_state_dict(at.kept)
        at.epoch, at.batches, at.seconds = at.epoch + 1, 0, 0.0
        at.loss = torch.zeros_like(at.loss)
        yield _numbered(at.ends[-1], earlier)
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


def _numbered(end: EpochEnd, earlier: int) -> EpochEnd:
    return replace(end, epoch=earlier + end.epoch)


def _accuracies(ends: Sequence[EpochEnd]) -> list[float | None]:
    return [end.validation_accuracy for end in ends]


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
