"""Axes of charts: values to positions, round tick values, short numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nispa.runs.costs import scaled


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to positions from ``start`` to ``end``.

    With ``log`` it is logarithmic; with ``zero`` as well, the value 0 has its own place at the
    start. Values outside are drawn at the nearer end.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        if self.log and value <= 0:
            return self.start
        start = self.start + (0.12 * (self.end - self.start) if self.zero else 0)
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return start + min(1.0, max(0.0, share)) * (self.end - start)

    def ticks(self, most: int = 5) -> list[float]:
        """About ``most`` round values within the axis."""
        if not self.log:
            step = _round_step((self.high - self.low) / most)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [round(k * step, 12) for k in range(first, last + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        step = max(1, math.ceil((last - first) / most))
        factors = (1, 3) if last - first <= 3 else (1,)
        marks = [10.0**power * f for power in range(first, last + 1, step) for f in factors]
        inside = [mark for mark in marks if self.low <= mark <= self.high]
        return [0.0, *inside] if self.zero else inside


def _round_step(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least ``rough``."""
    if rough <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def scale_of(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale that holds ``values`` (none negative): logarithmic if they span tenfold."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10 * min(positive):
        low, high = min(positive) / 1.3, max(positive) * 1.3
        return Scale(low, high, start, end, log=True, zero=len(positive) < len(values))
    return Scale(0.0, 1.08 * (max(values, default=0) or 1.0), start, end)


def percent_range(values: Sequence[float]) -> tuple[float, float]:
    """Round ends of an axis in per cent that holds ``values``."""
    if not values:
        return 0.0, 100.0
    step = 10.0 if max(values) - min(values) > 8 else 2.0
    low = max(0.0, math.floor((min(values) - step / 10) / step) * step)
    high = min(100.0, math.ceil((max(values) + step / 10) / step) * step)
    return low, max(high, low + step)


def short(value: float) -> str:
    """A number for an axis, such as ``1.2M``."""
    return scaled(value).replace(" ", "")


def coord(value: float) -> str:
    """A coordinate to a tenth of a unit, finer than a screen shows."""
    return f"{value:.1f}".removesuffix(".0")
