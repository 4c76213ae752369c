"""How full a network is: stable units keep what was learned, plastic ones learn the rest."""

from __future__ import annotations

from collections.abc import Mapping

NEARLY = 0.1  # share of a layer's units below which the next task has little to learn with

Units = Mapping[str, tuple[int, int]]
"""Stable units and size of each hidden group."""


def fullness(units: Units) -> int:
    """0 while there is room, 1 where a layer is nearly full, 2 where one is full."""
    plastic = [(size - stable, size) for stable, size in units.values() if size]
    if any(not free for free, _ in plastic):
        return 2
    return int(any(free <= NEARLY * size for free, size in plastic))


def warning(before: Units, now: Units) -> str:
    """What to say after a task: that the network became nearly full or full with it; else nothing.

    Args:
        before: Its units before the task; empty before the first.
        now: Its units after it.
    """
    level = fullness(now)
    if level <= fullness(before):
        return ""
    if level == 2:
        layers = [name for name, (stable, size) in now.items() if size and stable == size]
        return (
            f"the network is full: no unit of {', '.join(layers)} is plastic, so that later tasks "
            "must do with what is learned; more tasks need wider layers"
        )
    layers = [
        f"{name} ({size - stable} of {size})"
        for name, (stable, size) in now.items()
        if size and size - stable <= NEARLY * size
    ]
    return (
        f"the network is nearly full: few units are plastic in {', '.join(layers)}; more tasks "
        "need wider layers"
    )
