"""A task learned in one go: a number of epochs, with early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.methods.base import Learning, LearnReport, MethodConfig, PhaseEnd, PhaseStart
from nispa.network.models import DataSet, SparseNetwork
from nispa.training.fit import (
    FitResult,
    Loss,
    Step,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)
from nispa.training.pausing import Carried


@settings
class EpochsConfig(MethodConfig):
    """Settings of methods that learn a task in one go."""

    epochs: int = setting(20, "epochs of training per task, at most", ge=1, le=1_000_000)
    patience: int | None = setting(
        None, "stop after so many epochs without a better validation accuracy", ge=1
    )


Keep = Literal["best", "last"]
"""Epoch whose values stay, the one with the best validation accuracy or the last."""


@settings
class KeepConfig(EpochsConfig):
    """Settings of methods that may keep the values of another epoch than the last."""

    keep: Keep = setting(
        "best", "epoch whose values stay: of the best validation accuracy, or the last"
    )


def learn_in_epochs(
    network: SparseNetwork,
    loss: Loss,
    train: DataSet,
    validate: Callable[[], float | None],
    config: KeepConfig,
    order: Callable[[int], torch.Generator],
    penalty: Callable[[], Tensor] | None = None,
) -> Learning:
    """Trains on a loss with a fresh optimiser.

    Args:
        network: The network to train.
        loss: Mean loss of some samples, from logits ``(n, outputs)`` and labels ``(n,)``.
        train: The training images.
        validate: Returns the fraction right on the validation images.
        config: How long, and with which optimiser.
        order: From an epoch's number to the stream that shuffles it.
        penalty: A scalar of the network's values, added to the loss of each batch.
    """
    optimiser = make_optimiser(config, network.parameters())
    step = network_step(network, loss, optimiser, penalty)
    return learn_by_steps(network, step, train, validate, config, order, optimiser, config.keep)


def learn_by_steps(
    network: nn.Module,
    step: Step,
    train: DataSet,
    validate: Callable[[], float | None],
    config: EpochsConfig,
    order: Callable[[int], torch.Generator],
    optimiser: torch.optim.Optimizer,
    keep: Keep = "best",
    carried: Sequence[Carried] = (),
) -> Learning:
    """Trains with a step of the method's own.

    Args:
        network: The network, or a module that holds it and whatever else an epoch to keep restores.
        step: One update.
        train: The training images.
        validate: Returns the fraction right on the validation images.
        config: How long.
        order: From an epoch's number to the stream that shuffles it.
        optimiser: The optimiser that ``step`` uses.
        keep: The epoch whose values stay.
        carried: What else ``step`` changes.
    """
    started = time.perf_counter()
    yield PhaseStart(1, config.epochs)
    result = yield from fit(
        network,
        step,
        train,
        epochs=config.epochs,
        batch_size=config.batch_size,
        order=order,
        validate=validate,
        keep=keep,
        patience=config.patience,
        optimiser=optimiser,
        carried=carried,
        rates=falling_rate(config),
    )
    yield PhaseEnd(1, result.accuracy, time.perf_counter() - started)
    return LearnReport(1, result.samples, None, stop_reason(result, config))


def stop_reason(result: FitResult, config: EpochsConfig) -> str:
    """Why a fit ended: ``"epochs"`` or ``"patience"``."""
    return "epochs" if result.epochs == config.epochs else "patience"
