"""Metrics of continual learning, computed from the accuracy matrix alone.

``R[i, j]`` is the accuracy on task j after learning task i. Rows and columns are in training order
and count from 0; there are T tasks. Entries are fractions in [0, 1], NaN (or None) where not
measured. Each of these names has several definitions in the literature, so every number comes with
its formula and source; ``docs/metrics.md`` lists the other definitions.

Sources:

- Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
  arXiv 1706.08840.
- Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, arXiv 1801.10112.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Rows = Matrix | Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Metric:
    """A metric of an accuracy matrix.

    Attributes:
        formula: The formula, in the symbols of this module.
        source: The paper that defined it.
        function: Takes the matrix and the tasks' chance levels. Returns the value, or None if an
            entry that it needs was not measured.
    """

    formula: str
    source: str
    function: Callable[[Rows, Sequence[float] | None], float | None]


def as_matrix(rows: Rows) -> Matrix:
    """An accuracy matrix ``(T, T)`` as float64; None and missing rows become NaN.

    Args:
        rows: At most T rows of T fractions each.

    Raises:
        ValueError: The rows differ in length, outnumber the columns, or leave [0, 1].
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.size == 0:
        values = values.reshape(0, 0)
    if values.ndim != 2 or values.shape[0] > values.shape[1]:
        raise ValueError(f"an accuracy matrix of shape {values.shape} must have a column per task")
    if not np.all(np.isnan(values) | ((values >= 0) & (values <= 1))):
        raise ValueError("accuracies must be fractions in [0, 1], not per cent")
    tasks = values.shape[1]
    matrix = np.full((tasks, tasks), np.nan)
    matrix[: values.shape[0]] = values
    return matrix


def _mean(values: Matrix) -> float | None:
    return float(values.mean()) if values.size and not np.isnan(values).any() else None


def acc(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Mean accuracy over all tasks after the last one."""
    matrix = as_matrix(rows)
    return _mean(matrix[-1]) if matrix.size else None


def bwt(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Backward transfer: mean change in accuracy since each task was learned."""
    matrix = as_matrix(rows)
    return _mean(matrix[-1, :-1] - matrix.diagonal()[:-1]) if matrix.size else None


def fwt(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Forward transfer: mean accuracy above chance on each task just before it is learned.

    Args:
        rows: The accuracy matrix.
        chance: Accuracy of guessing on each task, ``(T,)``; None gives None.
    """
    matrix = as_matrix(rows)
    if chance is None or not matrix.size:
        return None
    guess = np.asarray(chance, dtype=np.float64)
    if guess.shape != (len(matrix),):
        raise ValueError(f"chance of shape {guess.shape} must hold one value per task")
    return _mean(matrix.diagonal(1) - guess[1:])


def forgetting(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Mean drop from each task's best accuracy to its last; the best excludes the last row.

    As the definition says, entries above the diagonal (a task not learned yet) count where they
    were measured. All entries on and below the diagonal must have been measured.
    """
    matrix = as_matrix(rows)
    tasks = len(matrix)
    if tasks < 2 or np.isnan(matrix[np.tril_indices(tasks)]).any():
        return None
    # No column is all NaN: its diagonal entry was measured.
    return _mean(np.nanmax(matrix[:-1, :-1], axis=0) - matrix[-1, :-1])


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "acc": Metric(
            "mean over j of R[T-1, j]",
            "Lopez-Paz and Ranzato 2017",
            acc,
        ),
        "bwt": Metric(
            "mean over j < T-1 of R[T-1, j] - R[j, j]",
            "Lopez-Paz and Ranzato 2017",
            bwt,
        ),
        "fwt": Metric(
            "mean over j > 0 of R[j-1, j] - chance(j)",
            "Lopez-Paz and Ranzato 2017, with chance for their untrained network",
            fwt,
        ),
        "forgetting": Metric(
            "mean over j < T-1 of max over i < T-1 of R[i, j] - R[T-1, j]",
            "Chaudhry et al. 2018",
            forgetting,
        ),
    }
)
"""The metrics by name, in the order in which a record lists them."""


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction in per cent with two decimals; ``-`` for None.

    ``0.00`` always means exactly zero; a smaller value is shown with one significant digit.
    """
    if value is None:
        return "-"
    text = f"{100 * value:.2f}"
    if float(text) == 0:
        text = "0.00" if value == 0 else f"{100 * value:.1g}"
    return f"+{text}" if signed and value > 0 else text
