"""Keeping units: what leads into them from others is dropped, and what they need is frozen."""

from __future__ import annotations

import torch

from nispa.network.sparse_network import SparseNetwork
from nispa.network.topology import UnitSets, complement, live_between


def drop_into(network: SparseNetwork, kept: UnitSets) -> dict[str, int]:
    """Removes every connection from other units into some, which then depend on themselves alone.

    Returns:
        How many connections each layer lost.
    """
    patterns = network.patterns()
    removed = live_between(network.topology, patterns, complement(kept), kept)
    for name, layer in network.layers.items():
        nothing = torch.zeros(0, dtype=torch.int64)
        layer.rewire(patterns[name] & ~removed[name], nothing, torch.zeros(0, *layer.spec.kernel))
    network.settle(kept)
    return {name: int(connections.sum()) for name, connections in removed.items()}


def freeze(network: SparseNetwork, stable: UnitSets, *, outputs: bool = True) -> None:
    """Freezes connections between stable units, and all else of stable units.

    If also no plastic unit feeds a stable one, no stable unit can ever compute anything else.

    Args:
        network: The network.
        stable: Stable units per group, ``(units,)`` bool, inputs among them.
        outputs: Whether this includes outputs.
    """
    output = network.topology.output.name
    between = live_between(network.topology, network.patterns(), stable, stable)
    for name, layer in network.layers.items():
        if outputs or output not in layer.spec.targets:
            layer.freeze(between[name], layer.spec.rows_in(stable))
    if not outputs:
        stable = {**stable, output: torch.zeros_like(stable[output])}
    network.hold(stable)
