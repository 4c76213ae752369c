"""Timing in turn: each round runs every contestant once, so a drifting machine drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

PEAK_SIZE = 2048


def in_turn(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contestant over ``rounds`` rounds, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def product() -> Callable[[], object]:
    """The product of two square float32 matrices: what this machine can do at most."""
    left, right = torch.rand(PEAK_SIZE, PEAK_SIZE), torch.rand(PEAK_SIZE, PEAK_SIZE)
    return lambda: left @ right


def gflops(seconds: float) -> float:
    """GFLOP/s of a :func:`product` that took so long."""
    return 2 * PEAK_SIZE**3 / seconds / 1e9
