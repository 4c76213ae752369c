"""Sets of stable units, as NISPA, NISPA-Replay and CLNP use them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nispa.network.isolation import check_isolation
from nispa.network.keeping import freeze
from nispa.network.models import SparseNetwork
from nispa.network.topology import Topology, UnitSets, complement, live_between
from nispa.network.traced import TracedNetwork


def with_outputs(topology: Topology, units: UnitSets, classes: Iterable[int]) -> dict[str, Tensor]:
    """``units`` and the outputs of ``classes``."""
    output = units[topology.output.name].clone()
    output[list(classes)] = True
    return {**units, topology.output.name: output}


def hidden_share(topology: Topology, units: UnitSets) -> float:
    """Share of the hidden units that are in a set; 0 if there are no hidden units."""
    chosen = sum(int(units[group.name].sum()) for group in topology.hidden)
    return chosen / max(1, sum(group.size for group in topology.hidden))


def freeze_stable(network: SparseNetwork, stable: UnitSets, *, outputs: bool = True) -> None:
    """Freezes what stable units need, and checks that nothing else reaches the outputs among them.

    Args:
        network: The network.
        stable: Stable units per group, ``(units,)`` bool, inputs among them.
        outputs: Whether this includes the connections into outputs and their biases.

    Raises:
        IsolationError: Outputs of stable units change with values that are plastic.
    """
    freeze(network, stable, outputs=outputs)
    if outputs and isinstance(network, TracedNetwork):
        check_isolation(network, stable)


def thaw_units(network: SparseNetwork, units: UnitSets) -> None:
    """Makes plastic what :func:`freeze_stable` froze of units: what they read, biases, all else.

    Args:
        network: The network.
        units: Units per group, ``(units,)`` bool, from which no live connection leads to a unit
            that stays stable.
    """
    for layer in network.layers.values():
        rows = layer.spec.rows_in(units)
        layer.thaw(rows.unsqueeze(1).expand(layer.shape), rows)
    network.thaw(units)


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
