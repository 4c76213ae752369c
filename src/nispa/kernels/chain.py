"""A chain of layers over live connections, computed by compiled kernels.

The kernels do work for live connections only. They also skip gradients that nothing needs: a unit
is *constant* if its inputs and bias are all frozen and all come from constant units. No gradient
flows into a constant unit, and its activations on a data set can be computed once and kept; see
:class:`Feed`. Every stable unit of NISPA is constant. Plastic values are parameters, frozen ones
are buffers, so the distinction needs no extra bookkeeping.

Layout: activations of the images of a batch lie side by side in *slabs*, one image per vector
lane. So the result of an image does not depend on the other images of its batch.

One step, for each part of the batch that fits the processor's cache: ``fill`` copies images into
the first buffer, ``forward`` runs all layers, the loss gives the gradient of the logits, and
``backward`` runs all layers in reverse, writing gradients over the activations.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from nispa.kernels.feeds import STALE, Constants, Feed, Given, Part, changes, marks_of, unchanged
from nispa.kernels.native import CHOICE, Image, Layer, Library
from nispa.kernels.structure import (
    CONVOLUTION,
    LINEAR,
    POOL,
    Ints,
    Link,
    PoolStructure,
    Structure,
    buffers_of,
)

CACHE = 16 * 2**20
"""Bytes of activations in work at a time, so that they stay in the processor's cache."""
WORTH_KEEPING = 10.0
"""Operations that a kept activation must save per byte. Below that, computing it again is faster
than reading it from memory."""

FLOATS: Any = {"dtype": torch.float32, "device": "cpu"}
"""What kernels read and write, whatever PyTorch's defaults are."""


