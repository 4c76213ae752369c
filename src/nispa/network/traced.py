"""A sparse network made of any PyTorch module: the module runs, on weights that are put in place.

The units come from a trace (``nispa.graph``). A :class:`.SparseLayer` holds the live values of
each weight of connections, :class:`.UnitValues` whatever else the module learns. For the time of a
pass, full weights stand where the module expects its parameters, so its own code runs unchanged.
Norms are replaced by those of :mod:`.norms`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nispa.base.seeding import derive
from nispa.errors import GraphError
from nispa.graph.logits import logits_of
from nispa.graph.units import Layer, UnitGraph
from nispa.kernels.dispatch import Chain, Images
from nispa.network.fusion import Segment
from nispa.network.holding import HoldsUnits, key_of
from nispa.network.laid_out import (
    NeedsPlainError,
    Placed,
    Session,
    Unreal,
    full_bias,
    full_weight,
    turned_weight,
)
from nispa.network.layers import SparseLayer
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.operations import PerSample, purpose, traced_cost
from nispa.network.passes import Passes, kind_of
from nispa.network.replacing import replaced_norms
from nispa.network.topology import MappedLayer, Topology, UnitGroup
from nispa.network.unit_values import UnitValues
from nispa.network.watching import Reader, Watch, column_activity


class TracedNetwork(HoldsUnits):
    """A module made sparse. It starts without any live connection.

    Attributes:
        body: The module, with norms of this package in place of its own and without parameters.
        graph: Its units.
        dense: Convolutions of the input, which has few channels.
    """

    records = False  # a recorded step's warm-up would move statistics and random numbers

    def __init__(
        self,
        body: nn.Module,
        graph: UnitGraph,
        input_shape: tuple[int, ...],
        precision: str = "float32",
    ) -> None:
        """Takes over ``body``, whose units are ``graph``.

        Raises:
            GraphError: A norm or a parameter of it cannot be held still.
        """
        nn.Module.__init__(self)
        self.body, self.graph = body, graph
        self.topology = topology_of(graph)
        self.input_shape = input_shape
        self.precision = precision
        self.training = body.training
        self.seed = self.draws = 0
        self._costs: dict[bool, tuple[list[int], PerSample]] = {}
        _refuse_shared_norms(body, graph)
        self._homes = _homes(body)
        first = dict(body.named_parameters())
        self.norms = replaced_norms(body, graph)
        self.weights = nn.ModuleDict()
        self.values = nn.ModuleDict()
        self.layers: dict[str, SparseLayer] = {}
        self._parts: dict[str, list[SparseLayer]] = {}  # of each weight, in order of its rows
        self._turned = {layer.weight for layer in graph.layers if layer.turned}
        self._slots: list[tuple[nn.Module, str, str, Callable[[], Tensor]]] = []
        self._placed: dict[str, Callable[..., Placed]] = {}  # for passes on kernels
        self._passes = Passes()
        self._own_weights(first)
        self._own_values(first)
        inputs = {group.name for group in graph.groups if group.kind == "input"}
        self.dense = frozenset(
            spec.name
            for spec in self.topology.layers
            if spec.kernel and inputs.issuperset(spec.sources)
        )
        for module in body.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # its fast path would pass the norms by
            if not isinstance(module, (UnitBatchNorm, GenerationNorm)):
                module._non_persistent_buffers_set.update(module._buffers)  # constants
            if isinstance(module, nn.modules.batchnorm._NormBase):  # no logits depend on it
                module.track_running_stats = False  # or it would ask a saved state for statistics

    def _own_weights(self, first: Mapping[str, Tensor]) -> None:
        biases: dict[str, list[tuple[int, SparseLayer]]] = {}
        for layer in sorted(self.graph.layers, key=lambda each: (each.weight, each.first_row)):
            for number, spec in enumerate(specs_of(layer, self.graph)):
                shape = spec.shape({})
                made = SparseLayer(spec, shape, biased=layer.bias is not None)
                made.places = layer.places
                self.layers[spec.name] = made
                self._parts.setdefault(layer.weight, []).append(made)
                if layer.bias is not None:
                    place = layer.first_bias + number * shape[0]
                    biases.setdefault(layer.bias, []).append((place, made))
        self.layers = {spec.name: self.layers[spec.name] for spec in self.topology.layers}
        for name, made in self.layers.items():
            self.weights[key_of(name)] = made
        self._biases = {
            path: [made for _, made in sorted(parts, key=lambda part: part[0])]
            for path, parts in biases.items()
        }
        for path, parts in (*self._parts.items(), *self._biases.items()):
            if sum(part.shape[0] for part in parts) != len(self._rows_first(path, first[path])):
                raise GraphError(
                    f"not every row of '{path}' belongs to one weight that is used; give each use "
                    "a parameter of its own, without rows to spare"
                )
        for path, parts in self._parts.items():
            if path in self._turned:
                self._take(path, functools.partial(turned_weight, parts))
                continue
            self._take(path, functools.partial(full_weight, parts))
            self._placed[path] = functools.partial(Placed.of, parts, bias=False)
        for path, parts in self._biases.items():
            self._take(path, functools.partial(full_bias, parts))
            self._placed[path] = functools.partial(Placed.of, parts, bias=True)

    def _rows_first(self, path: str, value: Tensor) -> Tensor:
        """A parameter with what it writes in its first dimension."""
        return value.transpose(0, 1) if path in self._turned else value

    def _own_values(self, first: Mapping[str, Tensor]) -> None:
        for values in self.graph.values:
            if values.kind != "statistic" and values.name not in self._biases:
                made = UnitValues(first[values.name])
                self.values[key_of(values.name)] = made
                self._take(values.name, made.full)

    def _take(self, path: str, make: Callable[[], Tensor]) -> None:
        """Takes a parameter from the body; a pass puts what ``make`` returns in its places."""
        for module, name in self._homes[path]:
            module._parameters[name] = None  # found in place of what a pass puts there, afterwards
            self._slots.append((module, name, path, make))

    # Passes.

    def train(self, mode: bool = True) -> TracedNetwork:
        """See ``torch.nn.Module.train``.

        Modules that keep what they compute while they are evaluated let go of it when they are told
        to train: so each evaluation begins with that.
        """
        super().train(True)
        return self if mode else super().train(False)

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Logits ``(batch, classes)`` of whatever the module takes."""
        if len(arguments) == 1 and not named and isinstance(arguments[0], Tensor):
            return super().forward(arguments[0])
        return self._called(*arguments, **named)

    def _run(self, images: Images) -> Tensor:
        return self._called(images)

    def _called(self, *arguments: Any, **named: Any) -> Tensor:
        session = self._passes.session(self)
        if session is None:
            return self._pass(None, *arguments, **named)
        put_back, session.needs_plain = self._passes.back(self), False
        try:
            logits = self._pass(session, *arguments, **named)
        except Exception as error:
            if not (session.needs_plain or isinstance(error, NeedsPlainError)):
                raise
            put_back()
            self._passes.plain.add(kind_of(self))
            return self._pass(None, *arguments, **named)
        self._passes.proven.add(kind_of(self))
        return logits

    def _pass(self, session: Session | None, *arguments: Any, **named: Any) -> Tensor:
        with self._in_place(session), self._random():
            logits: Tensor = logits_of(self.body(*arguments, **named))
            return logits.plain() if isinstance(logits, Unreal) else logits

    @contextmanager
    def _in_place(self, session: Session | None = None) -> Iterator[dict[tuple[int, str], Tensor]]:
        """Puts weights and values where the body reads them, full ones without a session."""
        made: dict[tuple[int, str], Tensor] = {}
        values: dict[str, Tensor] = {}
        moments = session is not None and any(norm.training for _, norm in self.norms)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it reads weights by ways of its own
        try:
            for module, name, path, make in self._slots:
                placed = self._placed.get(path) if session is not None else None
                if path not in values:
                    values[path] = (
                        make() if placed is None else placed(session=session, moments=moments)
                    )
                made[id(module), name] = module.__dict__[name] = value = values[path]
                module._parameters[name] = value  # type: ignore[assignment] # for parameters()
            yield made
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, name, _, _ in self._slots:
                module.__dict__.pop(name, None)
                module._parameters[name] = None

    @contextmanager
    def _random(self) -> Iterator[None]:
        """Random numbers of a training pass: a stream of the network's own, pass by pass."""
        if not (self.graph.random and self.training):
            yield
            return
        device = next(iter(self.layers.values())).weight.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "passes", self.draws))
            self.draws += 1
            yield

    def get_extra_state(self) -> Tensor:
        """The stream of random numbers, and how many passes have drawn from it."""
        return torch.tensor([self.seed, self.draws])

    def set_extra_state(self, state: Any) -> None:
        """What :meth:`get_extra_state` returned."""
        fits = isinstance(state, Tensor) and state.shape == (2,) and state.dtype == torch.int64
        if not fits or bool((state < 0).any()):
            raise RuntimeError("the state of random numbers must be two whole numbers")
        self.seed, self.draws = (int(number) for number in state)

    def gradients(
        self,
        images: Images,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reuse: bool = False,
    ) -> Tensor:
        """See :meth:`.SparseNetwork.gradients`; what the logits do not depend on gets zeros."""
        value = super().gradients(images, labels, loss, reuse=reuse)
        for each in self.parameters():
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        return value

    def _whole(self, images: Images, outputs: tuple[int, ...] | None = None) -> Chain | None:
        return None

    def _segments(self) -> list[Segment]:
        return []

    def _wants_channels_last(self, device: torch.device) -> bool:
        return False  # a module may look at its activations as they lie

    def per_sample(self, *, into_input: bool = False) -> PerSample:
        """Operations of one sample's pass as the pattern is now, see :mod:`.operations`."""
        key = [layer.changes for layer in self.layers.values()]
        known = self._costs.get(into_input)
        if known is None or known[0] != key:
            cost = traced_cost(
                self.layers, self.topology, self.graph.operations, into_input=into_input
            )
            known = self._costs[into_input] = key, cost
        return known[1]

    # Units.

    def activity(self, batches: Iterable[Images]) -> dict[str, Tensor]:
        """Total activation of each hidden group's units over a data set, ``(units,)`` float64.

        Activations are measured where layers read them. The marks of several layers that read one
        group are brought to a total of 1 each before they are added.

        Args:
            batches: Images, ``(batch, ...)`` each.
        """
        marks: dict[str, Tensor] = {}

        def read(layer: Layer, inputs: Tensor, dim: int) -> None:
            seen = column_activity(inputs, dim)
            marks[layer.name] = marks[layer.name] + seen if layer.name in marks else seen

        with torch.no_grad(), purpose("activity"):
            for images in batches:
                self.watched(images, read)
        return self._units(marks)

    def watched(self, images: Any, read: Callable[[Layer, Tensor, int], None]) -> Tensor:
        """Logits of images, without gradients.

        Args:
            images: ``(batch, ...)``.
            read: Called with each layer, what its weight is multiplied with, and the dimension of
                its columns in it.
        """
        readers: dict[str, dict[int, Reader]] = {}
        for layer in self.graph.layers:
            readers.setdefault(layer.weight, {})[layer.first_row] = functools.partial(read, layer)
        paths = {id(module): path for path, module in self.body.named_modules()}
        with torch.no_grad(), self._in_place() as made, self._random():
            known = []
            for (module, name), tensor in made.items():
                path = f"{paths[module]}.{name}".lstrip(".")
                if path in readers:
                    known.append((tensor, readers[path]))
            with Watch(known):
                logits: Tensor = logits_of(self.body(images))
        self._count(images, logits)
        return logits

    def _units(self, marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {group.name: group.size for group in self.topology.groups}
        found: dict[str, list[Tensor]] = {group.name: [] for group in self.topology.hidden}
        for layer in self.graph.layers:
            if layer.name in marks:
                sums = layer.columns.sums(marks[layer.name].cpu(), sizes)
                for name, units in sums.items():
                    if name in found:
                        found[name].append(units)
        totals = {}
        for group in self.topology.hidden:
            each = found[group.name]
            if len(each) > 1:
                each = [units / max(float(units.sum()), 1e-300) for units in each]
            zero = torch.zeros(group.size, dtype=torch.float64)
            totals[group.name] = sum(each, zero) if len(each) != 1 else each[0]
        return totals

    @torch.no_grad()
    def take(self, values: Mapping[str, Tensor]) -> None:
        """Gives live connections and biases the values that a module has, by their names."""
        for parts, bias in ((self._parts, False), (self._biases, True)):
            for path, layers in parts.items():
                value, first = self._rows_first(path, values[path]), 0
                for layer in layers:
                    rows = value[first : first + layer.shape[0]]
                    first += layer.shape[0]
                    if bias:
                        layer.bias.copy_(rows)
                    else:
                        layer.weight.copy_(rows.flatten(0, 1)[layer.plastic_index])

    def sources(self) -> dict[str, Tensor]:
        """The inputs, and what an embedding writes or no layer at all, such as a first norm."""
        found = self.topology.no_units()
        for group in self.graph.groups:
            found[group.name] |= not group.writers
        for values in self.graph.values:
            if values.kind == "embedding":
                for name, unit in values.units.units():
                    found[name][unit] = True
        return found

    def unreached(self) -> tuple[int, ...]:
        """Outputs without a live path from the input: nothing can change their logits."""
        reached, patterns = self.sources(), self.patterns()
        changed = True
        while changed:  # a group may feed itself
            changed = False
            for spec in self.topology.layers:
                rows = (patterns[spec.name] & spec.columns_in(reached)).any(1)
                for name, fed in spec.units_fed(rows).items():
                    if bool((fed & ~reached[name]).any()):
                        reached[name] |= fed
                        changed = True
        return tuple(torch.nonzero(~reached[self.topology.output.name]).flatten().tolist())

    def live_count(self) -> int:
        """Number of live weights, biases and other values."""
        return super().live_count() + self._others()

    def position_count(self) -> int:
        """Number of weights, biases and other values that the module has."""
        return super().position_count() + self._others()

    def _others(self) -> int:
        return sum(len(made.base) for made in self.values.values())  # type: ignore[arg-type, misc]

    def groups(self) -> str:
        """Who writes and reads each group, as a table."""
        from nispa.graph.table import groups_table  # takes long to import

        return groups_table(self.graph)


def topology_of(graph: UnitGraph) -> Topology:
    """Groups and layers of a graph, as methods see them."""
    roles = {"input": "input", "output": "output"}
    groups = tuple(
        UnitGroup(group.name, group.size, roles.get(group.kind, "hidden"))  # type: ignore[arg-type]
        for group in graph.groups
    )
    return Topology(
        groups, tuple(spec for layer in graph.layers for spec in specs_of(layer, graph))
    )


def specs_of(layer: Layer, graph: UnitGraph) -> list[MappedLayer]:
    """A layer as methods see it; a grouped convolution is several layers."""
    sizes = {group.name: group.size for group in graph.groups}
    found = []
    rows, columns = len(layer.rows) // layer.blocks, len(layer.columns) // layer.blocks
    for block in range(layer.blocks):
        mine, read = layer.rows, layer.columns
        if layer.blocks > 1:
            mine = mine.cut(block * rows, (block + 1) * rows)
            read = read.cut(block * columns, (block + 1) * columns)
        found.append(
            MappedLayer(
                layer.name if layer.blocks == 1 else f"{layer.name}/{block + 1}",
                read.groups[0],
                mine.groups[0],
                kernel=layer.kernel,
                rows=mine,
                columns=read,
                sizes=sizes,
            )
        )
    return found


def fingerprint(body: nn.Module, graph: UnitGraph) -> str:
    """A hash of a module's units and constants: equal for modules that a state fits."""
    parts = [repr((graph.groups, graph.layers, graph.values, graph.norms))]
    statistics = {values.name for values in graph.values if values.kind == "statistic"}
    code = hashlib.sha256(parts[0].encode())
    for name, value in sorted(body.named_buffers()):
        if name not in statistics and not name.endswith("num_batches_tracked"):
            code.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            code.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return code.hexdigest()


def _homes(body: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Modules that hold each parameter, and its name there, by its first path."""
    first: dict[int, str] = {}
    homes: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, module in body.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = first.setdefault(id(parameter), f"{path}.{name}".lstrip("."))
            homes.setdefault(full, []).append((module, name))
    return homes


def _refuse_shared_norms(body: nn.Module, graph: UnitGraph) -> None:
    norms = {body.get_submodule(norm.module) for norm in graph.norms}
    paths = {module: path for path, module in body.named_modules()}
    for homes in _homes(body).values():
        if len(dict(homes)) > 1 and any(module in norms for module, _ in homes):
            one, two = (f"{paths[module]}.{name}" for module, name in list(dict(homes).items())[:2])
            raise GraphError(
                f"'{one}' and '{two}' are one parameter of two modules, one of them a norm; call "
                "one module twice, or give each its own"
            )
