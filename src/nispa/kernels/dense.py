"""Full tensors of live values, kept and brought up to date in place: what runs on a GPU.

There, dense products are so fast that making a full weight anew for each pass would take longer
than the pass. Frozen values are written once, what learns with each pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nispa.kernels.feeds import marks_of, unchanged
from nispa.kernels.reference import LiveValues


def keeps(values: Tensor) -> bool:
    """Whether layers of such values keep their full tensors."""
    return values.is_cuda


@dataclass(frozen=True)
class Written:
    """A full tensor with the values of now.

    Attributes:
        full: It, ``(*shape, *kernel)``, which no gradient leaves.
        places: Where in its memory each value that learns stands; None where all do, in order.
        shape: Of the values that learn.
        kind: Their type.
    """

    full: Tensor
    places: Tensor | None
    shape: torch.Size
    kind: torch.dtype

    def taken(self, gradient: Tensor) -> Tensor:
        """What of the full tensor's gradient belongs to the values that learn."""
        if self.places is None:
            return gradient.reshape(self.shape).to(self.kind)
        if len(self.shape) > 1:
            gradient = gradient.movedim(1, -1)
        return gradient.flatten().index_select(0, self.places).view(self.shape).to(self.kind)


class Full:
    """The full tensor of one layer's weights or biases, zero where nothing is live.

    What is given out is the same memory each time. It holds what it held until the next call, so
    between a pass forward and the one back the values must not change.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, _Kept] = {}

    def __call__(self, live: LiveValues) -> Tensor:
        """The tensor, ``(*shape, *kernel)``; a gradient returns to what learns alone."""
        if live.plastic.shape[0] == math.prod(live.shape):
            return live.plastic.view(*live.shape, *live.plastic.shape[1:])
        plastic = live.plastic if live.plastic.shape[0] else live.plastic.detach()
        found: Tensor = _Update.apply(plastic, live, self)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def write(self, live: LiveValues) -> Written:
        """Brings the tensor up to date.

        Under autocast it has the type of products, as autocast would cast it.
        """
        plastic = live.plastic
        kind = plastic.device.type
        auto = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if auto else plastic.dtype
        if plastic.shape[0] == math.prod(live.shape):  # in order of position, so this is all of it
            whole = plastic.detach().view(*live.shape, *plastic.shape[1:]).to(dtype)
            return Written(whole, None, plastic.shape, plastic.dtype)
        kept = self._kept.get(dtype)
        if kept is None or not kept.fits(live):
            with torch.inference_mode(False):
                kept = self._kept[dtype] = _Kept(live, dtype)
        kept.settle(live)
        kept.memory.index_copy_(0, kept.places, plastic.to(dtype).flatten())
        # A tensor of its own, so that autograd follows each call by itself.
        return Written(kept.full.data, kept.places, plastic.shape, plastic.dtype)


class _Kept:
    """Memory for the full tensor; of a kernel, all sources of one pixel lie side by side.

    Attributes:
        memory: It, ``(values,)``.
        full: The same memory, ``(*shape, *kernel)``.
        places: Where in it each value that learns stands, ``(plastic * kernel,)`` int64.
    """

    places: Tensor

    def __init__(self, live: LiveValues, dtype: torch.dtype) -> None:
        kernel = live.plastic.shape[1:]
        size = math.prod(live.shape) * math.prod(kernel)
        self.memory = torch.zeros(size, dtype=dtype, device=live.plastic.device)
        self._sources, self._weights = live.shape[-1], math.prod(kernel)
        if kernel:
            lying = self.memory.view(live.shape[0], *kernel, *live.shape[1:])
            self.full = lying.permute(0, -1, *range(1, 1 + len(kernel)))
        else:
            self.full = self.memory.view(live.shape)
        self._marks = marks_of(())
        self._written = False

    def fits(self, live: LiveValues) -> bool:
        """Whether it has the shape for some values and lies where they do."""
        return (
            self.full.shape == (*live.shape, *live.plastic.shape[1:])
            and self.full.device == live.plastic.device
        )

    @torch.no_grad()
    def settle(self, live: LiveValues) -> None:
        """Writes what does not learn, where that is not what was written last."""
        marks = marks_of((live.plastic_index, live.frozen, live.frozen_index))
        if self._written and unchanged(marks, self._marks):
            return
        if self._written:
            self.memory.zero_()
        places, frozen = self._places(live.frozen_index), live.frozen.to(self.memory.dtype)
        self.memory.index_copy_(0, places, frozen.flatten())
        self.places = self._places(live.plastic_index)
        self._marks, self._written = marks, True

    def _places(self, index: Tensor) -> Tensor:
        """Where each weight of some positions stands, position by position."""
        if self._weights == 1:
            return index
        first = index // self._sources * self._sources * self._weights + index % self._sources
        each = torch.arange(self._weights, device=index.device) * self._sources
        return (first.unsqueeze(1) + each).flatten()


class _Update(torch.autograd.Function):
    """Writes what learns; the gradient returns to it alone."""

    @staticmethod
    def forward(ctx: Any, plastic: Tensor, live: LiveValues, full: Full) -> Tensor:
        del plastic
        ctx.written = full.write(live)
        found: Tensor = ctx.written.full
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.written.taken(gradients[0]), None, None