class _Workspace:
    """Activation buffers for a number of slabs, and the layers as the kernels read them.

    A chain keeps its workspaces and uses them again: fresh memory of this size would cost about as
    much as the arithmetic.

    Attributes:
        slabs: Slabs that the buffers hold.
        activations: The memory of all buffers.
        images: Address and shape of each buffer, as the kernels read them.
        layers: Every link, as the kernels read it.
        version: The version of the chain that ``layers`` describes.
        feed: The feed that ``layers`` describes, or None. A weak reference, so that a feed that is
            no longer used is freed.
    """

    def __init__(self, chain: Chain, slabs: int) -> None:
        self.slabs = slabs
        sizes = [buffer.vectors * chain.library.lanes * slabs for buffer in chain.buffers]
        # Kernels never write into the borders, so they stay zero.
        self.activations = torch.zeros(sum(sizes), **FLOATS)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.images = (Image * len(sizes))()
        for image, buffer, start in zip(self.images, chain.buffers, starts[:-1], strict=True):
            image.data = self.activations.data_ptr() + 4 * int(start)
            image.channels, image.height = buffer.channels, buffer.height
            image.width, image.pad = buffer.width, buffer.pad
        self.layers = (Layer * len(chain.links))()
        self.version = -1
        self.feed: weakref.ref[Feed] | None = None
        # ``layers`` holds bare addresses; these lists keep the arrays behind them alive.
        self._room: list[NDArray[np.float32]] = []
        self._row_lists: list[Ints] = []

    def describe(self, chain: Chain, feed: Feed | None) -> None:
        """Writes everything but the addresses of values into ``layers``.

        Args:
            chain: The chain.
            feed: Where the activations of some constant units come from: those rows are skipped.

        Raises:
            RuntimeError: A unit that the feed holds is no longer constant.
        """
        for structure, computed in zip(
            chain.structures, feed.computed if feed else (), strict=False
        ):
            if computed is not None and not np.isin(structure.varying_rows, computed).all():
                raise RuntimeError(STALE)
        self._room, self._row_lists = [], []
        for number, (layer, link, structure) in enumerate(
            zip(self.layers, chain.links, chain.structures, strict=True)
        ):
            layer.kind, layer.relu = link.kind, chain.after_relu[number + 1]
            layer.input_relu = chain.after_relu[number]
            layer.stride, layer.padding, layer.height, layer.width = link.stride, link.padding, 1, 1
            layer.pools = chain.pools_next(number, feed)
            layer.into_buffer, layer.out_buffer = self.images[number], self.images[number + 1]
            computed = feed.computed[number] if feed is not None else None
            rows = structure.pure_rows
            if computed is not None:  # mixed rows vary, so the feed never holds one of them
                rows = computed[np.isin(computed, structure.pure_rows)]
                self._row_lists.append(rows)
            layer.rows = layer.place = rows.ctypes.data
            layer.row_count = len(rows)
            layer.into, layer.into_count = (
                structure.needed_inputs.ctypes.data,
                len(structure.needed_inputs),
            )
            if isinstance(structure, Structure):
                self._describe_live(layer, link, structure)
        self.version = chain.version
        self.feed = None if feed is None else weakref.ref(feed)

    def _describe_live(self, layer: Layer, link: Link, structure: Structure) -> None:
        """The part of :meth:`describe` for a layer with weights."""
        weight, bias = link.live
        frozen, plastic, targets = structure.frozen, structure.plastic, weight.shape[0]
        if link.kind == CONVOLUTION:
            layer.height, layer.width = weight.plastic.shape[1:]
        layer.frozen.start = frozen.start.ctypes.data if frozen.count else None
        layer.frozen.source = frozen.source.ctypes.data
        layer.plastic.start = plastic.start.ctypes.data
        layer.plastic.source = plastic.source.ctypes.data
        for biases, index in (
            (layer.frozen_bias, bias.frozen_index),
            (layer.plastic_bias, bias.plastic_index),
        ):
            biases.unit, biases.count = index.data_ptr(), len(index)
        layer.bias = self._make_room(targets)
        structure.mixed.describe(layer.mixed)
        layer.mixed_rows = layer.mixed_place = structure.mixed_rows.ctypes.data
        layer.mixed_row_count = len(structure.mixed_rows)
        structure.back.describe(layer.back)
        layer.into_place = structure.needed_input_places.ctypes.data
        layer.learning = structure.plastic_rows.ctypes.data
        layer.learning_count, layer.plastic_count = len(structure.plastic_rows), plastic.count
        # Threads share a convolution by slabs: each slab sums its gradients in a part of its own,
        # and the parts are added in a fixed order, whatever the number of threads.
        parts = self.slabs if link.kind == CONVOLUTION else 1
        layer.bias_part = self._make_room(parts * targets)
        if link.kind == CONVOLUTION:
            layer.weight_part = self._make_room(parts * plastic.count * link.weights_each)

    def _make_room(self, size: int) -> int:
        """The address of ``size`` zeros that live as long as ``layers`` is described this way."""
        room = np.zeros(size, dtype=np.float32)
        self._room.append(room)
        return room.ctypes.data

    def point(self, links: Sequence[Link]) -> None:
        """Writes the current addresses of all values into ``layers``."""
        for layer, link in zip(self.layers, links, strict=True):
            if link.weight is not None and link.bias is not None:
                layer.frozen.value = link.weight.frozen.data_ptr()
                layer.plastic.value = link.weight.plastic.data_ptr()
                layer.frozen_bias.value = link.bias.frozen.data_ptr()
                layer.plastic_bias.value = link.bias.plastic.data_ptr()


