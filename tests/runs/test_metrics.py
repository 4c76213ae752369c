from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nispa.runs.metrics import METRICS, Rows, acc, as_matrix, bwt, forgetting, fwt, percent

# Three tasks. Task 0: 0.9 when learned, 0.95 after task 1, 0.7 at the end. Task 1: 0.8, then 0.6.
R = [
    [0.90, 0.40, 0.20],
    [0.95, 0.80, 0.30],
    [0.70, 0.60, 1.00],
]
HALF = (0.5, 0.5, 0.5)


def test_acc_is_the_mean_of_the_last_row() -> None:
    assert acc(R) == pytest.approx((0.7 + 0.6 + 1.0) / 3)


def test_bwt_compares_the_last_row_with_the_diagonal() -> None:
    # task 0: 0.7 - 0.9 = -0.2; task 1: 0.6 - 0.8 = -0.2; the last task does not count
    assert bwt(R) == pytest.approx(-0.2)


def test_fwt_subtracts_chance_from_the_entry_right_of_the_diagonal() -> None:
    # task 1: 0.4 - 0.5 = -0.1; task 2: 0.3 - 0.25 = 0.05; mean -0.025
    assert fwt(R, (0.9, 0.5, 0.25)) == pytest.approx(-0.025)


def test_fwt_without_chance_is_not_defined() -> None:
    assert fwt(R) is None


def test_forgetting_takes_the_best_earlier_row_not_the_diagonal() -> None:
    # task 0: max(0.9, 0.95) - 0.7 = 0.25; task 1: max(0.4, 0.8) - 0.6 = 0.2
    assert forgetting(R) == pytest.approx(0.225)


def test_forgetting_leaves_the_last_row_out_of_the_maximum() -> None:
    # The task got better with the last one: forgetting is negative, not zero.
    assert forgetting([[0.5, None], [0.75, 1.0]]) == -0.25


def test_forgetting_counts_a_better_guess_before_the_task_was_learned() -> None:
    assert forgetting([[1, 0.75, None], [1, 0.5, None], [1, 0.5, 1]]) == 0.125


def test_a_matrix_without_the_upper_triangle_has_no_fwt_but_all_else() -> None:
    lower: Rows = [[0.9, None, None], [0.95, 0.8, None], [0.7, 0.6, 1.0]]
    assert acc(lower) == pytest.approx(0.7666666666666667)
    assert bwt(lower) == pytest.approx(-0.2)
    assert forgetting(lower) == pytest.approx(0.225)
    assert fwt(lower, HALF) is None


def test_one_task_has_accuracy_alone() -> None:
    assert acc([[0.5]]) == 0.5
    assert bwt([[0.5]]) is None
    assert fwt([[0.5]], [0.5]) is None
    assert forgetting([[0.5]]) is None


def test_tasks_not_reached_leave_every_metric_undefined() -> None:
    assert [acc(R[:2]), bwt(R[:2]), forgetting(R[:2])] == [None, None, None]
    assert fwt(R[:1], HALF) is None
    # Forward transfer ends with the row before the last: (0.4 - 0.5 + 0.3 - 0.5) / 2
    assert fwt(R[:2], HALF) == pytest.approx(-0.15)
    assert [metric.function([], HALF) for metric in METRICS.values()] == [None] * 4


def test_joint_training_measures_the_last_row_only() -> None:
    nothing = [None, None, None]
    rows: Rows = [nothing, nothing, [0.9, 0.6, 0.75]]
    assert acc(rows) == 0.75
    assert bwt(rows) is None
    assert forgetting(rows) is None


def test_a_hole_in_the_learned_part_leaves_forgetting_undefined() -> None:
    rows: Rows = [[0.9, None, None], [None, 0.8, None], [0.9, 0.8, 1.0]]
    assert forgetting(rows) is None
    assert bwt(rows) == 0.0


def test_nothing_forgotten_is_exactly_zero() -> None:
    rows: Rows = [[0.9, None, None], [0.9, 0.8, None], [0.9, 0.8, 0.7]]
    assert forgetting(rows) == 0.0
    assert bwt(rows) == 0.0


def test_the_table_names_each_formula_and_its_source() -> None:
    assert list(METRICS) == ["acc", "bwt", "fwt", "forgetting"]
    assert [metric.function for metric in METRICS.values()] == [acc, bwt, fwt, forgetting]
    assert METRICS["fwt"].formula == "mean over j > 0 of R[j-1, j] - chance(j)"
    assert "Chaudhry" in METRICS["forgetting"].source


@pytest.mark.parametrize(
    "rows",
    [[[90.0, 10.0]], [[-0.1]], [[0.5], [0.5]], [[[0.5]]], [[0.5, 0.5], [0.5]], [[np.inf]]],
)
def test_what_is_no_accuracy_matrix_is_refused(rows: list[list[float]]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - NumPy words the ragged case itself
        as_matrix(rows)


def test_chance_needs_a_value_per_task() -> None:
    with pytest.raises(ValueError, match="one value per task"):
        fwt(R, (0.5, 0.5))


def test_bounds_of_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2\) must have a column per task"):
        as_matrix([[0.5, 0.5]] * 3)
    for wrong in (1.01, -0.01):
        with pytest.raises(ValueError, match="fractions in"):
            as_matrix([[0.5, 1.0], [0.0, wrong]])
    assert as_matrix([[0.0, 1.0]])[0].tolist() == [0.0, 1.0]
    assert as_matrix([]).shape == (0, 0)
    assert as_matrix([[0.5]]).tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (None, "-", "-"),
        (0.0, "0.00", "0.00"),
        (-0.0, "0.00", "0.00"),
        (1.0, "100.00", "+100.00"),
        (0.98765, "98.77", "+98.77"),
        (-0.0123, "-1.23", "-1.23"),
        (0.00005, "0.01", "+0.01"),
        (0.00004, "0.004", "+0.004"),  # 0.00 is exactly zero, so what is not says so
        (-1e-7, "-1e-05", "-1e-05"),
    ],
)
def test_a_fraction_as_people_read_it(value: float | None, plain: str, signed: str) -> None:
    assert percent(value) == plain
    assert percent(value, signed=True) == signed


SQUARE = st.integers(2, 7).flatmap(
    lambda tasks: arrays(
        np.float64, (tasks, tasks), elements=st.integers(0, 64).map(lambda n: n / 64)
    )
)


@given(SQUARE)
def test_forgetting_is_at_least_the_negated_bwt(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    lost, change = forgetting(rows), bwt(rows)
    assert lost is not None
    assert change is not None
    assert lost >= -change - 1e-12  # the maximum includes the diagonal


@given(SQUARE, st.integers(0, 64))
def test_metrics_of_a_constant_matrix(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]], level: int
) -> None:
    flat = np.full_like(rows, level / 64)
    assert acc(flat) == level / 64
    assert bwt(flat) == 0
    assert forgetting(flat) == 0
    assert fwt(flat, [0.25] * len(flat)) == level / 64 - 0.25
