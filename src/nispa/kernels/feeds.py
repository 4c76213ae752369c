"""A data set as kernels read it, with what constant units make of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nispa.kernels.structure import Ints, Link

_UNKNOWN = itertools.count(-1, -1)

STALE = (
    "this data set was prepared for a network with other frozen values or connections than it has "
    "now; prepare it again"
)


@dataclass(frozen=True)
class Given:
    """Some images of a :class:`Feed`: the rows of ``index``, ``(batch,)`` int64."""

    feed: Feed
    index: Tensor

    def __post_init__(self) -> None:
        index, size = self.index, len(self.feed.rows)
        if index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
            raise IndexError(f"index of {index.dtype}, {index.dim()} dimensions, must list numbers")
        object.__setattr__(self, "index", index.to(torch.int64).contiguous())
        if len(index):
            low, high = map(int, index.aminmax())
            if not 0 <= low <= high < size:
                raise IndexError(f"index from {low} to {high} must lie in [0, {size})")

    def split(self, size: int) -> list[Given]:
        """Parts of at most ``size`` images."""
        if len(self) <= size:
            return [self]
        return [Given(self.feed, part) for part in self.index.split(size)]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Part:
    """Columns of a feed's rows that fill channels of a buffer."""

    buffer: int
    channels: Ints
    start: int
    width: int


class Constants:
    """Frozen values and positions of a chain, as they were."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._marks = marks_of(self._frozen(links))
        self._values = [values.clone() for values, _ in self._marks]

    def hold(self, links: Sequence[Link]) -> bool:
        """Whether they still are the same; compared only where something was written."""
        marks = marks_of(self._frozen(links))
        if not unchanged(marks, self._marks):
            pairs = zip(self._values, marks, strict=True)
            if not all(torch.equal(old, new) for old, (new, _) in pairs):
                return False
            self._marks = marks
        return True

    @staticmethod
    def _frozen(links: Sequence[Link]) -> Iterator[Tensor]:
        for link in links:
            for live in link.live:
                yield live.frozen
                yield live.frozen_index


@dataclass(frozen=True)
class Feed:
    """A data set as kernels read it: pixels, and activations of constant units, a row an image.

    Attributes:
        rows: ``(images, features)`` float32.
        parts: Which columns fill what.
        computed: Rows (channels) of each link that are still to be computed; None means all.
        shape: Channels, height and width of the images.
        constants: The frozen values that the kept activations follow from.
    """

    rows: Tensor
    parts: tuple[Part, ...]
    computed: tuple[Ints | None, ...]
    shape: tuple[int, int, int]
    constants: Constants

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.rows.numel() * self.rows.element_size()


def changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place; another number each time if that is not counted."""
    return next(_UNKNOWN) if tensor.is_inference() else tensor._version


def marks_of(tensors: Iterable[Tensor]) -> list[tuple[Tensor, int]]:
    """What tells later whether one of these tensors was replaced or written to."""
    return [(tensor, changes(tensor)) for tensor in tensors]


def unchanged(first: list[tuple[Tensor, int]], second: list[tuple[Tensor, int]]) -> bool:
    """Whether these are the same tensors, not written to in between."""
    return all(
        one is other and before == after
        for (one, before), (other, after) in zip(first, second, strict=True)
    )
