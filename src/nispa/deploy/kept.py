"""Which units of a module reach some of its logits, and which elements of each tensor are theirs.

A unit is kept if a logit that is asked for reads it over any path of live connections; so is one
that is normalised together with a kept one. A constant is not kept for the sake of a reader whose
bias can take its place.

What is cut of a tensor must leave a tensor: the kept elements must be all combinations of some
places of each dimension. Units that stand in the way of that are kept, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nispa.deploy.constants import Read
from nispa.deploy.recorded import Recorded
from nispa.graph.found import LayerFound
from nispa.network.norms import GenerationNorm

Places = tuple[Tensor, ...]
"""The places that are kept of each dimension, rising."""


@dataclass(frozen=True)
class _Wired:
    """Units of a layer's rows and columns, and which columns a row needs: ``(rows, columns)``."""

    rows: Tensor
    columns: Tensor
    needs: Tensor
    blocks: int


class Kept:
    """Units that are kept, and more of them as it turns out what cannot be cut.

    Attributes:
        needed: Units that the logits read, by the number of a unit, bool.
        units: Those, and units that only fill a place: nothing reads their values, which may be 0.
    """

    def __init__(
        self,
        recorded: Recorded,
        reads: dict[fx.Node, Read],
        norms: dict[str, GenerationNorm],
        outputs: Sequence[int],
        *,
        fill: bool = True,
    ) -> None:
        """What some logits need.

        Args:
            recorded: The operators.
            reads: What layers read that depends on no image.
            norms: Norms whose statistics run over sets of units, by their paths.
            outputs: The logits.
            fill: Whether units that only fill a place may have other values than they had.
        """
        self.fill = fill
        self.recorded, self.norms = recorded, norms
        ids = recorded.walk.ids
        self.first = ids.fixed  # units below are inputs and constants
        logits = ids.labels(recorded.noted(recorded.logits))[0]
        self.needed = torch.zeros(ids.count, dtype=torch.bool)
        self.needed[logits[list(outputs)]] = True
        self.units = self.needed.clone()
        self._layers = [self._layer(layer, reads) for layer in recorded.walk.found.layers.values()]
        self._norms = [
            (ids.labels(found.sets), norms[path].generation)
            for path, found in recorded.walk.found.norms.items()
            if path in norms
        ]
        self._nodes = [
            ids.labels(each)
            for node in recorded.graph.nodes
            for each in _tensors(recorded.noted(node))
        ]
        self.settle()

    def settle(self) -> None:
        """Adds units until nothing that is kept lacks one."""
        while True:
            self._need()
            self.units |= self.needed
            before = int(self.units.sum())
            for labels in self._nodes:
                self._whole_places(labels)
            for wired in self._layers:
                self._some_column(wired)
            if before == int(self.units.sum()):
                return
            if not self.fill:
                self.needed |= self.units

    def _need(self) -> None:
        before = -1
        while before != int(self.needed.sum()):
            before = int(self.needed.sum())
            for wired in reversed(self._layers):
                self._read(wired)
            for sets, generations in self._norms:
                self._normalised(sets, generations)

    def add(self, labels: Iterable[Tensor]) -> bool:
        """Keeps more units; says whether any of them was not needed."""
        before = int(self.needed.sum())
        for each in labels:
            self.needed[each[each >= self.first]] = True
        self.settle()
        return int(self.needed.sum()) > before

    def fills(self, numbers: Tensor) -> Tensor:
        """Which elements belong to units that only fill a place, bool."""
        labels = self.labels(numbers)
        return self.units[labels] & ~self.needed[labels] & (labels >= self.first)

    def labels(self, numbers: Tensor) -> Tensor:
        """Units of elements."""
        return self.recorded.walk.ids.labels(numbers)

    def rows(self, numbers: Tensor) -> Tensor:
        """Places of a vector of elements that are kept; inputs and constants are."""
        labels = self.labels(numbers)
        return (self.units[labels] | (labels < self.first)).nonzero().flatten()

    def places(self, numbers: Tensor) -> Places:
        """What is kept of a tensor with these numbers."""
        labels = self.labels(numbers)
        return places_of(self.units[labels], labels < self.first)

    def _layer(self, layer: LayerFound, reads: dict[fx.Node, Read]) -> _Wired:
        weight = self.recorded.state[layer.weight]
        weight = weight.transpose(0, 1) if layer.turned else weight
        mine = weight[layer.first_row : layer.first_row + len(layer.rows)]
        needs = spread(live(mine), layer.blocks)
        calls = [read for node, read in reads.items() if self._calls(node, layer)]
        if calls:
            still = calls[0].still.clone()
            for read in calls:
                still &= read.still & (read.value == calls[0].value)
                read.still = still  # one bias serves all calls
            needs &= ~still
        return _Wired(self.labels(layer.rows), self.labels(layer.columns), needs, layer.blocks)

    def _calls(self, node: fx.Node, layer: LayerFound) -> bool:
        call = self.recorded.call(node)
        learned = self.recorded.weight(call) if call is not None else None
        return (
            learned is not None
            and learned.name == layer.weight
            and int(learned.rows[0]) == layer.first_row
        )

    def _read(self, wired: _Wired) -> None:
        mine = self.needed[wired.rows]
        if bool(mine.any()):
            read = wired.columns[wired.needs[mine].any(0)]
            self.needed[read[read >= self.first]] = True

    def _some_column(self, wired: _Wired) -> None:
        """A layer must read something."""
        parts = zip(wired.rows.chunk(wired.blocks), wired.columns.chunk(wired.blocks), strict=True)
        for rows, columns in parts:
            some = self.units[columns] | (columns < self.first)
            if bool(self.units[rows].any()) and not bool(some.any()):
                self.units[columns[0]] = True

    def _normalised(self, sets: Tensor, generations: Tensor) -> None:
        generations = generations.to(sets.device)
        for number, labels in enumerate(sets):
            generation = generations[number if len(generations) == len(sets) else 0]
            mine = self.needed[labels] & (labels >= self.first)
            if not bool(mine.any()):
                continue
            found = generation[mine]
            needed = generation <= found.max() if bool((found > 0).all()) else generation >= 0
            needed &= (generation > 0) | bool((found == 0).any())
            members = labels[needed]
            self.needed[members[members >= self.first]] = True

    def _whole_places(self, labels: Tensor) -> None:
        free = labels < self.first
        kept = self.units[labels] & ~free
        if not bool(kept.any()) or bool((kept | free).all()):
            return
        missing = taken(places_of(kept, free), labels.shape) & ~kept & ~free
        if bool(missing.any()):
            self.units[labels[missing]] = True


