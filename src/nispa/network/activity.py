"""The activity of each unit: the sum of its activations over a data set.

Published: signed sums, after ReLU (and after the pool, where one follows). For other activation
functions a signed sum can cancel, so absolute values are summed; for ReLU the two are equal.
Sums are kept in float64, so that they do not depend on how many batches there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def unit_activity(activations: Tensor) -> Tensor:
    """Total activation of each unit in a batch.

    Args:
        activations: ``(batch, units)`` or ``(batch, units, height, width)``.

    Returns:
        ``(units,)`` float64, the sum of absolute values over batch and positions.
    """
    per_image = activations.abs().flatten(2).sum(2) if activations.dim() > 2 else activations.abs()
    return per_image.sum(0, dtype=torch.float64)


def total_activity(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum over batches of each group's :func:`unit_activity`, ``(units,)`` float64."""
    totals: dict[str, Tensor] = {}
    for batch in batches:
        for group, activity in batch.items():
            totals[group] = totals[group] + activity if group in totals else activity
    return totals
