"""What of a chain follows from its layers' patterns and its input's shape, found once for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nispa.kernels.native import Merged
from nispa.kernels.reference import LiveValues

CONVOLUTION, LINEAR, POOL = range(3)

Ints = NDArray[np.int32]


class Link(NamedTuple):
    """One layer of a chain.

    Attributes:
        kind: ``CONVOLUTION``, ``LINEAR`` or ``POOL`` (the largest of 2 x 2, stride 2).
        weight: Live weights, ``(target, source)``; None for a pool.
        bias: Live biases, ``(target,)``; None for a pool.
        relu: Whether a ReLU follows.
        stride: Of a convolution.
        padding: Of a convolution.
    """

    kind: int
    weight: LiveValues | None = None
    bias: LiveValues | None = None
    relu: bool = False
    stride: int = 1
    padding: int = 0

    @property
    def live(self) -> tuple[LiveValues, ...]:
        """Weights and biases, if there are any."""
        return () if self.weight is None or self.bias is None else (self.weight, self.bias)

    @property
    def weights_each(self) -> int:
        """Weights of one connection."""
        return math.prod(self.weight.plastic.shape[1:]) if self.weight is not None else 0


@dataclass(frozen=True)
class Buffer:
    """Shape of activations between two links: channels, height, width, and a zero border."""

    channels: int
    height: int
    width: int
    pad: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of a channel, without the border."""
        return self.height * self.width

    @property
    def vectors(self) -> int:
        """Places of a slab, the border's with them."""
        return self.channels * (self.height + 2 * self.pad) * (self.width + 2 * self.pad)

    def places(self) -> Ints:
        """Where each feature lies, in vectors, in the order of a flatten."""
        line = self.width + 2 * self.pad
        channel = np.arange(self.channels)[:, None, None] * line * (self.height + 2 * self.pad)
        row = (np.arange(self.height)[:, None] + self.pad) * line
        return (channel + row + np.arange(self.width) + self.pad).ravel().astype(np.int32)


def buffers_of(links: Sequence[Link], input_shape: tuple[int, int, int]) -> list[Buffer]:
    """The images and what each link makes of them, with the borders that convolutions read."""
    shapes = [input_shape]
    for link in links:
        channels, height, width = shapes[-1]
        if link.weight is None:
            shapes.append((channels, height // 2, width // 2))
        elif link.kind == LINEAR:
            shapes.append((link.weight.shape[0], 1, 1))
        else:
            high, wide = link.weight.plastic.shape[1:]
            shapes.append(
                (
                    link.weight.shape[0],
                    (height + 2 * link.padding - high) // link.stride + 1,
                    (width + 2 * link.padding - wide) // link.stride + 1,
                )
            )
    pads = [0] * len(shapes)
    for number, link in enumerate(links):
        if link.kind == CONVOLUTION and link.weight is not None:
            pads[number] = max(pads[number], link.padding)
            if link.stride == 1:  # backward slides kernels over the output's gradient
                reach = max(link.weight.plastic.shape[1:]) - 1 - link.padding
                pads[number + 1] = max(pads[number + 1], reach)
    return [Buffer(*shape, pad) for shape, pad in zip(shapes, pads, strict=True)]


class Side:
    """Plastic or frozen connections of a layer, row by row."""

    def __init__(self, flat: NDArray[np.int64], row: NDArray[np.int64], source: Ints, rows: int):
        """Connections at flat positions, which lie in ``row`` and come from ``source``."""
        self.rising = bool((np.diff(flat) > 0).all())
        self.start = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
        self.source = source
        self.count = len(flat)


class MergedConnections:
    """Frozen and plastic connections in one order, with room for their values."""

    def __init__(
        self, row: Ints, source: Ints, origin: Ints, rows: int, weights: int, order: NDArray[Any]
    ) -> None:
        """Connections by row; ``origin`` is a place among plastic values, or -1 - it in frozen."""
        self.start = np.searchsorted(row[order], np.arange(rows + 1)).astype(np.int32)
        self.source = source[order].astype(np.int32)
        self.origin = origin[order].astype(np.int32)
        self.value = np.empty(len(order) * weights, dtype=np.float32)

    def describe(self, merged: Merged) -> None:
        """Writes where all lies."""
        merged.rows.start, merged.rows.source = self.start.ctypes.data, self.source.ctypes.data
        merged.rows.value = self.value.ctypes.data
        merged.origin, merged.count = self.origin.ctypes.data, len(self.origin)


class Structure:
    """What of one layer follows from its pattern alone."""

    def __init__(self, link: Link, into: Buffer, needed: NDArray[np.bool_]) -> None:
        """Sorts the connections.

        Args:
            link: The layer.
            into: Its input.
            needed: Which channels of the input need a gradient, ``(channels,)``.
        """
        weight, bias = link.live
        targets, columns = weight.shape
        linear = link.kind == LINEAR
        places = into.places() if linear else np.arange(into.channels, dtype=np.int32)
        flat = [index.numpy() for index in (weight.plastic_index, weight.frozen_index)]
        rows, features = zip(*(np.divmod(each, columns) for each in flat), strict=True)
        plastic, frozen = self.plastic, self.frozen = [
            Side(each, row, places[feature], targets)
            for each, row, feature in zip(flat, rows, features, strict=True)
        ]
        needing = np.repeat(needed, into.pixels) if linear else needed
        gradient = np.zeros(targets, dtype=bool)
        gradient[rows[0]] = True
        gradient[bias.plastic_index.numpy()] = True
        self.learning = np.flatnonzero(gradient).astype(np.int32)
        row, feature = np.concatenate(rows), np.concatenate(features)
        gradient[row[needing[feature]]] = True
        self.gradient = gradient
        self.changing = np.flatnonzero(gradient).astype(np.int32)
        self.row_live = np.diff(frozen.start) + np.diff(plastic.start)
        mixed = (np.diff(frozen.start) > 0) & (np.diff(plastic.start) > 0)
        self.rows = np.flatnonzero(~mixed).astype(np.int32)
        self.mixed_rows = np.flatnonzero(mixed).astype(np.int32)
        self.into = np.flatnonzero(needing).astype(np.int32)
        self.into_place = places[self.into]

        source = np.concatenate([plastic.source, frozen.source])
        origin = np.concatenate([np.arange(plastic.count), -1 - np.arange(frozen.count)])
        each = link.weights_each
        used = mixed[row]
        order = np.argsort(row[used] * columns + feature[used])
        self.mixed = MergedConnections(row[used], source[used], origin[used], targets, each, order)
        used = gradient[row] & needing[feature]
        order = np.argsort(feature[used] * targets + row[used])
        self.back = MergedConnections(
            feature[used], row[used], origin[used], len(needing), each, order
        )


class PoolStructure:
    """Channels of a pool, and those that need a gradient."""

    def __init__(self, needed: NDArray[np.bool_]) -> None:
        self.rows = np.arange(len(needed), dtype=np.int32)
        self.into = self.changing = np.flatnonzero(needed).astype(np.int32)
