"""The learning rate that falls where accuracy stands still."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from nispa.base.seeding import stream
from nispa.data.tasks import Samples
from nispa.methods.base import Fitting
from nispa.training.fit import Batch, FitResult, fit
from nispa.training.plateau import Plateau

FALLING = Plateau(rate=0.8, patience=2, factor=2.0, lowest=0.2)


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ([], 0.8),
        ([0.5, 0.4], 0.8),
        ([0.5, 0.4, 0.5], 0.4),  # an equal accuracy is no better one
        ([0.5, 0.4, 0.6, 0.5], 0.8),  # a better one counts anew
        ([0.5, 0.4, 0.4, 0.6, 0.6], 0.4),  # but brings no rate back
        ([0.5] * 5, 0.2),  # the lowest is allowed
        ([0.5] * 6, 0.2),
        ([0.5] * 7, None),
        ([None] * 9, 0.8),
    ],
)
def test_the_rate_by_hand(accuracies: Sequence[float | None], rate: float | None) -> None:
    assert FALLING.rate_after(accuracies) == rate


def test_a_first_rate_below_the_lowest_is_used_until_it_would_fall() -> None:
    low = Plateau(rate=0.1, patience=1, factor=2.0, lowest=0.2)
    assert low.rate_after([0.5]) == 0.1
    assert low.rate_after([0.5, 0.5]) is None


def test_a_fit_follows_it_epoch_by_epoch_and_ends_with_it() -> None:
    value = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([value], lr=5.0)
    accuracies = iter([0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5, 1.0])
    seen = []

    def step(batch: Batch) -> Tensor:
        seen.append(optimiser.param_groups[0]["lr"])
        return torch.zeros(())

    ended = yield_all(
        fit(
            nn.ParameterList([value]),
            step,
            Samples(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)),
            epochs=50,
            batch_size=4,
            order=lambda epoch: stream(0, "batches", epoch),
            validate=lambda: next(accuracies),
            optimiser=optimiser,
            plateau=FALLING,
        )
    )
    assert seen == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]
    assert (ended.epoch, ended.epochs) == (4, 8)


def yield_all(fitting: Fitting) -> FitResult:
    """Drives a fit to its end."""
    while True:
        try:
            next(fitting)
        except StopIteration as end:
            found: FitResult = end.value
            return found
