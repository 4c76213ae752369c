"""Intervals, effect sizes and tests, by hand, by brute force and against SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nispa.reading.statistics import (
    cohens_d_z,
    estimate,
    hedges_factor,
    holm,
    interval,
    least_p,
    mean_of_all,
    seeds_needed,
    sign_flip_p,
    spread,
    wilcoxon_p,
)

PERCENT = st.lists(st.integers(-40, 40), min_size=1, max_size=9)


def test_twenty_differences_are_flipped_in_every_way_and_more_are_sampled() -> None:
    assert sign_flip_p(np.full(20, 0.25)) == least_p(20) == 2 / 2**20
    assert sign_flip_p(np.full(21, 0.25)) == least_p(21) == 1 / 100_000


def test_a_sampled_p_is_the_same_each_time() -> None:
    differences = np.random.default_rng(1).normal(0.2, 0.5, 25)
    assert sign_flip_p(differences) == sign_flip_p(differences) < 0.5


def test_the_sign_flip_test_by_hand() -> None:
    assert sign_flip_p([0.03, 0.01, 0.02]) == 2 / 8  # only all signs alike reach 0.06
    assert sign_flip_p([0.03, -0.01, 0.02]) == 4 / 8  # 0.06 and 0.04, and both negative
    assert sign_flip_p([0.02, 0.02, 0.0, 0.02]) == 4 / 16  # a zero counts with either sign
    assert sign_flip_p([0.25]) == 1
    assert sign_flip_p([0.0, 0.0]) == 1


@given(PERCENT)
def test_the_sign_flip_test_by_brute_force(percents: list[int]) -> None:
    flips = itertools.product((-1, 1), repeat=len(percents))
    sums = [abs(sum(s * p for s, p in zip(signs, percents, strict=True))) for signs in flips]
    expected = sum(value >= abs(sum(percents)) for value in sums) / len(sums)
    assert sign_flip_p([percent / 100 for percent in percents]) == expected


def test_the_sign_flip_test_as_scipy_has_it() -> None:
    differences = np.random.default_rng(3).normal(0.01, 0.02, 11)
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_more_differences_than_can_be_flipped_are_sampled() -> None:
    differences = np.random.default_rng(0).normal(0.2, 0.5, 21)
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate((sums + value, sums - value))
    exact = float((np.abs(sums) >= abs(differences.sum()) - 1e-12).mean())
    assert exact > 0.01  # or the sample would hold too few to compare
    assert sign_flip_p(differences) == pytest.approx(exact, rel=0.1)
    assert sign_flip_p(np.full(30, 0.25)) == least_p(30) == 1 / 100_000


@pytest.mark.parametrize("count", range(1, 11))
def test_no_p_is_below_the_least(count: int) -> None:
    assert sign_flip_p(np.arange(1, count + 1) / 100) == least_p(count) == 2 / 2**count


def test_seeds_needed_by_hand() -> None:
    assert seeds_needed(0.05) == 6  # 2/2^5 = 0.0625, 2/2^6 = 0.03125
    assert seeds_needed(0.05, 10) == 9  # 20/2^8 = 0.078, 20/2^9 = 0.039
    assert seeds_needed(0.0625) == 5


@pytest.mark.parametrize("count", [2, 5, 8, 12])
def test_wilcoxon_by_brute_force(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    half = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - half)
    sums = [
        abs(sum(r for r, chosen in zip(ranks, signs, strict=True) if chosen) - half)
        for signs in itertools.product((False, True), repeat=count)
    ]
    expected = sum(value >= observed for value in sums) / len(sums)
    assert wilcoxon_p(differences) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_leaves_out_zeros() -> None:
    assert wilcoxon_p([0.0, 0.01, 0.02, 0.03]) == wilcoxon_p([0.01, 0.02, 0.03]) == 0.25
    assert wilcoxon_p([0.0, 0.0]) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3x, 1x, 2x
    assert holm([0.5, None, 0.02]) == [0.5, None, 0.04]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_effect_sizes_by_hand() -> None:
    assert spread([0.01, 0.02, 0.03]) == pytest.approx(0.01)
    assert cohens_d_z([0.01, 0.02, 0.03]) == pytest.approx(2)
    assert hedges_factor(3) == pytest.approx(1 / math.sqrt(math.pi))  # gamma(1) / gamma(1/2)
    assert hedges_factor(5) == pytest.approx(math.sqrt(2 / math.pi))
    assert hedges_factor(51) == pytest.approx(1 - 3 / 199, abs=1e-4)
    assert hedges_factor(2) is None
    assert cohens_d_z([0.1, 0.1, 0.1]) is None
    assert cohens_d_z([0.0, 0.0]) is None
    assert spread([0.5]) is None


def test_hedges_factor_makes_d_z_right_on_average() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (40_000, 5))
    effects = draws.mean(axis=1) / draws.std(axis=1, ddof=1)
    factor = hedges_factor(5)
    assert factor is not None
    assert effects.mean() > 1.2
    assert effects.mean() * factor == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("count", [2, 3, 5, 25])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_an_interval_is_that_of_scipy(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(0.5, 0.02, count)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(1 - level)
    assert interval(values, level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-11)


def test_no_interval_reaches_beyond_what_there_can_be() -> None:
    assert interval([0.999, 0.99, 1.0]) == pytest.approx((0.98266, 1.0), abs=1e-5)
    assert interval([0.0, 0.002, 0.01]) == pytest.approx((0.0, 0.01715), abs=1e-5)
    assert interval([0.0, 1.0]) == (0.0, 1.0)
    assert interval([-0.9, -0.5], -1.0, 1.0) == (-1.0, 1.0)
    assert interval([-3.0, 7.0], -math.inf, math.inf) == pytest.approx((-61.531, 65.531), abs=1e-3)


def test_the_example_of_the_page() -> None:
    """The numbers that docs/compare.md works out by hand."""
    differences = [0.01, 0.02, 0.03, 0.02, -0.01]
    factor = hedges_factor(5)
    d_z = cohens_d_z(differences)
    assert d_z is not None
    assert factor is not None
    assert spread(differences) == pytest.approx(0.0152, abs=5e-5)
    assert d_z == pytest.approx(0.923, abs=5e-4)
    assert d_z * factor == pytest.approx(0.737, abs=5e-4)
    assert sign_flip_p(differences) == 6 / 32
    assert interval(differences, -1, 1) == pytest.approx((-0.0048, 0.0328), abs=5e-5)


def test_values_that_do_not_vary_have_no_width() -> None:
    assert interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))
    assert spread([0.1, 0.1, 0.1]) == 0
    assert interval([0.1]) is None
    assert str(interval([0.0, 0.0], -1, 1)) == "(0.0, 0.0)"  # neither -0 nor -1e-19


def test_few_seeds_hold_the_mean_as_often_as_many() -> None:
    for count in (3, 5, 40):
        draws = np.random.default_rng(5).normal(0.5, 0.02, (1000, count))
        found = [interval(values) for values in draws]
        held = np.mean([ends is not None and ends[0] <= 0.5 <= ends[1] for ends in found])
        assert 0.935 <= held <= 0.965


def test_a_mean_with_its_interval() -> None:
    found = estimate([0.8, 0.82, 0.84])
    assert (found.count, found.mean) == (3, 0.82)
    assert found.interval == interval([0.8, 0.82, 0.84])
    assert (estimate([0.5]).sd, estimate([0.5]).interval) == (None, None)
    assert mean_of_all([0.5, 1.0]) == 0.75
    assert mean_of_all([0.5, None]) is mean_of_all([]) is None
