"""The memory of one pass through a chain, and the chain as the C++ kernels read it.

The kernels get addresses and counts alone: structures of ctypes that mirror those of
``cpp/chain.cpp``. Everything they point to is kept alive here, or by the chain.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nispa.kernels.cached import STALE, CachedData
from nispa.kernels.links import ConvolutionLink, Link, WeightedLink
from nispa.kernels.native import Image, Layer
from nispa.kernels.structure import Ints, Structure

if TYPE_CHECKING:
    from nispa.kernels.chain import Chain

FLOATS: Any = {"dtype": torch.float32, "device": "cpu"}
"""Type and device of all values that kernels read and write, whatever PyTorch's defaults."""


class Workspace:
    """Activation buffers for a number of slabs, and the layers as the kernels read them.

    A chain keeps its workspaces and uses them again: fresh memory of this size would cost about as
    much as the arithmetic. Several may be in use at once, since autograd may run forward again
    before it runs backward.

    Attributes:
        slabs: Slabs that the buffers hold.
        activations: The memory of all buffers.
        images: Address and shape of each buffer, as the kernels read them.
        layers: Every link, as the kernels read it.
    """

    def __init__(self, chain: Chain, slabs: int, *, own: bool = True) -> None:
        """Memory for a chain.

        Args:
            chain: The chain.
            slabs: Slabs of a batch.
            own: Whether it has buffers of its own; else whoever uses it gives their addresses.
        """
        self.slabs = slabs
        # In floats; `vectors` counts places of one slab.
        each = chain.library.lanes * slabs if own else 0
        sizes = [buffer.vectors * each for buffer in chain.buffers]
        # Kernels never write into the borders, so they stay zero.
        self.activations = torch.zeros(sum(sizes), **FLOATS)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.images = (Image * len(sizes))()
        for image, buffer, start in zip(self.images, chain.buffers, starts[:-1], strict=True):
            # 4 bytes each. An address, so `activations` must never be replaced.
            image.data = self.activations.data_ptr() + 4 * int(start)
            image.channels, image.height = buffer.channels, buffer.height
            image.width, image.pad = buffer.width, buffer.pad
        self.layers = (Layer * len(chain.links))()
        # ``layers`` describes this version of the chain, and this cached data or None. The
        # reference is weak, so that data that is no longer used is freed.
        self._chain_version = -1
        self._data: weakref.ref[CachedData] | None = None
        # ``layers`` holds bare addresses; these lists keep the arrays behind them alive.
        self._scratch: list[NDArray[np.float32]] = []
        self._row_lists: list[Ints] = []

    def prepare(self, chain: Chain, data: CachedData | None) -> None:
        """Brings ``layers`` up to date for a pass.

        Args:
            chain: The chain that the workspace belongs to.
            data: Where the activations of some constant units come from: those rows are skipped.

        Raises:
            RuntimeError: A unit whose activations are cached is no longer constant.
        """
        described = None if self._data is None else self._data()
        # A dead reference is not "no data": rows were skipped that nobody fills any more.
        was_cached, is_cached = self._data is not None, data is not None
        if self._chain_version != chain.version or described is not data or was_cached != is_cached:
            self._describe(chain, data)
        # Parameters may be replaced between passes, so their addresses are written for each.
        self._point(chain.links)

    def _describe(self, chain: Chain, data: CachedData | None) -> None:
        """Writes everything but the addresses of values into ``layers``."""
        for structure, computed in zip(
            chain.structures, data.computed_rows if data else (), strict=False
        ):
            if computed is not None and not np.isin(structure.varying_rows, computed).all():
                raise RuntimeError(STALE)
        self._scratch, self._row_lists = [], []
        for number, (layer, link, structure) in enumerate(
            zip(self.layers, chain.links, chain.structures, strict=True)
        ):
            layer.kind, layer.relu = link.kind, chain.after_relu[number + 1]
            layer.input_relu = chain.after_relu[number]
            # A Linear layer's connection is a kernel of one weight: both share the merging of
            # values.
            layer.kernel_height = layer.kernel_width = layer.stride = 1
            layer.padding = 0
            layer.pool_follows = chain.pools_next(number, data)
            layer.input, layer.output = self.images[number], self.images[number + 1]
            rows = structure.pure_rows
            computed = data.computed_rows[number] if data is not None else None
            if computed is not None:  # mixed rows vary, so they are never cached
                rows = computed[np.isin(computed, structure.pure_rows)]
                self._row_lists.append(rows)
            # A row's output lies at the place of its own number: outputs have one pixel, or are
            # channels.
            layer.pure_rows = layer.pure_places = rows.ctypes.data
            layer.pure_row_count = len(rows)
            inputs = structure.needed_inputs
            layer.needed_inputs, layer.needed_input_count = inputs.ctypes.data, len(inputs)
            if isinstance(link, WeightedLink):
                assert isinstance(structure, Structure)
                self._describe_weighted(layer, link, structure)
        self._chain_version = chain.version
        self._data = None if data is None else weakref.ref(data)

    def _describe_weighted(self, layer: Layer, link: WeightedLink, structure: Structure) -> None:
        """The part of :meth:`_describe` for a layer with weights."""
        frozen, plastic, targets = structure.frozen, structure.plastic, link.weight.shape[0]
        # No frozen connection at all: a null pointer saves the kernels a look at each row.
        layer.frozen.start = frozen.start.ctypes.data if frozen.count else None
        layer.frozen.source = frozen.source.ctypes.data
        layer.plastic.start = plastic.start.ctypes.data
        layer.plastic.source = plastic.source.ctypes.data
        for biases, index in (
            (layer.frozen_bias, link.bias.frozen_index),
            (layer.plastic_bias, link.bias.plastic_index),
        ):
            biases.unit, biases.count = index.data_ptr(), len(index)
        layer.bias_scratch = self._make_scratch(targets)
        structure.mixed.describe(layer.mixed)
        layer.mixed_rows = layer.mixed_places = structure.mixed_rows.ctypes.data
        layer.mixed_row_count = len(structure.mixed_rows)
        structure.back.describe(layer.back)
        layer.needed_input_places = structure.needed_input_places.ctypes.data
        layer.plastic_rows = structure.plastic_rows.ctypes.data
        layer.plastic_row_count, layer.plastic_count = len(structure.plastic_rows), plastic.count
        # Threads share a convolution by slabs: each slab sums its gradients in a part of its own,
        # and the parts are added in a fixed order, whatever the number of threads.
        parts = 1
        if isinstance(link, ConvolutionLink):
            layer.kernel_height, layer.kernel_width = link.kernel
            layer.stride, layer.padding = link.stride, link.padding
            parts = self.slabs
            layer.weight_parts = self._make_scratch(parts * plastic.count * link.weights_each)
        layer.bias_parts = self._make_scratch(parts * targets)

    def _make_scratch(self, size: int) -> int:
        """The address of ``size`` zeros that live as long as ``layers`` is described this way."""
        scratch = np.zeros(size, dtype=np.float32)
        self._scratch.append(scratch)
        return scratch.ctypes.data

    def _point(self, links: Sequence[Link]) -> None:
        """Writes the current addresses of all values into ``layers``."""
        for layer, link in zip(self.layers, links, strict=True):
            if isinstance(link, WeightedLink):
                layer.frozen.value = link.weight.frozen.data_ptr()
                layer.plastic.value = link.weight.plastic.data_ptr()
                layer.frozen_bias.value = link.bias.frozen.data_ptr()
                layer.plastic_bias.value = link.bias.plastic.data_ptr()
