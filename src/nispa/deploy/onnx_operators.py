"""Operators of PyTorch in ONNX: those that networks here are made of."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from nispa.deploy.onnx_model import Model, pair, shape_of, unknown


class Given:
    """One call: what a rule asks of it."""

    def __init__(self, model: Model, node: fx.Node, names: dict[fx.Node, Any], name: str) -> None:
        """Of a node."""
        self.add, self.whole, self.tensor = model.add, model.whole, model.tensor
        self.node, self.names, self.kind = node, names, name
        target: Any = node.target
        schema = getattr(target, "_schema", None)
        self._arguments: dict[str, Any] = {}
        for place, each in enumerate(schema.arguments if schema is not None else ()):
            if place < len(node.args):
                self._arguments[each.name] = node.args[place]
            elif each.name in node.kwargs:
                self._arguments[each.name] = node.kwargs[each.name]
            elif each.has_default_value():
                self._arguments[each.name] = each.default_value

    def __getitem__(self, argument: str) -> Any:
        return self._arguments.get(argument)

    @property
    def _first(self) -> fx.Node:
        first = self.node.args[0]
        assert isinstance(first, fx.Node)
        return first

    @property
    def x(self) -> str:
        """The first operand."""
        return str(self.names[self._first])

    @property
    def shape(self) -> Sequence[int]:
        """Of the first operand, for two images."""
        return shape_of(self._first)

    @property
    def dims(self) -> int:
        """Of the first operand."""
        return len(self.shape)

    def operand(self, value: Any) -> str:
        """A tensor or a number as a tensor."""
        return str(self.names[value]) if isinstance(value, fx.Node) else self.tensor(value)

    def sizes(self, values: Sequence[Any]) -> str:
        """Whole numbers, some of which depend on the number of images."""
        if all(isinstance(each, int) for each in values):
            return self.whole(values)
        parts = [
            self.names[each] if isinstance(each, fx.Node) else self.whole([each]) for each in values
        ]
        return str(self.add("Concat", *parts, axis=0))

    def known(self, fits: bool) -> None:
        """Refuses a call that is not known here, unless it is."""
        if not fits:
            raise unknown(f"{self.kind}{tuple(each for each in self.node.args[1:])}")


Rule = Callable[[Given], Any]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return enter


ALONE = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish", "exp": "Exp",
    "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "erf": "Erf", "softplus": "Softplus",
    "reciprocal": "Reciprocal", "contiguous": "Identity", "clone": "Identity", "alias": "Identity",
    "detach": "Identity",
}  # fmt: skip
TOGETHER = {"mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min", "pow": "Pow"}


@_rule(*ALONE)
def _alone(of: Given) -> Any:
    plain = of.kind != "softplus" or (of["beta"], of["threshold"]) == (1, 20)
    of.known(plain)
    return of.add(ALONE[of.kind], of.x)


@_rule(*TOGETHER, "add", "sub")
def _together(of: Given) -> Any:
    if of.node.target is operator.mul or of.node.target is operator.add:  # numbers of images
        kind = "Mul" if of.node.target is operator.mul else "Add"
        return of.add(kind, of.x, of.whole([int(str(of.node.args[1]))]))
    of.known(of["alpha"] in (None, 1) and of["rounding_mode"] is None)
    other = of["other"] if "other" in of._arguments else of["exponent"]
    return of.add(
        {**TOGETHER, "add": "Add", "sub": "Sub"}[of.kind], of.operand(of["self"]), of.operand(other)
    )


@_rule("gelu")
def _gelu(of: Given) -> Any:
    half = of.add("Mul", of.x, of.tensor(0.5))
    if of["approximate"] == "tanh":
        cube = of.add("Mul", of.add("Pow", of.x, of.tensor(3.0)), of.tensor(0.044715))
        inner = of.add("Mul", of.add("Add", of.x, cube), of.tensor(math.sqrt(2 / math.pi)))
        return of.add("Mul", half, of.add("Add", of.add("Tanh", inner), of.tensor(1.0)))
    inner = of.add("Erf", of.add("Mul", of.x, of.tensor(math.sqrt(0.5))))
    return of.add("Mul", half, of.add("Add", inner, of.tensor(1.0)))


@_rule("silu")
def _silu(of: Given) -> Any:
    return of.add("Mul", of.x, of.add("Sigmoid", of.x))


@_rule("hardsigmoid")
def _hardsigmoid(of: Given) -> Any:
    return of.add("HardSigmoid", of.x, alpha=1 / 6, beta=0.5)


@_rule("relu6", "hardtanh", "clamp")
def _clip(of: Given) -> Any:
    low, high = {"relu6": (0.0, 6.0), "hardtanh": (of["min_val"], of["max_val"])}.get(
        of.kind, (of["min"], of["max"])
    )
    return of.add(
        "Clip", of.x, *("" if each is None else of.tensor(float(each)) for each in (low, high))
    )


@_rule("leaky_relu", "elu")
def _sloped(of: Given) -> Any:
    if of.kind == "elu":
        of.known(of["scale"] == 1 and of["input_scale"] == 1)
        return of.add("Elu", of.x, alpha=float(of["alpha"]))
    return of.add("LeakyRelu", of.x, alpha=float(of["negative_slope"]))


@_rule("reshape")
def _reshape(of: Given) -> Any:
    return of.add("Reshape", of.x, of.sizes(of["shape"]))


@_rule("flatten")
def _flatten(of: Given) -> Any:
    start, end = of["start_dim"] % of.dims, of["end_dim"] % of.dims
    of.known(start > 0)
    size = math.prod(of.shape[start : end + 1])
    return of.add("Reshape", of.x, of.whole([0] * start + [size] + [*of.shape[end + 1 :]]))


@_rule("expand")
def _expand(of: Given) -> Any:
    return of.add("Expand", of.x, of.sizes([1 if each == -1 else each for each in of["size"]]))


@_rule("permute", "transpose", "t")
def _permute(of: Given) -> Any:
    order = list(range(of.dims))
    if of.kind == "permute":
        order = [dim % of.dims for dim in of["dims"]]
    else:
        one, two = (0, 1) if of.kind == "t" else (of["dim0"] % of.dims, of["dim1"] % of.dims)
        order[one], order[two] = two, one
    return of.add("Transpose", of.x, perm=order)


@_rule("unsqueeze", "squeeze")
def _squeeze(of: Given) -> Any:
    dims = of["dim"] if isinstance(of["dim"], (list, tuple)) else [of["dim"]]
    if of.kind == "unsqueeze":
        return of.add("Unsqueeze", of.x, of.whole([dim % (of.dims + 1) for dim in dims]))
    dims = [dim % of.dims for dim in dims if of.shape[dim] == 1]
    return of.add("Squeeze", of.x, of.whole(dims)) if dims else of.add("Identity", of.x)


@_rule("select")
def _select(of: Given) -> Any:
    index = of.tensor(np.array(of["index"], dtype=np.int64))
    return of.add("Gather", of.x, index, axis=of["dim"] % of.dims)


@_rule("index_select")
def _index_select(of: Given) -> Any:
    return of.add("Gather", of.x, of.names[of["index"]], axis=of["dim"] % of.dims)


@_rule("slice")
def _slice(of: Given) -> Any:
    end = 2**62 if of["end"] is None else of["end"]
    given = (of["start"] or 0, end, of["dim"] % of.dims, of["step"] or 1)
    of.known(all(isinstance(each, int) for each in given))
    return of.add("Slice", of.x, *(of.whole([each]) for each in given))


@_rule("cat")
def _cat(of: Given) -> Any:
    tensors = of["tensors"]
    return of.add(
        "Concat", *(of.names[each] for each in tensors), axis=of["dim"] % len(shape_of(tensors[0]))
    )


@_rule("split_with_sizes", "unbind")
def _split(of: Given) -> Any:
    dim = of["dim"] % of.dims
    sizes = of["split_sizes"] if of.kind != "unbind" else [1] * of.shape[dim]
    ends = of.add("Split", of.x, of.whole(sizes), axis=dim, outputs=len(sizes))
    ends = [ends] if len(sizes) == 1 else ends
    if of.kind == "unbind":
        ends = [of.add("Squeeze", each, of.whole([dim])) for each in ends]
    return ends


@_rule("mean", "sum", "amax", "amin")
def _reduce(of: Given) -> Any:
    dims = [of["dim"]] if isinstance(of["dim"], int) else list(of["dim"] or range(of.dims))
    dims, keeps = [dim % of.dims for dim in dims], int(bool(of["keepdim"]))
    if of.kind == "sum":
        return of.add("ReduceSum", of.x, of.whole(dims), keepdims=keeps)
    kind = {"mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}[of.kind]
    return of.add(kind, of.x, axes=dims, keepdims=keeps)


@_rule("softmax")
def _softmax(of: Given) -> Any:
    return of.add("Softmax", of.x, axis=of["dim"] % of.dims)


@_rule("matmul", "bmm")
def _matmul(of: Given) -> Any:
    return of.add("MatMul", of.x, of.names[of["other"] if of.kind == "matmul" else of["mat2"]])


@_rule("einsum")
def _einsum(of: Given) -> Any:
    return of.add("Einsum", *(of.names[each] for each in of["tensors"]), equation=of["equation"])


@_rule("scaled_dot_product_attention")
def _attention(of: Given) -> Any:
    of.known(not of["is_causal"] and not of["enable_gqa"])
    last, other = of.dims - 1, of.dims - 2
    order = [*range(other), last, other]
    scale = 1 / math.sqrt(of.shape[-1]) if of["scale"] is None else of["scale"]
    query = of.add("Mul", of.x, of.tensor(scale))
    scores = of.add("MatMul", query, of.add("Transpose", of.names[of["key"]], perm=order))
    if of["attn_mask"] is not None:
        mask = of["attn_mask"]
        added = of.names[mask]
        if mask.meta["tensor_meta"].dtype == torch.bool:
            added = of.add("Where", added, of.tensor(0.0), of.tensor(-np.inf))
        scores = of.add("Add", scores, added)
    return of.add("MatMul", of.add("Softmax", scores, axis=last), of.names[of["value"]])


@_rule("layer_norm")
def _layer_norm(of: Given) -> Any:
    of.known(of["weight"] is None and len(of["normalized_shape"]) == 1)
    ones = of.tensor(torch.ones(of["normalized_shape"][0]))
    return of.add("LayerNormalization", of.x, ones, axis=-1, epsilon=float(of["eps"]))


@_rule("rms_norm")
def _rms_norm(of: Given) -> Any:
    of.known(of["weight"] is None and len(of["normalized_shape"]) == 1)
    square = of.add("ReduceMean", of.add("Mul", of.x, of.x), axes=[-1], keepdims=1)
    return of.add("Div", of.x, of.add("Sqrt", of.add("Add", square, of.tensor(float(of["eps"])))))


@_rule("group_norm")
def _group_norm(of: Given) -> Any:
    of.known(of["weight"] is None)
    groups = of["num_groups"]
    flat = of.add("Reshape", of.x, of.whole([0, groups, -1]))
    parts = of.tensor(torch.ones(groups)), of.tensor(torch.zeros(groups))
    done = of.add("InstanceNormalization", flat, *parts, epsilon=float(of["eps"]))
    return of.add("Reshape", done, of.add("Shape", of.x))


@_rule("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")
def _pool(of: Given) -> Any:
    count = 1 if of.kind.endswith("1d") else 2
    pads = pair(of["padding"], count)
    kernel = pair(of["kernel_size"], count)
    common: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": pair(of["stride"], count) if of["stride"] else kernel,
        "pads": [*pads, *pads],
        "ceil_mode": int(of["ceil_mode"]),
    }
    if of.kind.startswith("max"):
        return of.add("MaxPool", of.x, dilations=pair(of["dilation"], count), **common)
    of.known(of["divisor_override"] is None and not of["ceil_mode"])
    return of.add("AveragePool", of.x, count_include_pad=int(of["count_include_pad"]), **common)


@_rule("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def _adaptive(of: Given) -> Any:
    count = 1 if of.kind.endswith("1d") else 2
    sides, wanted = of.shape[-count:], pair(of["output_size"], count)
    of.known(all(side % size == 0 for side, size in zip(sides, wanted, strict=True)))
    if wanted == [1] * count:
        return of.add("GlobalAveragePool", of.x)
    steps = [side // size for side, size in zip(sides, wanted, strict=True)]
    return of.add("AveragePool", of.x, kernel_shape=steps, strides=steps)


@_rule("glu")
def _glu(of: Given) -> Any:
    dim = of["dim"] % of.dims
    half = of.whole([of.shape[dim] // 2] * 2)
    one, gate = of.add("Split", of.x, half, axis=dim, outputs=2)
    return of.add("Mul", one, of.add("Sigmoid", gate))


@_rule("pad", "constant_pad_nd")
def _pad(of: Given) -> Any:
    of.known(of["mode"] in (None, "constant"))
    sides = of["pad"]
    before, after = [0] * of.dims, [0] * of.dims
    for place in range(len(sides) // 2):
        before[-1 - place], after[-1 - place] = sides[2 * place], sides[2 * place + 1]
    return of.add("Pad", of.x, of.whole([*before, *after]), of.tensor(float(of["value"] or 0)))


@_rule("sym_size")
def _count(of: Given) -> Any:
    return of.add("Gather", of.add("Shape", of.x), of.whole([of["dim"]]), axis=0)
