"""Where exact tests end and sampling begins. More of the statistics: test_compare.py."""

from __future__ import annotations

import numpy as np

from nispa.reading.statistics import least_p, sign_flip_p


def test_twenty_differences_are_flipped_in_every_way_and_more_are_sampled() -> None:
    assert sign_flip_p(np.full(20, 0.25)) == least_p(20) == 2 / 2**20
    assert sign_flip_p(np.full(21, 0.25)) == least_p(21) == 1 / 100_000


def test_a_sampled_p_is_the_same_each_time() -> None:
    differences = np.random.default_rng(1).normal(0.2, 0.5, 25)
    assert sign_flip_p(differences) == sign_flip_p(differences) < 0.5
