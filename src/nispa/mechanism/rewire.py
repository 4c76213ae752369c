"""Rewiring: drop connections from plastic into kept units, and grow as many elsewhere.

Gurbuz and Dovrolis 2022 (arXiv 2206.09117), section 3. Kept units are the stable ones and the
candidates of the task being learned. Layer by layer:

1. every live connection from a plastic into a kept unit is dropped;
2. a plastic unit that no longer feeds anything gets one connection into a plastic unit, as long as
   dropped connections are left to grow;
3. the others grow among the absent connections into plastic units, at random or where the loss
   asks for them, as the growth rule says.

So live + ungrown connections are constant. A connection stays ungrown only if nothing absent is
left to grow; it is reported, and may be carried over to the next rewiring.

One step, which is not in the paper, may come before 2: a candidate gets back as many connections as
it lost, from kept units, at random. Without it candidates starve. If a task keeps the share s of
each layer, a candidate keeps about the share s of its inputs: of 64 channels at density 0.1, with
eight kept, that is less than one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nispa.mechanism.grow import GrowthRule, grow
from nispa.mechanism.select import without_outgoing
from nispa.network.topology import (
    Patterns,
    Topology,
    UnitSets,
    complement,
    live_between,
)


@dataclass(frozen=True)
class Rewiring:
    """The changes that a rewiring makes to one layer.

    Attributes:
        pattern: The new pattern, ``(target, source * block)`` bool.
        revived: Flat positions of the connections out of units that had none left, int64.
        grown: Flat positions of the other new connections, int64.
        dropped: Number of connections dropped.
        ungrown: Number of connections owed (dropped or carried over) that found no place.
        refilled: Flat positions of the connections that candidates got back, int64.
    """

    pattern: Tensor
    revived: Tensor
    grown: Tensor
    dropped: int
    ungrown: int
    refilled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def rewire(
    topology: Topology,
    patterns: Patterns,
    kept: UnitSets,
    rule: GrowthRule,
    *,
    owed: Mapping[str, int] | None = None,
    refill: UnitSets | None = None,
    sizes: Patterns | None = None,
    generator: torch.Generator,
) -> dict[str, Rewiring]:
    """One rewiring of the whole network.

    Args:
        topology: The network's structure.
        patterns: Live connections per layer, ``(target, source * block)`` bool; not written to.
        kept: Stable and candidate units per group, ``(units,)`` bool, inputs and the outputs of the
            classes seen included.
        rule: Where new connections should come from.
        owed: Connections per layer that an earlier rewiring could not place.
        refill: The kept units that get back as many connections as they lose, per group,
            ``(units,)`` bool. None of them may be stable. None: no unit gets any back.
        sizes: Size of the gradient by each connection of each layer, for a rule that asks for it.
        generator: Source of randomness.

    Returns:
        The changes of each layer, by name. Afterwards no live connection leads from a plastic into
        a kept unit.
    """
    plastic = complement(kept)
    drops = live_between(topology, patterns, plastic, kept)
    after = {name: patterns[name] & ~drops[name] for name in drops}
    dropped = {name: int(drop.count_nonzero()) for name, drop in drops.items()}
    count = {name: number + (owed or {}).get(name, 0) for name, number in dropped.items()}

    refilled = {name: torch.zeros(0, dtype=torch.int64) for name in drops}
    if refill is not None:
        for layer in topology.layers:
            name = layer.name
            allowed = ~after[name] & layer.columns_in(kept)
            lost = torch.where(layer.rows_in(refill), drops[name].sum(1), 0)
            refilled[name] = _choose_in_rows(allowed, lost, generator)
            after[name].view(-1)[refilled[name]] = True
            count[name] -= len(refilled[name])

    revived = _revive(topology, after, plastic, count, generator)
    for name, positions in revived.items():
        after[name].view(-1)[positions] = True

    changes = {}
    for place, layer in enumerate(topology.layers):
        depth = place / max(1, len(topology.layers) - 1)
        left = count[layer.name] - len(revived[layer.name])
        grown = grow(
            layer,
            after[layer.name],
            layer.source_units(kept),
            layer.rows_in(kept),
            left,
            rule(depth),
            generator,
            None if sizes is None else sizes[layer.name],
        )
        after[layer.name].view(-1)[grown] = True
        changes[layer.name] = Rewiring(
            pattern=after[layer.name],
            revived=revived[layer.name],
            grown=grown,
            dropped=dropped[layer.name],
            ungrown=left - len(grown),
            refilled=refilled[layer.name],
        )
    return changes


def _choose_in_rows(allowed: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """At most ``counts[row]`` True positions of each row of ``allowed``, uniformly at random.

    Args:
        allowed: ``(rows, columns)`` bool.
        counts: ``(rows,)`` int64.
        generator: Source of randomness.

    Returns:
        Flat positions, int64, in ascending order.
    """
    rows = counts.nonzero().squeeze(1)
    free = allowed[rows]
    draws = torch.rand(len(rows), allowed.shape[1], generator=generator)
    draws.masked_fill_(~free, 2.0)  # behind every allowed position
    wanted = counts[rows].minimum(free.count_nonzero(1))
    if not wanted.any():
        return torch.zeros(0, dtype=torch.int64)
    # The smallest draws of a row are chosen. Most columns are not among them and need no order.
    smallest = draws.topk(int(wanted.max()), dim=1, largest=False).values
    last = smallest.gather(1, (wanted - 1).clamp(min=0).unsqueeze(1))
    last[wanted == 0] = -1.0
    row, column = (draws <= last).nonzero().unbind(1)
    chosen = torch.ones(len(row), dtype=torch.bool)
    surplus = torch.bincount(row, minlength=len(rows)) - wanted
    for number in surplus.nonzero().squeeze(1).tolist():  # equal draws: the first columns
        equal = (row == number) & (draws[number, column] == last[number])
        chosen[equal.nonzero().squeeze(1)[-int(surplus[number]) :]] = False
    return (rows[row] * allowed.shape[1] + column)[chosen]


def _revive(
    topology: Topology,
    patterns: Patterns,
    plastic: UnitSets,
    count: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One new outgoing connection for each plastic unit that has none, as far as counts allow."""
    left = dict(count)
    positions: dict[str, list[int]] = {layer.name: [] for layer in topology.layers}
    for group, silent in without_outgoing(topology, patterns, plastic).items():
        outlets = [
            (layer, rows)
            for layer in topology.readers(group)
            if len(rows := layer.rows_in(plastic).nonzero().squeeze(1))
        ]
        for unit in silent.nonzero().squeeze(1).tolist():
            open_outlets = [
                (layer, targets, columns)
                for layer, targets in outlets
                # A layer may read some units of a group and not this one.
                if left[layer.name] > 0 and len(columns := layer.columns_of(group, unit))
            ]
            if not open_outlets:
                continue
            layer, targets, columns = open_outlets[_draw(len(open_outlets), generator)]
            target = int(targets[_draw(len(targets), generator)])
            column = columns[_draw(len(columns), generator)]
            width = patterns[layer.name].shape[1]
            positions[layer.name].append(target * width + column)
            left[layer.name] -= 1
    return {name: torch.tensor(flat, dtype=torch.int64) for name, flat in positions.items()}


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
