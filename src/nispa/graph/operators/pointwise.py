"""Operators that compute each element from the elements at its place: they tie these."""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.graph.found import Call
from nispa.graph.operators.registry import operators
from nispa.graph.walk import Walk


@operators(
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid",
    "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "log_sigmoid", "erf", "softshrink",
    "hardshrink", "threshold", "exp", "log",
    "sqrt", "rsqrt", "square", "abs", "neg", "sign", "reciprocal", "sin", "cos", "clamp",
    "clamp_min", "clamp_max", "round", "floor", "ceil", "logical_not", "nan_to_num",
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "bernoulli", "uniform",
    "normal", "fill", "zero", "tril", "triu", "absolute", "negative",
    does="activations, dropout: an element keeps its unit",
)  # fmt: skip
def alone(walk: Walk, call: Call) -> Tensor:
    """Numbers pass."""
    return together(walk, call)


@operators(
    "add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "where", "lerp", "addcmul",
    "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_not", "remainder", "atan2", "fmod", "true_divide",
    "__and__", "__or__", "multiply", "divide", "subtract", "greater", "greater_equal", "less",
    "less_equal", "not_equal",
    does="sums (residual), products (gates, LayerScale), and all that PyTorch tags as pointwise: "
    "elements at one place are one unit; constants and inputs tie nothing",
)  # fmt: skip
def together(walk: Walk, call: Call) -> Tensor:
    """Elements that meet are tied."""
    given = map(walk.numbers, call.arguments.values())
    tensors = [each for each in given if isinstance(each, Tensor)]
    return walk.ids.join(tensors, call.by).expand(call.shape).contiguous()


@operators("copy", does="writing into a part of a tensor")
def copy(walk: Walk, call: Call) -> Tensor:
    """What was there before is gone."""
    source = walk.numbers(call["src"])
    assert isinstance(source, Tensor)
    return source


@operators("glu", does="one half of the elements is the gate of the other")
def glu(walk: Walk, call: Call) -> Tensor:
    """Element i of both halves is one unit."""
    halves = torch.chunk(walk.numbers(call["self"]), 2, call["dim"])
    return walk.ids.join(halves, call.by)


@operators(
    "arange", "zeros", "ones", "full", "empty", "eye", "linspace", "scalar_tensor", "rand", "randn",
    "randint", "randperm", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "new_zeros", "new_ones", "new_full", "new_empty",
    does="new tensors, random ones for stochastic depth: constants",
)  # fmt: skip
def new(walk: Walk, call: Call) -> Tensor:
    """Constants belong to no unit."""
    return torch.zeros(call.shape, dtype=torch.int64)


@operators(
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size", "sym_size", "sym_numel",
    does="checks of shapes",
)  # fmt: skip
def checks(walk: Walk, call: Call) -> None:
    """Nothing comes out."""
