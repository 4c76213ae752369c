"""Sets of stable units, as NISPA, NISPA-Replay and CLNP use them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nispa.network.models import SparseNetwork
from nispa.network.topology import Topology, UnitSets, complement, live_between


def with_outputs(topology: Topology, units: UnitSets, classes: Iterable[int]) -> dict[str, Tensor]:
    """``units`` and the outputs of ``classes``."""
    output = units[topology.output.name].clone()
    output[list(classes)] = True
    return {**units, topology.output.name: output}


def hidden_share(topology: Topology, units: UnitSets) -> float:
    """Share of the hidden units that are in a set."""
    chosen = sum(int(units[group.name].sum()) for group in topology.hidden)
    return chosen / sum(group.size for group in topology.hidden)


def freeze_stable(network: SparseNetwork, stable: UnitSets, *, outputs: bool = True) -> None:
    """Freezes the connections between stable units and the biases of stable units.

    If also no plastic unit feeds a stable one, no stable unit can ever compute anything else.

    Args:
        network: The network.
        stable: Stable units per group, ``(units,)`` bool, inputs among them.
        outputs: Whether this includes the connections into outputs and their biases.
    """
    between = live_between(network.topology, network.patterns(), stable, stable)
    for name, layer in network.layers.items():
        if outputs or network.topology.output.name not in layer.spec.targets:
            layer.freeze(between[name], layer.spec.rows_in(stable))


def is_frozen(network: SparseNetwork, stable: UnitSets) -> bool:
    """Whether no plastic unit feeds a stable one, and exactly what stable units need is frozen."""
    topology, patterns = network.topology, network.patterns()
    foreign = live_between(topology, patterns, complement(stable), stable)
    between = live_between(topology, patterns, stable, stable)
    return all(
        not bool(foreign[name].any())
        and torch.equal(layer.frozen, between[name])
        and (
            not layer.biases
            or torch.equal(
                layer.frozen_bias_index.cpu(), layer.spec.rows_in(stable).nonzero().squeeze(1)
            )
        )
        for name, layer in network.layers.items()
    )
