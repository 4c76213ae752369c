from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nispa.errors import ConfigError, UnknownNameError
from nispa.mechanism.schedule import SCHEDULES, TAU_MIN, check_schedule, tau


@pytest.mark.parametrize(
    ("t", "expected"),
    [(1, 0.997261), (2, 0.989074), (10, 0.75), (15, 0.5), (25, 0.066987), (26, 0.043227), (30, 0)],
)
def test_cosine_with_the_published_k(t: int, expected: float) -> None:
    assert tau("cosine", t, 30) == pytest.approx(expected, abs=1e-6)


def test_cosine_with_the_published_k_ends_in_phase_26() -> None:
    assert TAU_MIN == 0.05
    assert next(t for t in range(1, 100) if tau("cosine", t, 30) <= TAU_MIN) == 26


def test_cosine_stays_at_zero_instead_of_rising_again() -> None:
    assert [tau("cosine", t, 4) for t in (4, 5, 8, 1000)] == [0, 0, 0, 0]


def test_linear_falls_by_k_and_stops_at_zero() -> None:
    found = [tau("linear", t, 0.25) for t in (1, 2, 3, 4, 5)]
    assert found == [0.75, 0.5, 0.25, 0.0, 0.0]


def test_linear_with_k_005_ends_in_phase_19() -> None:
    assert next(t for t in range(1, 100) if tau("linear", t, 0.05) <= TAU_MIN) == 19


def test_exponential_is_a_power_of_one_more_than_the_phase() -> None:
    assert tau("exponential", 1, 1) == 0.5
    assert tau("exponential", 3, 0.5) == 0.5
    assert tau("exponential", 9, 2) == pytest.approx(0.01)
    assert tau("exponential", 3, 1e300) == 0.0


@examples(deadline=None)
@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    t=st.integers(1, 10_000),
    k=st.floats(1e-6, 1e6),
)
def test_tau_is_a_share_and_never_rises(schedule: str, t: int, k: float) -> None:
    assert 0.0 <= tau(schedule, t + 1, k) <= tau(schedule, t, k) <= 1.0


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UnknownNameError, match="tau schedule 'cosin'; did you mean 'cosine'"):
        tau("cosin", 1, 30)


@pytest.mark.parametrize(
    ("schedule", "k"),
    [("cosine", 30), ("cosine", 3), ("linear", 0.05), ("linear", 0.4), ("exponential", 0.5)],
)
def test_schedules_that_last_are_accepted(schedule: str, k: float) -> None:
    check_schedule(schedule, k, TAU_MIN)


@pytest.mark.parametrize(
    ("schedule", "k", "tau_min", "phase", "fix"),
    [
        ("cosine", 1, 0.05, 1, "a larger k"),
        ("cosine", 2, 0.05, 2, "a larger k"),
        ("linear", 30, 0.05, 1, "a smaller k"),  # the published k with the other schedules
        ("linear", 0.48, 0.05, 2, "a smaller k"),
        ("linear", 0.25, 0.5, 2, "a smaller k"),  # exactly at the floor is not above it
        ("exponential", 30, 0.05, 1, "a smaller k"),
        ("exponential", 3, 0.05, 2, "a smaller k"),
    ],
)
def test_schedules_that_end_at_once_are_refused(
    schedule: str, k: float, tau_min: float, phase: int, fix: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_schedule(schedule, k, tau_min)
    text = str(refused.value)
    assert text.startswith(f"k={k:g} ends the {schedule} schedule at once: tau({phase})=")
    assert f"must lie above tau_min={tau_min:g}; pass {fix}" in text
    assert "\n" not in text
