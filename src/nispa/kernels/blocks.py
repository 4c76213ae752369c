"""Layers that follow each other, as they run fastest on a GPU.

A convolution, its bias, ReLU and max-pool are one block. ReLU and the sum with a bias come after
the pool, on a quarter of the pixels: both keep the order of numbers, so every number that comes out
is the same. What flows back to the layer before, the gradient of weights and that of biases are
computed side by side: each alone is too small for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.dense import Full, Written
from nispa.kernels.structure import CONVOLUTION, POOL, Link

MANY = 4096
"""Inputs of a Linear layer from which on a product is faster by itself than with a sum in it."""

_HALVES = ([2, 2], [2, 2], [0, 0], [1, 1], False)


def run(
    links: Sequence[Link], layers: Sequence[tuple[Full, Full] | None], x: Tensor
) -> tuple[Tensor, list[int]]:
    """Runs layers.

    Args:
        links: The layers.
        layers: Full weight and bias of each; None for pools.
        x: ``(batch, features)`` or ``(batch, channels, height, width)``.

    Returns:
        What comes out, and how many outputs one unit of each layer has for one image.
    """
    places = []
    pooled = False
    for link, layer, follows in zip(links, layers, [*links[1:], None], strict=True):
        if layer is None or link.weight is None or link.bias is None:
            x = x if pooled else functional.max_pool2d(x, 2)
            places.append(math.prod(x.shape[2:]))
            pooled = False
            continue
        live = link.weight, link.bias
        learning = [each.plastic if len(each.plastic) else each.plastic.detach() for each in live]
        written = [full.write(each) for full, each in zip(layer, live, strict=True)]
        if link.kind == CONVOLUTION:
            pooled = follows is not None and follows.kind == POOL
            seen: list[int] = []
            x = _Convolution.apply(x, *learning, written, link, pooled, seen)  # type: ignore[no-untyped-call]
            places += seen
        else:
            x = _Product.apply(x.flatten(1), *learning, written, link.relu)  # type: ignore[no-untyped-call]
            places.append(1)
    return x, places


class _Convolution(torch.autograd.Function):
    """Convolution, max-pool if asked for, bias, ReLU if asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _weight: Tensor,
        _bias: Tensor,
        written: Sequence[Written],
        link: Link,
        pooled: bool,
        places: list[int],
    ) -> Tensor:
        weight, bias = written
        ctx.written, ctx.link, ctx.pooled, ctx.came = written, link, pooled, x.dtype
        x = x.to(weight.full.dtype)
        wide = functional.conv2d(x, weight.full, None, link.stride, link.padding)
        places.append(math.prod(wide.shape[2:]))
        where, out = wide, wide
        if pooled:
            out, where = torch.ops.aten.max_pool2d_with_indices(wide, *_HALVES)
        out.add_(bias.full.to(out.dtype).view(-1, 1, 1))
        if link.relu:
            out.relu_()
        ctx.save_for_backward(x, wide, where, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, wide, where, out = ctx.saved_tensors
        weight, bias = ctx.written
        flow = gradients[0]
        if out.is_contiguous(memory_format=torch.channels_last):
            flow = flow.contiguous(memory_format=torch.channels_last)
        if ctx.link.relu:
            flow = torch.ops.aten.threshold_backward(flow, out, 0)
        narrow = flow
        if ctx.pooled:
            flow = torch.ops.aten.max_pool2d_with_indices_backward(flow, wide, *_HALVES, where)
        kind = torch.promote_types(flow.dtype, torch.float32)
        sides = [ctx.link.stride] * 2, [ctx.link.padding] * 2, [1, 1], False, [0, 0], 1

        def back(*wanted: bool) -> Sequence[Tensor]:
            found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
                flow, x, weight.full, None, *sides, wanted
            )
            return found

        wanted = ctx.needs_input_grad[:3]
        found = side_by_side(
            x.device,
            (lambda: back(True, False, False)[0].to(ctx.came)) if wanted[0] else None,
            (lambda: weight.taken(back(False, True, False)[1])) if wanted[1] else None,
            # Each image by itself first, all images at once.
            (lambda: bias.taken(narrow.sum((2, 3), dtype=kind).sum(0))) if wanted[2] else None,
        )
        return *found, None, None, None, None


class _Product(torch.autograd.Function):
    """A Linear layer, ReLU if asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _weight: Tensor,
        _bias: Tensor,
        written: Sequence[Written],
        relu: bool,
    ) -> Tensor:
        weight, bias = written
        ctx.written, ctx.relu, ctx.came = written, relu, x.dtype
        x = x.to(weight.full.dtype)
        if x.shape[1] < MANY:
            out = torch.addmm(bias.full.to(x.dtype), x, weight.full.t())
        else:
            out = (x @ weight.full.t()).add_(bias.full.to(x.dtype))
        if relu:
            out.relu_()
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, out = ctx.saved_tensors
        weight, bias = ctx.written
        flow = gradients[0].contiguous()
        if ctx.relu:
            flow = torch.ops.aten.threshold_backward(flow, out, 0)
        kind = torch.promote_types(flow.dtype, torch.float32)
        wanted = ctx.needs_input_grad[:3]
        found = side_by_side(
            x.device,
            (lambda: (flow @ weight.full).to(ctx.came)) if wanted[0] else None,
            (lambda: weight.taken(flow.t() @ x)) if wanted[1] else None,
            (lambda: bias.taken(flow.sum(0, dtype=kind))) if wanted[2] else None,
        )
        return *found, None, None


def side_by_side(device: torch.device, *works: Callable[[], Tensor] | None) -> list[Tensor | None]:
    """What several works give, each on a stream of its own where the device has streams."""
    if device.type != "cuda":
        return [None if work is None else work() for work in works]
    here = torch.cuda.current_stream(device)
    streams = _streams.setdefault(device, [])
    found: list[Tensor | None] = [None] * len(works)
    for number, work in enumerate(works):
        if number == 0 or work is None:
            continue
        if len(streams) < number:
            streams += [torch.cuda.Stream(device) for _ in range(number - len(streams))]
        stream = streams[number - 1]
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            found[number] = work()
    if works[0] is not None:
        found[0] = works[0]()
    for number, work in enumerate(works[1:]):
        if work is not None:
            here.wait_stream(streams[number])
    return found


_streams: dict[torch.device, list[torch.cuda.Stream]] = {}
