"""Axes: from values to positions, round values along them, numbers short enough for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """From values to positions along one axis; logarithmic where ``log``, with zero apart."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; one outside lies at the nearer end."""
        start = self.start + (0.12 * (self.end - self.start) if self.zero else 0)
        if self.log:
            if value <= 0:
                return self.start
            low, high, at = math.log10(self.low), math.log10(self.high), math.log10(value)
        else:
            low, high, at = self.low, self.high, value
        part = (at - low) / (high - low) if high > low else 0.5
        return start + min(1.0, max(0.0, part)) * (self.end - start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the axis."""
        if self.log:
            lowest, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - lowest) / most))
            marks = [10.0**power for power in range(lowest, last + 1, every)]
            if last - lowest <= 3:
                marks = sorted([*marks, *(3 * mark for mark in marks)])
            inside = [mark for mark in marks if self.low <= mark <= self.high]
            return [0.0, *inside] if self.zero else inside
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below ``rough``."""
    if rough <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def spread(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale that holds ``values`` (none negative): logarithmic where they span tenfold."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10 * min(positive):
        low, high = min(positive) / 1.3, max(positive) * 1.3
        return Scale(low, high, start, end, log=True, zero=len(positive) < len(values))
    high = max(values, default=0) or 1.0
    return Scale(0.0, high * 1.08, start, end)


def short(value: float) -> str:
    """A number for an axis, such as ``1.2M``."""
    sizes = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    for size, letter in sizes:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def at(value: float) -> str:
    """A coordinate, short and as exact as a screen shows."""
    return f"{value:.1f}".removesuffix(".0")


def rounded(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis of per cent that holds ``values``: of 10 or, where close, 2."""
    if not values:
        return 0.0, 100.0
    step = 10.0 if max(values) - min(values) > 8 else 2.0
    low = max(0.0, math.floor((min(values) - step / 10) / step) * step)
    high = min(100.0, math.ceil((max(values) + step / 10) / step) * step)
    return low, max(high, low + step)
