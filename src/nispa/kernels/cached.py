"""A data set as kernels read it: pixels, and activations that need not be computed again.

The activations of a constant unit stay the same while a task is learned. So a data set can be laid
out once with such activations beside its pixels; a pass then copies them into the buffers instead
of computing them. This module also decides which of them are worth the memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nispa.kernels.links import Link, PoolLink, WeightedLink
from nispa.kernels.structure import Buffer, Ints, PoolStructure, Structure
from nispa.kernels.versions import same_versions, versions_of

WORTH_KEEPING = 10.0
"""Operations that a cached activation must save per byte. Below that, computing it again is faster
than reading it from memory."""

STALE = (
    "this data set was prepared for a network with other frozen values or connections than it has "
    "now; prepare it again"
)


@dataclass(frozen=True)
class CachedBatch:
    """Some images of :class:`CachedData`: the rows of ``index``, ``(batch,)`` int64."""

    data: CachedData
    index: Tensor

    def __post_init__(self) -> None:
        # The kernels read rows without a check of their own.
        index, size = self.index, len(self.data.rows)
        if index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
            raise IndexError(f"index of {index.dtype}, {index.dim()} dimensions, must list numbers")
        object.__setattr__(self, "index", index.to(torch.int64).contiguous())
        if len(index):
            low, high = map(int, index.aminmax())
            if not 0 <= low <= high < size:
                raise IndexError(f"index from {low} to {high} must lie in [0, {size})")

    def split(self, size: int) -> list[CachedBatch]:
        """Parts of at most ``size`` images."""
        if len(self) <= size:
            return [self]
        return [CachedBatch(self.data, part) for part in self.index.split(size)]

    def __len__(self) -> int:
        return len(self.index)


Images = Tensor | CachedBatch
"""Images, ``(batch, channels, height, width)`` or ``(batch, features)``, or rows of cached data."""


@dataclass(frozen=True)
class Columns:
    """Columns of cached rows that fill channels of a buffer.

    Attributes:
        buffer: Number of the buffer.
        channels: The channels that are filled.
        start: The first column.
        width: Number of columns: pixels of all these channels.
    """

    buffer: int
    channels: Ints
    start: int
    width: int


class FrozenSnapshot:
    """Frozen values and positions of a chain as they were when activations were cached."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._versions = versions_of(_frozen(links))
        self._values = [values.clone() for values, _ in self._versions]

    def matches(self, links: Sequence[Link]) -> bool:
        """Whether they are the same now. Values are compared only after something was written."""
        versions = versions_of(_frozen(links))
        # Writing the same values again, as loading a checkpoint does, counts as a change but is
        # none.
        if not same_versions(versions, self._versions):
            pairs = zip(self._values, versions, strict=True)
            if not all(torch.equal(old, new) for old, (new, _) in pairs):
                return False
            self._versions = versions
        return True


def _frozen(links: Sequence[Link]) -> Iterator[Tensor]:
    for link in links:
        for live in link.live:
            yield live.frozen
            yield live.frozen_index


@dataclass(frozen=True)
class CachedData:
    """A data set as kernels read it: pixels and activations of constant units, a row per image.

    Attributes:
        rows: ``(images, features)`` float32.
        columns: Which of the features fill what. The first are the pixels.
        computed_rows: Rows (channels) of each link that are still to be computed; None means all.
        shape: Channels, height and width of the images.
        frozen: The frozen values that the cached activations follow from.
    """

    rows: Tensor
    columns: tuple[Columns, ...]
    computed_rows: tuple[Ints | None, ...]
    shape: tuple[int, int, int]
    frozen: FrozenSnapshot

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.rows.numel() * self.rows.element_size()


@dataclass(frozen=True)
class Candidate:
    """Constant units of a layer whose activations could be cached.

    Attributes:
        links: Numbers of the layer and, if one follows, its pool.
        buffer: Number of the buffer that holds the activations.
        constant: The constant units.
        varying: All other units.
        width: Activations per image.
        worth: Operations saved per byte of memory.
    """

    links: tuple[int, ...]
    buffer: int
    constant: Ints
    varying: Ints
    width: int
    worth: float


def candidates(
    links: Sequence[Link],
    structures: Sequence[Structure | PoolStructure],
    buffers: Sequence[Buffer],
    marked: Container[int],
) -> list[Candidate]:
    """Layers with constant units, best worth first.

    Of a layer with a pool, the pool's output is cached, which is a quarter of the size and saves
    the pool as well; but not where the layer's own output is read from outside.

    Args:
        links: The layers.
        structures: Their index arrays.
        buffers: Those before, between and after them.
        marked: Buffers whose activations are all read from outside.
    """
    found = []
    for number, (link, structure) in enumerate(zip(links, structures, strict=True)):
        # A pool is cached with the layer before it; a layer that varies everywhere has nothing to
        # keep.
        if not isinstance(structure, Structure) or structure.needs_gradient.all():
            continue
        assert isinstance(link, WeightedLink)
        pooled = isinstance(links[number + 1], PoolLink) if number + 1 < len(links) else False
        # What is read from outside, such as the units that NISPA selects by, must be in the buffer
        # itself.
        pooled = pooled and number + 1 not in marked
        saved = (number, number + 1) if pooled else (number,)
        buffer = saved[-1] + 1
        constant = np.flatnonzero(~structure.needs_gradient).astype(np.int32)
        # A multiply-add per connection, weight of its kernel, and pixel of the layer's own output.
        work = 2 * structure.live_per_row[constant].sum() * link.weights_each
        # Activations per image; they take 4 bytes each.
        width = len(constant) * buffers[buffer].pixels
        worth = float(work * buffers[number + 1].pixels / (4 * width))
        found.append(Candidate(saved, buffer, constant, structure.varying_rows, width, worth))
    return sorted(found, key=lambda candidate: -candidate.worth)


def choose(
    found: Sequence[Candidate], pixels: Columns, link_count: int, columns_at_most: int
) -> tuple[list[Columns], list[Ints | None]]:
    """Which candidates are cached, as columns, and the rows of each link that are left to compute.

    Greedy: those that save most per byte come first, and one that does not fit is passed over.
    """
    columns, width = [pixels], pixels.width
    computed_rows: list[Ints | None] = [None] * link_count
    for each in found:
        if each.worth < WORTH_KEEPING or width + each.width > columns_at_most:
            continue
        columns.append(Columns(each.buffer, each.constant, width, each.width))
        for number in each.links:
            computed_rows[number] = each.varying
        width += each.width
    return columns, computed_rows
