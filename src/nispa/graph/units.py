"""What a trace finds: groups of units, and which unit each row, column and value belongs to.

A *unit* is what is kept or changed as one: a neuron, a channel, a channel of a residual stream with
all that write it, a head of attention. Units that the same layers write form a *group*. Everything
that a module learns is in one of two tables:

- :class:`Layer`: a weight whose rows belong to units that it writes, its columns to units that it
  reads. Its entries are connections, which can be live or dead.
- :class:`Values`: one or several numbers per unit: biases, scales and statistics of norms,
  depthwise kernels, positions, class token. They are always live.

Then a set of units repeats its values bit for bit, whatever happens to all others, if every live
connection into it comes from inputs or from the set, and its rows, values and statistics stay.
Norms that mix units (:class:`Norm`) need a rule of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["input", "hidden", "stream", "head", "output"]
UnitSets = Mapping[str, Tensor]


@dataclass(frozen=True)
class Span:
    """Entries that belong to neighbouring units of one group.

    Attributes:
        group: Name of the group.
        first: The first unit.
        count: How many units follow each other.
        repeat: How many entries in a row each of them has.
    """

    group: str
    first: int
    count: int
    repeat: int = 1

    def __len__(self) -> int:
        return self.count * self.repeat


@dataclass(frozen=True)
class UnitMap:
    """Which unit each of a row of entries belongs to, as spans one after the other."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that occur, each once."""
        return tuple(dict.fromkeys(span.group for span in self.spans))

    def spread(self, sets: UnitSets) -> Tensor:
        """A vector ``(entries,)`` from a vector ``(units,)`` per group: each unit's own value."""
        parts = [
            sets[span.group][span.first : span.first + span.count].repeat_interleave(span.repeat)
            for span in self.spans
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def sums(self, entries: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """The way back: the sum of each unit's entries, ``(units,)`` for each group that occurs.

        Args:
            entries: Numbers ``(entries,)``.
            sizes: Units of each group.
        """
        totals = {name: entries.new_zeros(sizes[name]) for name in self.groups}
        start = 0
        for span in self.spans:
            part = entries[start : start + len(span)].view(span.count, span.repeat)
            totals[span.group][span.first : span.first + span.count] += part.sum(1)
            start += len(span)
        return totals

    def entries_of(self, group: str, unit: int) -> list[int]:
        """The places of one unit's entries."""
        found: list[int] = []
        start = 0
        for span in self.spans:
            if span.group == group and span.first <= unit < span.first + span.count:
                first = start + (unit - span.first) * span.repeat
                found += range(first, first + span.repeat)
            start += len(span)
        return found

    def cut(self, start: int, stop: int) -> UnitMap:
        """The map of some entries that follow each other."""
        return unit_map(self.units()[start:stop])

    def units(self) -> list[tuple[str, int]]:
        """Group and unit of each entry."""
        return [
            (span.group, span.first + place // span.repeat)
            for span in self.spans
            for place in range(len(span))
        ]


def unit_map(units: Iterable[tuple[str, int]]) -> UnitMap:
    """The map of entries, from group and unit of each."""
    spans: list[Span] = []
    for (group, unit), entries in itertools.groupby(units):
        repeat, last = len(list(entries)), spans[-1] if spans else None
        if last and (last.group, last.first + last.count, last.repeat) == (group, unit, repeat):
            spans[-1] = Span(group, last.first, last.count + 1, repeat)
        else:
            spans.append(Span(group, unit, 1, repeat))
    return UnitMap(tuple(spans))


@dataclass(frozen=True)
class Group:
    """Units that the same layers write.

    Attributes:
        name: The first layer that writes it; ``input``, ``output`` and ``constant`` are these.
        size: How many units.
        kind: ``input`` never changes; ``output`` are the logits; ``head`` has units of several rows
            of a weight, multiplied with each other by attention; ``stream`` is written by several
            layers, by a residual sum or a gate; ``hidden`` is any other.
        writers: Names of the layers with rows in it, in order of the forward pass.
        readers: Names of the layers with columns in it.
    """

    name: str
    size: int
    kind: Kind
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A weight of connections, ``(rows, columns / blocks, *kernel)``.

    Attributes:
        name: Path of the module, or of the parameter where that is not called ``weight``.
        weight: Path of the parameter.
        rows: Units it writes.
        columns: Units it reads.
        operator: ``linear`` or ``conv1d`` to ``conv3d``; ``matmul`` and ``conv_transpose1d`` to
            ``conv_transpose3d`` where the parameter lies :attr:`turned`.
        kernel: Numbers of one connection, such as ``(3, 3)``; empty for one number.
        blocks: Groups of a grouped convolution: rows and columns are cut into so many equal parts,
            and only positions within part i of both are there.
        first_row: Where in the parameter its rows begin, if they are only some of them.
        bias: Path of the bias, or None; its entries from ``first_bias`` on belong to the rows.
        first_bias: Where in the bias its entries begin.
        module: Path of the module of a known class that alone uses the weight, so that another
            module can take its place; None where code reads the parameter by itself.
        calls: How often a forward pass uses it.
        places: Outputs of one row for one sample: tokens, or pixels, of all calls.
    """

    name: str
    weight: str
    rows: UnitMap
    columns: UnitMap
    operator: str
    kernel: tuple[int, ...] = ()
    blocks: int = 1
    first_row: int = 0
    bias: str | None = None
    first_bias: int = 0
    module: str | None = None
    calls: int = 1
    places: int = field(default=1, compare=False)

    @property
    def turned(self) -> bool:
        """Whether the parameter holds columns first, ``(columns, rows, *kernel)``."""
        return self.operator == "matmul" or self.operator.startswith("conv_transpose")

    def allowed(self) -> Tensor | None:
        """Positions that exist, ``(rows, columns)`` bool; None where all do."""
        if self.blocks == 1:
            return None
        rows = torch.arange(len(self.rows)) // (len(self.rows) // self.blocks)
        columns = torch.arange(len(self.columns)) // (len(self.columns) // self.blocks)
        return rows[:, None] == columns[None, :]

    def between(self, sources: UnitSets, targets: UnitSets) -> Tensor:
        """Where connections lead from some units into some others, as the weight lies.

        Args:
            sources: Units they may leave, a bool vector per group.
            targets: Units they may enter.

        Returns:
            Bool, ``(rows, columns / blocks)``.
        """
        enter, leave = self.rows.spread(targets), self.columns.spread(sources)
        parts = zip(enter.chunk(self.blocks), leave.chunk(self.blocks), strict=True)
        return torch.cat([row[:, None] & column[None, :] for row, column in parts])


ValueKind = Literal["bias", "norm", "statistic", "depthwise", "embedding", "value", "shared"]

MAY_BE_SHARED = ("norm", "value")
"""What parameters are, unless single numbers of them meet many units."""


@dataclass(frozen=True)
class Values:
    """A parameter or buffer whose entries belong to units one by one.

    Attributes:
        name: Path of the parameter or buffer.
        kind: ``bias`` of a layer, ``norm`` scale or shift, running ``statistic`` of a batch norm,
            ``depthwise`` kernel, ``embedding`` table, or any other ``value`` that the forward pass
            adds or multiplies (positions, class token, LayerScale); ``shared`` if single numbers
            meet many units each (a scalar gate, one slope for all), so that whatever is kept first
            keeps them.
        units: Whom the entries belong to; nobody, if they are shared.
        dim: The dimension that ``units`` runs along, all else of an entry belonging to the same
            unit; None where it runs over all numbers in the order of ``flatten()``.
    """

    name: str
    kind: ValueKind
    units: UnitMap
    dim: int | None = 0

    def spread(self, sets: UnitSets, shape: tuple[int, ...]) -> Tensor:
        """A tensor of the parameter's ``shape`` from a vector per group."""
        entries = self.units.spread(sets)
        if self.dim is None:
            return entries.reshape(shape)
        lying = [1] * len(shape)
        lying[self.dim] = len(entries)
        return entries.reshape(lying).expand(shape)


NormKind = Literal["batch", "layer", "rms", "group"]


@dataclass(frozen=True)
class Norm:
    """A norm module, and which units share its statistics.

    Attributes:
        module: Path of the module.
        kind: ``batch``: each unit over the batch; ``layer``, ``rms``, ``group``: over units.
        sets: Units that are normalised together, once for each of the module's groups. For
            ``batch`` one set of all: its units do not meet.
        beside: What the module does beside the norm, such as ``relu``.
    """

    module: str
    kind: NormKind
    sets: tuple[UnitMap, ...]
    beside: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def mixes(self) -> bool:
        """Whether a unit's result depends on other units."""
        return self.kind != "batch" and any(len(set(each.units())) > 1 for each in self.sets)


@dataclass(frozen=True)
class UnitGraph:
    """All of a module: groups, layers, values and norms, in the order of a forward pass.

    Attributes:
        operations: Of one sample's pass beside those of layers: norms, attention, depthwise
            kernels.
        random: Whether training draws random numbers, as dropout does.
        constants: A hash of the tensors that code holds without a name; empty if there are none.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    values: tuple[Values, ...]
    norms: tuple[Norm, ...]
    operations: int = field(default=0, compare=False)
    random: bool = field(default=False, compare=False)
    constants: str = field(default="", compare=False)

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def group(self, name: str) -> Group:
        """The group called ``name``."""
        return self._by_name[name]

    def layer(self, name: str) -> Layer:
        """The layer called ``name``."""
        return next(layer for layer in self.layers if layer.name == name)

    @property
    def output(self) -> Group:
        """The group of logits."""
        return next(group for group in self.groups if group.kind == "output")

    def values_of(self, group: str) -> tuple[Values, ...]:
        """The values of a group's units."""
        return tuple(values for values in self.values if group in values.units.groups)

    def norms_of(self, group: str) -> tuple[Norm, ...]:
        """The norms that a group's units pass."""
        return tuple(
            norm for norm in self.norms if any(group in units.groups for units in norm.sets)
        )

    @property
    def shared(self) -> tuple[str, ...]:
        """Paths of parameters whose numbers belong to no unit, since each meets many."""
        return tuple(values.name for values in self.values if values.kind == "shared")

    def no_units(self) -> dict[str, Tensor]:
        """A bool vector per group: True for inputs, which never change, False elsewhere."""
        return {
            group.name: torch.full((group.size,), group.kind == "input") for group in self.groups
        }
