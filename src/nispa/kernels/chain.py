"""A chain of layers over live connections, computed by compiled kernels.

The kernels do work for live connections only. They also skip gradients that nothing needs: a unit
is *constant* if its inputs and bias are all frozen and all come from constant units. No gradient
flows into a constant unit, and its activations on a data set can be computed once and cached; see
:mod:`.cached`. Every stable unit of NISPA is constant. Plastic values are parameters, frozen ones
are buffers, so the distinction needs no extra bookkeeping.

Layout: activations of the images of a batch lie side by side in *slabs*, one image per vector
lane. So the result of an image does not depend on the other images of its batch.

One step, for each part of the batch that fits the processor's cache: ``fill`` copies images into
the first buffer, ``forward`` runs all layers, the loss gives the gradient of the logits, and
``backward`` runs all layers in reverse, writing gradients over the activations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from nispa.kernels.autograd import RunChain, value_and_gradient
from nispa.kernels.cached import (
    STALE,
    CachedBatch,
    CachedData,
    Columns,
    FrozenSnapshot,
    Images,
    candidates,
    choose,
)
from nispa.kernels.links import ConvolutionLink, LinearLink, Link, PoolLink
from nispa.kernels.native import Library
from nispa.kernels.structure import Structure, buffers_of, structures_of
from nispa.kernels.versions import Versions, same_versions, versions_of
from nispa.kernels.workspace import FLOATS, Workspace

CACHE = 16 * 2**20
"""Bytes of activations in work at a time, so that they stay in the processor's cache."""


