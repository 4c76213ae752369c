"""How many tasks a network holds, estimated from the first ones.

Each task of NISPA takes about the same share of the units that earlier tasks left plastic: it
reuses what is there, and picks among what is free. If n tasks leave a share p of a layer plastic,
k tasks leave about p^(k/n), and the layer is nearly full, with a share q = 0.1 left, after

    n log(q) / log(p)

tasks. The layer that fills first decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from nispa.errors import ConfigError, either
from nispa.methods.base import Event
from nispa.methods.presets import Settings
from nispa.network.architecture import ARCHITECTURES, widened
from nispa.runs.capacity import NEARLY, Units
from nispa.runs.runner import Experiment, accuracy_on
from nispa.training.pausing import FitBegin, FitPause


@dataclass(frozen=True)
class Room:
    """How many tasks fit into a network.

    Attributes:
        tasks: Tasks that begin with more than a tenth of each layer plastic.
        least: The same if every task takes as large a share as the greediest one so far.
        most: The same if every task takes as small a share as the most modest one so far.
        layer: The layer that fills first.
    """

    tasks: float
    least: float
    most: float
    layer: str


def room(after: Sequence[Units]) -> Room:
    """Estimates how many tasks fit.

    Args:
        after: The units after each task learned so far, at least one; see
            :data:`~nispa.runs.capacity.Units`.

    Returns:
        The estimate; ``math.inf`` tasks if none took a unit.
    """
    rooms = [_layer(name, [units[name] for units in after]) for name in after[0]]
    rooms = rooms or [Room(math.inf, math.inf, math.inf, "")]
    return min(rooms, key=lambda found: (found.tasks, found.least))


def _layer(name: str, counts: Sequence[tuple[int, int]]) -> Room:
    plastic = [1.0] + [(size - stable) / size for stable, size in counts]
    steps = [_fits(now / before) if before else 0.0 for before, now in pairwise(plastic)]
    return Room(_fits(plastic[-1], len(counts)), min(steps), max(steps), name)


def _fits(left: float, tasks: int = 1) -> float:
    """Tasks until a layer is nearly full if so many leave this share of it plastic."""
    if left >= 1:
        return math.inf
    if left <= 0:
        return float(tasks)
    return float(math.ceil(tasks * math.log(NEARLY) / math.log(left)))


def resized(settings: Settings, width: float = 1.0, density: float | None = None) -> Settings:
    """The same settings with wider layers, another density, or both.

    Args:
        settings: The settings.
        width: Factor on the units of every hidden layer.
        density: Share of positions that are live; None keeps it.

    Raises:
        ConfigError: The network's sizes cannot be scaled, or there is no such network.
    """
    network = settings.network
    changes: dict[str, Any] = {} if density is None else {"density": density}
    if width != 1:
        sizes = ARCHITECTURES[network.architecture].sizes
        if not sizes:
            raise ConfigError(
                f"{network.architecture} has no sizes to scale; pass "
                f"{either('width=1', '--width 1')}, or set its size by arguments"
            )
        changes |= {name: _scaled(getattr(network, name), width) for name in sizes}
    return replace(settings, network=replace(network, **changes))


def _scaled(size: Any, width: float) -> Any:
    if isinstance(size, tuple):
        return tuple(_scaled(each, width) for each in size)
    return max(8, widened(size, width))


@dataclass(frozen=True)
class Measured:
    """What the first tasks show.

    Attributes:
        accuracies: Test accuracy of each task after the last, told the task.
        live: Live connections.
        room: How many tasks fit.
    """

    accuracies: tuple[float, ...]
    live: int
    room: Room


def measure(experiment: Experiment, tasks: int) -> Iterator[Event | FitBegin | FitPause | Measured]:
    """Learns the first tasks and estimates how many fit.

    Args:
        experiment: The run that is planned.
        tasks: How many tasks to learn.

    Yields:
        The events of learning; at last what was measured.

    Raises:
        ConfigError: The method has no stable units.
    """
    method = experiment.method()
    if not method.census().stable:
        raise ConfigError(
            f"{method.name} makes no units stable, so its network does not fill; choose nispa, "
            "nispa-replay, nispa-context or clnp"
        )
    begun, after = experiment.scenario.tasks[:tasks], []
    for task in begun:
        yield from method.learn(task)
        after.append(dict(method.census().stable))
    accuracies = tuple(
        accuracy_on(method, task.test.to(method.device), task.info) for task in begun
    )
    live = sum(live for live, _, _ in method.census().connections.values())
    yield Measured(accuracies, live, room(after))
