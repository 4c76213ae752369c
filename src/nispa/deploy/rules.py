"""One rule for each family of operators: how it is written down for what is left of operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from nispa.deploy.cutter import (
    Cutter,
    Done,
    Result,
    Whole,
    equal,
    everything,
    item_of,
    named_arguments,
    needed,
)
from nispa.deploy.kept import taken
from nispa.deploy.layers import convolution, linear, transposed_convolution
from nispa.deploy.moving import move
from nispa.deploy.norms import batch_norm, mixing_norm
from nispa.deploy.recorded import of_two
from nispa.graph.found import Call
from nispa.graph.operators import attention, mixing, moves, norms, pointwise, rule_of, weights

Rule = Callable[[Cutter, fx.Node, Call], Result]


def write(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Writes an operator down by its rule; as it is, if nothing of it is cut and the rule fails."""
    rule = _BY_FAMILY.get(rule_of(call), _as_it_is)
    try:
        return rule(to, node, call)
    except Whole:
        return _as_it_is(to, node, call)


def _as_it_is(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Any operator, if nothing of its operands is cut."""
    for each in node.all_input_nodes:
        done = to.of(each)
        to.unless(everything(done.places, done.shape), node)
    noted = to.noted(node)
    for numbers in noted if isinstance(noted, list) else [noted]:
        to.unless(everything(to.kept.places(numbers), numbers.shape), node)
    shape = to.recorded.shape(node)
    made = to.same(node)
    if shape and isinstance(shape[0], list):
        return [item_of(made, place, tuple(of_two(each))) for place, each in enumerate(shape)]
    shape = to.shape(node)
    return Done(made, tuple(map(torch.arange, shape)), shape)


def _pointwise(to: Cutter, node: fx.Node, call: Call) -> Result:
    """All operands have of each dimension what the result has."""
    shape = to.shape(node)
    operands = [to.of(each) for each in node.all_input_nodes]
    places = list(to.kept.places(to.noted(node).expand(shape)))
    wanted = needed(to, node)
    for done in operands:
        offset = len(shape) - len(done.shape)
        for dim, mine in enumerate(done.places):
            if done.shape[dim] != 1 or shape[dim + offset] == 1:
                here = places[dim + offset]
                places[dim + offset] = here[torch.isin(here, mine)]
            elif not len(mine):
                places[dim + offset] = places[dim + offset][:0]
    result = tuple(places)
    covered = taken(result, shape)
    to.unless(not bool((wanted & ~covered).any()), node)
    if call.name in ("tril", "triu"):
        to.unless(everything(result[-2:], shape[-2:]), node)
    if Done(node, result, shape).gone:
        return Done(node, result, shape)
    written = _writes(node)
    changed = {}
    for name, value in named_arguments(node).items():
        if isinstance(value, fx.Node):
            done = to.of(value)
            new = to.adapted(done, result, node)
            to.unless(new is done.node or not (written and value is node.args[0]), node)
            changed[name] = new
    return Done(to.same(node, **changed), result, shape)


def _writes(node: fx.Node) -> bool:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return any(each.alias_info is not None and each.alias_info.is_write for each in schema)


def _copy(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Writing into a part: both have the same."""
    target, source = to.of(node.args[0]), to.of(node.args[1])
    missing = needed(to, node) & ~taken(target.places, target.shape)
    to.unless(not bool(missing.any()), node)
    if target.gone:
        return target
    new = to.adapted(source, target.places, node)
    return Done(to.same(node, src=new), target.places, target.shape)


def _new(to: Cutter, node: fx.Node, call: Call) -> Result:
    """New tensors; those like others are cut like them."""
    shape = to.shape(node)
    places = tuple(map(torch.arange, shape))
    if call.name.endswith("_like"):
        places = to.of(node.args[0]).places
        if to.of(node.args[0]).gone:
            return Done(node, places, shape)
    return Done(to.same(node), places, shape)


def _nothing(to: Cutter, node: fx.Node, call: Call) -> Result:
    return None


# Operators over places of one unit.


def _pool(to: Cutter, node: fx.Node, call: Call) -> Result:
    source = to.of(node.args[0])
    sides = mixing.pooled_sides(call.name)
    if source.gone:
        return _lost(to, node)
    to.unless(everything(source.places[-sides:], source.shape[-sides:]), node)
    made, shape = to.same(node), to.recorded.shape(node)
    if isinstance(shape[0], list):
        shapes = [tuple(of_two(each)) for each in shape]
        over = [source.places[:-sides] + tuple(map(torch.arange, each[-sides:])) for each in shapes]
        return [item_of(made, *each) for each in zip(range(len(shapes)), shapes, over, strict=True)]
    whole = to.shape(node)
    return Done(made, source.places[:-sides] + tuple(map(torch.arange, whole[-sides:])), whole)


def _lost(to: Cutter, node: fx.Node) -> Result:
    """What is left of a result if nothing is left of an operand: nothing."""
    shape = to.recorded.shape(node)
    if shape and isinstance(shape[0], list):
        shapes = [tuple(of_two(each)) for each in shape]
        return [Done(node, tuple(torch.arange(0) for _ in each), each) for each in shapes]
    whole = to.shape(node)
    to.unless(not bool(needed(to, node).any()), node)
    return Done(node, tuple(torch.arange(0) for _ in whole), whole)


def _reduce(to: Cutter, node: fx.Node, call: Call) -> Result:
    if "other" in call.arguments:
        return _pointwise(to, node, call)
    source = to.of(node.args[0])
    if source.gone:
        return _lost(to, node)
    given = call["dim"]
    count = len(source.shape)
    dims = [given] if isinstance(given, int) else list(given or range(count))
    dims = [dim % count for dim in dims]
    for dim in dims:
        to.unless(len(source.places[dim]) == source.shape[dim], node)
    one = torch.arange(1)
    places = tuple(one if dim in dims else each for dim, each in enumerate(source.places))
    if not call["keepdim"]:
        places = tuple(each for dim, each in enumerate(source.places) if dim not in dims)
    made, shape = to.same(node), to.recorded.shape(node)
    if shape and isinstance(shape[0], list):
        return [
            item_of(made, place, tuple(of_two(each)), places) for place, each in enumerate(shape)
        ]
    return Done(made, places, to.shape(node))


def _softmax(to: Cutter, node: fx.Node, call: Call) -> Result:
    source = to.of(node.args[0])
    if source.gone:
        return _lost(to, node)
    dim = int(call["dim"]) % len(source.shape)
    to.unless(len(source.places[dim]) == source.shape[dim], node)
    return Done(to.same(node), source.places, source.shape)


def _glu(to: Cutter, node: fx.Node, call: Call) -> Result:
    source = to.of(node.args[0])
    if source.gone:
        return _lost(to, node)
    dim = int(call["dim"]) % len(source.shape)
    half = source.shape[dim] // 2
    first = source.places[dim][source.places[dim] < half]
    to.unless(torch.equal(torch.cat([first, first + half]), source.places[dim]), node)
    places = (*source.places[:dim], first, *source.places[dim + 1 :])
    return Done(to.same(node), places, to.shape(node))


def _prelu(to: Cutter, node: fx.Node, call: Call) -> Result:
    source, slopes = to.of(node.args[0]), to.of(node.args[1])
    if source.gone:
        return _lost(to, node)
    channels = source.places[1] if len(source.places) > 1 else slopes.places[0]
    to.unless(slopes.shape[0] == 1 or torch.equal(channels, slopes.places[0]), node)
    return Done(to.same(node), source.places, source.shape)


def _embedding(to: Cutter, node: fx.Node, call: Call) -> Result:
    table, index = to.of(node.args[0]), to.of(node.args[1])
    if table.gone:
        return _lost(to, node)
    return Done(to.same(node), (*index.places, table.places[1]), to.shape(node))


# Products of activations: what is summed over is whole.


def _product(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Two factors, matrices in their last dimensions; or connections."""
    if to.recorded.weight(call) is not None:
        return linear(to, node, call)
    operands = [to.of(each) for each in node.all_input_nodes]
    if any(done.gone for done in operands):
        return _lost(to, node)
    shape = to.shape(node)
    first, second = (to.of(each) for each in _factors(node))
    to.unless(len(first.shape) > 1 and len(second.shape) > 1, node)
    to.unless(len(first.places[-1]) == first.shape[-1], node)
    to.unless(len(second.places[-2]) == second.shape[-2], node)
    wanted = list(to.kept.places(to.noted(node).expand(shape)))
    wanted[-2], wanted[-1] = first.places[-2], second.places[-1]
    changed: dict[str, Any] = {}
    for done, value in zip((first, second), _factors(node), strict=True):
        over = [*wanted[:-2], *done.places[-2:]]
        changed[_name(node, value)] = to.adapted(done, tuple(over[-len(over) :]), node)
    result = tuple(wanted)
    if call.name == "baddbmm":
        changed["self"] = to.adapted(to.of(node.args[0]), result, node)
    missing = needed(to, node) & ~taken(result, shape)
    to.unless(not bool(missing.any()), node)
    return Done(to.same(node, **changed), result, shape)


def _factors(node: fx.Node) -> list[fx.Node]:
    factors: Any = node.args[-2:] if len(node.args) < 3 else node.args[1:3]
    return list(factors)


def _name(node: fx.Node, value: fx.Node) -> str:
    return next(name for name, each in reversed(named_arguments(node).items()) if each is value)


def _einsum(to: Cutter, node: fx.Node, call: Call) -> Result:
    equation = str(call["equation"]).replace(" ", "")
    given, _, wanted = equation.partition("->")
    known: dict[str, Tensor] = {}
    for letters, each in zip(given.split(","), call["tensors"], strict=True):
        done = to.of(each)
        if done.gone:
            return _lost(to, node)
        for letter, places, size in zip(letters, done.places, done.shape, strict=True):
            to.unless(torch.equal(known.setdefault(letter, places), places), node)
            to.unless(letter in wanted or len(places) == size, node)
    return Done(to.same(node), tuple(known[letter] for letter in wanted), to.shape(node))


def _attention(to: Cutter, node: fx.Node, call: Call) -> Result:
    query, key, value = (to.of(call[name]) for name in ("query", "key", "value"))
    if any(done.gone for done in (query, key, value)):
        return _lost(to, node)
    for done in (query, key, value):
        to.unless(everything(done.places[-2:], done.shape[-2:]), node)
    fewer = query.shape[-3:-2] != key.shape[-3:-2]
    if fewer:
        to.unless(everything(query.places, query.shape), node)
    else:
        to.unless(equal(query.places[:-2], key.places[:-2]), node)
        to.unless(equal(key.places[:-2], value.places[:-2]), node)
    changed = {}
    if isinstance(call["attn_mask"], fx.Node):
        mask = to.of(call["attn_mask"])
        over = (*query.places[:-1], key.places[-2])
        changed["attn_mask"] = to.adapted(mask, over, node)
    return Done(to.same(node, **changed), (*query.places[:-1], value.places[-1]), to.shape(node))


_BY_FAMILY: dict[Any, Rule] = {
    pointwise.alone: _pointwise,
    pointwise.together: _pointwise,
    pointwise.copy: _copy,
    pointwise.glu: _glu,
    pointwise.new: _new,
    pointwise.checks: _nothing,
    moves.move: move,
    moves.reshape: move,
    moves.patches: move,
    moves.repeat_interleave: move,
    moves.pad: move,
    mixing.pool: _pool,
    mixing.pool_with_indices: _pool,
    mixing.reduce: _reduce,
    mixing.softmax: _softmax,
    attention.matmul: _product,
    attention.matmul_with_mask: _product,
    attention.einsum: _einsum,
    attention.attention: _attention,
    weights.linear: linear,
    weights.addmm: linear,
    weights.convolution: convolution,
    weights.transposed_convolution: transposed_convolution,
    weights.embedding: _embedding,
    weights.prelu: _prelu,
    norms.batch_norm: batch_norm,
    norms.layer_norm: mixing_norm,
    norms.group_norm: mixing_norm,
}
