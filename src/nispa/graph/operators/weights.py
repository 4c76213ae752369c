"""Layers of connections, and kernels and tables with values per unit."""

from __future__ import annotations

import math

from torch import Tensor

from nispa.graph.found import Call, Learned, Refused
from nispa.graph.operators.registry import operators
from nispa.graph.walk import Walk

OPERANDS = {
    "matmul": ("self", "other", ""),
    "mm": ("self", "mat2", ""),
    "addmm": ("mat1", "mat2", "self"),
}
"""Arguments that are what is read, the weight and the bias, where they have other names."""


def operands(name: str) -> tuple[str, str, str]:
    """The arguments of an operator that are what it reads, its weight and its bias."""
    return OPERANDS.get(name, ("input", "weight", "bias"))


@operators("linear", does="rows and columns of connections")
def linear(walk: Walk, call: Call) -> Tensor:
    """A column reads the same unit at every sample and token; a row is a unit of its own."""
    weight = walk.learned(call["weight"]) or walk.weight(call)
    return by_weight(walk, call, weight, turned=weight.turned)


def by_weight(walk: Walk, call: Call, weight: Learned, *, turned: bool) -> Tensor:
    """A product with a matrix of connections.

    Args:
        walk: The walk.
        call: The operator.
        weight: The matrix.
        turned: Whether the parameter holds columns first.
    """
    read, _, bias = operands(call.name)
    x = walk.numbers(call[read])
    columns = walk.ids.along(x, range(x.dim() - 1), call.by).flatten()
    kind = "matmul" if turned else "linear"
    added = walk.bias(call, bias)
    rows = walk.layer(call, weight, columns, operator=kind, bias=added, turned=turned)
    return rows.expand(call.shape).clone()


@operators("addmm", does="the same, with a bias added")
def addmm(walk: Walk, call: Call) -> Tensor:
    """``x @ weight + bias``, the weight with columns first, as the Conv1D of GPT-2 has it."""
    weight = walk.learned(call["mat2"])
    if weight is None or call["alpha"] != 1 or call["beta"] != 1:
        raise Refused(
            f"{call.by} multiplies by no parameter of its own, or by a factor; use F.linear(x, "
            "weight, bias), or a product and a sum"
        )
    return by_weight(walk, call, weight, turned=not weight.turned)


@operators(
    "conv1d",
    "conv2d",
    "conv3d",
    does="rows and columns of connections, a kernel each; with groups, within these; depthwise, "
    "values per unit, or a filter that is a constant",
)
def convolution(walk: Walk, call: Call) -> Tensor:
    """A column reads the same unit at every pixel; one channel a group belongs to its unit."""
    x, groups = walk.numbers(call["input"]), int(call["groups"])
    kernel = int(call.name[4])
    channel = x.dim() - kernel - 1
    pixels = [dim for dim in range(x.dim()) if dim != channel]
    columns = walk.ids.along(x, pixels, call.by).flatten()
    if groups == len(columns) and call["bias"] is None and walk.constant(call["weight"]):
        each = call.shape[channel] // groups
        kernels = walk.numbers(call["weight"]).shape
        walk.found.operations += 2 * math.prod(call.shape) * math.prod(kernels[2:])
        return columns.repeat_interleave(each).view(-1, *[1] * kernel).expand(call.shape).clone()
    weight = walk.weight(call)
    rows = len(weight.rows)
    if rows != weight.shape[0]:
        raise Refused(f"{call.by} takes some rows of '{weight.name}'; give them a weight each")
    if groups > 1 and weight.shape[1] == 1:
        kernels = walk.values_along(weight.name, "depthwise", rows, 0)
        parts = [kernels, columns.repeat_interleave(rows // len(columns))]
        bias = walk.bias(call)
        if bias is not None:
            parts.append(walk.values(bias, "bias"))
        units = walk.ids.join(parts, call.by)
        walk.found.operations += 2 * math.prod(call.shape) * math.prod(weight.shape[2:])
    else:
        units = walk.layer(call, weight, columns, groups, bias=walk.bias(call))
    return units.view(-1, *[1] * kernel).expand(call.shape).clone()


@operators(
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    does="rows and columns of connections, a kernel each, spread out; without groups",
)
def transposed_convolution(walk: Walk, call: Call) -> Tensor:
    """The kernels lie columns first."""
    x, weight = walk.numbers(call["input"]), walk.weight(call)
    if int(call["groups"]) != 1:
        raise Refused(
            f"{call.by} is in groups; take groups=1, or nn.Upsample and a convolution in groups"
        )
    kernel = len(weight.shape) - 2
    channel = x.dim() - kernel - 1
    pixels = [dim for dim in range(x.dim()) if dim != channel]
    columns = walk.ids.along(x, pixels, call.by).flatten()
    outputs = weight.shape[1] * math.prod(x.shape[dim] for dim in pixels)
    bias = walk.bias(call)
    units = walk.layer(call, weight, columns, bias=bias, turned=True, outputs=outputs)
    return units.view(-1, *[1] * kernel).expand(call.shape).clone()


@operators("embedding", does="values per unit: a column of the table each")
def embedding(walk: Walk, call: Call) -> Tensor:
    """Each column of the table is a unit, in whichever row."""
    weight = walk.weight(call)
    walk.numbers(call["indices"])
    if not bool(walk.ids.is_fixed(walk.numbers(call["indices"])).all()):
        raise Refused(f"{call.by} looks up what depends on units; look up inputs or constants")
    return walk.values_along(weight.name, "embedding", call.shape[-1], 1).expand(call.shape).clone()


@operators("prelu", does="values per unit; one slope for all is shared")
def prelu(walk: Walk, call: Call) -> Tensor:
    """Slopes along the channels."""
    x = walk.numbers(call["self"])
    slopes = walk.values(walk.weight(call), "value")
    return walk.ids.join([x, slopes.view(-1, *[1] * max(x.dim() - 2, 0))], call.by)
