"""The reference kernels: live values are scattered into a dense weight, PyTorch does the rest.

Every faster kernel must agree with these, forward and in all gradients. They run wherever PyTorch
does (CPU and CUDA). The dense weight lives for one call only: what is stored follows the density.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LiveValues(NamedTuple):
    """The values at some positions of an otherwise zero tensor: some learn, the others are frozen.

    Attributes:
        plastic: Values that learn, ``(plastic, *kernel)``.
        plastic_index: Their flat positions, ``(plastic,)`` int64, no position twice.
        frozen: Values that never change, ``(frozen, *kernel)``.
        frozen_index: Their flat positions, ``(frozen,)`` int64, disjoint from the plastic ones.
        shape: The full shape, kernel excluded: ``(target, source)`` or ``(target,)``.
    """

    plastic: Tensor
    plastic_index: Tensor
    frozen: Tensor
    frozen_index: Tensor
    shape: tuple[int, ...]


class _Scatter(torch.autograd.Function):
    """Writes live values into a dense tensor; the gradient returns to the plastic ones alone.

    One operation with a backward pass of its own, which gathers the gradients at plastic positions
    and computes nothing for the others.
    """

    @staticmethod
    def forward(ctx: Any, plastic: Tensor, live: LiveValues) -> Tensor:
        ctx.save_for_backward(live.plastic_index)
        ctx.pattern_dims = len(live.shape)
        kernel = plastic.shape[1:]
        full = plastic.new_zeros(math.prod(live.shape), *kernel)
        full.index_copy_(0, live.frozen_index, live.frozen)
        full.index_copy_(0, live.plastic_index, plastic)
        return full.view(*live.shape, *kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        (full,) = gradients
        return full.flatten(0, ctx.pattern_dims - 1).index_select(0, index), None


def _scatter(plastic: Tensor, live: LiveValues) -> Tensor:
    full: Tensor = _Scatter.apply(plastic, live)  # type: ignore[no-untyped-call]
    return full


def to_dense(live: LiveValues) -> Tensor:
    """The full tensor, ``(*shape, *kernel)``: live values in place, zero elsewhere."""
    if live.plastic.shape[0] == 0:  # nothing learns: no gradient is computed for the whole tensor
        return _scatter(live.plastic.detach(), live)
    return _scatter(live.plastic, live)


def linear(x: Tensor, weight: LiveValues, bias: LiveValues) -> Tensor:
    """Linear layer, ``(batch, in_features)`` to ``(batch, out_features)``."""
    return functional.linear(x, to_dense(weight), to_dense(bias))


def conv2d(x: Tensor, weight: LiveValues, bias: LiveValues, stride: int, padding: int) -> Tensor:
    """Convolution, ``(batch, in, height, width)`` to ``(batch, out, height', width')``."""
    return functional.conv2d(x, to_dense(weight), to_dense(bias), stride, padding)
