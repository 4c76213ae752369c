"""Which elements of a module's activations depend on no image, and their values.

Each node of the graph is computed with a mask beside it that says what may change with the image. A
rule that is not known lets all change, so a number that is said to be constant is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nispa.deploy.recorded import Recorded
from nispa.errors import ConfigError
from nispa.graph.found import Call
from nispa.graph.operators import attention, mixing, moves, norms, pointwise, rule_of, weights

PLAIN = (pointwise.alone, pointwise.together)
MOVES = (moves.move, moves.reshape, moves.repeat_interleave)
WINDOWS = (weights.convolution, weights.transposed_convolution)
LAYERS = (weights.linear, weights.addmm, *WINDOWS)


@dataclass
class Read:
    """What a layer reads that is the same everywhere, column by column.

    Attributes:
        value: The constants, ``(columns,)`` float64; 0 elsewhere.
        still: Which columns are constants whose product can be added to biases, bool.
    """

    value: Tensor
    still: Tensor


@dataclass
class _Seen:
    """A value, where it is constant, and a mask of where it is not."""

    value: Tensor
    moves: Tensor

    def quiet(self) -> Tensor:
        return self.value.masked_fill(self.moves, 0)


def constants(recorded: Recorded) -> dict[fx.Node, Read]:
    """What each linear layer and convolution reads that depends on no image."""
    found = _Constants(recorded)
    with torch.no_grad():
        for node in recorded.graph.nodes:
            found.known[node] = found.seen(node)
    return found.reads


class _Constants:
    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.known: dict[fx.Node, Any] = {}
        self.reads: dict[fx.Node, Read] = {}

    def seen(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            paths = {**self.recorded.parameters, **self.recorded.buffers}
            if node.name not in paths:
                value = torch.zeros(node.meta["val"].shape)
                return _Seen(value, torch.ones_like(value, dtype=torch.bool))
            value = self.recorded.state[paths[node.name]].detach().clone()
            return _Seen(value, torch.zeros_like(value, dtype=torch.bool))
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            whole, place = node.args
            return self.known[whole][place]  # type: ignore[index]
        call = self.recorded.call(node)
        if call is None:
            return None
        return self._computed(node, call)

    def _computed(self, node: fx.Node, call: Call) -> Any:
        values = fx.node.map_arg((node.args, node.kwargs), self._quiet)
        rule = rule_of(call)
        written = _in_place(node)
        if rule in MOVES:  # views of values and masks are views, as in the module
            masks = fx.node.map_arg((node.args, node.kwargs), lambda each: self.known[each].moves)
            return _paired(self._run(node, self._plain(node)), self._masked(node, call, masks))
        if rule is None or rule is pointwise.checks:
            return self._unknown(node, call)
        result = _laid_as_traced(node, self._run(node, values, fresh=written))
        if not isinstance(result, (Tensor, list, tuple)):
            return None
        moves_too = self._moves(node, call, rule, result)
        if written:
            target = self.known[node.args[0]]  # type: ignore[index]
            target.value.copy_(result)
            target.moves.copy_(moves_too)
            return target
        return _paired(result, moves_too)

    def _moves(self, node: fx.Node, call: Call, rule: Any, result: Any) -> Any:
        masks = [self.known[each].moves for each in node.all_input_nodes]
        if rule in PLAIN:
            return _any_of(masks, result)
        if rule is pointwise.copy:
            return self.known[call["src"]].moves.expand_as(result)
        if rule is pointwise.new:
            return torch.zeros_like(result, dtype=torch.bool)
        if rule in LAYERS or (rule is attention.matmul and self.recorded.weight(call) is not None):
            return self._layer(node, call, rule not in WINDOWS)
        if rule is norms.batch_norm:
            return self.known[call["input"]].moves.clone()
        if rule is mixing.softmax:
            mask = self.known[call["self"]].moves
            return mask.any(call["dim"], keepdim=True).expand(result.shape).clone()
        if rule is mixing.reduce and "other" not in call.arguments and torch.is_tensor(result):
            mask = self.known[call["self"]].moves
            dims = call["dim"]
            dims = [dims] if isinstance(dims, int) else list(dims or range(mask.dim()))
            for dim in dims:
                mask = mask.any(dim, keepdim=True)
            return mask.reshape(result.shape)
        if rule is mixing.pool:
            mask = self.known[next(iter(call.arguments.values()))].moves
            for side in range(mixing.pooled_sides(call.name)):
                mask = mask.any(-1 - side, keepdim=True)
            return mask.expand(result.shape).clone()
        over_units = rule in (norms.layer_norm, norms.group_norm)  # generations are not known here
        return _full(result, over_units or any(bool(mask.any()) for mask in masks))

    def _layer(self, node: fx.Node, call: Call, linear: bool) -> Tensor:
        read, weight, bias = weights.operands(call.name)
        x: _Seen = self.known[call[read]]
        live = (self.known[call[weight]].value != 0).float()
        given = {**call.arguments, read: x.moves.float(), weight: live}
        if bias:
            given[bias] = None if bias == "bias" else torch.zeros(())
        moved: Tensor = call.target(**given) != 0
        dim = x.value.dim() - 1 if linear else x.value.dim() - len(live.shape) + 1
        columns = x.value.movedim(dim, 0).flatten(1)
        still = ~x.moves.movedim(dim, 0).flatten(1).any(1)
        still &= columns.amax(1) == columns.amin(1)
        value = columns[:, 0].double().masked_fill(~still, 0)
        if call.name.startswith("conv_transpose"):
            still &= value == 0  # not all of its kernel reaches each place
        elif not linear and call["padding"] != "valid":
            padding = call["padding"]
            if padding == "same" or any(each > 0 for each in padding):
                still &= value == 0  # the border reads zeros in its place
        self.reads[node] = Read(value, still)
        return moved

    def _unknown(self, node: fx.Node, call: Call) -> Any:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            zeros = _laid_as_traced(node, torch.zeros(value.shape, dtype=value.dtype))
            return _paired(zeros, torch.ones_like(zeros, dtype=torch.bool))
        return None

    def _quiet(self, node: fx.Node) -> Any:
        known = self.known[node]
        if known is None:
            what = type(self.recorded.body).__name__
            raise ConfigError(
                f"a network of {what} cannot be compacted: {node.name} is a number taken from a "
                "tensor, as of a mask; keep places in a buffer of whole numbers"
            )
        return known.quiet()

    def _plain(self, node: fx.Node) -> Any:
        return fx.node.map_arg((node.args, node.kwargs), lambda each: self.known[each].value)

    def _masked(self, node: fx.Node, call: Call, masks: Any) -> Any:
        if call.name in ("to", "_to_copy", "type_as", "float", "_to_dtype"):
            return self.known[call["self"]].moves.clone()
        if call.name in ("pad", "constant_pad_nd"):
            x, mode = self.known[call["self"]].moves.float(), call["mode"] or "constant"
            return torch.nn.functional.pad(x, call["pad"], mode) != 0
        return self._run(node, masks)

    def _run(self, node: fx.Node, values: Any, *, fresh: bool = False) -> Any:
        args, named = values
        if fresh:
            args = (args[0].clone(), *args[1:])
        return node.target(*args, **named)  # type: ignore[operator]


def _laid_as_traced(node: fx.Node, value: Any) -> Any:
    """The value with the strides that it had in the trace: an operator may choose among several.

    Attention does, and a view of its result, which the trace allows, could else be impossible.
    """
    traced = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(traced, Tensor):
        return value
    if value.shape != traced.shape or value.stride() == traced.stride():
        return value
    if 0 in traced.stride():  # several elements share their memory: nothing can be written there
        return value
    return torch.empty_strided(traced.shape, traced.stride(), dtype=value.dtype).copy_(value)


def _in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        each.alias_info is not None and each.alias_info.is_write for each in schema.arguments
    )


def _paired(values: Any, masks: Any) -> Any:
    if isinstance(values, Tensor):
        return _Seen(values, _lying_as(values, masks))
    return [_Seen(*pair) for pair in zip(values, masks, strict=True)]


def _lying_as(value: Tensor, mask: Tensor) -> Tensor:
    """A mask whose memory is laid out as a value's, so that the same views can be taken of it."""
    if mask.stride() == value.stride():
        return mask
    return torch.empty_like(value, dtype=torch.bool).copy_(mask)


def _any_of(masks: list[Tensor], result: Tensor) -> Tensor:
    found = torch.zeros(result.shape, dtype=torch.bool)
    for mask in masks:
        found = found | mask
    return found


def _full(result: Any, value: bool) -> Any:
    if isinstance(result, Tensor):
        return torch.full(result.shape, value)
    return [torch.full(each.shape, value) for each in result]
