"""A walk through an exported graph that computes with numbers of units instead of activations.

Each operator has a rule (:mod:`nispa.graph.operators`). A rule takes the numbers of its operands,
ties what must be one unit, notes weights and values, and returns the numbers of the result. Tensors
of numbers share memory where the activations do, so that writing into a view is seen by the rest.

What a rule refuses is an error only if the logits depend on it: a module may compute more.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from nispa.graph.constants import Constants
from nispa.graph.facts import CANNOT, TRANSPOSES, at_random, draws, within, writes_to
from nispa.graph.found import Buffer, Call, Learned, Refused
from nispa.graph.noting import Noting

Rule = Callable[["Walk", Call], Any]


class Walk(Noting):
    """The state of a walk.

    Attributes:
        notes: What is known of each node once it is computed, if somebody asked for it.
    """

    def __init__(
        self,
        model: nn.Module,
        rule_of: Callable[[Call], Rule | None],
        constants: Mapping[str, Any] | None = None,
        *,
        shared: Iterable[str] = (),
        notes: bool = False,
    ) -> None:
        """A walk through a graph of ``model``.

        Args:
            model: The module.
            rule_of: The rule of an operator, if it has one.
            constants: Tensors that code holds without their being parameters or buffers.
            shared: Parameters whose numbers belong to no unit, since each meets many.
            notes: Whether to keep what is known of each node, which takes much memory.
        """
        super().__init__(shared)
        self.notes: dict[fx.Node, Any] | None = {} if notes else None
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._named = dict(model.named_buffers())
        self._fixed = {**self._named, **(constants or {})}
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._norms = {  # by the paths of modules in it, and its own
            f"{path}.{inner}" if path and inner else path or inner: path
            for path, module in model.named_modules()
            if isinstance(module, _NORMS)
            for inner, _ in module.named_modules()
        }
        self._rule_of = rule_of
        self._known: dict[fx.Node, Any] = {}
        self._computed = Constants()
        self._constants: set[str] = set()  # buffers read as such
        # Memory that may or may not be shared in the module, and that of parameters and buffers, by
        # its address; with a tensor in it, so that no other one gets the address.
        self._unsure: dict[int, Tensor] = {}
        self._state: dict[int, tuple[str, Tensor]] = {}

    def run(
        self, graph: fx.Graph, learned: Mapping[str, str], buffers: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """Walks through a graph.

        Args:
            graph: Of ATen operators, each with the shape of its result.
            learned: Names of inputs of the graph that are parameters, and the parameters' paths.
            buffers: Likewise for buffers and constants.

        Returns:
            Numbers of each input's elements, by its name.

        Raises:
            Refused: The graph changes a tensor in a way that cannot be followed.
        """
        inputs: dict[str, Tensor] = {}
        for node in graph.nodes:
            if node.op == "placeholder" and node.name not in learned and node.name not in buffers:
                numbers = self._known[node] = self._input(node)
                if numbers is not None:
                    inputs[node.name] = numbers
        self.ids.inputs_end()
        left = {node: len(node.users) for node in graph.nodes}
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in learned:
                shape = tuple(node.meta["val"].shape)
                rows = torch.arange(shape[0] if shape else 1)
                self._known[node] = Learned(learned[node.name], rows, shape)
            elif node.op == "placeholder" and node.name in buffers:
                self._known[node] = Buffer(buffers[node.name])
                value = self._fixed.get(buffers[node.name])
                if isinstance(value, Tensor):
                    self._computed.give(node, buffers[node.name], value)
            elif node.op == "call_function":
                self._known[node] = self._called(node)
                self._computed.step(node)
            if self.notes is not None and node in self._known:
                self.notes[node] = _copied(self._known[node])
            if node.op == "call_function":
                for read in node.all_input_nodes:
                    left[read] -= 1
                    if not left[read]:  # numbers of large images take much memory
                        self._known.pop(read, None)
                        self._computed.forget(read)
        moving = sorted(self._constants & set(self.found.values))
        if moving:
            raise Refused(
                f"the forward pass reads '{moving[0]}', which batch norm changes in training; read "
                "it by batch norm alone"
            )
        return inputs

    def result(self, node: fx.Node) -> Tensor:
        """Numbers of a node's result.

        Raises:
            Refused: It depends on something that a rule refuses.
        """
        numbers = self.numbers(node)
        assert isinstance(numbers, Tensor)
        return numbers

    def numbers(self, argument: Any) -> Any:
        """An argument with numbers in place of tensors; also within lists."""
        if isinstance(argument, fx.Node):
            known = self._known[argument]
            if isinstance(known, Refused):
                raise known
            if isinstance(known, Learned):
                numbers = self.values(known, "value").clone()
                return self._of_state(known.name, numbers.t() if known.turned else numbers)
            if isinstance(known, Buffer):
                self._constants.add(known.name)
                shape = argument.meta["val"].shape
                return self._of_state(known.name, torch.zeros(shape, dtype=torch.int64))
            return known
        if isinstance(argument, (list, tuple)):
            return [self.numbers(each) for each in argument]
        return argument

    def learned(self, argument: Any) -> Learned | None:
        """The parameter that an argument is, unless it is computed."""
        known = self._known[argument] if isinstance(argument, fx.Node) else None
        if isinstance(known, Refused):
            raise known
        return known if isinstance(known, Learned) else None

    def buffer(self, argument: Any) -> str | None:
        """Path of the buffer that an argument is, unless it is computed."""
        known = self._known[argument] if isinstance(argument, fx.Node) else None
        return known.name if isinstance(known, Buffer) else None

    def constant(self, argument: Any) -> bool:
        """Whether a tensor is computed from buffers and constants alone."""
        known = self._known[argument] if isinstance(argument, fx.Node) else None
        if not isinstance(known, (Tensor, Buffer)):
            return False
        return not bool(self.numbers(argument).any())

    def without_units(self, argument: Any) -> bool:
        """Whether a tensor is computed from constants and inputs alone."""
        return bool(self.ids.is_fixed(self.numbers(argument)).all())

    def fixed(self, argument: Any) -> Tensor | None:
        """The values of a tensor that is computed from buffers and constants alone, else None."""
        known = self._computed.value(argument) if isinstance(argument, fx.Node) else None
        if known is None:
            return None
        value, buffers = known
        self._constants |= buffers
        return value

    def weight(self, call: Call, argument: str = "weight") -> Learned:
        """The parameter that an operator takes as its weight, to be read as connections or values.

        Raises:
            Refused: It is computed from other tensors.
        """
        found = self.learned(call[argument])
        if found is not None and not found.turned:
            return found
        fixed = self.buffer(call[argument])
        if fixed in self._named:
            raise Refused(
                f"the {argument} of {call.by} is the buffer '{fixed}', which is not learned; make "
                "it a parameter (nn.Parameter), or take a layer in its place"
            )
        if fixed is not None:
            raise Refused(
                f"the {argument} of {call.by} is no parameter of the module, but reached by "
                "another way, such as a plain list, a closure or a forward that was put in place "
                "of another; let layers be attributes of the module, or take nn.ModuleList"
            )
        raise Refused(
            f"the {argument} of {call.by} is computed, not a parameter as it lies; take "
            "parametrisations such as weight_norm off (torch.nn.utils.parametrize."
            "remove_parametrizations) and pass parameters on unchanged"
        )

    def bias(self, call: Call, argument: str = "bias") -> Learned | None:
        """The parameter that an operator adds, if any; refuses what :meth:`weight` does."""
        return None if call[argument] is None else self.weight(call, argument)

    def _input(self, node: fx.Node) -> Tensor | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        each = self.ids.fresh(value.shape[1:], f"input '{node.name}'")
        return (
            each.expand(value.shape).clone() if value.dim() else torch.zeros((), dtype=torch.int64)
        )

    def _called(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self._item(node)
        call = self.call(node)
        self.found.random |= draws(call)
        norm = self._norms.get(call.path)
        if norm is not None and call.name not in _OF_NORMS:
            first = node.args[0] if node.args else None
            if not (isinstance(first, fx.Node) and _counts_batches(self._known.get(first))):
                self.beside(norm, call.name)
        written = writes_to(node)
        if written and call.name != "batch_norm":
            # Not put off: somebody else may read what is changed by another name.
            if written != ["self"] or not isinstance(node.args[0], fx.Node):
                raise Refused(f"{call.by} writes into {', '.join(written)}; compute a new tensor")
            try:
                return self._in_place(call, node.args[0])
            except CANNOT as error:
                raise _lost(call, error) from error
        try:
            cut = self._cut(call)
            return cut if cut is not None else self._applied(call)
        except Refused as refused:
            fixed = self._without_units(node, call)
            return refused if fixed is None else fixed
        except CANNOT as error:
            return _lost(call, error)

    def _without_units(self, node: fx.Node, call: Call) -> Any:
        """Numbers of what is computed from constants and inputs alone, in whichever way.

        Returns:
            None if units take part, or if it is drawn at random or writes into tensors.
        """
        inner = within(node)
        if not call.shapes or any(map(at_random, [node, *inner])) or any(map(writes_to, inner)):
            return None
        read = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if not all(isinstance(self._known[each], (Tensor, Buffer)) for each in read):
            return None
        if not all(map(self.without_units, read)):
            return None
        tensors = list(map(self.numbers, read))
        numbers = torch.cat([torch.zeros(1, dtype=torch.int64), *map(torch.flatten, tensors)])
        one = self.ids.along(numbers, [0], call.by)
        results = [one.expand(math.prod(shape)).reshape(shape).clone() for shape in call.shapes]
        for result in results:
            for tensor in tensors:
                self.shares(result, tensor)
        whole = isinstance(node.meta.get("val"), Tensor)
        return results[0] if whole else results

    def _applied(self, call: Call) -> Any:
        rule = self._rule_of(call)
        if rule is None:
            raise Refused(
                f"{call.by} is no operator whose units are known; use those that "
                "nispa.graph.table.operators_table() lists"
            )
        try:
            return rule(self, call)
        except CANNOT as error:
            raise _lost(call, error) from error

    def _in_place(self, call: Call, target: fx.Node) -> Any:
        known = self._known[target]
        if _counts_batches(known):
            return known
        numbers = self.numbers(target)
        if _memory(numbers) in self._state:
            name, _ = self._state[_memory(numbers)]
            raise Refused(
                f"{call.by} changes '{name}' in every forward pass, which nothing holds still for "
                "units that are kept; compute it once, before, or pass on a new tensor"
            )
        result = self._applied(call).expand_as(numbers)
        if _memory(numbers) in self._unsure and not torch.equal(
            self.ids.labels(numbers), self.ids.labels(result)
        ):
            raise Refused(
                f"{call.by} writes into a tensor that may or may not share its memory with another "
                "one; compute a new tensor instead"
            )
        numbers.copy_(result)
        return numbers

    def shares(self, one: Tensor, other: Tensor) -> None:
        """Says that in the module two tensors may or may not share memory."""
        self._unsure |= {_memory(one): one, _memory(other): other}

    def _of_state(self, name: str, numbers: Tensor) -> Tensor:
        self._state[_memory(numbers)] = name, numbers
        return numbers

    def _item(self, node: fx.Node) -> Any:
        whole, place = node.args
        assert isinstance(whole, fx.Node)
        known = self._known[whole]
        if isinstance(known, Refused):
            return known
        try:
            return known[place]
        except (TypeError, LookupError):
            return Refused(f"an item of {whole.name} is no tensor")

    def _cut(self, call: Call) -> Any:
        """Rows of a parameter, such as a packed projection's, stay rows of a parameter.

        So does a matrix that is transposed.
        """
        learned = self.learned(call["self"])
        if learned is not None and len(learned.shape) == 2 and call.name in TRANSPOSES:
            return _transposed(learned, call)
        along_rows = call["dim"] in (None, 0) and call.name in (
            "chunk", "split", "split_with_sizes", "slice", "narrow"
        )  # fmt: skip
        if learned is None or learned.turned or not along_rows or not learned.shape:
            return None
        more = {name: value for name, value in call.arguments.items() if name != "self"}
        cut = call.target(learned.rows, **more)
        parts = cut if isinstance(cut, (list, tuple)) else [cut]
        refs = [Learned(learned.name, part, learned.shape) for part in parts]
        if any(len(part) != int(part[-1]) - int(part[0]) + 1 for part in parts):
            return None
        return refs if isinstance(cut, (list, tuple)) else refs[0]

    def call(self, node: fx.Node) -> Call:
        """The operator of a node."""
        schema = getattr(node.target, "_schema", None)
        name = schema.name.rpartition("::")[2] if schema else getattr(node.target, "__name__", "?")
        arguments: dict[str, Any] = {}
        if schema is not None:
            for place, argument in enumerate(schema.arguments):
                if place < len(node.args):
                    arguments[argument.name] = node.args[place]
                elif argument.name in node.kwargs:
                    arguments[argument.name] = node.kwargs[argument.name]
                elif argument.has_default_value():
                    arguments[argument.name] = argument.default_value
        value = node.meta.get("val")
        results = value if isinstance(value, (list, tuple)) else [value]
        shapes = tuple(tuple(each.shape) for each in results if isinstance(each, Tensor))
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        path = path.partition("@")[0]  # of a second call
        owner = self._modules[path if path in self._modules else ""]
        path = self._paths[id(owner)]
        assert callable(node.target)
        in_place = name.endswith("_") and not name.endswith("__")
        name = name[:-1] if in_place else name
        return Call(name, shapes, path, owner, arguments, node.target)


def _transposed(learned: Learned, call: Call) -> Learned:
    """A matrix after an operator that transposes it, or leaves it as it is."""
    more = {name: value for name, value in call.arguments.items() if name != "self"}
    turns = call.target(torch.empty(2, 3, device="meta"), **more).shape == (3, 2)
    return replace(learned, turned=learned.turned != turns)


def _counts_batches(known: Any) -> bool:
    """Whether it is the number of batches that a batch norm has seen, which no unit depends on."""
    return isinstance(known, Buffer) and known.name.rpartition(".")[2] == "num_batches_tracked"


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_OF_NORMS = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "to", "type_as", "float",
             "_assert_tensor_metadata")  # fmt: skip


def _lost(call: Call, error: Exception) -> Refused:
    return Refused(f"{call.by} cannot be followed ({error}); compute it in another way")


def _copied(known: Any) -> Any:
    """What is known of a node, apart from what is written into it later."""
    if isinstance(known, (list, tuple)):
        return [_copied(each) for each in known]
    return known.clone() if isinstance(known, Tensor) else known


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
