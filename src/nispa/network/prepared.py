"""Data sets laid out for many passes through one network; see :meth:`.SparseNetwork.prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nispa.kernels.dispatch import CachedBatch, CachedData


class DataSet(Protocol):
    """Labelled images, read batch by batch; see :class:`nispa.data.tasks.Samples`."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """Classes, ``(samples,)`` int64."""

    def batch(self, index: Tensor) -> tuple[Any, Tensor]:
        """Images and labels at ``index``, ``(n,)`` int64."""

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """All in order, at most ``size`` at a time."""


@dataclass(frozen=True)
class Prepared:
    """A data set as compiled kernels read it, for one network until what is frozen changes."""

    cached: CachedData
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[CachedBatch, Tensor]:
        """Rows that stand for the images at ``index``, ``(n,)`` int64, and their labels."""
        return CachedBatch(self.cached, index), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[CachedBatch, Tensor]]:
        """All in order, at most ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)


@dataclass(frozen=True)
class Ready:
    """A data set as a network on a GPU reads it: scaled, float32, in that device's memory.

    Attributes:
        pixels: ``(images, channels, height, width)``, or ``(images, height, width, channels)``.
        labels: ``(images,)`` int64.
        channels_last: Which of the two.
    """

    pixels: Tensor
    labels: Tensor
    channels_last: bool

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(n, channels, height, width)`` and labels at ``index``, ``(n,)`` int64."""
        return self._images(self.pixels.index_select(0, index)), self.labels.index_select(0, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All in order, at most ``size`` at a time."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield self._images(pixels), labels

    def _images(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2) if self.channels_last else pixels
