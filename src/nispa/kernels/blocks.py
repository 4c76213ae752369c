"""Layers that follow each other, as they run fastest on a GPU.

A convolution, its bias, ReLU and max-pool are one block. ReLU and the sum with a bias come after
the pool, on a quarter of the pixels: both keep the order of numbers, so every result is the same.
The three gradients of a block (of its input, weights, biases) are computed at the same time, since
each alone is too small for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.dense import Filled, FullTensor
from nispa.kernels.links import ConvolutionLink, Link, PoolLink, WeightedLink

MANY = 4096
"""Inputs of a Linear layer from which a product is faster without the sum with biases in it."""

_POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
"""Window, stride, padding and dilation of a 2 x 2 max-pool, and whether sizes round up."""


def run(
    links: Sequence[Link], layers: Sequence[tuple[FullTensor, FullTensor] | None], x: Tensor
) -> tuple[Tensor, list[int]]:
    """Runs layers.

    Args:
        links: The layers.
        layers: Full weight and bias of each; None for pools.
        x: ``(batch, features)`` or ``(batch, channels, height, width)``.

    Returns:
        The output, and how many outputs one unit of each layer has for one image.
    """
    places: list[int] = []
    pooled = False  # whether the convolution before has run the pool that comes next
    for link, layer, following in zip(links, layers, [*links[1:], None], strict=True):
        if layer is None:
            x = x if pooled else functional.max_pool2d(x, 2)
            places.append(math.prod(x.shape[2:]))
            pooled = False
            continue
        assert isinstance(link, WeightedLink)
        filled = [tensor.fill(live) for tensor, live in zip(layer, link.live, strict=True)]
        # Autograd needs the plastic values as inputs. Empty ones need no gradient.
        plastic = [
            live.plastic if len(live.plastic) else live.plastic.detach() for live in link.live
        ]
        if isinstance(link, ConvolutionLink):
            pooled = isinstance(following, PoolLink)
            x = _Convolution.apply(x, *plastic, filled, link, pooled, places)  # type: ignore[no-untyped-call]
        else:
            x = _Product.apply(x.flatten(1), *plastic, filled, link.relu)  # type: ignore[no-untyped-call]
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
        filled: Sequence[Filled],
        link: ConvolutionLink,
        pooled: bool,
        places: list[int],
    ) -> Tensor:
        weight, bias = filled
        ctx.filled, ctx.link, ctx.pooled, ctx.input_dtype = filled, link, pooled, x.dtype
        x = x.to(weight.full.dtype)
        # Without the bias, which is added after the pool, to a quarter of the pixels.
        unpooled = functional.conv2d(x, weight.full, None, link.stride, link.padding)
        places.append(math.prod(unpooled.shape[2:]))
        largest, out = unpooled, unpooled
        if pooled:
            out, largest = torch.ops.aten.max_pool2d_with_indices(unpooled, *_POOL)
        out.add_(bias.full.to(out.dtype).view(-1, 1, 1))
        if link.relu:
            out.relu_()
        # `out` is the ReLU's mask. `unpooled` is asked for its shape alone, but PyTorch wants the
        # tensor.
        ctx.save_for_backward(x, unpooled, largest, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, unpooled, largest, out = ctx.saved_tensors
        weight = ctx.filled[0].full
        gradient = gradients[0]
        if out.is_contiguous(memory_format=torch.channels_last):
            # As the output lies; each of the three would otherwise turn it around for itself.
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.link.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        wide = gradient
        if ctx.pooled:
            wide = torch.ops.aten.max_pool2d_with_indices_backward(
                gradient, unpooled, *_POOL, largest
            )
        how = [ctx.link.stride] * 2, [ctx.link.padding] * 2, [1, 1], False, [0, 0], 1

        def convolve_back(number: int) -> Tensor:
            """One of the three gradients of a convolution."""
            wanted = [number == each for each in range(3)]
            result: Tensor = torch.ops.aten.convolution_backward(
                wide, x, weight, None, *how, wanted
            )[number]
            return result

        dtype = torch.promote_types(gradient.dtype, torch.float32)
        found = _three_gradients(
            ctx,
            x.device,
            lambda: convolve_back(0),
            lambda: convolve_back(1),
            # Each image by itself first, then all images: shorter sums, so less rounding.
            lambda: gradient.sum((2, 3), dtype=dtype).sum(0),
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
        filled: Sequence[Filled],
        relu: bool,
    ) -> Tensor:
        weight, bias = filled
        ctx.filled, ctx.relu, ctx.input_dtype = filled, relu, x.dtype
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
        weight = ctx.filled[0].full
        gradient = gradients[0].contiguous()
        if ctx.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        found = _three_gradients(
            ctx,
            x.device,
            lambda: gradient @ weight,
            lambda: gradient.t() @ x,
            lambda: gradient.sum(0, dtype=dtype),
        )
        return *found, None, None


def _three_gradients(
    ctx: Any,
    device: torch.device,
    of_input: Callable[[], Tensor],
    of_weight: Callable[[], Tensor],
    of_bias: Callable[[], Tensor],
) -> list[Tensor | None]:
    """Those gradients of a block that are needed: its input's, and those of its plastic values.

    Args:
        ctx: Of the block's autograd function.
        device: Where to compute.
        of_input: Computes the gradient of the input.
        of_weight: Computes that of the full weight.
        of_bias: Computes that of all biases.
    """
    weight, bias = ctx.filled
    works = (
        lambda: of_input().to(ctx.input_dtype),
        lambda: weight.plastic_gradient(of_weight()),
        lambda: bias.plastic_gradient(of_bias()),
    )
    needed = zip(works, ctx.needs_input_grad, strict=False)
    return at_the_same_time(device, *(work if need else None for work, need in needed))


def at_the_same_time(
    device: torch.device, *works: Callable[[], Tensor] | None
) -> list[Tensor | None]:
    """The results of several works, each on a CUDA stream of its own; on the CPU in turn."""
    if device.type != "cuda":
        return [None if work is None else work() for work in works]
    here = torch.cuda.current_stream(device)
    streams = _streams.setdefault(device, [])
    results: list[Tensor | None] = [None] * len(works)
    # The first one runs on the current stream, and is launched last: the others can start at once.
    for number, work in enumerate(works):
        if number == 0 or work is None:
            continue
        if len(streams) < number:
            streams += [torch.cuda.Stream(device) for _ in range(number - len(streams))]
        stream = streams[number - 1]
        stream.wait_stream(here)  # for what the work reads
        with torch.cuda.stream(stream):
            results[number] = work()
    if works[0] is not None:
        results[0] = works[0]()
    for number, work in enumerate(works[1:]):
        if work is not None:
            here.wait_stream(streams[number])
    return results


_streams: dict[torch.device, list[torch.cuda.Stream]] = {}
