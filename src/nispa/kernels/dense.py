"""Full tensors of live values, kept and updated in place: for passes on a GPU.

There, dense products are so fast that filling a new full weight for each pass would take longer
than the pass. Frozen values are written once, plastic ones before each pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nispa.kernels.reference import LiveValues
from nispa.kernels.versions import Versions, same_versions, versions_of


def keeps(values: Tensor) -> bool:
    """Whether layers keep full tensors of such values: on a GPU."""
    return values.is_cuda


@dataclass(frozen=True)
class Filled:
    """A full tensor with the present values.

    Attributes:
        full: ``(*shape, *kernel)``, detached.
        plastic_places: Where in its memory each plastic value lies, ``(plastic * kernel,)`` int64;
            None where every value is plastic, in order.
        shape: Of the plastic values.
        dtype: Their type, which products may not have.
    """

    full: Tensor
    plastic_places: Tensor | None
    shape: torch.Size
    dtype: torch.dtype

    def plastic_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of the plastic values, from that of the full tensor."""
        if self.plastic_places is None:
            return gradient.reshape(self.shape).to(self.dtype)
        if len(self.shape) > 1:
            gradient = gradient.movedim(1, -1)  # as the memory lies: sources last
        chosen = gradient.flatten().index_select(0, self.plastic_places)
        return chosen.view(self.shape).to(self.dtype)


class FullTensor:
    """The full tensor of one layer's weights or biases, zero where nothing is live.

    Each call gives the same memory, with the values of that call until the next one. So between a
    forward pass and its backward pass the values must not change.
    """

    def __init__(self) -> None:
        self._memories: dict[torch.dtype, _Memory] = {}  # autocast asks for other types

    def __call__(self, live: LiveValues) -> Tensor:
        """The tensor, ``(*shape, *kernel)``; its gradient returns to the plastic values alone."""
        if live.plastic.shape[0] == math.prod(live.shape):
            return live.plastic.view(*live.shape, *live.plastic.shape[1:])
        plastic = live.plastic if live.plastic.shape[0] else live.plastic.detach()
        full: Tensor = _Fill.apply(plastic, live, self)  # type: ignore[no-untyped-call]
        return full

    @torch.no_grad()
    def fill(self, live: LiveValues) -> Filled:
        """Writes the present values into the tensor.

        Under autocast it has the type of products, as autocast would cast it.
        """
        plastic = live.plastic
        device = plastic.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else plastic.dtype
        if plastic.shape[0] == math.prod(live.shape):  # in order of position, so this is all of it
            whole = plastic.detach().view(*live.shape, *plastic.shape[1:]).to(dtype)
            return Filled(whole, None, plastic.shape, plastic.dtype)
        memory = self._memories.get(dtype)
        if memory is None or not memory.fits(live):
            # An inference tensor could not take part in training later.
            with torch.inference_mode(False):
                memory = self._memories[dtype] = _Memory(live, dtype)
        memory.write_frozen(live)
        memory.flat.index_copy_(0, memory.plastic_places, plastic.to(dtype).flatten())
        # A tensor of its own for each call: autograd would otherwise see the memory of one call
        # changed by the next.
        return Filled(memory.full.data, memory.plastic_places, plastic.shape, plastic.dtype)


class _Memory:
    """Memory of a full tensor.

    The sources of one pixel of a kernel lie side by side, and its pixels apart: channels-last, the
    layout that GPUs convolve fastest.

    Attributes:
        flat: All values, ``(values,)``.
        full: The same memory, ``(*shape, *kernel)``.
        plastic_places: Where in it each plastic value lies, ``(plastic * kernel,)`` int64.
    """

    plastic_places: Tensor

    def __init__(self, live: LiveValues, dtype: torch.dtype) -> None:
        kernel = live.plastic.shape[1:]
        size = math.prod(live.shape) * math.prod(kernel)
        self.flat = torch.zeros(size, dtype=dtype, device=live.plastic.device)
        self._sources, self._weights_each = live.shape[-1], math.prod(kernel)
        if kernel:
            channels_last = self.flat.view(live.shape[0], *kernel, *live.shape[1:])
            self.full = channels_last.permute(0, -1, *range(1, 1 + len(kernel)))
        else:
            self.full = self.flat.view(live.shape)
        self._versions: Versions = []
        self._has_frozen = False

    def fits(self, live: LiveValues) -> bool:
        """Whether it has the shape and device that these values need."""
        return (
            self.full.shape == (*live.shape, *live.plastic.shape[1:])
            and self.full.device == live.plastic.device
        )

    @torch.no_grad()
    def write_frozen(self, live: LiveValues) -> None:
        """Writes the frozen values, unless they and all positions are those written last."""
        versions = versions_of((live.plastic_index, live.frozen, live.frozen_index))
        if self._has_frozen and same_versions(versions, self._versions):
            return
        if self._has_frozen:
            self.flat.zero_()
        # Places follow from positions alone, so they are worked out here and not for each pass.
        places, frozen = self._places(live.frozen_index), live.frozen.to(self.flat.dtype)
        self.flat.index_copy_(0, places, frozen.flatten())
        self.plastic_places = self._places(live.plastic_index)
        self._versions, self._has_frozen = versions, True

    def _places(self, index: Tensor) -> Tensor:
        """Where in memory each weight of the connections at ``index`` lies."""
        if self._weights_each == 1:
            return index
        row, source = index // self._sources, index % self._sources
        # Channels last: row, pixel of the kernel, source.
        first = row * self._sources * self._weights_each + source
        offsets = torch.arange(self._weights_each, device=index.device) * self._sources
        return (first.unsqueeze(1) + offsets).flatten()


class _Fill(torch.autograd.Function):
    """Writes live values into the full tensor; the gradient returns to the plastic ones alone."""

    @staticmethod
    def forward(ctx: Any, plastic: Tensor, live: LiveValues, tensor: FullTensor) -> Tensor:
        del plastic
        ctx.filled = tensor.fill(live)
        full: Tensor = ctx.filled.full
        return full

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.filled.plastic_gradient(gradients[0]), None, None
