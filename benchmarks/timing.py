"""Timing in turn: each round runs every contestant once, so a drifting machine drifts for all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

PEAK_SIZE = 2048
CONVOLUTION = (8, 256, 32)  # images, channels in and out, side: 3 x 3 kernels, padding 1
LEAST = 0.05
"""Seconds that a contestant's turn takes at least: short work is repeated, so that it runs warm."""


def in_turn(
    contestants: Mapping[str, Callable[[], object]], rounds: int, least: float = LEAST
) -> dict[str, list[float]]:
    """Seconds of each contestant in each of ``rounds`` rounds, after a round to warm up.

    Args:
        contestants: What to run, by name.
        rounds: How often each has its turn.
        least: Seconds that a turn takes at least; what is returned is for one call.
    """
    repeats = {name: _repeats(work, least) for name, work in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    return seconds


def _repeats(work: Callable[[], object], least: float) -> int:
    """How often to run ``work`` in a turn; the first call may lay things out and is not timed."""
    work()
    started = time.perf_counter()
    work()
    return max(1, math.ceil(least / (time.perf_counter() - started)))


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each contestant's times."""
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def product() -> Callable[[], object]:
    """The product of two square float32 matrices: the dense peak of this machine."""
    left, right = torch.rand(PEAK_SIZE, PEAK_SIZE), torch.rand(PEAK_SIZE, PEAK_SIZE)
    return lambda: left @ right


def gflops(seconds: float) -> float:
    """GFLOP/s of a :func:`product` that took so long."""
    return 2 * PEAK_SIZE**3 / seconds / 1e9


def convolution() -> Callable[[], object]:
    """A large dense 3 x 3 convolution, which PyTorch gives to another library than products."""
    images, channels, side = CONVOLUTION
    pixels, weight = torch.rand(images, channels, side, side), torch.rand(channels, channels, 3, 3)
    return lambda: functional.conv2d(pixels, weight, padding=1)


def convolution_gflops(seconds: float) -> float:
    """GFLOP/s of a :func:`convolution` that took so long."""
    images, channels, side = CONVOLUTION
    return 2 * images * channels**2 * 9 * side**2 / seconds / 1e9
