"""How full a network is: stable units keep earlier tasks, plastic units learn new ones."""

from __future__ import annotations

from collections.abc import Mapping

from nispa.base.capacity import NEARLY as NEARLY
from nispa.runs.record import TaskResult

Units = Mapping[str, tuple[int, int]]
"""For each hidden group of units, how many are stable, and how many there are."""


def units_after(task: TaskResult) -> Units:
    """The units of a network after a task."""
    return {name: (count.stable, count.size) for name, count in task.stable_units.items()}


def fullness(units: Units) -> int:
    """0 while there is room, 1 if a layer is nearly full, 2 if one is full."""
    plastic = [(size - stable, size) for stable, size in units.values() if size]
    if any(not free for free, _ in plastic):
        return 2
    return int(any(free <= NEARLY * size for free, size in plastic))


def warning(before: Units, now: Units) -> str:
    """A sentence if a task made the network nearly full or full, otherwise an empty text.

    Args:
        before: The units before the task; empty before the first.
        now: The units after it.
    """
    return state(now) if fullness(now) > fullness(before) else ""


def growth(before: Units, now: Units) -> str:
    """A sentence if layers became wider, otherwise an empty text.

    Args:
        before: The units before a task; empty before the first.
        now: The units after it.
    """
    wider = [
        f"{name} {before[name][1]} to {size}"
        for name, (_, size) in now.items()
        if name in before and size > before[name][1]
    ]
    return f"layers became wider: {', '.join(wider)} units" if wider else ""


def state(units: Units) -> str:
    """A sentence if a network is nearly full or full, otherwise an empty text."""
    level = fullness(units)
    if level == 0:
        return ""
    if level == 2:
        layers = [name for name, (stable, size) in units.items() if size and stable == size]
        return (
            f"the network is full: no unit of {', '.join(layers)} is plastic, so later tasks can "
            "only reuse what is learned; more tasks need wider layers"
        )
    layers = [
        f"{name} ({size - stable} of {size})"
        for name, (stable, size) in units.items()
        if size and size - stable <= NEARLY * size
    ]
    return (
        f"the network is nearly full: few units are plastic in {', '.join(layers)}; more tasks "
        "need wider layers"
    )
