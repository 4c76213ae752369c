"""The operations that weights and activations in the layout of the kernels know.

Each answers NotImplemented where it cannot: then the operation runs on plain tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.convolved import Convolved
from nispa.kernels.dispatch import LinearLink
from nispa.kernels.links import ConvolutionLink
from nispa.kernels.slabs import PixelMean
from nispa.network.laid_out import OPERATORS, LaidOut, Pending, Placed, to_slabs

LEAST_ROWS, LEAST_WORK = 32, 16
"""Smaller layers cost less than laying their inputs out."""


def _known(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(operator: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            OPERATORS[function] = operator
        return operator

    return add


def _of_activations(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same for an operator whose first argument is in slabs, or will be."""

    def add(operator: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operator)
        def checked(input: Any, *args: Any, **named: Any) -> Any:  # PyTorch's names
            if not isinstance(input, LaidOut) or input.is_plain:
                return NotImplemented
            return operator(input, *args, **named)

        return _known(*functions)(checked)

    return add


@_known(torch.conv2d)
def convolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution over live kernels."""
    if not isinstance(weight, Placed) or groups != 1 or _one(dilation) != 1:
        return NotImplemented
    layer, step, border = weight.layer(bias), _one(stride), _one(padding)
    if layer is None or step is None or border is None or not _fits(x, 4):
        return NotImplemented
    link = ConvolutionLink(layer.live_weight(), layer.live_bias(), stride=step, padding=border)
    rows, session = layer.shape[0], weight.session
    if not len(x) or not link.accepts(tuple(x.shape[1:])) or not _readable(link):
        return NotImplemented
    if isinstance(x, LaidOut):
        slabs, form = x.slabs(border)
    elif rows * link.weights_each < LEAST_WORK:
        return NotImplemented
    else:
        slabs, form = to_slabs(session.place, x, border)
    gradient = torch.is_grad_enabled() and slabs.requires_grad
    laid_out = session.convolution(layer, link, form, gradient)
    if not laid_out.chain.sorted:
        return NotImplemented
    convolved = Convolved(laid_out, slabs.detach(), form, moments=weight.moments)
    return LaidOut.of(session, convolved.form.shape, Pending(convolved, slabs))


def _one(value: Any) -> int | None:
    """A number that holds in both directions."""
    if isinstance(value, int):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and len(set(value)) == 1:
        return int(value[0])
    return None


def _fits(x: Any, dims: int) -> bool:
    if isinstance(x, LaidOut):
        return dims == 4
    return isinstance(x, Tensor) and x.dim() == dims and x.dtype == torch.float32 and x.is_cpu


def _readable(link: ConvolutionLink) -> bool:
    return all(
        values.dtype == torch.float32 and values.is_cpu and values.is_contiguous()
        for live in link.live
        for values in (live.plastic, live.frozen)
    )


@_known(functional.linear)
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """A Linear layer over live weights."""
    layer = weight.layer(bias) if isinstance(weight, Placed) else None
    if layer is None or min(layer.shape) < LEAST_ROWS:
        return NotImplemented
    x = x.plain() if isinstance(x, LaidOut) else x
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-1] != layer.shape[1]:
        return NotImplemented
    flat = x.reshape(-1, x.shape[-1])
    chain = layer.compiled.chain([LinearLink(layer.live_weight(), layer.live_bias())], flat)
    return NotImplemented if chain is None else chain(flat, (*x.shape[:-1], layer.shape[0]))


@_of_activations(torch.relu, Tensor.relu, functional.relu)
def relu(x: LaidOut, inplace: bool = False) -> Any:
    """A ReLU, which a pending convolution takes on."""
    if x.pending is not None and x.pending.relu:
        return x
    done = _map(x, torch.relu) if x.pending is None else x.then(relu=True)
    return x.becomes(done) if inplace else done


@_of_activations(torch.relu_, Tensor.relu_)
def relu_(x: LaidOut) -> Any:
    """The same in place."""
    return relu(x, inplace=True)


def _map(x: LaidOut, function: Callable[[Tensor], Tensor]) -> LaidOut:
    """A function of each activation by itself, of which zero is a fixed point."""
    slabs, form = x.slabs()
    return LaidOut.of(x.session, form.shape, slabs=(function(slabs), form))


def _elementwise(function: Callable[..., Tensor]) -> None:
    @_of_activations(function)
    def mapped(x: LaidOut, *args: Any, **named: Any) -> Any:
        if named.pop("inplace", False) or any(args):  # the one positional argument is inplace
            return NotImplemented
        return _map(x, lambda slabs: function(slabs, **named))


for _function in (functional.gelu, functional.silu, functional.hardswish, functional.relu6):
    _elementwise(_function)


@_of_activations(torch.add, Tensor.add)
def add(one: LaidOut, other: Any, *, alpha: Any = 1) -> Any:
    """A sum of activations of one shape, which a pending norm takes on."""
    if alpha != 1 or not isinstance(other, LaidOut) or other.is_plain or one.shape != other.shape:
        return NotImplemented
    for first, second in ((one, other), (other, one)):
        left = first.pending
        if left is not None and left.skip is None and not left.relu and first is not second:
            return first.then(skip=second.slabs())
    pad = max(each.slabs()[1].pad for each in (one, other))
    (left_slabs, form), (right_slabs, _) = one.slabs(pad), other.slabs(pad)
    return LaidOut.of(one.session, form.shape, slabs=(left_slabs + right_slabs, form))


@_of_activations(Tensor.add_)
def add_(one: LaidOut, other: Any, *, alpha: Any = 1) -> Any:
    """The same in place."""
    done = add(one, other, alpha=alpha)
    return done if done is NotImplemented else one.becomes(done)


@_of_activations(torch.mean, Tensor.mean)
def mean(x: LaidOut, dim: Any = None, keepdim: bool = False, **named: Any) -> Any:
    """The mean over all pixels."""
    dims = sorted(each % 4 for each in dim) if isinstance(dim, (tuple, list)) else []
    if dims != [2, 3] or named:
        return NotImplemented
    slabs, form = x.slabs()
    means: Tensor = PixelMean.apply(slabs, x.session.place, form)  # type: ignore[no-untyped-call]
    return means[:, :, None, None] if keepdim else means


@_of_activations(functional.adaptive_avg_pool2d)
def adaptive_avg_pool2d(x: LaidOut, output_size: Any) -> Any:
    """The same, as a pool."""
    return mean(x, (2, 3), keepdim=True) if _one(output_size) == 1 else NotImplemented


@_of_activations(Tensor.contiguous)
def contiguous(x: LaidOut) -> Any:
    """Nothing: plain activations would be contiguous."""
    return x
