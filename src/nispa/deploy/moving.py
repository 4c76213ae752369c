"""Operators that only move elements, for what is kept of their operands.

The operator is run on the numbers of elements, which tells where each goes: so what is left of the
result is known, and the new call is checked before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nispa.deploy.cutter import Cutter, Done, Result, aten, item_of, needed
from nispa.deploy.kept import Places, cut, places_of, taken
from nispa.deploy.recorded import of_two
from nispa.graph.found import Call


def move(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Views, copies, parts, padding, concatenation."""
    if call.name in ("cat", "concat", "concatenate", "stack"):
        return _joined(to, node, call)
    source = to.of(node.args[0])
    index = torch.arange(source_size := _size(source.shape)).view(source.shape)
    before = _run(node, index, *node.args[1:], **node.kwargs)
    inside = torch.zeros(source_size + 1, dtype=torch.bool)  # the last one stands for padding
    inside[index[taken(source.places, source.shape)]] = True
    here = cut(index, source.places)
    if isinstance(before, (list, tuple)):
        return _parts(to, node, call, source, before, inside, here)
    places = _rectangle(to, node, before, inside)
    shape = tuple(before.shape)
    if Done(node, places, shape).gone:
        return Done(node, places, shape)
    made, again = _moved(to, node, call, source, places, here)
    to.unless(torch.equal(again, cut(before, places)), node)
    return Done(made, places, shape)


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _run(node: fx.Node, index: Tensor, *args: Any, **named: Any) -> Any:
    """An operator that moves elements, on their numbers; padding has the number -1."""
    name = node.target._schema.name.rpartition("::")[2]  # type: ignore[union-attr]
    if name in ("pad", "constant_pad_nd"):
        mode = args[1] if len(args) > 1 and isinstance(args[1], str) else "constant"
        if mode == "constant":
            return torch.nn.functional.pad(index, list(args[0]), value=-1)
        return torch.nn.functional.pad(index.double(), list(args[0]), mode).long()
    if name == "im2col":
        return torch.nn.functional.unfold(index.double() + 1, *args, **named).long() - 1
    if name in ("view_as", "reshape_as"):
        return index.reshape(args[0].meta["val"].shape)
    if name == "expand_as":
        return index.expand(args[0].meta["val"].shape)
    if name in ("to", "_to_copy", "type_as", "float", "_to_dtype", "contiguous"):
        return index
    return node.target(index, *args, **named)  # type: ignore[operator]


def _rectangle(to: Cutter, node: fx.Node, before: Tensor, inside: Tensor) -> Places:
    """What of a moved tensor comes from what is kept."""
    kept, padding = inside[before], before < 0
    places = places_of(kept & ~padding, padding)
    full = taken(places, before.shape)
    to.unless(not bool((full & ~kept & ~padding).any()), node)
    return places


def _moved(
    to: Cutter, node: fx.Node, call: Call, source: Done, places: Places, here: Tensor
) -> tuple[fx.Node, Tensor]:
    """The new call, and what it does to the numbers of the elements that are kept."""
    name = call.name
    if name in _RESHAPES:
        sizes = to.sizes(node, places)
        made = to.call(aten.reshape.default, source.node, _one_unknown(sizes))
        return made, here.reshape(of_two(sizes))
    if name in ("expand", "expand_as"):
        sizes = to.sizes(node, places)
        return to.call(aten.expand.default, source.node, sizes), here.expand(of_two(sizes))
    if name == "squeeze":
        ones = [dim for dim, size in enumerate(source.shape) if size == 1]
        dims = call["dim"]
        dims = ones if dims is None else [dims] if isinstance(dims, int) else list(dims)
        dims = [dim % len(source.shape) for dim in dims]
        dims = [dim for dim in dims if dim in ones]
        return to.call(aten.squeeze.dims, source.node, dims), here.squeeze(dims)
    changed: dict[str, Any] = {}
    if name in ("select", "slice", "narrow"):
        dim = int(call["dim"]) % len(source.shape)
        mine = source.places[dim]
        if len(mine) < source.shape[dim]:
            if name == "select":
                index = int(call["index"]) % source.shape[dim]
                changed["index"] = int((mine < index).sum())
            else:
                to.unless((call["step"] or 1) == 1, node)
                length = source.shape[dim]
                start = call["start"] or 0
                end = start + call["length"] if name == "narrow" else call["end"]
                end = length if end is None else min(end, length)
                start, end = (each % length if each < 0 else each for each in (start, end))
                first, last = (int((mine < each).sum()) for each in (start, end))
                changed = (
                    {"start": first, "length": last - first}
                    if name == "narrow"
                    else {"start": first, "end": last}
                )
    args, named = to.recorded.arguments(node)
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    new = [changed.get(each.name, value) for each, value in zip(schema, args, strict=False)]
    known = {each.name for each in schema[: len(args)]}
    rest = {**named, **{key: value for key, value in changed.items() if key not in known}}
    again = _run(node, here, *of_two(new[1:]), **{key: of_two(each) for key, each in rest.items()})
    return to.same(node, **changed), again


