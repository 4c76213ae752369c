"""The operators of a module in evaluation, for any number of images, with the units they move.

``torch.export`` writes them down for one number of images. Numbers that change with it are found by
writing them down for two: so ``len(x)`` in a module's code may stay a plain number there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nispa.errors import ConfigError, GraphError
from nispa.graph.found import Call, Learned, Refused
from nispa.graph.operators import rule_of
from nispa.graph.operators.weights import operands
from nispa.graph.trace import exported, logits_node, state_names
from nispa.graph.walk import Walk

IMAGES = (2, 3)
"""How many images the operators are written down for; units are followed with the first."""


@dataclass(frozen=True)
class Many:
    """A whole number that grows with the number of images: ``first + each * images``."""

    first: int
    each: int

    def of(self, images: int) -> int:
        """The number for some images."""
        return self.first + self.each * images


Size = int | Many


def of_two(value: Any) -> Any:
    """Arguments as they are for the images that units are followed with."""
    if isinstance(value, Many):
        return value.of(IMAGES[0])
    if isinstance(value, (list, tuple)):
        return [of_two(each) for each in value]
    return value


class Recorded:
    """A module's operators.

    Attributes:
        body: The module.
        graph: Its operators for two images; parameters and buffers are inputs.
        logits: The node of the logits, which is all that the graph computes.
        walk: The units.
        parameters: Path of each node that is a parameter, by its name.
        state: Parameters, buffers and constants by their paths.
        buffers: Likewise for buffers and constants.
    """

    def __init__(self, body: nn.Module, shape: tuple[int, ...], shared: Iterable[str] = ()) -> None:
        """Writes down what ``body`` computes of images of ``shape``.

        Args:
            body: The module.
            shape: Of an image.
            shared: Its parameters whose numbers belong to no unit.

        Raises:
            ConfigError: It cannot be written down.
        """
        self.body = body
        programs, ends = [], []
        try:
            for count in IMAGES:
                program = exported(body, (torch.rand(count, *shape),), {})
                ends.append(logits_node(program))
                programs.append(program)
            for program, end in zip(programs, ends, strict=True):
                _tidy(program.graph, end)
            first, second = programs
            self.graph, self.logits = first.graph, ends[0]
            self.parameters, self.buffers = state_names(body, first)
            self._constants = {
                name: each for name, each in first.constants.items() if torch.is_tensor(each)
            }
            self.state = {**self._constants, **_state(body)}
            self.walk = Walk(body, rule_of, self._constants, shared=shared, notes=True)
            self.walk.run(self.graph, self.parameters, self.buffers)
            self.walk.result(self.logits)
        except (GraphError, Refused) as error:
            raise ConfigError(
                f"a network of {type(body).__name__} cannot be compacted: {error}"
            ) from None
        self._arguments: dict[fx.Node, tuple[Any, Any]] = {}
        self._shapes: dict[fx.Node, Any] = {}
        self._compare(second.graph)
        self._calls = {
            node: self.walk.call(node)
            for node in self.graph.nodes
            if node.op == "call_function" and hasattr(node.target, "_schema")
        }

    def of(self, body: nn.Module) -> Recorded:
        """The same operators with the values of another module of the same kind."""
        made = copy.copy(self)
        made.body, made.state = body, {**self._constants, **_state(body)}
        return made

    def _compare(self, other: fx.Graph) -> None:
        mine, others = list(self.graph.nodes), list(other.nodes)
        same = [(one.op, one.target) for one in mine] == [(one.op, one.target) for one in others]
        if not same:
            raise ConfigError(
                f"a network of {type(self.body).__name__} cannot be compacted: it computes "
                "something else for another number of images"
            )
        for one, two in zip(mine, others, strict=True):
            self._arguments[one] = _both(one.args, two.args), _both(one.kwargs, two.kwargs)
            self._shapes[one] = _both(_shape(one), _shape(two))

    @property
    def images(self) -> fx.Node:
        """The node of the images."""
        state = {*self.parameters, *self.buffers}
        found: fx.Node = next(
            node for node in self.graph.nodes if node.op == "placeholder" and node.name not in state
        )
        return found

    def call(self, node: fx.Node) -> Call | None:
        """The operator of a node; None of an item of several results."""
        return self._calls.get(node)

    def weight(self, call: Call) -> Learned | None:
        """The parameter that an operator takes as its weight of connections."""
        argument = call[operands(call.name)[1]]
        known = self.noted(argument) if isinstance(argument, fx.Node) else None
        return known if isinstance(known, Learned) else None

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a node is called with; numbers that grow with the number of images say so."""
        args, named = self._arguments[node]
        return tuple(args), dict(named)

    def shape(self, node: fx.Node) -> Any:
        """The shape of a node's result, or of each of several."""
        return self._shapes[node]

    def noted(self, node: fx.Node) -> Any:
        """What the walk knows of a node: numbers of units, or a parameter."""
        assert self.walk.notes is not None
        return self.walk.notes.get(node)


def _state(body: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their paths."""
    return {
        **dict(body.named_buffers(remove_duplicate=False)),
        **dict(body.named_parameters(remove_duplicate=False)),
    }


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return [int(each) for each in value.shape]
    if isinstance(value, (list, tuple)):
        return [[int(n) for n in each.shape] for each in value if isinstance(each, Tensor)]
    return None


def _both(one: Any, two: Any) -> Any:
    """What two writings say, with :class:`Many` where whole numbers differ."""
    if isinstance(one, fx.Node):
        return one
    if isinstance(one, dict):
        return {name: _both(value, two[name]) for name, value in one.items()}
    if isinstance(one, (list, tuple)) and len(one) == len(two):
        return [_both(*pair) for pair in zip(one, two, strict=True)]
    if type(one) is int and one != two:
        each = two - one
        return Many(one - IMAGES[0] * each, each)
    if one != two and not isinstance(one, Tensor):
        raise ConfigError(
            f"a network that computes with {one} for {IMAGES[0]} images and with {two} for "
            f"{IMAGES[1]} cannot be compacted; let it treat images one by one"
        )
    return one


def _tidy(graph: fx.Graph, logits: fx.Node) -> None:
    """Leaves what the logits need, without dropout, and in place only what must be."""
    (end,) = (node for node in graph.nodes if node.op == "output")
    end.args = ((logits,),)
    for node in list(graph.nodes):
        name = getattr(getattr(node.target, "_schema", None), "name", "").rpartition("::")[2]
        if name.rstrip("_") in DROPOUTS and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif name.endswith("_") and not name.endswith("__"):
            _not_in_place(node, name[:-1])
    graph.eliminate_dead_code()


DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def _not_in_place(node: fx.Node, name: str) -> None:
    """Lets a node compute a new tensor, where nobody sees the old one by another name."""
    packet = getattr(torch.ops.aten, name, None)
    overload = getattr(node.target, "_overloadname", "")
    target = node.args[0]
    if not hasattr(packet, overload) or not isinstance(target, fx.Node):
        return
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    before = [each for each in target.users if order[each] < order[node]]
    if target.op == "call_function" and not any(map(_aliases, [target, *before])):
        node.target = getattr(packet, overload)
        target.replace_all_uses_with(
            node, delete_user_cb=lambda user: order.get(user, 0) > order[node]
        )


def _aliases(node: fx.Node) -> bool:
    """Whether a node's result may share memory with what it is computed from."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(each.alias_info is not None for each in schema.returns)
