"""Tau schedules: the share of a layer's activation that the candidate units must capture.

Gurbuz and Dovrolis 2022 (arXiv 2206.09117), section 3. Phases count from 1. Tau falls from phase to
phase, so that fewer and fewer units carry the task:

- ``cosine``:       tau(t) = (1 + cos(t pi / k)) / 2, and 0 from t = k on
- ``linear``:       tau(t) = 1 - k t
- ``exponential``:  tau(t) = (t + 1)^(-k)

``k`` is a number of phases for ``cosine`` (published: 30), a step per phase for ``linear`` (0.05,
say) and an exponent for ``exponential`` (0.5, say). With k = 30 only ``cosine`` makes sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nispa.errors import ConfigError, unknown_name

TAU_MIN = 0.05
"""Published floor of tau. A task ends in the first phase whose tau is not above it."""


def _cosine(t: int, k: float) -> float:
    return 0.5 * (1.0 + math.cos(min(t / k, 1.0) * math.pi))


def _linear(t: int, k: float) -> float:
    return max(0.0, 1.0 - k * t)


def _exponential(t: int, k: float) -> float:
    return float((t + 1) ** (-k))


SCHEDULES: dict[str, Callable[[int, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "exponential": _exponential,
}
"""From a phase (from 1) and ``k`` to tau, by name."""


def tau(schedule: str, t: int, k: float) -> float:
    """Tau of phase ``t`` (from 1) under a named schedule, in [0, 1]."""
    if schedule not in SCHEDULES:
        raise unknown_name("tau schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule](t, k)


def check_schedule(schedule: str, k: float, tau_min: float) -> None:
    """Raises ConfigError if the schedule ends before any unit could be selected.

    A task returns to the network of the phase before the one that stopped it, whose candidates were
    selected one phase earlier still; so tau(1) and tau(2) must both be above the floor.
    """
    for t in (1, 2):
        if tau(schedule, t, k) <= tau_min:
            fix = {
                "cosine": "a larger k (the published one is 30)",
                "linear": "a smaller k (0.05 gives 19 phases)",
                "exponential": "a smaller k (0.5, say)",
            }.get(schedule, "another k")
            raise ConfigError(
                f"k={k:g} ends the {schedule} schedule at once: tau({t})="
                f"{tau(schedule, t, k):.3g} must lie above tau_min={tau_min:g}; pass {fix}"
            )
