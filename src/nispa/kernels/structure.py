"""Index arrays of a chain, derived from the patterns of its layers and the shape of its input.

They say which rows and connections the kernels visit, so they are built once for each pattern and
not for each batch. Three words are used throughout:

- a *row* is a target unit: a feature of a Linear layer, or an output channel of a convolution;
- an *input* is what a connection reads: a feature of a Linear layer, or a channel;
- a *place* is where it lies in a slab of activations, counted in vectors; see ``cpp/layout.hpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nispa.kernels.links import (
    ConvolutionLink,
    LinearLink,
    Link,
    Shape,
    WeightedLink,
    shapes_through,
)
from nispa.kernels.native import Merged

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Buffer:
    """Activations between two links: channels, height, width, and the width of a zero border.

    A convolution reads the border as its padding, so that its inner loop needs no test for edges.
    """

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
        """Places of a slab, border included."""
        return self.channels * (self.height + 2 * self.pad) * (self.width + 2 * self.pad)

    def places(self) -> Ints:
        """The place of each feature, ``(features,)``, in the order of a flatten."""
        line = self.width + 2 * self.pad
        channel = np.arange(self.channels)[:, None, None] * line * (self.height + 2 * self.pad)
        row = (np.arange(self.height)[:, None] + self.pad) * line
        return (channel + row + np.arange(self.width) + self.pad).ravel().astype(np.int32)


def buffers_of(links: Sequence[Link], input_shape: Shape) -> list[Buffer]:
    """The buffers before, between and after the links, with the borders that convolutions read."""
    shapes = shapes_through(links, input_shape)
    pads = [0] * len(shapes)
    for number, link in enumerate(links):
        if not isinstance(link, ConvolutionLink):
            continue
        # Forward reads as far beyond the edge of its input as it is padded.
        pads[number] = max(pads[number], link.padding)
        # Backward reads the gradient of the output, which lies in the output's buffer.
        sizes = zip(shapes[number][1:], shapes[number + 1][1:], link.kernel, strict=True)
        for size, out, kernel in sizes:
            reach = backward_reach(size, out, kernel, link.stride, link.padding)
            pads[number + 1] = max(pads[number + 1], reach)
    return [Buffer(*shape, pad) for shape, pad in zip(shapes, pads, strict=True)]


def backward_reach(size: int, out: int, kernel: int, stride: int, padding: int) -> int:
    """How far beyond the edge of an output's gradient the gradient of the input reads.

    Pixel x of the input meets weight r of the output (x + padding - r) / stride, if that is whole.

    Args:
        size: Of the input, in one direction.
        out: Of the output.
        kernel: Of the kernel.
        stride: Distance of windows.
        padding: Of the input.
    """
    reach = 0
    for first in range(min(stride, size)):  # pixels first, first + stride, ...
        last = (size - 1 - first) // stride
        for weight in range((first + padding) % stride, kernel, stride):
            distance = (first + padding - weight) // stride
            reach = max(reach, -distance, last + distance - (out - 1))
    return reach


class RowConnections:
    """The plastic, or the frozen, connections of a layer, row by row.

    Attributes:
        sorted: Whether the positions rise, as the kernels require. A layer keeps them so; live
            values made by hand may not.
        start: Row r has the connections ``start[r]`` to ``start[r + 1]``, ``(rows + 1,)``.
        source: Channel or place that each connection reads, ``(count,)``.
        count: Number of connections.
    """

    def __init__(
        self, position: NDArray[np.int64], row: NDArray[np.int64], source: Ints, rows: int
    ) -> None:
        """Connections at flat ``position`` in the layer's matrix, in rows ``row``."""
        self.sorted = bool((np.diff(position) > 0).all())
        # Searching needs rows that rise, as they do in rising positions.
        self.start = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
        self.source = source
        self.count = len(position)

    @property
    def per_row(self) -> Ints:
        """Number of connections of each row, ``(rows,)``."""
        return np.diff(self.start)


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
            source: The channel or place that it reads.
            origin: Where its value comes from.
            rows: Number of rows.
            weights: Weights of one connection.
            order: Permutation that sorts the connections by row, then by source.
        """
        self.start = np.searchsorted(row[order], np.arange(rows + 1)).astype(np.int32)
        # 32 bits: kernels read this beside each value, so its size counts.
        self.source = source[order].astype(np.int32)
        self.origin = origin[order].astype(np.int32)
        self.value = np.empty(len(order) * weights, dtype=np.float32)

    def describe(self, merged: Merged) -> None:
        """Writes the addresses of the arrays into the structure that the kernels read."""
        merged.rows.start, merged.rows.source = self.start.ctypes.data, self.source.ctypes.data
        merged.rows.value = self.value.ctypes.data
        merged.origin, merged.count = self.origin.ctypes.data, len(self.origin)


class Structure:
    """Index arrays of one layer with weights.

    A row *varies* if its value can change while the layer learns: it has a plastic bias or
    connection, or reads a varying row of the layer before. All other rows are constant; they get no
    gradient, and what they compute for a data set can be cached.

    Attributes:
        plastic, frozen: Connections of each kind, by row.
        needs_gradient: Whether each row varies, ``(targets,)`` bool.
        varying_rows: Indices of the rows that vary.
        plastic_rows: Read rows with a plastic weight or bias: a gradient of values is computed
            there.
        unread_values: Whether rows that nothing reads have plastic weights or biases.
        live_per_row: Live connections of each row, ``(targets,)``.
        pure_rows: Read rows whose connections are all plastic or all frozen.
        mixed_rows: Read rows with connections of both kinds.
        mixed: Connections of the mixed rows, sorted by source.
        needed_inputs: Inputs that need a gradient.
        needed_input_places: Their places.
        back: Connections from needed inputs into varying rows, by input: the gradient flows along
            these.
    """

    def __init__(
        self, link: WeightedLink, into: Buffer, needed: Bools, read: tuple[Bools, Bools]
    ) -> None:
        """Sorts the connections.

        Args:
            link: The layer.
            into: Its input.
            needed: Which channels of the input need a gradient, ``(channels,)``.
            read: Which channels of the input, and which rows, are read; see :func:`read_through`.
        """
        channels_read, rows_read = read
        targets, columns = link.weight.shape
        if isinstance(link, LinearLink):
            # A Linear layer reads single features. They lie apart where the buffer has a border.
            # All features of a channel need a gradient, or none.
            place_of_input, input_needed = into.places(), np.repeat(needed, into.pixels)
            input_read = np.repeat(channels_read, into.pixels)
        else:
            # A convolution reads whole channels: the place is the channel's number.
            place_of_input, input_needed = np.arange(into.channels, dtype=np.int32), needed
            input_read = channels_read

        # Row and input of each connection, plastic ones first.
        positions = [
            index.numpy() for index in (link.weight.plastic_index, link.weight.frozen_index)
        ]
        rows, inputs = zip(*(np.divmod(position, columns) for position in positions), strict=True)
        plastic, frozen = self.plastic, self.frozen = [
            RowConnections(position, row, place_of_input[source], targets)
            for position, row, source in zip(positions, rows, inputs, strict=True)
        ]
        row, source = np.concatenate(rows), np.concatenate(inputs)
        place = np.concatenate([plastic.source, frozen.source])
        # The code of ``MergedConnections.origin``.
        origin = np.concatenate([np.arange(plastic.count), -1 - np.arange(frozen.count)])

        # Which rows learn, and which vary: those that learn or read an input that varies.
        varies = np.zeros(targets, dtype=bool)
        # rows[0] are those of plastic connections.
        varies[rows[0]] = True
        varies[link.bias.plastic_index.numpy()] = True
        # Taken before the next line: a row that only reads a varying input has no values to learn.
        learns = varies.copy()
        self.plastic_rows = np.flatnonzero(learns & rows_read).astype(np.int32)
        self.unread_values = bool((learns & ~rows_read).any())
        varies[row[input_needed[source]]] = True
        self.needs_gradient = varies
        self.varying_rows = np.flatnonzero(varies).astype(np.int32)

        # Forward. A pure row reads its values where the layer stores them. The values of a mixed
        # row are copied together in the order of their sources: summed kind by kind, the sum would
        # change its bits whenever a connection is frozen.
        self.live_per_row = frozen.per_row + plastic.per_row
        mixed = (frozen.per_row > 0) & (plastic.per_row > 0)
        self.pure_rows = np.flatnonzero(~mixed & rows_read).astype(np.int32)
        mixed &= rows_read
        self.mixed_rows = np.flatnonzero(mixed).astype(np.int32)
        # Pure rows stay out: their values need no copy.
        chosen = mixed[row]
        order = np.argsort(row[chosen] * columns + source[chosen])
        self.mixed = MergedConnections(
            row[chosen], place[chosen], origin[chosen], targets, link.weights_each, order
        )

        # Backward, with rows and inputs in exchanged roles. Connections into constant rows carry
        # no gradient, and those from inputs that need none are left out.
        input_needed = input_needed & input_read
        self.needed_inputs = np.flatnonzero(input_needed).astype(np.int32)
        self.needed_input_places = place_of_input[self.needed_inputs]
        chosen = varies[row] & rows_read[row] & input_needed[source]
        # Sorted by input, since a thread computes the whole gradient of an input: two that add to
        # one place would need locks, and bits would depend on who comes first.
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
    """Index arrays of a pool, whose rows are its inputs.

    Attributes:
        pure_rows: All channels that are read.
        varying_rows: The channels that vary.
        needed_inputs: Those of them that are read.
    """

    def __init__(self, needed: Bools, read: Bools) -> None:
        self.pure_rows = np.flatnonzero(read).astype(np.int32)
        self.varying_rows = np.flatnonzero(needed).astype(np.int32)
        self.needed_inputs = np.flatnonzero(needed & read).astype(np.int32)


def structures_of(
    links: Sequence[Link],
    buffers: Sequence[Buffer],
    input_needed: bool,
    outputs: Sequence[int] | None = None,
) -> list[Structure | PoolStructure]:
    """The index arrays of each link, from the input on, since a row may vary with its inputs.

    Args:
        links: The layers.
        buffers: Those before, between and after them.
        input_needed: Whether a gradient flows into the chain's input.
        outputs: The channels of the last buffer that are read; None for all channels of all.
    """
    needed = np.full(buffers[0].channels, input_needed)
    read = read_through(links, buffers, outputs)
    structures: list[Structure | PoolStructure] = []
    for number, link in enumerate(links):
        if isinstance(link, WeightedLink):
            structure = Structure(link, buffers[number], needed, (read[number], read[number + 1]))
            structures.append(structure)
            # What varies here needs a gradient in the next layer.
            needed = structure.needs_gradient
        else:
            structures.append(PoolStructure(needed, read[number]))
    return structures


def read_through(
    links: Sequence[Link], buffers: Sequence[Buffer], outputs: Sequence[int] | None
) -> list[Bools]:
    """Which channels of each buffer some path of live connections joins to outputs that are read.

    Args:
        links: The layers.
        buffers: Those before, between and after them.
        outputs: The channels of the last buffer that are read; None makes all channels count.
    """
    read = [np.full(buffer.channels, outputs is None) for buffer in buffers]
    if outputs is None:
        return read
    read[-1][list(outputs)] = True
    for number in reversed(range(len(links))):
        link, into = links[number], read[number]
        if not isinstance(link, WeightedLink):
            into[:] = read[number + 1]  # a pool's channels are its inputs'
            continue
        columns = link.weight.shape[1]
        for index in (link.weight.plastic_index, link.weight.frozen_index):
            row, column = np.divmod(index.numpy(), columns)
            # A Linear layer reads features, which are the pixels of its input's channels.
            into[column[read[number + 1][row]] // (columns // len(into))] = True
    return read
