"""Patterns and unit sets drawn by hand, and random networks to hold invariants against."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from nispa.network.topology import ConnectionLayer, Topology, UnitGroup


def units(text: str) -> Tensor:
    """``"x.x"`` as a boolean vector."""
    return torch.tensor([letter == "x" for letter in text], dtype=torch.bool)


def drawn(*rows: str) -> Tensor:
    """A pattern, one text per target unit, ``x`` where a connection is live."""
    return torch.stack([units(row) for row in rows])


def chain(*sizes: int) -> Topology:
    """Groups ``in``, ``a``, ``b``, ..., ``out``, each feeding the next through ``to_NAME``."""
    names = ["in", *"abcdefgh"[: len(sizes) - 2], "out"]
    roles = {"in": "input", "out": "output"}
    groups = tuple(
        UnitGroup(name, size, roles.get(name, "hidden"))  # type: ignore[arg-type]
        for name, size in zip(names, sizes, strict=True)
    )
    layers = tuple(
        ConnectionLayer(f"to_{target}", source, target)
        for source, target in itertools.pairwise(names)
    )
    return Topology(groups, layers)


@dataclass(frozen=True)
class Net:
    """A random network: its topology, live connections, and the units that are kept."""

    topology: Topology
    patterns: dict[str, Tensor]
    stable: dict[str, Tensor]
    kept: dict[str, Tensor]


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Chains with extra layers across them: shared readers, residual ties, loops, blocks."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=3, max_size=5))
    line = chain(*sizes)
    names = [group.name for group in line.groups]
    hidden = names[1:-1]
    layers = [
        ConnectionLayer(layer.name, layer.source, layer.target, draw(st.sampled_from([1, 1, 2, 3])))
        for layer in line.layers
    ]
    for number in range(draw(st.integers(0, 3))):  # any two groups, a group and itself included
        source, target = draw(st.sampled_from(names[:-1])), draw(st.sampled_from(hidden))
        block = draw(st.sampled_from([1, 2]))
        layers.append(ConnectionLayer(f"extra{number}", source, target, block))
    topology = Topology(line.groups, tuple(layers))

    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))

    def some(*shape: int, part: float) -> Tensor:
        return torch.rand(shape, generator=generator) < part

    patterns = {
        layer.name: some(
            *topology.pattern_shape(layer), part=draw(st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0]))
        )
        for layer in layers
    }
    stable = topology.no_units()
    kept = {name: members.clone() for name, members in stable.items()}
    for group in topology.groups[1:]:
        kept[group.name] |= some(group.size, part=share)
        stable[group.name] |= kept[group.name] & some(group.size, part=0.5)
    return Net(topology, patterns, stable, kept)
