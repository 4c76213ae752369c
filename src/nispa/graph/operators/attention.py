"""Activations multiplied by activations: what is summed over becomes one unit, a head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from nispa.graph.found import Call, Refused
from nispa.graph.operators.mixing import INSTEAD
from nispa.graph.operators.registry import operators
from nispa.graph.operators.weights import by_weight
from nispa.graph.walk import Walk


def product(
    walk: Walk, call: Call, sides: tuple[Tensor, Tensor], over: tuple[Sequence[int], Sequence[int]]
) -> Tensor:
    """Numbers of a sum of products.

    Args:
        walk: The walk.
        call: The operator.
        sides: Numbers of both factors; they broadcast once the summed dimensions have size 1.
        over: Dimensions summed, of each factor.
    """
    constant = any(bool(walk.ids.is_fixed(side).all()) for side in sides)
    kept = []
    for side, dims in zip(sides, over, strict=True):
        if constant:
            kept.append(walk.of_one_unit(call, side, dims, "sums with fixed weights over", INSTEAD))
        else:
            kept.append(walk.ids.along(side, list(dims), call.by))
    result = walk.ids.join(kept, call.by)
    if not constant:
        walk.found.heads.append(result.unique())
        contracted = math.prod(sides[0].shape[dim] for dim in over[0])
        walk.found.operations += 2 * math.prod(call.shape) * contracted
    return result


def _no_weight(walk: Walk, call: Call, *arguments: object) -> None:
    for argument in arguments:
        weight = walk.learned(argument)
        if weight is not None:
            raise Refused(
                f"{call.by} multiplies by the parameter '{weight.name}'; use nn.Linear, "
                "F.linear(x, weight) or x @ weight, whose outputs are units"
            )


@operators(
    "matmul",
    "mm",
    "bmm",
    does="attention: what is summed over is one unit, a head; with a parameter as the second "
    "factor, rows and columns of connections",
)
def matmul(walk: Walk, call: Call) -> Tensor:
    """Sums over the last dimension of the first and the second last of the second factor."""
    other = "other" if call.name == "matmul" else "mat2"
    weight = walk.learned(call[other])
    if weight is not None and len(weight.shape) == 2 and walk.learned(call["self"]) is None:
        return by_weight(walk, call, weight, turned=not weight.turned)
    _no_weight(walk, call, call["self"], call[other])
    a, b = walk.numbers(call["self"]), walk.numbers(call[other])
    row, column = a.dim() == 1, b.dim() == 1
    a, b = (a[None] if row else a), (b[:, None] if column else b)
    result = product(walk, call, (a, b), ([-1], [-2]))
    return result.reshape(call.shape)


@operators("baddbmm", does="attention with a mask that is added")
def matmul_with_mask(walk: Walk, call: Call) -> Tensor:
    """A mask, and a product of batches of matrices."""
    _no_weight(walk, call, call["batch1"], call["batch2"])
    a, b = walk.numbers(call["batch1"]), walk.numbers(call["batch2"])
    added = product(walk, call, (a, b), ([-1], [-2]))
    return walk.ids.join([walk.numbers(call["self"]), added], call.by)


@operators(
    "einsum",
    does="attention written as a sum over named dimensions; with a learned matrix, a linear layer",
)
def einsum(walk: Walk, call: Call) -> Tensor:
    """Two factors, or one of which only elements are moved or summed."""
    _no_weight(walk, call, *call["tensors"])
    tensors = walk.numbers(call["tensors"])
    equation = str(call["equation"]).replace(" ", "")
    given, arrow, wanted = equation.partition("->")
    names = given.split(",")
    plain = arrow and "." not in equation and all(len(set(each)) == len(each) for each in names)
    if not plain or len(names) != 2:
        raise Refused(
            f"{call.by} has the equation '{equation}'; only two factors with '->' and a letter for "
            "each dimension are known"
        )
    summed = [letter for letter in dict.fromkeys("".join(names)) if letter not in wanted]
    letters = [*wanted, *summed]
    sides, over = [], []
    for each, ids in zip(names, tensors, strict=True):
        order = [each.index(letter) for letter in letters if letter in each]
        lying = ids.permute(order)
        for place, letter in enumerate(letters):
            if letter not in each:
                lying = lying.unsqueeze(place)
        sides.append(lying)
        over.append(list(range(len(wanted), len(letters))))
    result = product(walk, call, (sides[0], sides[1]), (over[0], over[1]))
    return result.reshape(*result.shape[: len(wanted)]).expand(call.shape).clone()


@operators("scaled_dot_product_attention", does="attention: a head is one unit")
def attention(walk: Walk, call: Call) -> Tensor:
    """All of a head's queries, keys and values are one unit; a learned mask belongs to it, too."""
    q, k, v = (walk.numbers(call[name]) for name in ("query", "key", "value"))
    if q.shape[-3:-2] != k.shape[-3:-2]:  # fewer heads of keys than of queries
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    kept = [walk.ids.along(side, [-2, -1], call.by) for side in (q, k, v)]
    heads = walk.ids.join(kept, call.by)
    walk.found.heads.append(heads.unique())
    # Two products, each of as many terms as there are queries, keys and numbers of a head.
    walk.found.operations += 4 * q.numel() * k.shape[-2]
    if call["attn_mask"] is not None:
        mask = walk.numbers(call["attn_mask"])
        heads = walk.ids.along(walk.ids.join([mask, heads], call.by), [-2, -1], call.by)
    return heads.expand(call.shape).clone()
