"""Which units to keep for the task being learned.

Candidates of a group are its most active units, in falling order, until they hold the share tau
of the group's total activation. Published candidates may include units that nothing stable feeds;
such a unit loses all its inputs in the drop that follows, so it carries nothing. :func:`supported`
finds those that keep an input; the others can stay plastic. A stable unit is never demoted, since
earlier tasks rely on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nispa.network.topology import Patterns, Topology, UnitSets


def most_active(activity: Tensor, tau: float) -> Tensor:
    """The fewest most active units that hold at least the share ``tau`` of all activity.

    Args:
        activity: Total activation per unit, ``(units,)``, none negative.
        tau: Share in [0, 1].

    Returns:
        ``(units,)`` bool. Ties go to the lower index. A silent unit is never among them, so a
        group without any activity has none.
    """
    order = torch.argsort(activity, descending=True, stable=True)
    running = activity[order].cumsum(0)
    wanted = tau * running[-1]
    before = running - activity[order]
    picked = (before < wanted) & (activity[order] > 0)
    chosen = torch.zeros_like(activity, dtype=torch.bool)
    chosen[order] = picked
    return chosen


def select_candidates(
    topology: Topology, activity: UnitSets, stable: UnitSets, tau: float, most: float = 1.0
) -> dict[str, Tensor]:
    """Candidates per hidden group (and no others), stable units included.

    Args:
        topology: The network's structure.
        activity: Total activation per hidden group, ``(units,)``.
        stable: Units that are already stable, per group, ``(units,)`` bool.
        tau: Share of each group's activation to capture.
        most: Share of each group's units that may be candidates without being stable already, at
            least one; the most active ones are. 1 sets no limit.
    """
    candidates = {name: units.clone() for name, units in stable.items()}
    for group in topology.hidden:
        active = activity[group.name]
        picked = most_active(active, tau)
        if most < 1.0:
            new = (picked & ~stable[group.name]).nonzero().squeeze(1)
            order = torch.argsort(active[new], descending=True, stable=True)
            picked[new[order[max(1, math.floor(most * group.size)) :]]] = False
        candidates[group.name] |= picked
    return candidates


def supported(
    topology: Topology,
    patterns: Patterns,
    stable: UnitSets,
    candidates: UnitSets,
    sources: UnitSets | None = None,
) -> dict[str, Tensor]:
    """The candidates that a stable unit reaches through live connections and other candidates.

    Stable units include the inputs. The supported set grows until it no longer changes; in a
    feed-forward network that is one walk through the layers. It also covers groups that feed
    themselves through a residual sum: candidates that only feed each other in a ring are not
    supported. Outputs stay as they are: a task's outputs do not depend on activity.

    Args:
        topology: The network's structure.
        patterns: Live connections per layer, ``(rows, columns)`` bool.
        stable: Stable units per group, ``(units,)`` bool.
        candidates: The units to choose among, likewise.
        sources: Units that need no connection, such as those that an embedding writes; by default
            none but the inputs.

    Returns:
        Units per group, ``(units,)`` bool: stable ones and supported candidates.
    """
    kept = {name: units.clone() for name, units in stable.items()}
    for name, units in (sources or {}).items():
        kept[name] |= candidates[name] & units
    output = topology.output.name
    kept[output] = candidates[output].clone()
    changed = True
    while changed:
        changed = False
        for layer in topology.layers:
            if output in layer.targets:
                continue
            rows = (patterns[layer.name] & layer.columns_in(kept).unsqueeze(0)).any(dim=1)
            for name, fed in layer.units_fed(rows).items():
                grown = kept[name] | (candidates[name] & fed)
                if not torch.equal(grown, kept[name]):
                    kept[name] = grown
                    changed = True
    return kept


def without_outgoing(topology: Topology, patterns: Patterns, units: UnitSets) -> dict[str, Tensor]:
    """The ``units`` of hidden groups from which no live connection leaves."""
    silent = {}
    for group in topology.hidden:
        busy = torch.zeros(group.size, dtype=torch.bool)
        for layer in topology.readers(group.name):
            busy |= layer.units_heard(patterns[layer.name].any(dim=0))[group.name]
        silent[group.name] = units[group.name] & ~busy
    return silent
