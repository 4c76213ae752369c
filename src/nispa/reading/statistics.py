"""Statistics of a few values, one per seed: intervals, effect sizes, paired tests.

Sources:
    Student, "The Probable Error of a Mean", 1908 (intervals).
    Fisher, "The Design of Experiments", 1935, section 21 (sign-flip test).
    Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010 (the test by sampling).
    Wilcoxon, "Individual Comparisons by Ranking Methods", 1945.
    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, section 2.3.5 (d_z).
    Hedges, "Distribution Theory for Glass's Estimator of Effect Size", 1981 (its correction).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nispa.errors import needs

FLIPS = 99_999  # random sign flips, if there are too many to try them all
EXACT_UP_TO = 20  # differences: 2^20 sign flips are a million sums
ROUNDING = 1e-12  # metrics are means of shares: a smaller difference is rounding
SEED = 20_220_618  # fixed, so that the same runs always give the same p


def spread(values: ArrayLike) -> float | None:
    """Standard deviation with n - 1 in the denominator; None for fewer than two values."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return None
    return 0.0 if np.ptp(sample) <= ROUNDING else float(sample.std(ddof=1))


def interval(
    values: ArrayLike, low: float = 0.0, high: float = 1.0, *, level: float = 0.05
) -> tuple[float, float] | None:
    """Student's confidence interval of the mean, clipped to ``[low, high]``.

    ``mean - t s / sqrt(n)`` to ``mean + t s / sqrt(n)``: ``s`` is the sample standard deviation,
    ``t`` the ``1 - level / 2`` quantile of Student's t with ``n - 1`` degrees of freedom.

    Args:
        values: ``(n,)`` independent values in ``[low, high]``.
        low: Least possible value.
        high: Greatest possible value.
        level: Share of intervals that may miss the mean: 0.05 for 95 %.

    Returns:
        Its two ends; None for fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    deviation = spread(sample)
    if deviation is None:
        return None
    with needs("reports", "the interval of a mean"):
        from scipy.special import stdtrit  # slow to import, and not needed for a single run
    half = stdtrit(len(sample) - 1, 1 - level / 2) * deviation / math.sqrt(len(sample))
    ends = np.clip([sample.mean() - half, sample.mean() + half], low, high)
    first, last = ends.round(12) + 0.0  # a bound of 0 is 0, neither -1e-19 nor -0
    return float(first), float(last)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds: ``sd`` and ``interval`` are None for one value."""

    count: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


def estimate(values: ArrayLike, low: float = 0.0, *, level: float = 0.05) -> Estimate:
    """Mean, standard deviation and interval of at least one value in ``[low, 1]``.

    Every mean over seeds in a table, a page or a comparison comes from here.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean().round(12))
    return Estimate(len(sample), mean, spread(sample), interval(sample, low, level=level))


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None if there is no value, or one is unknown."""
    known = list(values)
    if not known or None in known:
        return None
    return sum(value for value in known if value is not None) / len(known)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of the sign-flip test that paired differences are centred on 0.

    Exact up to 20 differences, from all 2^n sign flips; beyond, from 99,999 random ones and the
    observed one. Never below :func:`least_p`.

    Args:
        differences: ``(n,)`` fractions, at least one.
    """
    values = np.asarray(differences, dtype=np.float64)
    observed = abs(values.sum()) - ROUNDING
    if len(values) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate((sums + value, sums - value))
        return float((np.abs(sums) >= observed).mean())
    random = np.random.default_rng(SEED)
    sums = np.zeros(FLIPS)
    for value in values:
        sums += random.choice((-value, value), FLIPS)
    return float((1 + (np.abs(sums) >= observed).sum()) / (1 + FLIPS))


def least_p(count: int) -> float:
    """The smallest p that :func:`sign_flip_p` can give for ``count`` differences."""
    return 2 / 2**count if count <= EXACT_UP_TO else 1 / (1 + FLIPS)


def seeds_needed(level: float, pairs: int = 1) -> int:
    """Fewest common seeds that can be significant at ``level`` after Holm over ``pairs``."""
    return math.ceil(math.log2(2 * pairs / level))


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test without the differences of 0.

    Args:
        differences: ``(n,)``; if all are 0, p is 1.
    """
    with needs("reports", "Wilcoxon's test"):
        from scipy import stats
    values = np.asarray(differences, dtype=np.float64).round(12)  # so that ties are ties
    values = values[values != 0]
    if not len(values):
        return 1.0
    with warnings.catch_warnings():  # older versions of scipy warn about small samples
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(values).pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the k-th smallest of m times m - k + 1, never decreasing.

    Args:
        ps: The p of each test; None for no test, which then does not count.
    """
    tested = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[place] = largest
    return corrected


def cohens_d_z(differences: ArrayLike) -> float | None:
    """Mean of paired differences in units of their standard deviation; None if that is 0."""
    values = np.asarray(differences, dtype=np.float64)
    deviation = spread(values)
    return float(values.mean()) / deviation if deviation else None


def hedges_factor(count: int) -> float | None:
    """The factor that makes d_z of ``count`` differences unbiased.

    With m = count - 1 degrees of freedom: gamma(m/2) / (sqrt(m/2) gamma((m-1)/2)), about
    1 - 3 / (4m - 1). None below three differences, for which d_z has no mean.
    """
    free = count - 1
    if free < 2:
        return None
    return math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