def live(weight: Tensor) -> Tensor:
    """Connections that are not 0, ``(rows, columns)`` bool."""
    found = weight != 0
    for dim in reversed(range(2, weight.dim())):
        found = found.any(dim)
    return found


def spread(weight: Tensor, blocks: int) -> Tensor:
    """What lies ``(rows, columns / blocks)``, as ``(rows, columns)`` with zeros elsewhere."""
    if blocks == 1:
        return weight
    rows = len(weight) // blocks
    parts = (weight[block * rows : (block + 1) * rows].float() for block in range(blocks))
    spread_out: Tensor = torch.block_diag(*parts) != 0
    return spread_out


def places_of(kept: Tensor, free: Tensor) -> Places:
    """The places of each dimension with an element that is kept, or with free ones alone."""
    if kept.dim() == 0:
        return ()
    found = []
    for dim in range(kept.dim()):
        others = [each for each in range(kept.dim()) if each != dim]
        some = kept.sum(others) > 0 if others else kept
        every = (~free).sum(others) == 0 if others else free
        found.append((some | every).nonzero().flatten())
    return tuple(found)


def taken(places: Places, shape: Sequence[int]) -> Tensor:
    """Where a tensor of a shape is kept, bool."""
    found = torch.ones(tuple(shape), dtype=torch.bool)
    for dim, each in enumerate(places):
        mine = torch.zeros(shape[dim], dtype=torch.bool)
        mine[each] = True
        found &= mine.view(-1, *[1] * (len(shape) - dim - 1))
    return found


def cut(tensor: Tensor, places: Places) -> Tensor:
    """What is kept of a tensor."""
    for dim, each in enumerate(places):
        if len(each) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, each)
    return tensor


def _tensors(known: Any) -> list[Tensor]:
    if isinstance(known, (list, tuple)):
        return [each for part in known for each in _tensors(part)]
    return [known] if isinstance(known, Tensor) else []
