"""Index arrays of a chain, derived from the patterns of its layers and the shape of its input.

They say which rows and connections the kernels visit, so they are built once for each pattern and
not for each batch. A *row* is a target unit (a feature, or an output channel of a convolution). A
*place* is a position in a slab of activations, counted in vectors; see ``cpp/layout.hpp``.
"""

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
"""Kinds of links; ``cpp/chain.cpp`` has the same numbers."""

Ints = NDArray[np.int32]
Shape = tuple[int, int, int]
"""Channels, height and width of the activations of one image."""


class Link(NamedTuple):
    """One layer of a chain.

    Attributes:
        kind: ``CONVOLUTION``, ``LINEAR`` or ``POOL`` (max-pool of 2 x 2 with stride 2).
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
        """Weights and biases; empty for a pool."""
        return () if self.weight is None or self.bias is None else (self.weight, self.bias)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width of a convolution's kernel; empty for other links."""
        return () if self.weight is None else tuple(self.weight.plastic.shape[1:])

    @property
    def weights_each(self) -> int:
        """Weights of one connection: 1, or the size of a kernel. A pool has none."""
        return 0 if self.kind == POOL else math.prod(self.kernel)

    def accepts(self, shape: Shape) -> bool:
        """Whether the link can read activations of this shape and leaves at least one pixel."""
        channels, height, width = shape
        if self.weight is not None:
            features = channels * height * width if self.kind == LINEAR else channels
            if features != self.weight.shape[1]:
                return False
        return min(self.output_shape(shape)[1:]) >= 1

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of what the link computes from activations of ``shape``."""
        channels, height, width = shape
        if self.weight is None:
            return channels, height // 2, width // 2
        if self.kind == LINEAR:
            return self.weight.shape[0], 1, 1
        rows, columns = self.kernel
        return (
            self.weight.shape[0],
            (height + 2 * self.padding - rows) // self.stride + 1,
            (width + 2 * self.padding - columns) // self.stride + 1,
        )


@dataclass(frozen=True)
class Buffer:
    """Activations between two links: channels, height, width, and the width of a zero border."""

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
        """Places of a slab, including the border."""
        return self.channels * (self.height + 2 * self.pad) * (self.width + 2 * self.pad)

    def places(self) -> Ints:
        """The place of each feature, ``(features,)``, in the order of a flatten."""
        line = self.width + 2 * self.pad
        channel = np.arange(self.channels)[:, None, None] * line * (self.height + 2 * self.pad)
        row = (np.arange(self.height)[:, None] + self.pad) * line
        return (channel + row + np.arange(self.width) + self.pad).ravel().astype(np.int32)


def buffers_of(links: Sequence[Link], input_shape: Shape) -> list[Buffer]:
    """The buffers before, between and after the links, with the borders that convolutions read."""
    shapes = [input_shape]
    for link in links:
        shapes.append(link.output_shape(shapes[-1]))
    pads = [0] * len(shapes)
    for number, link in enumerate(links):
        if link.kind != CONVOLUTION:
            continue
        pads[number] = max(pads[number], link.padding)
        if link.stride == 1:
            # Backward slides the flipped kernel over the output's gradient, which lies in the
            # output's buffer: it reads as far beyond the edge as the kernel is larger than its
            # padding.
            reach = max(link.kernel) - 1 - link.padding
            pads[number + 1] = max(pads[number + 1], reach)
    return [Buffer(*shape, pad) for shape, pad in zip(shapes, pads, strict=True)]


class RowConnections:
    """The plastic, or the frozen, connections of a layer, row by row.

    Attributes:
        sorted: Whether the positions rise, as the kernels require.
        start: Row r has the connections ``start[r]`` to ``start[r + 1]``, ``(rows + 1,)``.
        source: Channel or place that each connection reads, ``(count,)``.
        count: Number of connections.
    """

    def __init__(
        self, position: NDArray[np.int64], row: NDArray[np.int64], source: Ints, rows: int
    ) -> None:
        """Connections at flat ``position`` in the layer's matrix, in rows ``row``."""
        self.sorted = bool((np.diff(position) > 0).all())
        self.start = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
        self.source = source
        self.count = len(position)