class Chain:
    """Layers that feed each other, laid out for one pattern and one input shape.

    Attributes:
        links: The layers.
        buffers: Shapes of the activations before, between and after the links.
        after_relu: For each buffer, whether its values have passed a ReLU.
        structures: Index arrays of each link.
        sorted: Whether all positions rise, as the kernels require.
        version: Counts how often the patterns, or what is frozen, have changed.
    """

    def __init__(
        self,
        library: Library,
        links: Sequence[Link],
        input_shape: tuple[int, int, int],
        input_gradient: bool = False,
    ) -> None:
        """Lays out a chain.

        Args:
            library: The kernels.
            links: Its layers.
            input_shape: Channels, height and width; a vector of features is ``(features, 1, 1)``.
            input_gradient: Whether a gradient flows into the input.
        """
        self.library = library
        self.input_gradient = input_gradient
        self.buffers = buffers_of(links, input_shape)
        self.after_relu = [False]
        for link in links:  # the maximum of values that have passed a ReLU has passed it, too
            self.after_relu.append(link.relu or (link.kind == POOL and self.after_relu[-1]))
        self.version = 0
        self.links: list[Link] = []
        self._marks: list[tuple[Tensor, int]] = []
        self._free: dict[int, list[_Workspace]] = {}
        self.update(links)

    def update(self, links: Sequence[Link]) -> None:
        """Takes links of the same shapes; rebuilds the index arrays if the patterns changed."""
        marks = marks_of(
            index
            for link in links
            for live in link.live
            for index in (live.plastic_index, live.frozen_index)
        )
        same = self.version > 0 and unchanged(marks, self._marks)
        self.links = list(links)
        if same:
            return
        self._marks = marks
        self.version += 1
        # From the input on: a row varies if it learns or reads something that varies.
        needed = np.full(self.buffers[0].channels, self.input_gradient)
        self.sorted = True
        self.structures: list[Structure | PoolStructure] = []
        for link, into in zip(self.links, self.buffers[:-1], strict=True):
            if link.kind == POOL:
                self.structures.append(PoolStructure(needed))
                continue
            structure = Structure(link, into, needed)
            self.sorted &= structure.frozen.sorted and structure.plastic.sorted
            self.structures.append(structure)
            needed = structure.needs_gradient

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's output."""
        last = self.buffers[-1]
        if self.links[-1].kind == LINEAR:
            return (last.channels,)
        return (last.channels, last.height, last.width)

    def at_a_time(self) -> int:
        """How many images fit the cache: a whole number of slabs for each thread."""
        lanes, threads = self.library.lanes, torch.get_num_threads()
        slab_bytes = sum(buffer.vectors for buffer in self.buffers) * lanes * 4
        return max(1, CACHE // (slab_bytes * threads)) * threads * lanes

    def pools_next(self, number: int, feed: Feed | None) -> bool:
        """Whether the convolution ``number`` can pool its own output as it stores it.

        It can if a pool follows, and if the feed leaves both the same channels to compute.
        """
        both = [link.kind for link in self.links[number : number + 2]]
        if both != [CONVOLUTION, POOL]:
            return False
        first, second = feed.computed[number : number + 2] if feed is not None else (None, None)
        if first is None or second is None:
            return first is second
        return np.array_equal(first, second)

    def parameters(self) -> list[Tensor]:
        """Plastic weights and biases, link by link."""
        return [values.plastic for link in self.links for values in link.live]

    # Running.

    def forward(self, given: Tensor | Given, *, every: bool = False) -> _Workspace:
        """Runs images through all layers.

        Args:
            given: The images.
            every: Whether every activation will be read. Otherwise a convolution with a pool
                does not store all of its output.

        Returns:
            The workspace with the activations, for :meth:`read` and :meth:`backward`; return it
            with :meth:`give_back`.

        Raises:
            RuntimeError: Frozen values or connections have changed since the feed was made.
        """
        feed = given.feed if isinstance(given, Given) else None
        if feed is not None and len(feed.parts) > 1 and not feed.constants.hold(self.links):
            raise RuntimeError(STALE)
        slabs = -(-len(given) // self.library.lanes)
        free = self._free.setdefault(slabs, [])
        workspace = free.pop() if free else _Workspace(self, slabs)
        described = None if workspace.feed is None else workspace.feed()
        fed = workspace.feed is not None
        if workspace.version != self.version or described is not feed or fed != (feed is not None):
            workspace.describe(self, feed)
        workspace.point(self.links)
        threads = torch.get_num_threads()
        if isinstance(given, Given):
            rows, index = given.feed.rows, given.index
            for part in given.feed.parts:
                self.library.fill(
                    ctypes.addressof(workspace.images[part.buffer]),
                    part.channels.ctypes.data,
                    len(part.channels),
                    rows.data_ptr() + 4 * part.start,
                    rows.shape[1],
                    index.data_ptr(),
                    len(given),
                    threads,
                )
        else:
            images, buffer = given.contiguous(), self.buffers[0]
            self.library.fill(
                ctypes.addressof(workspace.images[0]),
                None,
                buffer.channels,
                images.data_ptr(),
                buffer.channels * buffer.pixels,
                None,
                len(images),
                threads,
            )
        self.library.forward(
            ctypes.addressof(workspace.layers), len(self.links), len(given), every, threads
        )
        return workspace

    def give_back(self, workspace: _Workspace) -> None:
        """Makes a workspace available for the next pass."""
        self._free[workspace.slabs].append(workspace)

    def read(self, workspace: _Workspace, buffer: int, count: int) -> Tensor:
        """The activations in a buffer, ``(count, channels, height, width)``."""
        shape = self.buffers[buffer]
        out = torch.empty(count, shape.channels, shape.height, shape.width, **FLOATS)
        self.library.empty(
            ctypes.addressof(workspace.images[buffer]),
            out.data_ptr(),
            count,
            torch.get_num_threads(),
        )
        return out

    def output(self, workspace: _Workspace, count: int) -> Tensor:
        """The chain's output, ``(count, *output_shape)``."""
        return self.read(workspace, len(self.links), count).view(count, *self.output_shape)

    def backward(
        self,
        workspace: _Workspace,
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
        places = iter(into)
        for layer, link in zip(workspace.layers, self.links, strict=True):
            if link.live:
                layer.weight_gradient = next(places).data_ptr()
                layer.bias_gradient = next(places).data_ptr()
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

    def __call__(self, images: Tensor | Given) -> Tensor:
        """Output of images, ``(batch, *input_shape)`` to ``(batch, *output_shape)``."""
        parameters = self.parameters()
        if torch.is_grad_enabled() and (
            self.input_gradient
            or any(values.requires_grad and values.numel() for values in parameters)
        ):
            out: Tensor = _Run.apply(self, images, *parameters)  # type: ignore[no-untyped-call]
            return out
        out = torch.empty(len(images), *self.output_shape, **FLOATS)
        done = 0
        for part in images.split(self.at_a_time()):
            workspace = self.forward(part)
            out[done : done + len(part)] = self.output(workspace, len(part))
            self.give_back(workspace)
            done += len(part)
        return out

    def gradients(
        self,
        given: Tensor | Given,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reuse: bool = False,
    ) -> Tensor:
        """Sets the ``grad`` of every plastic value to the gradient of a mean loss.

        Works through the batch in parts, forward and backward, so that the activations of a part
        stay in the processor's cache.

        Args:
            given: Images.
            labels: Their classes, ``(batch,)``.
            loss: Mean over samples, from logits ``(n, outputs)`` and labels ``(n,)``.
            reuse: Whether to write into the present ``grad`` tensors.

        Returns:
            The loss of the batch, detached.

        Raises:
            ValueError: The numbers of images and labels differ.
        """
        if len(given) != len(labels):
            raise ValueError(
                f"images of batch_size {len(given)} and labels of batch_size {len(labels)} "
                "must be as many"
            )
        parameters = self.parameters()
        into = [
            values.grad
            if reuse and values.grad is not None and values.grad.is_contiguous()
            else torch.empty_like(values)
            for values in parameters
        ]
        total = torch.zeros((), **FLOATS)
        size, done = self.at_a_time(), 0
        for part in given.split(size):
            here = labels[done : done + len(part)]
            workspace = self.forward(part)
            value, gradient = value_and_gradient(loss, self.output(workspace, len(part)), here)
            if len(part) < len(labels):  # the loss is a mean: each part counts by its size
                share = len(part) / len(labels)
                value, gradient = value * share, gradient * share
            self.backward(workspace, gradient, into, fresh=done == 0)
            self.give_back(workspace)
            total += value
            done += len(part)
        for values, gradient in zip(parameters, into, strict=True):
            if values.requires_grad:
                values.grad = gradient
        return total

    def unit_sums(self, batches: Iterable[Tensor | Given], buffers: Sequence[int]) -> list[Tensor]:
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

    # Keeping what is constant.

    def feed(
        self, batches: Iterable[Tensor], count: int, budget: int, marked: Container[int] = ()
    ) -> Feed | None:
        """Prepares a data set, with the activations of constant units that are worth keeping.

        Args:
            batches: Images, ``(n, channels, height, width)`` each.
            count: Number of images in all batches.
            budget: Bytes that the feed may take.
            marked: Buffers whose activations are all read from outside.

        Returns:
            The feed, or None if the pixels alone take more than the budget.
        """
        first = self.buffers[0]
        width = first.channels * first.pixels
        parts = [Part(0, np.arange(first.channels, dtype=np.int32), 0, width)]
        computed: list[Ints | None] = [None] * len(self.links)
        if 4 * count * width > budget:
            return None
        # Greedy: the stages that save most per byte come first.
        for stage in self._stages(marked):
            if stage.worth < WORTH_KEEPING or 4 * count * (width + stage.width) > budget:
                continue
            parts.append(Part(stage.buffer, stage.constant, width, stage.width))
            for number in stage.links:
                computed[number] = stage.varying
            width += stage.width
        # NumPy asks the system for large pages. Without them, finding the rows of a batch in memory
        # takes three times as long as reading them.
        rows = torch.from_numpy(np.empty((count, width), dtype=np.float32))
        done = 0
        for batch in batches:
            for images in batch.split(self.at_a_time()):
                here = rows[done : done + len(images)]
                here[:, : parts[0].width] = images.flatten(1)
                done += len(images)
                if len(parts) == 1:
                    continue
                workspace = self.forward(images, every=True)
                for part in parts[1:]:
                    values = self.read(workspace, part.buffer, len(images))
                    chosen = values[:, torch.from_numpy(part.channels.astype(np.int64))]
                    here[:, part.start : part.start + part.width] = chosen.flatten(1)
                self.give_back(workspace)
        shape = (first.channels, first.height, first.width)
        return Feed(rows, tuple(parts), tuple(computed), shape, Constants(self.links))

    def _stages(self, marked: Container[int] = ()) -> list[_Stage]:
        """Layers with constant units, each with the pool that follows it; best worth first."""
        stages = []
        for number, (link, structure) in enumerate(zip(self.links, self.structures, strict=True)):
            if not isinstance(structure, Structure) or structure.needs_gradient.all():
                continue
            pooled = number + 1 < len(self.links) and self.links[number + 1].kind == POOL
            pooled = pooled and number + 1 not in marked
            links = (number, number + 1) if pooled else (number,)
            out = self.buffers[links[-1] + 1]
            constant = np.flatnonzero(~structure.needs_gradient).astype(np.int32)
            work = 2 * structure.live_per_row[constant].sum() * link.weights_each
            width = len(constant) * out.pixels
            stages.append(
                _Stage(
                    links,
                    links[-1] + 1,
                    constant,
                    structure.varying_rows,
                    width,
                    float(work * self.buffers[number + 1].pixels / (4 * width)),
                )
            )
        return sorted(stages, key=lambda stage: -stage.worth)


@dataclass(frozen=True)
class _Stage:
    """Constant units of a layer whose activations could be kept.

    Attributes:
        links: Numbers of the layer and, if one follows, its pool.
        buffer: Number of the buffer that holds the activations.
        constant: The constant units.
        varying: All other units.
        width: Activations per image.
        worth: Operations saved per byte kept.
    """

    links: tuple[int, ...]
    buffer: int
    constant: Ints
    varying: Ints
    width: int
    worth: float


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A loss and its gradient, ``(batch, outputs)``, both detached.

    A loss with a method ``value_and_gradient(logits, labels)`` computes them itself, which is
    faster than recording a graph.
    """
    own = getattr(loss, "value_and_gradient", None)
    if own is not None:
        value, gradient = own(logits, labels)
        return value, gradient
    logits.requires_grad_()
    value = loss(logits.clone(), labels)  # a loss may change its argument in place
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


class _Run(torch.autograd.Function):
    """A chain as one operation of autograd, for passes that :meth:`Chain.gradients` cannot make."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, images: Tensor | Given, *parameters: Tensor) -> Tensor:
        ctx.chain, ctx.shape = chain, images.shape if isinstance(images, Tensor) else None
        ctx.workspace = chain.forward(images)
        ctx.version, ctx.parameters = chain.version, parameters
        ctx.links, ctx.state = chain.links, _state(chain.links)
        return chain.output(ctx.workspace, len(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        chain, workspace = ctx.chain, ctx.workspace
        if workspace is None:
            raise RuntimeError(
                "backward was called twice over the same sparse layers, whose activations are gone "
                f"after the first; run forward again, or set {CHOICE}=reference"
            )
        if ctx.version != chain.version or ctx.state != _state(ctx.links):
            raise RuntimeError("live values or patterns were changed between forward and backward")
        ctx.workspace = None
        into = [torch.empty_like(values) for values in ctx.parameters]
        shape = ctx.shape if ctx.needs_input_grad[1] else None
        input_gradient = None if shape is None else torch.empty(shape, **FLOATS)
        chain.backward(workspace, gradients[0], into, fresh=True, input_gradient=input_gradient)
        chain.give_back(workspace)
        return None, input_gradient, *into


def _state(links: Sequence[Link]) -> list[tuple[int, int]]:
    """Address of each value tensor, and how often it was changed in place."""
    return [
        (values.data_ptr(), changes(values))
        for link in links
        for live in link.live
        for values in (live.plastic, live.frozen)
    ]
