"""Operators that only move elements: they are run on the numbers themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nispa.graph.found import Call, Refused
from nispa.graph.operators.registry import operators
from nispa.graph.walk import Walk


@operators(
    "permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "mT", "unsqueeze", "squeeze",
    "select", "slice", "narrow", "unbind", "split", "split_with_sizes", "chunk", "tensor_split",
    "expand", "unfold", "alias", "detach", "diagonal", "numpy_T", "lift_fresh_copy", "lift",
    "roll", "flip", "repeat", "tile", "clone", "cat", "stack", "concat", "concatenate",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "_unsafe_view",
    does="views, copies, concatenation, channel shuffle: each element keeps its unit",
)  # fmt: skip
def move(walk: Walk, call: Call) -> Any:
    """The operator itself, on numbers."""
    return call.target(**{name: walk.numbers(given) for name, given in call.arguments.items()})


@operators(
    "view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as", "expand_as",
    "contiguous", "to", "_to_copy", "type_as", "float", "_to_dtype",
    does="views that are copies where they must be",
)  # fmt: skip
def reshape(walk: Walk, call: Call) -> Tensor:
    """By the shape of the result."""
    x = walk.numbers(call["self"])
    result: Tensor = x.expand(call.shape) if call.name == "expand_as" else x.reshape(call.shape)
    if call.name != "view" or not x.is_set_to(result.view(x.shape)):
        walk.shares(x, result)
    return result


@operators("im2col", does="patches of an image, side by side: each element keeps its unit")
def patches(walk: Walk, call: Call) -> Tensor:
    """Padding is constant."""
    x = walk.numbers(call["self"]).double()  # exact below 2**53
    sides = (call[name] for name in ("kernel_size", "dilation", "padding", "stride"))
    return torch.nn.functional.unfold(x, *sides).long()


@operators("repeat_interleave", does="each element several times, a fixed number")
def repeat_interleave(walk: Walk, call: Call) -> Tensor:
    """Only by a number, not by a tensor of them."""
    x: Tensor = walk.numbers(call["self"])
    return x.repeat_interleave(int(call["repeats"]), call["dim"])


@operators(
    "index",
    "index_select",
    does="picks at places that are constants; at places that the input tells, all that may be "
    "picked is one unit",
)
def index(walk: Walk, call: Call) -> Tensor:
    """Each element that is picked keeps its unit."""
    x: Tensor = walk.numbers(call["self"])
    given = [call["index"]] if call.name == "index_select" else call["indices"]
    first = int(call["dim"]) % x.dim() if call.name == "index_select" else 0
    places: list[Any] = [slice(None)] * first
    told = []
    for dim, argument in enumerate(given, first):
        place = slice(None) if argument is None else walk.fixed(argument)
        if place is None:
            place = torch.zeros_like(walk.numbers(argument))
            told.append(dim)
            if not walk.without_units(argument):
                raise Refused(
                    f"{call.by} picks at places that depend on units; let them be constants, such "
                    "as a buffer, or depend on the input alone"
                )
        places.append(place)
    kept = walk.of_one_unit(call, x, told, "picks among", "let places be constants, or pick tokens")
    return kept.expand_as(x)[tuple(places)]


@operators("pad", "constant_pad_nd", does="padding by constants or by elements at the border")
def pad(walk: Walk, call: Call) -> Tensor:
    """Constants are padded by constants."""
    x, sides, mode = walk.numbers(call["self"]), call["pad"], call["mode"] or "constant"
    if mode == "constant":
        return torch.nn.functional.pad(x, sides)
    return torch.nn.functional.pad(x.double(), sides, mode).long()  # exact below 2**53
