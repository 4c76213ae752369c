"""Layers of what is kept, as modules of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from nispa.deploy.cutter import Cutter, Done, Result, aten
from nispa.deploy.kept import live
from nispa.graph.found import Call, Learned
from nispa.graph.operators.weights import operands

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def linear(to: Cutter, node: fx.Node, call: Call) -> Result:
    """The rows and columns that are kept; constants that are not go into the bias."""
    x, learned = to.of(call[operands(call.name)[0]]), _learned(to, call)
    rows = _rows(to, learned)
    if x.gone or not len(rows):
        return gone(to, node)
    columns = x.places[-1]
    weight, bias = _weight(to, node, call, learned, rows, columns, 1)
    made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    new = to.module(_path(learned), made, x.node)
    return Done(new, (*x.places[:-1], rows), to.shape(node))


def convolution(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Likewise; a convolution in groups is several where the groups keep different numbers."""
    if to.recorded.weight(call) is None:
        raise to.whole(node)  # a filter that is not learned
    x, learned = to.of(node.args[0]), _learned(to, call)
    sides = len(learned.shape) - 2
    to.unless(len(x.shape) == sides + 2, node)
    groups = int(call["groups"] or 1)
    if groups > 1 and learned.shape[1] == 1:
        return _depthwise(to, node, call, x, learned)
    rows, columns = _rows(to, learned), x.places[1]
    if x.gone or not len(rows):
        return gone(to, node)
    places = (x.places[0], rows, *map(torch.arange, to.shape(node)[2:]))
    each_row, each_column = learned.shape[0] // groups, x.shape[1] // groups
    parts = [
        (rows[rows // each_row == g], columns[columns // each_column == g]) for g in range(groups)
    ]
    if len({(len(mine), len(theirs)) for mine, theirs in parts}) == 1:
        weight, bias = _weight(to, node, call, learned, rows, columns, groups)
        made = _window(call, weight, bias, groups)
        return Done(to.module(_path(learned), made, x.node), places, to.shape(node))
    ends, start = [], 0
    for mine, theirs in parts:
        if len(mine):
            to.unless(len(theirs) > 0, node)
            read = to.call(aten.slice.Tensor, x.node, 1, start, start + len(theirs))
            weight, bias = _weight(to, node, call, learned, mine, theirs, groups)
            ends.append(to.module(_path(learned), _window(call, weight, bias, 1), read))
        start += len(theirs)
    new = ends[0] if len(ends) == 1 else to.call(aten.cat.default, ends, 1)
    return Done(new, places, to.shape(node))


def transposed_convolution(to: Cutter, node: fx.Node, call: Call) -> Result:
    """Likewise; the border of a constant is no constant, so none goes into the bias."""
    x, learned = to.of(call["input"]), _learned(to, call)
    sides = len(learned.shape) - 2
    to.unless(len(x.shape) == sides + 2, node)
    rows = _rows(to, learned)
    if x.gone or not len(rows):
        return gone(to, node)
    weight, bias = _weight(to, node, call, learned, rows, x.places[1], 1)
    names = ("stride", "padding", "output_padding", "dilation")
    made: nn.Module = nn.utils.skip_init(
        TRANSPOSED[sides],
        weight.shape[1],
        weight.shape[0],
        tuple(weight.shape[2:]),
        **{name: _sides(call[name], sides) for name in names},
    )
    made.load_state_dict({"weight": weight.transpose(0, 1), "bias": bias})
    places = (x.places[0], rows, *map(torch.arange, to.shape(node)[2:]))
    return Done(to.module(_path(learned), made, x.node), places, to.shape(node))


def _depthwise(to: Cutter, node: fx.Node, call: Call, x: Done, learned: Learned) -> Result:
    """A kernel for each channel, or several."""
    tensor, (rows, *_) = to.learned(learned)
    if x.gone or not len(rows):
        return gone(to, node)
    many = len(tensor) // x.shape[1]
    spread = (x.places[1][:, None] * many + torch.arange(many)).flatten()
    to.unless(torch.equal(spread, rows), node)
    bias = _bias(to, call, len(tensor))
    made = _window(call, tensor[rows], bias[rows], len(x.places[1]))
    places = (x.places[0], rows, *map(torch.arange, to.shape(node)[2:]))
    return Done(to.module(_path(learned), made, x.node), places, to.shape(node))


def _window(call: Call, weight: Tensor, bias: Tensor, groups: int) -> nn.Module:
    made: nn.Module = nn.utils.skip_init(
        CONVOLUTIONS[weight.dim() - 2],
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        groups=groups,
        **{
            name: _sides(call[name], weight.dim() - 2) for name in ("stride", "padding", "dilation")
        },
    )
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def _sides(value: Any, count: int) -> Any:
    if isinstance(value, str):
        return value
    return tuple(value) if len(value) == count else tuple(value) * count


def _weight(
    to: Cutter,
    node: fx.Node,
    call: Call,
    learned: Learned,
    rows: Tensor,
    columns: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The weight of some rows and columns, and the bias with what the other columns always add."""
    whole = to.recorded.state[learned.name].detach()[learned.rows]
    layer = to.recorded.walk.found.layers[learned.name, int(learned.rows[0])]
    whole = (whole.transpose(0, 1) if layer.turned else whole).clone()
    bias = _bias(to, call, len(whole))
    whole[to.kept.fills(layer.rows)] = 0
    each_row, each_column = len(whole) // groups, whole.shape[1]
    read, idle = to.reads[node], to.kept.fills(layer.columns)
    made, sums = [], bias.double()
    inside = torch.zeros(each_column * groups, dtype=torch.bool)
    inside[columns] = True
    for group in range(groups):
        mine = rows[rows // each_row == group]
        part = slice(group * each_column, (group + 1) * each_column)
        if not len(mine) or not bool(inside[part].any()):
            continue
        weight, away = whole[mine], ~inside[part] | idle[part]
        still, value = read.still[part][away], read.value[part][away]
        constant = weight[:, away]
        to.unless(bool((still | ~live(constant).any(0)).all()), node)
        for dim in reversed(range(2, constant.dim())):
            constant = constant.double().sum(dim)
        sums[mine] += constant.double() @ value.masked_fill(~still, 0)
        weight[:, idle[part]] = 0
        made.append(weight[:, inside[part]])
    return torch.cat(made).float(), sums[rows].float()


def _bias(to: Cutter, call: Call, rows: int) -> Tensor:
    given = call[operands(call.name)[2]]
    if given is None:
        return torch.zeros(rows)
    learned = to.noted(given)
    assert isinstance(learned, Learned)
    return to.recorded.state[learned.name].detach()[learned.rows]


def _learned(to: Cutter, call: Call) -> Learned:
    learned = to.recorded.weight(call)
    assert learned is not None, "the walk refuses other weights"
    return learned


def _rows(to: Cutter, learned: Learned) -> Tensor:
    layer = to.recorded.walk.found.layers.get((learned.name, int(learned.rows[0])))
    return to.kept.rows(layer.rows) if layer is not None else torch.zeros(0, dtype=torch.int64)


def _path(learned: Learned) -> str:
    return learned.name.removesuffix(".weight")


def gone(to: Cutter, node: fx.Node) -> Result:
    """Nothing, as nothing is left of an operand."""
    shape = to.shape(node)
    labels = to.kept.labels(to.noted(node))
    to.unless(not bool((to.kept.units[labels] & (labels >= to.kept.first)).any()), node)
    return Done(node, tuple(torch.arange(0) for _ in shape), shape)
