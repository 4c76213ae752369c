"""Writes a recorded module down anew, with what is kept of each tensor, in PyTorch's own words.

An operator that cannot be cut raises :class:`Whole`: all units that it moves are kept then, and the
module is written down again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nispa.deploy.constants import Read
from nispa.deploy.kept import Kept, Places, cut
from nispa.deploy.recorded import IMAGES, Many, Recorded, of_two
from nispa.graph.found import Call, Learned
from nispa.network.norms import GenerationNorm

aten = torch.ops.aten


class Whole(Exception):  # noqa: N818 - it is no error, but asks for another try
    """An operator that must be left whole; its text names it."""

    def __init__(self, node: fx.Node, call: Call | None) -> None:
        super().__init__(call.by if call is not None else str(node.target))
        self.node = node


@dataclass(frozen=True)
class Done:
    """A tensor of the new graph.

    Attributes:
        node: What computes it.
        places: What it has of the tensor that it stands for.
        shape: The shape of that one, for two images.
    """

    node: fx.Node
    places: Places
    shape: tuple[int, ...]

    @property
    def gone(self) -> bool:
        """Whether nothing is left."""
        return any(not len(each) for each in self.places)


Result = Done | list[Done] | None
Write = Callable[["Cutter", fx.Node, Call], Result]


class Cutter:
    """The new graph, while it is written.

    Attributes:
        recorded: The old one.
        kept: Units that are kept.
        reads: What layers read that depends on no image.
        norms: Norms over sets of units, by their paths.
        root: Modules and tensors of the new graph.
        graph: The new graph.
    """

    def __init__(
        self,
        recorded: Recorded,
        kept: Kept,
        reads: dict[fx.Node, Read],
        norms: dict[str, GenerationNorm],
    ) -> None:
        """An empty graph."""
        self.recorded, self.kept, self.reads, self.norms = recorded, kept, reads, norms
        self.root, self.graph = nn.Module(), fx.Graph()
        self._done: dict[fx.Node, Result] = {}
        self._images: fx.Node | None = None
        self._known: dict[Any, Any] = {}

    def written(self, write: Write, outputs: Sequence[int]) -> fx.GraphModule:
        """The module that computes some logits.

        Args:
            write: Writes an operator down.
            outputs: The logits.

        Raises:
            Whole: An operator cannot be cut.
        """
        start = self.recorded.images
        self._images = self.graph.placeholder("images")
        shape = self.shape(start)
        self._done[start] = Done(self._images, tuple(map(torch.arange, shape)), shape)
        for node in self.recorded.graph.nodes:
            if node.op != "call_function" or _is_state(self.noted(node)):
                continue
            if node.target is operator.getitem:
                whole = self._done[node.args[0]]
                self._done[node] = whole[node.args[1]] if isinstance(whole, list) else None
                continue
            call = self.recorded.call(node)
            if call is None:
                raise Whole(node, None)
            self._done[node] = write(self, node, call)
        logits = self._done[self.recorded.logits]
        if not isinstance(logits, Done) or logits.gone:
            raise Whole(self.recorded.logits, None)
        self.graph.output(self._chosen(logits, list(outputs)))
        made = fx.GraphModule(self.root, self.graph)
        made.graph.eliminate_dead_code()
        used = fx.GraphModule(made, made.graph)  # takes over what the graph names, and no more
        used.recompile()
        return used

    def _chosen(self, logits: Done, outputs: list[int]) -> fx.Node:
        places = logits.places[1].tolist()
        if places == outputs:
            return logits.node
        order = self.constant(torch.tensor([places.index(each) for each in outputs]), "chosen")
        return self.call(aten.index_select.default, logits.node, 1, order)

    # What rules ask.

    def noted(self, node: fx.Node) -> Any:
        """What is known of a node of the old graph."""
        return self.recorded.noted(node)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's whole result, for two images."""
        return tuple(of_two(self.recorded.shape(node)))

    def sizes(self, node: fx.Node, places: Places, item: int | None = None) -> list[Any]:
        """Sizes of what is kept, for any number of images.

        Raises:
            Whole: They depend on it in a way that is not known.
        """
        shape = self.recorded.shape(node)
        shape = shape if item is None else shape[item]
        found: list[Any] = []
        for size, each in zip(shape, places, strict=True):
            if not isinstance(size, Many):
                found.append(len(each))
            elif len(each) == of_two(size):
                found.append(size)
            elif size.first or len(each) % IMAGES[0]:
                raise self.whole(node)
            else:
                found.append(Many(0, len(each) // IMAGES[0]))
        return found

    def of(self, argument: Any) -> Done:
        """The tensor that an argument has become."""
        assert isinstance(argument, fx.Node)
        if argument not in self._done:
            self._done[argument] = self._state(argument)
        done = self._done[argument]
        if not isinstance(done, Done):
            raise self.whole(argument)
        return done

    def _state(self, node: fx.Node) -> Done:
        known = self.noted(node)
        if isinstance(known, Learned):
            tensor, places = self.learned(known)
            shape = tuple(tensor.shape)
            return Done(self.constant(cut(tensor, places), known.name), places, shape)
        path = self.recorded.buffers[node.name]
        tensor = self.recorded.state[path]
        shape = tuple(tensor.shape)
        return Done(self.constant(tensor, path), tuple(map(torch.arange, shape)), shape)

    def learned(self, known: Learned) -> tuple[Tensor, Places]:
        """A parameter that is no connections, and what is kept of it."""
        tensor = self.recorded.state[known.name]
        entry = self.recorded.walk.found.values[known.name]
        if entry.dim is None:
            numbers = entry.ids[known.rows] if known.shape else entry.ids
            tensor = tensor[known.rows] if known.shape else tensor
            places = self.kept.places(numbers)
        else:
            each = list(map(torch.arange, tensor.shape))
            each[entry.dim] = self.kept.rows(entry.ids)
            places = tuple(each)
        return (tensor.t(), places[::-1]) if known.turned else (tensor, places)

    def whole(self, node: fx.Node) -> Whole:
        """The error that asks for all units at an operator to be kept."""
        return Whole(node, self.recorded.call(node))

    def unless(self, fits: bool, node: fx.Node) -> None:
        """Asks for all units at an operator to be kept, unless it can be cut."""
        if not fits:
            raise self.whole(node)

    def adapted(self, done: Done, places: Places, node: fx.Node) -> fx.Node:
        """A tensor with fewer places; its last dimension is the last of ``places``, and so on.

        A dimension of size 1 stays, as it may be spread.
        """
        here = done.node
        offset = len(places) - len(done.places)
        for dim, mine in enumerate(done.places):
            wanted = places[dim + offset]
            if torch.equal(mine, wanted) or done.shape[dim] == 1:
                continue
            self.unless(bool(torch.isin(wanted, mine).all()), node)
            index = torch.searchsorted(mine, wanted)
            if here.op == "get_attr":
                tensor = self._tensor(str(here.target)).index_select(dim, index)
                here = self.constant(tensor, str(here.target))
            else:
                here = self.call(
                    aten.index_select.default, here, dim, self.constant(index, "index")
                )
        return here

    # What rules write.

    def call(self, target: Any, *args: Any, **named: Any) -> fx.Node:
        """A call; numbers that grow with the number of images are computed from the images."""
        return self.graph.call_function(target, self._counted(args), self._counted(named))

    def same(self, node: fx.Node, /, **changed: Any) -> fx.Node:
        """The call of an old node, on new tensors and with some arguments changed."""
        args, named = self.recorded.arguments(node)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        first = [changed.pop(each.name, value) for each, value in zip(schema, args, strict=False)]
        given: Any = self._counted(tuple(first)), self._counted({**named, **changed})
        new = lambda each: each if each.graph is self.graph else self.of(each).node  # noqa: E731
        args, named = fx.node.map_arg(given, new)
        return self.graph.call_function(node.target, args, named)  # type: ignore[arg-type]

    def module(self, path: str, module: nn.Module, *given: fx.Node) -> fx.Node:
        """A call of a module that is put at a path, or near it if that is taken."""
        module.eval().requires_grad_(False)
        return self.graph.call_module(self._put(path, module), given)

    def constant(self, tensor: Tensor, name: str) -> fx.Node:
        """A tensor of the module's."""
        tensor = tensor.detach().clone().contiguous()
        return self.graph.get_attr(self._put(name.replace(".", "_"), tensor))

    def _put(self, path: str, value: Any) -> str:
        *parents, name = path.split(".")
        owner = self.root
        for parent in parents:
            if not isinstance(getattr(owner, parent, None), nn.Module):
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        free, number = name, 1
        while hasattr(owner, free):
            number += 1
            free = f"{name}_{number}"
        if isinstance(value, nn.Module):
            owner.add_module(free, value)
        else:
            owner.register_buffer(free, value)
        return ".".join([*parents, free])

    def _tensor(self, name: str) -> Tensor:
        return self.root.get_buffer(name)

    def _counted(self, value: Any) -> Any:
        """Arguments with nodes in place of numbers that grow with the number of images."""
        if isinstance(value, Many):
            assert self._images is not None
            if "images" not in self._known:
                self._known["images"] = self.graph.call_function(
                    aten.sym_size.int, (self._images, 0)
                )
            count = self._known["images"]
            if value not in self._known:
                if value.each != 1:
                    count = self.graph.call_function(operator.mul, (count, value.each))
                if value.first:
                    count = self.graph.call_function(operator.add, (count, value.first))
                self._known[value] = count
            return self._known[value]
        if isinstance(value, dict):
            return {name: self._counted(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            counted = [self._counted(each) for each in value]
            return tuple(counted) if isinstance(value, tuple) else counted
        return value


def _is_state(known: Any) -> bool:
    """Whether it is a parameter or parts of one, as it lies."""
    return isinstance(known, Learned) or (
        isinstance(known, list) and any(isinstance(each, Learned) for each in known)
    )


def everything(places: Places, shape: Sequence[int]) -> bool:
    """Whether nothing is cut."""
    return all(len(each) == size for each, size in zip(places, shape, strict=True))


def equal(one: Places, other: Places) -> bool:
    """Whether the same is kept of two tensors."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def item_of(
    made: fx.Node, place: int, shape: tuple[int, ...], places: Places | None = None
) -> Done:
    """One of several results; whole, unless it is told what is left of it."""
    node = made.graph.call_function(operator.getitem, (made, place))
    return Done(node, tuple(map(torch.arange, shape)) if places is None else places, shape)


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """What an old node is called with, by the names of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    first = {each.name: value for each, value in zip(schema, node.args, strict=False)}
    return {**first, **node.kwargs}


def needed(to: Cutter, node: fx.Node) -> Tensor:
    """Elements of a result that belong to units that are kept, bool."""
    labels = to.kept.labels(to.noted(node))
    found = to.kept.units[labels] & (labels >= to.kept.first)
    return found.expand(to.shape(node))