_RESHAPES = ("view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as",
             "_unsafe_view")  # fmt: skip


def _one_unknown(sizes: list[Any]) -> list[Any]:
    """Sizes with -1 in place of the only one that grows with the number of images."""
    growing = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
    if len(growing) == 1:
        return [-1 if place in growing else size for place, size in enumerate(sizes)]
    return sizes


def _parts(
    to: Cutter, node: fx.Node, call: Call, source: Done, before: Any, inside: Tensor, here: Tensor
) -> Result:
    """Cutting a tensor into parts: into those of the same places, which may be smaller or gone."""
    dim = int(call["dim"] or 0) % len(source.shape)
    all_places = [_rectangle(to, node, each, inside) for each in before]
    shapes = [tuple(each.shape) for each in before]
    if call.name == "unbind":
        mine = source.places[dim].tolist()
        found = to.call(aten.unbind.int, source.node, dim) if mine else source.node
        return [
            item_of(found, mine.index(place), shape, places)
            if place in mine
            else Done(node, tuple(each[:0] for each in places) or (torch.zeros(0),), shape)
            for place, (places, shape) in enumerate(zip(all_places, shapes, strict=True))
        ]
    sizes = []
    for place, places in enumerate(all_places):
        whole = to.recorded.shape(node)[place][dim]
        to.unless(isinstance(whole, int), node)
        sizes.append(len(places[dim]))
    for part, old, places in zip(here.split(sizes, dim), before, all_places, strict=True):
        to.unless(not all(map(len, places)) or torch.equal(part, cut(old, places)), node)
    made = to.call(aten.split_with_sizes.default, source.node, sizes, dim)
    return [
        item_of(made, place, shape, places)
        for place, (places, shape) in enumerate(zip(all_places, shapes, strict=True))
    ]


def _joined(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Parts side by side; those of which nothing is left are left out."""
    shape = to.shape(node)
    dim = int(call["dim"] or 0) % len(shape)
    parts = [to.of(each) for each in call["tensors"]]
    parts = [part for part in parts if part.shape != (0,)]
    stacked = call.name == "stack"
    places = list(to.kept.places(to.noted(node)))
    for part in parts:
        lying = list(part.places)
        if stacked:
            lying.insert(dim, torch.arange(1))
        for each, mine in enumerate(lying):
            if each != dim and not part.gone:
                places[each] = places[each][torch.isin(places[each], mine)]
    used, along, start = [], [], 0
    for part in parts:
        size = 1 if stacked else part.shape[dim]
        mine = torch.arange(1) if stacked else part.places[dim]
        if not part.gone:
            wanted = [*places[:dim], *([] if stacked else [mine]), *places[dim + 1 :]]
            used.append(to.adapted(part, tuple(wanted), node))
            along.append(mine + start)
        start += size
    places[dim] = torch.cat(along) if along else torch.zeros(0, dtype=torch.int64)
    result = tuple(places)
    missing = needed(to, node) & ~taken(result, shape)
    to.unless(not bool(missing.any()), node)
    if not used or Done(node, result, shape).gone:
        return Done(node, tuple(each[:0] for each in result), shape)
    made = to.call(aten.stack.default if stacked else aten.cat.default, used, dim)
    return Done(made, result, shape)
