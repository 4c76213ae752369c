"""Numbers for units, and which of them are one and the same.

Every element of an activation carries the number of the unit that it belongs to. Two numbers that
must be kept or changed together are tied. Number 0 stands for constants, the next ones for the
elements of the inputs; both never change, so nothing is tied to them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT = 0


@dataclass(frozen=True)
class Tie:
    """Pairs of numbers ``(pairs, 2)`` that became one unit.

    Attributes:
        pairs: The numbers.
        by: Which operator did it.
        instead: What to say if too many did; empty for the usual words.
    """

    pairs: Tensor
    by: str
    instead: str = ""


class Ids:
    """A supply of numbers and the ties between them.

    Attributes:
        ties: All ties so far, in order.
        fixed: Numbers below it stand for constants and inputs.
    """

    def __init__(self) -> None:
        self.ties: list[Tie] = []
        self.fixed = 1
        self._label = torch.zeros(1, dtype=torch.int64)
        self._first = [CONSTANT]
        self._origin = ["constants"]

    def fresh(self, shape: Sequence[int], origin: str) -> Tensor:
        """New numbers, int64 of a shape; ``origin`` says in errors where they come from."""
        start, count = len(self._label), math.prod(shape)
        if count:
            self._first.append(start)
            self._origin.append(origin)
        numbers = torch.arange(start, start + count)
        self._label = torch.cat([self._label, numbers])
        return numbers.reshape(tuple(shape))

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self._label)

    def inputs_end(self) -> None:
        """Says that all numbers so far belong to inputs."""
        self.fixed = len(self._label)

    def labels(self, ids: Tensor) -> Tensor:
        """The same number for all that are tied: the least of them."""
        labels: Tensor = self._label[ids]
        return labels

    def is_fixed(self, ids: Tensor) -> Tensor:
        """Where a number stands for a constant or an input, bool."""
        return ids < self.fixed

    def origins(self, ids: Tensor) -> list[str]:
        """Where the numbers that can change come from, each name once."""
        changing = torch.unique(ids[~self.is_fixed(ids)]).tolist()
        found = (self._origin[bisect.bisect_right(self._first, each) - 1] for each in changing)
        return list(dict.fromkeys(found))

    def join(self, parts: Sequence[Tensor], by: str) -> Tensor:
        """Numbers of what is computed element by element from ``parts``, which are tied for it."""
        spread = torch.broadcast_tensors(*parts)
        joined: Tensor = spread[0]
        for part in spread[1:]:
            joined = torch.maximum(joined, part)  # a unit's number wins over an input's
        for part in spread:
            self._tie(joined, part, by)
        return joined.clone(memory_format=torch.contiguous_format)

    def along(self, ids: Tensor, dims: Sequence[int], by: str, instead: str = "") -> Tensor:
        """Ties all numbers along some dimensions and keeps one of them, as size 1."""
        if not len(dims):
            return ids
        kept = ids.amax(tuple(dims), keepdim=True)
        self._tie(kept.expand_as(ids), ids, by, instead)
        return kept

    def would_be_one(self, rows: Iterable[Tensor], ids: Tensor, dims: Sequence[int]) -> bool:
        """Whether :meth:`along` would make all of one of several vectors of numbers one unit."""
        kept = ids.amax(tuple(dims), keepdim=True).expand_as(ids) if len(dims) else ids
        label = merged(self._label, self._pairs(kept, ids))
        return any(
            len(torch.unique(label[each])) == 1 < len(torch.unique(self._label[each]))
            for each in rows
        )

    def differ(self, ids: Tensor, dims: Sequence[int]) -> bool:
        """Whether several units that can change lie along some dimensions."""
        labels = self.labels(ids)
        kept = labels.amax(tuple(dims), keepdim=True) if len(dims) else labels
        return bool(((labels != kept) & ~self.is_fixed(labels)).any())

    def _tie(self, one: Tensor, other: Tensor, by: str, instead: str = "") -> None:
        pairs = self._pairs(one, other)
        if len(pairs):
            self.ties.append(Tie(pairs, by, instead))
            self._label = merged(self._label, pairs)

    def _pairs(self, one: Tensor, other: Tensor) -> Tensor:
        """Which labels ``(pairs, 2)`` must become one for two tensors of numbers to be tied."""
        first, second = self.labels(one), self.labels(other)
        may = (one != CONSTANT) & (other != CONSTANT)
        may &= self.is_fixed(first) == self.is_fixed(second)
        new = may & (first != second)
        coded = torch.unique(first[new] * len(self._label) + second[new])
        return torch.stack([coded // len(self._label), coded % len(self._label)], dim=1)


def merged(label: Tensor, pairs: Tensor) -> Tensor:
    """Labels after pairs of them became one: the least label of each connected set."""
    nodes, place = torch.unique(pairs, return_inverse=True)
    one, other = place.T
    least = torch.arange(len(nodes))
    while True:  # each takes the least of its neighbours', and of those at once what they have
        found = torch.minimum(least[one], least[other])
        lower = least.scatter_reduce(0, least[one], found, "amin")
        lower = lower.scatter_reduce(0, least[other], found, "amin")
        lower = lower[lower]
        if torch.equal(lower, least):
            break
        least = lower
    becomes = torch.arange(len(label))
    becomes[nodes] = nodes[least]
    return becomes[label]
