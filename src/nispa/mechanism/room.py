"""What a full network can still do, and which units a task alone needs.

A unit is *needed* by outputs if a live path leads from it to one of them. Stable units never read
plastic ones, so what a task computes depends on needed units alone: those that no other task needs
can be given back, and the other tasks compute what they did.

Plastic units help a new task only if they can reach its outputs through plastic units, for no new
connection enters a stable one. Where none can, rewiring has nothing to move.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nispa.network.topology import Patterns, Topology, UnitSets

Tied = Callable[[UnitSets], dict[str, Tensor]]
"""From units to these and those that they depend on by whatever is no connection."""


def needed(
    topology: Topology, patterns: Patterns, outputs: Tensor, tied: Tied = dict
) -> dict[str, Tensor]:
    """The units from which live paths lead to outputs, and these.

    Args:
        topology: The network's structure.
        patterns: Live connections per layer, ``(rows, columns)`` bool.
        outputs: The outputs, ``(outputs,)`` bool.
        tied: What else units depend on; by default nothing.

    Returns:
        Units per group, ``(units,)`` bool.
    """
    found = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in topology.groups} | {
        topology.output.name: outputs.clone()
    }
    changed = True
    while changed:  # a group may feed itself
        changed = False
        for layer in reversed(topology.layers):
            columns = patterns[layer.name][layer.rows_in(found)].any(0)
            for name, reads in layer.units_heard(columns).items():
                if bool((reads & ~found[name]).any()):
                    found[name] = found[name] | reads
                    changed = True
        for name, units in tied(found).items():
            if bool((units & ~found[name]).any()):
                found[name] = found[name] | units
                changed = True
    return found


def has_room(topology: Topology, stable: UnitSets) -> bool:
    """Whether a plastic hidden unit could reach new outputs, through plastic units alone."""
    usable = {topology.output.name}
    changed = True
    while changed:
        changed = False
        for layer in topology.layers:
            for source in layer.sources:
                plastic = topology.group(source).role == "hidden" and not bool(stable[source].all())
                if plastic and source not in usable and not usable.isdisjoint(layer.targets):
                    usable.add(source)
                    changed = True
    return len(usable) > 1