class Chain:
    """Layers that feed each other, laid out for one pattern and one input shape.

    Attributes:
        links: The layers.
        buffers: Shapes of the activations before, between and after the links.
        after_relu: For each buffer, whether its values have passed a ReLU.
        structures: Index arrays of each link.
        sorted: Whether all positions rise, as the kernels require.
        version: Rises with each change of the patterns, or of what is frozen.
        outputs: The outputs that are read; None for all.
    """

    def __init__(
        self,
        library: Library,
        links: Sequence[Link],
        input_shape: tuple[int, int, int],
        input_gradient: bool = False,
        outputs: tuple[int, ...] | None = None,
    ) -> None:
        """Lays out a chain.

        Args:
            library: The kernels.
            links: Its layers.
            input_shape: Channels, height and width; a vector of features is ``(features, 1, 1)``.
            input_gradient: Whether a gradient flows into the input.
            outputs: The outputs that are read; None for all. Units that no live path joins to one
                of them are not computed, and what the chain holds for them has no meaning.
        """
        self.library = library
        self.input_gradient = input_gradient
        self.outputs = outputs
        self.buffers = buffers_of(links, input_shape)
        self.after_relu = [False]
        for link in links:  # the maximum of values that have passed a ReLU has passed it, too
            after_pool = isinstance(link, PoolLink) and self.after_relu[-1]
            self.after_relu.append(link.relu or after_pool)
        self.version = 0
        self.links: list[Link] = []
        self._versions: Versions = []  # of the positions that the index arrays were made from
        # Several of one size where autograd runs forward again before backward.
        self._free: dict[int, list[Workspace]] = {}  # by their number of slabs
        self.update(links)

    def update(self, links: Sequence[Link]) -> None:
        """Takes links of the same shapes; rebuilds the index arrays if the patterns changed."""
        versions = versions_of(
            index
            for link in links
            for live in link.live
            for index in (live.plastic_index, live.frozen_index)
        )
        # Tensors are compared, not positions: that takes microseconds where a pattern has millions.
        unchanged = self.version > 0 and same_versions(versions, self._versions)
        self.links = list(links)
        if unchanged:
            return
        self._versions = versions
        self.version += 1
        self.structures = structures_of(self.links, self.buffers, self.input_gradient, self.outputs)
        weighted = [each for each in self.structures if isinstance(each, Structure)]
        self.sorted = all(each.frozen.sorted and each.plastic.sorted for each in weighted)
        self._unread_values = [each.unread_values for each in weighted]
        unread = np.ones(self.buffers[-1].channels, dtype=bool)
        unread[slice(None) if self.outputs is None else list(self.outputs)] = False
        self._unread_outputs = torch.from_numpy(np.flatnonzero(unread))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's output."""
        last = self.buffers[-1]
        if isinstance(self.links[-1], LinearLink):
            return (last.channels,)
        return (last.channels, last.height, last.width)

    def at_a_time(self) -> int:
        """How many images fit the cache: a whole number of slabs for each thread."""
        lanes, threads = self.library.lanes, torch.get_num_threads()
        # A whole number of slabs for each thread, since a thread with one more keeps all others
        # waiting.
        slab_bytes = sum(buffer.vectors for buffer in self.buffers) * lanes * 4
        return max(1, CACHE // (slab_bytes * threads)) * threads * lanes

    def pools_next(self, number: int, data: CachedData | None) -> bool:
        """Whether the convolution ``number`` can pool its own output as it stores it.

        It can if a pool follows, and if the cached data leaves both the same channels to compute.
        """
        pair = self.links[number : number + 2]
        if [type(link) for link in pair] != [ConvolutionLink, PoolLink]:
            return False
        first, second = data.computed_rows[number : number + 2] if data else (None, None)
        # None means all channels. A convolution that pools writes no output of its own, so both
        # must have the same ones left to do.
        if first is None or second is None:
            return first is second
        return np.array_equal(first, second)

    def parameters(self) -> list[Tensor]:
        """Plastic weights and biases, link by link."""
        return [values.plastic for link in self.links for values in link.live]

    # Running.

    def forward(self, batch: Images, *, every: bool = False) -> Workspace:
        """Runs a batch through all layers.

        Args:
            batch: The images.
            every: Whether every activation will be read. Otherwise a convolution with a pool
                does not store all of its output.

        Returns:
            The workspace with the activations, for :meth:`read` and :meth:`backward`; return it
            with :meth:`give_back`.

        Raises:
            RuntimeError: Frozen values or connections have changed since the data was cached.
        """
        data = batch.data if isinstance(batch, CachedBatch) else None
        # Pixels alone hold whatever is frozen; only cached activations go stale.
        if data is not None and len(data.columns) > 1 and not data.frozen.matches(self.links):
            raise RuntimeError(STALE)
        # A last slab may be partly filled; its other lanes repeat the last image.
        slabs = -(-len(batch) // self.library.lanes)
        free = self._free.setdefault(slabs, [])
        workspace = free.pop() if free else Workspace(self, slabs)
        workspace.prepare(self, data)
        self._fill(workspace, batch)
        self.library.forward(
            ctypes.addressof(workspace.layers),
            len(self.links),
            len(batch),
            every,
            torch.get_num_threads(),
        )
        return workspace

    def _fill(self, workspace: Workspace, batch: Images) -> None:
        """Copies images, or columns of cached rows, into the buffers where they belong."""
        threads = torch.get_num_threads()
        if isinstance(batch, CachedBatch):
            rows, index = batch.data.rows, batch.index
            for columns in batch.data.columns:
                self.library.fill(
                    ctypes.addressof(workspace.images[columns.buffer]),
                    columns.channels.ctypes.data,
                    len(columns.channels),
                    rows.data_ptr() + 4 * columns.start,
                    rows.shape[1],  # floats from one row to the next
                    index.data_ptr(),
                    len(batch),
                    threads,
                )
            return
        images, buffer = batch.contiguous(), self.buffers[0]
        self.library.fill(
            ctypes.addressof(workspace.images[0]),
            None,  # all channels, in order
            buffer.channels,
            images.data_ptr(),
            buffer.channels * buffer.pixels,
            None,  # images as they come
            len(images),
            threads,
        )

    def give_back(self, workspace: Workspace) -> None:
        """Makes a workspace available for the next pass."""
        self._free[workspace.slabs].append(workspace)

    def read(
        self, workspace: Workspace, buffer: int, count: int, form: Sequence[int] | None = None
    ) -> Tensor:
        """The activations in a buffer, ``(count, channels, height, width)`` or of another form.

        A tensor of its own and no view, so that autograd lets callers change it in place.
        """
        shape = self.buffers[buffer]
        form = (count, shape.channels, shape.height, shape.width) if form is None else form
        out = torch.empty(tuple(form), **FLOATS)
        self.library.empty(
            ctypes.addressof(workspace.images[buffer]),
            out.data_ptr(),
            count,
            torch.get_num_threads(),
        )
        return out

    def output(self, workspace: Workspace, count: int, form: Sequence[int] | None = None) -> Tensor:
        """The chain's output, ``(count, *output_shape)`` or of another form."""
        form = (count, *self.output_shape) if form is None else form
        return self.read(workspace, len(self.links), count, form)

    def backward(
        self,
        workspace: Workspace,
        gradient: Tensor,
        into: Sequence[Tensor],
        *,
        fresh: bool,
        input_gradient: Tensor | None = None,
    ) -> None:
        """Computes gradients of plastic values. Overwrites the activations in the workspace.

        Args:
            workspace: The result of :meth:`forward`.
            gradient: Gradient of the output, ``(batch, *output_shape)``.
            into: Tensors for the gradients, in the order of :meth:`parameters`.
            fresh: Whether to write the gradients instead of adding them, as the first backward of a
                step must.
            input_gradient: Tensor for the input's gradient, or None.
        """
        gradients = iter(into)
        for layer, link in zip(workspace.layers, self.links, strict=True):
            if link.live:
                layer.weight_gradient = next(gradients).data_ptr()
                layer.bias_gradient = next(gradients).data_ptr()
        gradient = gradient.contiguous()
        self.library.backward(
            ctypes.addressof(workspace.layers),
            len(self.links),
            len(gradient),
            gradient.data_ptr(),
            None if input_gradient is None else input_gradient.data_ptr(),
            fresh,
            torch.get_num_threads(),
        )

    def __call__(self, images: Images, form: Sequence[int] | None = None) -> Tensor:
        """Output of images, ``(batch, *input_shape)`` to ``(batch, *output_shape)``.

        Args:
            images: The images.
            form: Another shape for the same output.
        """
        parameters = self.parameters()
        # Autograd needs all activations until its backward pass, so the whole batch is one part.
        # Without it, parts are as small as the cache wants.
        if torch.is_grad_enabled() and (
            self.input_gradient
            or any(values.requires_grad and values.numel() for values in parameters)
        ):
            out: Tensor = RunChain.apply(self, images, form, *parameters)  # type: ignore[no-untyped-call]
            return out
        out = torch.empty(len(images), *self.output_shape, **FLOATS)
        done = 0
        for part in images.split(self.at_a_time()):
            workspace = self.forward(part)
            out[done : done + len(part)] = self.output(workspace, len(part))
            self.give_back(workspace)
            done += len(part)
        return out if form is None else out.view(tuple(form))

    def gradients(
        self,
        batch: Images,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reuse: bool = False,
    ) -> Tensor:
        """Sets the ``grad`` of every plastic value to the gradient of a mean loss.

        Works through the batch in parts, forward and backward, so that the activations of a part
        stay in the processor's cache.

        Args:
            batch: Images.
            labels: Their classes, ``(batch,)``.
            loss: Mean over samples, from logits ``(n, outputs)`` and labels ``(n,)``.
            reuse: Whether to write into the present ``grad`` tensors.

        Returns:
            The loss of the batch, detached.

        Raises:
            ValueError: The numbers of images and labels differ.
        """
        if len(batch) != len(labels):
            raise ValueError(
                f"images of batch_size {len(batch)} and labels of batch_size {len(labels)} "
                "must be as many"
            )
        parameters = self.parameters()
        # Not cleared: the first part of the batch writes, the others add.
        into = [
            values.grad
            if reuse and values.grad is not None and values.grad.is_contiguous()
            else torch.empty_like(values)
            for values in parameters
        ]
        # But nothing writes the gradient of values that no output reads. It is 0.
        pairs = zip(into[::2], into[1::2], self._unread_values, strict=True)
        idle = [each for *both, unread in pairs if unread for each in both]
        if idle:
            torch._foreach_zero_(idle)
        total = torch.zeros((), **FLOATS)
        size, done = self.at_a_time(), 0
        for part in batch.split(size):
            part_labels = labels[done : done + len(part)]
            workspace = self.forward(part)
            logits = self.output(workspace, len(part))
            if len(self._unread_outputs):
                logits.index_fill_(1, self._unread_outputs, 0.0)
            value, gradient = value_and_gradient(loss, logits, part_labels)
            if len(part) < len(labels):  # the loss is a mean: each part counts by its size
                share = len(part) / len(labels)
                value, gradient = value * share, gradient * share
            self.backward(workspace, gradient, into, fresh=done == 0)
            self.give_back(workspace)
            total += value
            done += len(part)
        for values, gradient in zip(parameters, into, strict=True):
            # Kernels compute all gradients of a layer at once, also those nobody asked for.
            if values.requires_grad:
                values.grad = gradient
        return total

    def unit_sums(self, batches: Iterable[Images], buffers: Sequence[int]) -> list[Tensor]:
        """Sums of activations over all images and pixels, ``(channels,)`` float64 per buffer."""
        totals = [
            torch.zeros(self.buffers[buffer].channels, dtype=torch.float64, device="cpu")
            for buffer in buffers
        ]
        for batch in batches:
            for part in batch.split(self.at_a_time()):
                workspace = self.forward(part, every=True)
                for buffer, total in zip(buffers, totals, strict=True):
                    image = ctypes.addressof(workspace.images[buffer])
                    self.library.sums(image, len(part), total.data_ptr(), torch.get_num_threads())
                self.give_back(workspace)
        return totals

    # Caching constant units.

    def cache(
        self, batches: Iterable[Tensor], count: int, budget: int, marked: Container[int] = ()
    ) -> CachedData | None:
        """Lays a data set out, with the activations of constant units that are worth the memory.

        Args:
            batches: Images, ``(n, channels, height, width)`` each.
            count: Number of images in all batches.
            budget: Bytes that the result may take.
            marked: Buffers whose activations are all read from outside.

        Returns:
            The data, or None if there is none or the pixels alone take more than the budget.
        """
        first = self.buffers[0]
        every_channel = np.arange(first.channels, dtype=np.int32)
        pixels = Columns(0, every_channel, 0, first.channels * first.pixels)
        if not count or 4 * count * pixels.width > budget:
            return None
        found = candidates(self.links, self.structures, self.buffers, marked)
        columns, computed_rows = choose(found, pixels, len(self.links), budget // (4 * count))
        # NumPy asks the system for large pages. Without them, finding the rows of a batch in memory
        # takes three times as long as reading them.
        width = columns[-1].start + columns[-1].width
        rows = torch.from_numpy(np.empty((count, width), dtype=np.float32))
        done = 0
        for batch in batches:
            for images in batch.split(self.at_a_time()):
                self._cache_into(rows[done : done + len(images)], images, columns)
                done += len(images)
        shape = (first.channels, first.height, first.width)
        frozen = FrozenSnapshot(self.links)
        return CachedData(rows, tuple(columns), tuple(computed_rows), shape, frozen)

    def _cache_into(self, rows: Tensor, images: Tensor, columns: Sequence[Columns]) -> None:
        """Writes pixels, and activations if there are columns for them, into rows of the cache."""
        pixels, *activations = columns
        rows[:, : pixels.width] = images.flatten(1)
        if not activations:
            return
        # `every`: the output of a convolution before a pool may be what is cached.
        workspace = self.forward(images, every=True)
        for each in activations:
            values = self.read(workspace, each.buffer, len(images))
            chosen = values[:, torch.from_numpy(each.channels.astype(np.int64))]
            rows[:, each.start : each.start + each.width] = chosen.flatten(1)
        self.give_back(workspace)
