"""Activations in the layout of the compiled kernels, as tensors that autograd can follow.

A chain keeps its buffers to itself. Where layers branch, or other modules run between them, each
activation is a tensor of its own: ``(slabs, channels, height, width, lanes)`` with a zero border,
see ``cpp/layout.hpp``. Gradients are such tensors, too; they are zero in the border and in lanes
without an image.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nispa.kernels.native import Image, Library
from nispa.kernels.workspace import FLOATS


@dataclass(frozen=True)
class Form:
    """The shape of a batch of activations.

    Attributes:
        count: Images.
        channels: Of each image.
        height: In pixels.
        width: In pixels.
        pad: Width of the zero border.
    """

    count: int
    channels: int
    height: int
    width: int
    pad: int = 0

    @staticmethod
    def of(shape: Sequence[int], pad: int) -> Form:
        """From a shape as PyTorch's modules see it."""
        count, channels, height, width = shape
        return Form(count, channels, height, width, pad)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As PyTorch's modules see it."""
        return self.count, self.channels, self.height, self.width

    def slabs(self, lanes: int) -> int:
        """How many slabs hold the images."""
        return -(-self.count // lanes)

    def lying(self, lanes: int) -> tuple[int, ...]:
        """The shape of the tensor."""
        border = 2 * self.pad
        return (
            self.slabs(lanes), self.channels, self.height + border, self.width + border, lanes,
        )  # fmt: skip

    def image(self, memory: Tensor | None) -> Image:
        """A tensor as the kernels read it; None where there is none."""
        data = None if memory is None else memory.data_ptr()
        return Image(data, self.channels, self.height, self.width, self.pad)


Key = tuple[tuple[int, ...], int]
"""Shape of a tensor and width of its border."""


class Memory:
    """Tensors that are used again: fresh memory costs about as much as the arithmetic.

    A tensor comes back when nothing refers to it any more. What lies idle is kept while all memory
    is at most ``SLACK`` times what was in use at one time: shapes have their turns within a step.
    """

    SLACK = 1.5

    def __init__(self) -> None:
        self._free: dict[Key, list[Tensor]] = {}
        self._returned: deque[tuple[Key, Tensor]] = deque()  # since the last call
        self._used = self._idle = self._most = 0  # floats

    def take(self, shape: tuple[int, ...], pad: int) -> Tensor:
        """A tensor of a shape with a zero border; the rest may be anything."""
        while self._returned:
            key, known = self._returned.popleft()
            self._free.setdefault(key, []).append(known)
            self._used -= known.numel()
            self._idle += known.numel()
        # Two forms may have one shape, but not one border.
        key = shape, pad
        kept = self._free.get(key)
        if kept:
            memory = kept.pop()
            self._idle -= memory.numel()
        else:
            self._drop(self._used + torch.Size(shape).numel())
            memory = torch.zeros(shape, **FLOATS)
        self._used += memory.numel()
        self._most = max(self._most, self._used)
        array = memory.numpy()
        # The tensor keeps this very array, which therefore dies with its last view.
        weakref.finalize(array, self._returned.append, (key, memory)).atexit = False
        return torch.from_numpy(array)

    def _drop(self, wanted: int) -> None:
        """Lets idle tensors go, those of the forms that were new first first."""
        for key in list(self._free):
            while self._free[key] and wanted + self._idle > self.SLACK * self._most:
                self._idle -= self._free[key].pop().numel()
            if not self._free[key]:
                del self._free[key]


@dataclass(frozen=True)
class Place:
    """What all activations of one network share: kernels and memory."""

    library: Library
    memory: Memory

    @property
    def lanes(self) -> int:
        """Images side by side."""
        return self.library.lanes

    def take(self, form: Form) -> Tensor:
        """Memory for activations."""
        return self.memory.take(form.lying(self.lanes), form.pad)

    def fill(self, images: Tensor, form: Form) -> Tensor:
        """Images, ``(count, channels, height, width)``, in slabs."""
        images, slabs = images.contiguous(), self.take(form)
        self.library.fill(
            ctypes.byref(form.image(slabs)),
            None,  # all channels, in order
            form.channels,
            images.data_ptr(),
            form.channels * form.height * form.width,
            None,  # images as they come
            form.count,
            torch.get_num_threads(),
        )
        return slabs

    def fill_gradient(self, gradient: Tensor, form: Form) -> Tensor:
        """The same for a gradient, which is zero in lanes without an image."""
        gradient, slabs = gradient.contiguous(), self.take(form)
        self.library.fill_gradient(
            ctypes.byref(form.image(slabs)),
            gradient.data_ptr(),
            form.count,
            torch.get_num_threads(),
        )
        return slabs

    def empty(self, slabs: Tensor, form: Form) -> Tensor:
        """Slabs as ``(count, channels, height, width)``."""
        out, slabs = torch.empty(form.shape, **FLOATS), slabs.contiguous()
        image = ctypes.byref(form.image(slabs))
        self.library.empty(image, out.data_ptr(), form.count, torch.get_num_threads())
        return out


class ToSlabs(torch.autograd.Function):
    """Images to slabs."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, place: Place, form: Form) -> Tensor:
        """See :meth:`Place.fill`."""
        ctx.place, ctx.form = place, form
        return place.fill(images, form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The way back."""
        return ctx.place.empty(gradients[0], ctx.form), None, None


class FromSlabs(torch.autograd.Function):
    """Slabs to images."""

    @staticmethod
    def forward(ctx: Any, slabs: Tensor, place: Place, form: Form) -> Tensor:
        """See :meth:`Place.empty`."""
        ctx.place, ctx.form = place, form
        return place.empty(slabs, form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The way back."""
        return ctx.place.fill_gradient(gradients[0], ctx.form), None, None


def inside(slabs: Tensor, form: Form) -> Tensor:
    """A view without the border."""
    if not form.pad:
        return slabs
    return slabs[:, :, form.pad : form.pad + form.height, form.pad : form.pad + form.width]


class Bordered(torch.autograd.Function):
    """Slabs with another border."""

    @staticmethod
    def forward(ctx: Any, slabs: Tensor, place: Place, before: Form, after: Form) -> Tensor:
        """A copy in the form ``after``."""
        ctx.place, ctx.before, ctx.after = place, before, after
        out = place.take(after)
        inside(out, after).copy_(inside(slabs, before))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The way back."""
        out = ctx.place.take(ctx.before)
        inside(out, ctx.before).copy_(inside(gradients[0], ctx.after))
        return out, None, None, None


class PixelMean(torch.autograd.Function):
    """Slabs to the mean of each channel's pixels, ``(count, channels)``."""

    @staticmethod
    def forward(ctx: Any, slabs: Tensor, place: Place, form: Form) -> Tensor:
        """One row for each image."""
        ctx.place, ctx.form = place, form
        means, slabs = torch.empty(form.count, form.channels, **FLOATS), slabs.contiguous()
        image, threads = form.image(slabs), torch.get_num_threads()
        place.library.means(ctypes.byref(image), means.data_ptr(), form.count, threads)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Each pixel gets its share."""
        form, lanes = ctx.form, ctx.place.lanes
        each = torch.zeros(form.slabs(lanes) * lanes, form.channels, **FLOATS)
        each[: form.count] = gradients[0] / (form.height * form.width)
        out = ctx.place.take(form)
        lying = each.view(-1, lanes, form.channels).transpose(1, 2)
        inside(out, form).copy_(lying[:, :, None, None])
        return out, None, None
