"""The units of a network and the layers that join them, without any values.

A *group* is a set of units that are stable or plastic one by one: the neurons of a Linear layer,
the channels of a convolution, or several of these tied by a residual sum. A *connection layer*
joins the units of one group to those of another; one connection is a scalar weight, or a whole
k x k kernel.

- Linear after a convolution: each channel became a ``block`` of features by flattening, so column
  ``c * block + p`` of the layer's pattern belongs to unit ``c`` of the source group.
- Several layers reading one group: they name the same ``source``.
- A residual sum: every layer that adds into the stream names the same ``target``. A unit of the
  stream is then one unit, whichever layer feeds it, and the group may feed itself through a block.
- Concatenation, packed projections, heads of attention: rows or columns belong to several groups,
  or several rows to one unit. :class:`MappedLayer` says entry by entry whose they are.

A *pattern* is a boolean ``(rows, columns)`` matrix, ``(target units, source units * block)`` of a
plain layer, True where a connection is live. Patterns and sets of stable units are stored
elsewhere; the functions here relate the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nispa.errors import ConfigError
from nispa.graph.units import UnitMap

Role = Literal["input", "hidden", "output"]
Patterns = Mapping[str, Tensor]
UnitSets = Mapping[str, Tensor]


@dataclass(frozen=True)
class UnitGroup:
    """A named set of units: ``input``, ``hidden`` or ``output``."""

    name: str
    size: int
    role: Role = "hidden"


@dataclass(frozen=True)
class ConnectionLayer:
    """A layer of connections from the units of ``source`` into those of ``target``.

    Attributes:
        name: The layer's name, as the network calls it.
        source: Group the connections leave.
        target: Group they enter.
        block: Features per source unit (1 unless a flatten stands between).
        kernel: Weights of one connection, such as ``(3, 3)``; empty for a scalar.
    """

    name: str
    source: str
    target: str
    block: int = 1
    kernel: tuple[int, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The groups that columns belong to."""
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        """The groups that rows belong to."""
        return (self.target,)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Rows and columns, from the number of units of each group."""
        return sizes[self.target], sizes[self.source] * self.block

    def rows_in(self, units: UnitSets) -> Tensor:
        """The rows of units in a set, ``(rows,)`` bool."""
        return units[self.target]

    def columns_in(self, units: UnitSets) -> Tensor:
        """The columns of units in a set, ``(columns,)`` bool."""
        return source_columns(self, units[self.source])

    def source_units(self, units: UnitSets) -> Tensor:
        """What :func:`source_columns` makes columns of: the source group's units in a set."""
        return units[self.source]

    def columns_of(self, group: str, unit: int) -> Sequence[int]:
        """The columns of one unit of a group that the layer reads."""
        assert group == self.source
        return range(unit * self.block, (unit + 1) * self.block)

    def units_fed(self, rows: Tensor) -> dict[str, Tensor]:
        """The units of which at least one row is among ``rows``, ``(units,)`` bool per group."""
        return {self.target: rows}

    def units_heard(self, columns: Tensor) -> dict[str, Tensor]:
        """The units of which at least one column is among ``columns``, likewise."""
        return {self.source: column_units(self, columns)}


@dataclass(frozen=True)
class MappedLayer(ConnectionLayer):
    """A layer whose rows and columns belong to units one by one.

    ``source`` and ``target`` are the groups of its first column and row; ``block`` is 1.

    Attributes:
        rows: Unit of each row.
        columns: Unit of each column.
        sizes: Units of each group that occurs.
    """

    rows: UnitMap = field(default_factory=lambda: UnitMap(()))
    columns: UnitMap = field(default_factory=lambda: UnitMap(()))
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def sources(self) -> tuple[str, ...]:
        """The groups that columns belong to."""
        return self.columns.groups

    @property
    def targets(self) -> tuple[str, ...]:
        """The groups that rows belong to."""
        return self.rows.groups

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.columns)

    def rows_in(self, units: UnitSets) -> Tensor:
        """The rows of units in a set, ``(rows,)`` bool."""
        return self.rows.spread(units)

    def columns_in(self, units: UnitSets) -> Tensor:
        """The columns of units in a set, ``(columns,)`` bool."""
        return self.columns.spread(units)

    def source_units(self, units: UnitSets) -> Tensor:
        """One entry for each column, since ``block`` is 1."""
        return self.columns.spread(units)

    def columns_of(self, group: str, unit: int) -> Sequence[int]:
        """The columns of one unit of a group that the layer reads."""
        return self.columns.entries_of(group, unit)

    def units_fed(self, rows: Tensor) -> dict[str, Tensor]:
        """The units of which at least one row is among ``rows``."""
        return {name: sums > 0 for name, sums in self.rows.sums(rows.long(), self.sizes).items()}

    def units_heard(self, columns: Tensor) -> dict[str, Tensor]:
        """The units of which at least one column is among ``columns``."""
        sums = self.columns.sums(columns.long(), self.sizes)
        return {name: each > 0 for name, each in sums.items()}


