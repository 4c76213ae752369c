"""A network as a page draws it: the state of each unit, and some of each layer's connections."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.methods.nispa import Nispa

PLASTIC, CANDIDATE, STABLE = 0, 1, 2
"""States of a unit; one that a task made stable has the state 2 + its number from 0."""

LINES = 160
CHANGES = 60
"""Connections drawn of each layer: present ones, and those that a rewiring dropped or grew."""


def text_of(values: Tensor) -> str:
    """Small whole numbers as base64, a byte each."""
    return base64.b64encode(values.to(torch.uint8).numpy().tobytes()).decode()


class Watcher:
    """Follows a method's units and connections.

    Attributes:
        owners: For each group the task that made a unit stable, ``(units,)``; -1 for none.
    """

    def __init__(self, method: Nispa) -> None:
        """Begins with the method as it is, before its first task."""
        self.method = method
        topology = method.topology
        self.owners = {
            group.name: torch.full((group.size,), -1)
            for group in (*topology.hidden, topology.output)
        }
        self.before = self._patterns()
        self.order = {
            name: torch.randperm(pattern.numel(), generator=stream(0, "lines", index))
            for index, (name, pattern) in enumerate(self.before.items())
        }

    def form(self) -> dict[str, Any]:
        """Groups and layers, for the page to lay out."""
        topology = self.method.topology
        groups = topology.groups
        return {
            "groups": [{"name": group.name, "size": group.size} for group in groups],
            "layers": [
                {"name": spec.name, "source": spec.source, "target": spec.target}
                for spec in topology.layers
            ],
        }

    def units(self) -> dict[str, Any]:
        """The state of each unit now, as text, and how many of each there are."""
        stable, kept = self.method.stable, self.method.candidates
        found: dict[str, Any] = {}
        for name, owners in self.owners.items():
            state = torch.where(owners >= 0, owners + STABLE, PLASTIC)
            if kept is not None:
                state[kept[name] & ~stable[name]] = CANDIDATE
            found[name] = {
                "states": text_of(state),
                "plastic": int((state == PLASTIC).sum()),
                "candidate": int((state == CANDIDATE).sum()),
                "stable": int((state >= STABLE).sum()),
            }
        return found

    def keep(self, task: int) -> None:
        """A task is learned: units that are stable now and were not are its."""
        for name, owners in self.owners.items():
            owners[self.method.stable[name] & (owners < 0)] = task

    def lines(self) -> dict[str, list[int]]:
        """Some live connections of each layer: source, target, source, target, …."""
        return {
            name: self._pairs(name, pattern, pattern, LINES)
            for name, pattern in self._patterns().items()
        }

    def changes(self) -> dict[str, Any]:
        """What was dropped and grown since the last call: counts, and some of each."""
        now, found = self._patterns(), {}
        for name, pattern in now.items():
            dropped, grown = self.before[name] & ~pattern, pattern & ~self.before[name]
            found[name] = {
                "live": int(pattern.sum()),
                "dropped": int(dropped.sum()),
                "grown": int(grown.sum()),
                "dropped_lines": self._pairs(name, dropped, pattern, CHANGES),
                "grown_lines": self._pairs(name, grown, pattern, CHANGES),
            }
        self.before = now
        return found

    def _patterns(self) -> dict[str, Tensor]:
        found: Mapping[str, Tensor] = self.method.network.patterns()
        return {name: pattern.cpu().clone() for name, pattern in found.items()}

    def _pairs(self, name: str, chosen: Tensor, shape: Tensor, most: int) -> list[int]:
        """At most so many places of a pattern, always the same first."""
        order = self.order[name]
        places = order[chosen.flatten()[order]][:most]
        columns = shape.shape[1]
        return torch.stack([places % columns, places // columns], 1).flatten().tolist()
