"""Layers that follow each other, as they run fastest on a GPU.

A convolution, its bias, ReLU and max-pool are one block. ReLU and the sum with a bias come after
the pool, on a quarter of the pixels: both keep the order of numbers, so every number that comes out
is the same. Of the gradient of biases each image is summed up first, all images side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.structure import CONVOLUTION, LINEAR, POOL, Link


def run(
    links: Sequence[Link], values: Sequence[tuple[Tensor, Tensor] | None], x: Tensor
) -> tuple[Tensor, list[int]]:
    """Runs layers.

    Args:
        links: The layers.
        values: Full weight and bias of each; None for pools.
        x: ``(batch, features)`` or ``(batch, channels, height, width)``.

    Returns:
        What comes out, and how many outputs one unit of each layer has for one image.
    """
    places = []
    after = [*links[1:], None]
    pooled = False
    for link, full, follows in zip(links, values, after, strict=True):
        if full is None:
            x = x if pooled else functional.max_pool2d(x, 2)
            places.append(math.prod(x.shape[2:]))
            pooled = False
            continue
        weight, bias = full
        if link.kind == CONVOLUTION:
            x = functional.conv2d(x, weight, None, link.stride, link.padding)
            places.append(math.prod(x.shape[2:]))
            pooled = follows is not None and follows.kind == POOL
            if pooled:
                x = functional.max_pool2d(x, 2)
            x = _Finish.apply(x, bias, link.relu)  # type: ignore[no-untyped-call]
            continue
        assert link.kind == LINEAR
        # With many inputs the product is faster by itself than with the sum in it.
        product = x.flatten(1) @ weight.t()
        x = product + bias.to(product.dtype)
        x = functional.relu(x, inplace=True) if link.relu else x
        places.append(1)
    return x, places


class _Finish(torch.autograd.Function):
    """Adds a bias to each channel, and cuts off what is negative; both in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, relu: bool) -> Tensor:
        ctx.mark_dirty(x)
        ctx.relu, ctx.kind = relu, bias.dtype
        x.add_(bias.to(x.dtype).view(-1, 1, 1))
        if relu:
            x.relu_()
            ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (flow,) = gradients
        if ctx.relu:
            (x,) = ctx.saved_tensors
            flow = torch.ops.aten.threshold_backward(flow, x, 0)
        if not ctx.needs_input_grad[1]:
            return flow, None, None
        kind = torch.promote_types(flow.dtype, torch.float32)
        return flow, flow.sum((2, 3), dtype=kind).sum(0).to(ctx.kind), None