@dataclass(frozen=True)
class Topology:
    """Groups and connection layers, both listed in the order in which a forward pass meets them."""

    groups: tuple[UnitGroup, ...]
    layers: tuple[ConnectionLayer, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ConfigError(f"unit groups {names} must have different names")
        layers = [layer.name for layer in self.layers]
        if len(set(layers)) != len(layers):
            raise ConfigError(f"layers {layers} must have different names")
        roles = {group.name: group.role for group in self.groups}
        for layer in self.layers:
            for end in (*layer.sources, *layer.targets):
                if end not in roles:
                    raise ConfigError(f"layer {layer.name} joins '{end}', not one of {names}")
            for end in layer.targets:
                if roles[end] == "input":
                    raise ConfigError(f"layer {layer.name} must not feed the input '{end}'")
            for end in layer.sources:
                if roles[end] == "output":
                    raise ConfigError(f"layer {layer.name} must not read the output '{end}'")

    def group(self, name: str) -> UnitGroup:
        """The group called ``name``."""
        return next(group for group in self.groups if group.name == name)

    def layer(self, name: str) -> ConnectionLayer:
        """The layer called ``name``."""
        return next(layer for layer in self.layers if layer.name == name)

    @property
    def hidden(self) -> tuple[UnitGroup, ...]:
        """The groups whose units become stable by selection."""
        return tuple(group for group in self.groups if group.role == "hidden")

    @property
    def output(self) -> UnitGroup:
        """The group of logits."""
        return next(group for group in self.groups if group.role == "output")

    def readers(self, group: str) -> tuple[ConnectionLayer, ...]:
        """The layers that read a group."""
        return tuple(layer for layer in self.layers if group in layer.sources)

    def feeders(self, group: str) -> tuple[ConnectionLayer, ...]:
        """The layers that feed a group."""
        return tuple(layer for layer in self.layers if group in layer.targets)

    def pattern_shape(self, layer: ConnectionLayer) -> tuple[int, int]:
        """Rows (target units) and columns (source features) of a layer's pattern."""
        return layer.shape({group.name: group.size for group in self.groups})

    def no_units(self) -> dict[str, Tensor]:
        """A boolean vector per group: True for inputs, which never change, False elsewhere."""
        return {
            group.name: torch.full((group.size,), group.role == "input") for group in self.groups
        }


def source_columns(layer: ConnectionLayer, units: Tensor) -> Tensor:
    """Units of the source group ``(units,)`` as columns of the pattern ``(units * block,)``."""
    return units if layer.block == 1 else units.repeat_interleave(layer.block)


def column_units(layer: ConnectionLayer, columns: Tensor) -> Tensor:
    """Columns ``(units * block,)`` as units ``(units,)``: True if any column of the unit is."""
    return columns if layer.block == 1 else columns.view(-1, layer.block).any(dim=1)


def live_between(
    topology: Topology, patterns: Patterns, sources: UnitSets, targets: UnitSets
) -> dict[str, Tensor]:
    """The live connections from units of ``sources`` into units of ``targets``, layer by layer.

    Args:
        topology: The network's structure.
        patterns: Pattern of each layer, ``(rows, columns)`` bool.
        sources: Units per group they may leave, ``(units,)`` bool.
        targets: Units per group they may enter, ``(units,)`` bool.

    Returns:
        A boolean matrix per layer, of its pattern's shape.
    """
    return {
        layer.name: patterns[layer.name]
        & layer.rows_in(targets).unsqueeze(1)
        & layer.columns_in(sources).unsqueeze(0)
        for layer in topology.layers
    }


def complement(units: UnitSets) -> dict[str, Tensor]:
    """The units not in a set, group by group."""
    return {name: ~members for name, members in units.items()}


def union(first: UnitSets, second: UnitSets) -> dict[str, Tensor]:
    """The units in either set, group by group."""
    return {name: first[name] | second[name] for name in first}
