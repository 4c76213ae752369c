"""Statistics against scipy's, where a part left out would show. More of them: test_compare.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from nispa.statistics import interval


def test_the_interval_is_moved_by_its_bias_and_by_its_skewness() -> None:
    """Over a dozen skewed samples, so that what drawing resamples adds averages out."""
    errors, without_bias, without_skewness = [], [], []
    for seed in range(12):
        values = np.random.default_rng(seed).exponential(size=12) ** 2
        values /= values.max()
        found = interval(values, 0.2)
        theirs = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=0.8,
            n_resamples=20_000,
            method="BCa",
            random_state=np.random.default_rng(7),
        )
        assert found is not None
        assert found.kind == "BCa"
        unit = values.std() / np.sqrt(len(values))
        bounds = np.array(theirs.confidence_interval)
        errors.append((np.array([found.low, found.high]) - bounds) / unit)

        means, normal = theirs.bootstrap_distribution, special.ndtri([0.1, 0.9])
        bias = special.ndtri((means < values.mean()).mean())
        skewness = stats.skew(values) / (6 * np.sqrt(len(values)))
        for cut, others in (
            (normal / (1 - skewness * normal), without_bias),
            (bias + bias + normal, without_skewness),
        ):
            others.append((np.quantile(means, special.ndtr(cut)) - bounds) / unit)
    assert np.abs(np.mean(errors, axis=0)) == pytest.approx(0, abs=0.025)
    # Either part left out is seen.
    assert np.all(np.abs(np.mean(without_bias, axis=0)) > 0.05)
    assert np.all(np.abs(np.mean(without_skewness, axis=0)) > 0.05)
