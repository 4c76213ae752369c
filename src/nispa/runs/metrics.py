"""Metrics of continual learning, from the accuracy matrix alone.

``R[i, j]`` is the accuracy on task j after learning task i: rows and columns in training order,
counted from 0, T tasks, fractions in [0, 1], NaN (or None) where not measured. Several definitions
go by each of these names, so the formula and its source stand next to every number;
``docs/metrics.md`` lists the other definitions.

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
    """One number of an accuracy matrix.

    Attributes:
        formula: What is computed, in the symbols of this module.
        source: Who defined it so.
        function: From the matrix and the tasks' chance levels to the value, or None where the
            formula asks for an entry that was not measured or for a second task.
    """

    formula: str
    source: str
    function: Callable[[Rows, Sequence[float] | None], float | None]


def as_matrix(rows: Rows) -> Matrix:
    """An accuracy matrix ``(T, T)`` as float64; None and rows not reached become NaN.

    Args:
        rows: At most T rows of T fractions each.

    Raises:
        ValueError: The rows differ in length, are more than the tasks, or leave [0, 1].
    """
    given = np.asarray(rows, dtype=np.float64)
    if given.size == 0:
        given = given.reshape(0, 0)
    if given.ndim != 2 or given.shape[0] > given.shape[1]:
        raise ValueError(f"an accuracy matrix of shape {given.shape} must have a column per task")
    if not np.all(np.isnan(given) | ((given >= 0) & (given <= 1))):
        raise ValueError("accuracies must be fractions in [0, 1], not per cent")
    tasks = given.shape[1]
    matrix = np.full((tasks, tasks), np.nan)
    matrix[: given.shape[0]] = given
    return matrix


def _mean(values: Matrix) -> float | None:
    return float(values.mean()) if values.size and not np.isnan(values).any() else None


def acc(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Mean accuracy over all tasks after the last one."""
    matrix = as_matrix(rows)
    return _mean(matrix[-1]) if matrix.size else None


def bwt(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Backward transfer: how much later learning changed each task since it was learned."""
    matrix = as_matrix(rows)
    return _mean(matrix[-1, :-1] - matrix.diagonal()[:-1]) if matrix.size else None


def fwt(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """Forward transfer: accuracy on each task just before it is learned, above guessing.

    Args:
        rows: The accuracy matrix.
        chance: Accuracy of guessing on each task, ``(T,)``; without it the value is None.
    """
    matrix = as_matrix(rows)
    if chance is None or not matrix.size:
        return None
    guess = np.asarray(chance, dtype=np.float64)
    if guess.shape != (len(matrix),):
        raise ValueError(f"chance of shape {guess.shape} must hold one value per task")
    return _mean(matrix.diagonal(1) - guess[1:])


def forgetting(rows: Rows, chance: Sequence[float] | None = None) -> float | None:
    """How far each task fell below the best it had been, before the last task was learned.

    Entries from before a task was learned (above the diagonal) count where they were measured, as
    the definition says; from a task's own row on every entry must have been measured.
    """
    matrix = as_matrix(rows)
    tasks = len(matrix)
    if tasks < 2 or np.isnan(matrix[np.tril_indices(tasks)]).any():
        return None
    # A column is never all NaN here: the entry of the diagonal was measured.
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
"""The metrics by name, in the order of a record."""


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction in per cent with two decimals, for people; ``-`` where it is not defined.

    ``0.00`` always means exactly zero: whatever is smaller than it can show is written out.
    """
    if value is None:
        return "-"
    text = f"{100 * value:.2f}"
    if float(text) == 0:
        text = "0.00" if value == 0 else f"{100 * value:.1g}"
    return f"+{text}" if signed and value > 0 else text