class MergedConnections:
    """Frozen and plastic connections in one common order, with room for a copy of their values.

    Attributes:
        start: Row r has the connections ``start[r]`` to ``start[r + 1]``.
        source: Channel or place that each connection reads.
        origin: Where its value comes from: place p among the plastic values, or -1 - p for place p
            among the frozen ones.
        value: Room for the values, which the kernels copy in before each use.
    """

    def __init__(
        self, row: Ints, source: Ints, origin: Ints, rows: int, weights: int, order: NDArray[Any]
    ) -> None:
        """Sorts connections.

        Args:
            row: Row of each connection.
            source: What it reads.
            origin: Where its value comes from.
            rows: Number of rows.
            weights: Weights of one connection.
            order: Permutation that sorts the connections by row, then by source.
        """
        self.start = np.searchsorted(row[order], np.arange(rows + 1)).astype(np.int32)
        self.source = source[order].astype(np.int32)
        self.origin = origin[order].astype(np.int32)
        self.value = np.empty(len(order) * weights, dtype=np.float32)

    def describe(self, merged: Merged) -> None:
        """Writes the addresses of the arrays into the structure that the kernels read."""
        merged.rows.start, merged.rows.source = self.start.ctypes.data, self.source.ctypes.data
        merged.rows.value = self.value.ctypes.data
        merged.origin, merged.count = self.origin.ctypes.data, len(self.origin)


class Structure:
    """Index arrays of one layer.

    A row *varies* if its value can change while the layer learns: it has a plastic bias or
    connection, or reads a varying row of the layer before. All other rows are constant; they get no
    gradient, and what they compute for a data set can be kept.

    Attributes:
        plastic, frozen: Connections of each kind, by row.
        needs_gradient: Whether each row varies, ``(targets,)`` bool.
        varying_rows: Indices of the rows that vary.
        plastic_rows: Rows with a plastic weight or bias: a gradient of values is computed there.
        live_per_row: Live connections of each row, ``(targets,)``.
        pure_rows: Rows whose connections are all plastic or all frozen.
        mixed_rows: Rows with connections of both kinds.
        mixed: Connections of the mixed rows, sorted by source. Merging the two kinds keeps the
            order of a sum, and so its bits, when a connection is frozen.
        needed_inputs: Inputs (channels, or features of a Linear layer) that need a gradient.
        needed_input_places: Their places.
        back: Connections from needed inputs into varying rows, by input: what the gradient flows
            along.
    """

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
        # A Linear layer reads single features, which lie apart from each other where the buffer
        # has a border; a convolution reads whole channels.
        places = into.places() if linear else np.arange(into.channels, dtype=np.int32)
        input_needed = np.repeat(needed, into.pixels) if linear else needed

        positions = [index.numpy() for index in (weight.plastic_index, weight.frozen_index)]
        rows, inputs = zip(*(np.divmod(position, columns) for position in positions), strict=True)
        plastic, frozen = self.plastic, self.frozen = [
            RowConnections(position, row, places[source], targets)
            for position, row, source in zip(positions, rows, inputs, strict=True)
        ]

        # Which rows vary: those that learn, and those that read an input that varies.
        varies = np.zeros(targets, dtype=bool)
        varies[rows[0]] = True
        varies[bias.plastic_index.numpy()] = True
        self.plastic_rows = np.flatnonzero(varies).astype(np.int32)
        row, source = np.concatenate(rows), np.concatenate(inputs)
        varies[row[input_needed[source]]] = True
        self.needs_gradient = varies
        self.varying_rows = np.flatnonzero(varies).astype(np.int32)

        # Forward.
        self.live_per_row = np.diff(frozen.start) + np.diff(plastic.start)
        mixed = (np.diff(frozen.start) > 0) & (np.diff(plastic.start) > 0)
        self.pure_rows = np.flatnonzero(~mixed).astype(np.int32)
        self.mixed_rows = np.flatnonzero(mixed).astype(np.int32)
        place = np.concatenate([plastic.source, frozen.source])
        origin = np.concatenate([np.arange(plastic.count), -1 - np.arange(frozen.count)])
        chosen = mixed[row]
        order = np.argsort(row[chosen] * columns + source[chosen])
        self.mixed = MergedConnections(
            row[chosen], place[chosen], origin[chosen], targets, link.weights_each, order
        )

        # Backward.
        self.needed_inputs = np.flatnonzero(input_needed).astype(np.int32)
        self.needed_input_places = places[self.needed_inputs]
        chosen = varies[row] & input_needed[source]
        order = np.argsort(source[chosen] * targets + row[chosen])
        self.back = MergedConnections(
            source[chosen],
            row[chosen],
            origin[chosen],
            len(input_needed),
            link.weights_each,
            order,
        )


class PoolStructure:
    """Channels of a pool, which passes on what it is given: all of them, and those that vary."""

    def __init__(self, needed: NDArray[np.bool_]) -> None:
        self.pure_rows = np.arange(len(needed), dtype=np.int32)
        self.needed_inputs = self.varying_rows = np.flatnonzero(needed).astype(np.int32)
