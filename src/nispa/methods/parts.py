"""The kinds of parts that methods carry from task to task; see :mod:`nispa.methods.carried`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nispa.base.seeding import stream
from nispa.data.tasks import Samples, pack, unpack
from nispa.errors import FormatError
from nispa.methods.base import draw_network, load_network, network_state
from nispa.methods.carried import MethodState, Part, Tally, take_tensors
from nispa.network.layers import SparseLayer
from nispa.network.models import SparseNetwork
from nispa.network.taskmasks import Owners, TaskMasks, task_numbers
from nispa.training.memory import Memory

if TYPE_CHECKING:
    from nispa.methods.base import Method

Parts = Mapping[str, Any]
"""The parts listed before one, by name."""

USUAL_TASKS = 1000
"""So many tasks may share their outputs; otherwise there are no more tasks than outputs."""


class Network(Part):
    """A network, called ``network``: the one that parts listed after it refer to."""

    def __init__(self) -> None:
        super().__init__("network")

    def first(self, method: Method, parts: Parts) -> SparseNetwork:
        """First values drawn from the method's seed."""
        return draw_network(method, method.seed)

    def save(self, value: SparseNetwork) -> MethodState:
        """Tensors under ``network.``."""
        return MethodState(network_state(value), {})

    def load(self, state: MethodState, method: Method, parts: Parts) -> SparseNetwork:
        """On the method's device."""
        return load_network(method, state, spec=method.spec(parts))

    def count(self, value: SparseNetwork, tally: Tally) -> None:
        """Its connections and values."""
        tally.networks[""] = value


class TaskNetworks(Part):
    """A network for each task learned, by the task's number."""

    def first(self, method: Method, parts: Parts) -> dict[int, SparseNetwork]:
        """None yet."""
        return {}

    def save(self, value: dict[int, SparseNetwork]) -> MethodState:
        """Tensors under ``network0.`` and so on; the list of tasks."""
        tensors: dict[str, Tensor] = {}
        for task, network in value.items():
            tensors |= network_state(network, f"network{task}.")
        return MethodState(tensors, {self.name: sorted(value)})

    def load(self, state: MethodState, method: Method, parts: Parts) -> dict[int, SparseNetwork]:
        """On the method's device."""
        tasks = task_numbers(state.values.get(self.name), self.name)
        return {task: load_network(method, state, f"network{task}.") for task in tasks}

    def count(self, value: dict[int, SparseNetwork], tally: Tally) -> None:
        """Their connections and values, layers named ``task0/fc1`` and so on."""
        tally.networks |= {f"task{task}/": network for task, network in value.items()}


class StableUnits(Part):
    """A set of units, per group, ``(units,)`` bool on the CPU; at first only the inputs."""

    def __init__(self, name: str, prefix: str, purpose: str = "") -> None:
        """A set saved under ``prefix``."""
        super().__init__(name, purpose)
        self.prefix = prefix

    def first(self, method: Method, parts: Parts) -> dict[str, Tensor]:
        """The inputs."""
        units: dict[str, Tensor] = parts["network"].topology.no_units()
        return units

    def save(self, value: Mapping[str, Tensor]) -> MethodState:
        """One tensor for each group."""
        return MethodState({self.prefix + name: units.clone() for name, units in value.items()}, {})

    def load(self, state: MethodState, method: Method, parts: Parts) -> dict[str, Tensor]:
        """Of the network's groups and sizes."""
        found, expected = take_tensors(state, self.prefix), self.first(method, parts)
        if {name: (units.shape, units.dtype) for name, units in found.items()} != {
            name: (units.shape, units.dtype) for name, units in expected.items()
        }:
            raise FormatError("the sets of stable units do not fit the network's groups")
        return found

    def count(self, value: Mapping[str, Tensor], tally: Tally) -> None:
        """The units, and their bytes if kept for a purpose."""
        tally.stable = value
        super().count(value, tally)


class OwedConnections(Part):
    """Numbers of connections per layer that found no place to grow; 0 at first."""

    def first(self, method: Method, parts: Parts) -> dict[str, int]:
        """None."""
        return dict.fromkeys(parts["network"].layers, 0)

    def save(self, value: Mapping[str, int]) -> MethodState:
        """A JSON object."""
        return MethodState({}, {self.name: dict(value)})

    def load(self, state: MethodState, method: Method, parts: Parts) -> dict[str, int]:
        """One number for each layer."""
        owed = state.values.get(self.name)
        if not isinstance(owed, dict) or set(owed) != set(parts["network"].layers):
            raise FormatError(f"'{self.name}' does not name the network's layers")
        if not all(type(number) is int and number >= 0 for number in owed.values()):
            raise FormatError(f"'{self.name}' must hold whole numbers")
        return dict(owed)

    def count(self, value: Mapping[str, int], tally: Tally) -> None:
        """Connections owed."""
        tally.owed = value


class ConnectionOwners(Part):
    """The task that each frozen connection belongs to; saved as ``mask.`` and ``tasks``."""

    def first(self, method: Method, parts: Parts) -> Owners:
        """Nothing is owned."""
        return Owners(parts["network"].layers)

    def save(self, value: Owners) -> MethodState:
        """One tensor for each layer, and the tasks."""
        tensors = {f"mask.{name}": places for name, places in value.tensors().items()}
        return MethodState(tensors, {"tasks": list(value.tasks)})

    def load(self, state: MethodState, method: Method, parts: Parts) -> Owners:
        """One owner for each frozen connection."""
        sizes = {name: layer.frozen_count for name, layer in parts["network"].layers.items()}
        return Owners.load(state.values.get("tasks"), take_tensors(state, "mask."), sizes)


class TaskConnections(Part):
    """The connections of each task, which may overlap; saved as ``mask.``, coded, and ``tasks``.

    All live connections are listed, in order of position, so their pattern must stay.
    """

    def first(self, method: Method, parts: Parts) -> TaskMasks:
        """No task."""
        return TaskMasks(_live_counts(parts["network"]))

    def save(self, value: TaskMasks) -> MethodState:
        """One tensor for each layer, and the tasks."""
        tensors = {f"mask.{name}": data for name, data in value.coded().items()}
        return MethodState(tensors, {"tasks": value.tasks})

    def load(self, state: MethodState, method: Method, parts: Parts) -> TaskMasks:
        """One bit for each task and live connection."""
        tasks = task_numbers(state.values.get("tasks"), "tasks")
        if len(tasks) > max(method.problem.outputs, USUAL_TASKS):  # code can swell
            raise FormatError(f"'tasks' lists {len(tasks)} tasks, more than a network can have")
        sizes = _live_counts(parts["network"])
        return TaskMasks.load_coded(tasks, take_tensors(state, "mask."), sizes)


class ConnectionScores(Part):
    """A number for each live connection of the hidden layers; saved under ``importance.``.

    All live connections have one, in order of position, ``(live,)`` float32, so their pattern must
    stay.
    """

    def first(self, method: Method, parts: Parts) -> dict[str, Tensor]:
        """Drawn evenly between -b and b, b = 1 / square root of a unit's possible inputs."""
        drawn = {}
        for name, layer in hidden_layers(parts["network"]).items():
            bound = (layer.shape[1] * layer.weights_each) ** -0.5
            numbers = torch.rand(layer.live_count, generator=stream(method.seed, "scores", name))
            drawn[name] = ((2 * numbers - 1) * bound).to(method.device)
        return drawn

    def save(self, value: Mapping[str, Tensor]) -> MethodState:
        """One tensor for each hidden layer."""
        copies = {f"importance.{name}": each.detach().cpu() for name, each in value.items()}
        return MethodState({name: copy.clone() for name, copy in copies.items()}, {})

    def load(self, state: MethodState, method: Method, parts: Parts) -> dict[str, Tensor]:
        """Finite numbers, one for each live connection."""
        found, hidden = take_tensors(state, "importance."), hidden_layers(parts["network"])
        if found.keys() != hidden.keys():
            raise FormatError("the saved scores are not those of the network's hidden layers")
        for name, layer in hidden.items():
            numbers = found[name]
            if numbers.dtype != torch.float32 or numbers.shape != (layer.live_count,):
                raise FormatError(f"layer {name}: each connection must have one score, float32")
            if not bool(numbers.isfinite().all()):
                raise FormatError(f"layer {name}: a score is not finite")
        return {name: found[name].to(method.device) for name in hidden}


class PerValue(Part):
    """One number for each plastic value of the network, by the names of its tensors; none at first.

    The tensors are saved under the part's name.
    """

    def first(self, method: Method, parts: Parts) -> dict[str, Tensor]:
        """No tensor."""
        return {}

    def save(self, value: Mapping[str, Tensor]) -> MethodState:
        """Tensors under the part's name."""
        copies = {name: tensor.detach().cpu().clone() for name, tensor in value.items()}
        return MethodState({f"{self.name}.{name}": copy for name, copy in copies.items()}, {})

    def load(self, state: MethodState, method: Method, parts: Parts) -> dict[str, Tensor]:
        """Finite numbers, one for each plastic value of the network, or none at all."""
        found, values = take_tensors(state, f"{self.name}."), plastic_values(parts["network"])
        if not found:  # nothing learned yet
            return {}
        if found.keys() != values.keys():
            raise FormatError(f"the saved '{self.name}' tensors are not those of the network")
        for name, value in values.items():
            tensor, label = found[name], f"'{self.name}.{name}'"
            if tensor.shape != value.shape or tensor.dtype != value.dtype:
                raise FormatError(
                    f"{label} of shape {tuple(tensor.shape)} and type {tensor.dtype} must be of "
                    f"shape {tuple(value.shape)} and type {value.dtype}"
                )
            if not bool(tensor.isfinite().all()):
                raise FormatError(f"{label} holds a value that is not finite")
        return {name: found[name].to(value.device) for name, value in values.items()}


class PositiveNumber(Part):
    """A finite float that is not negative; 0.0 at first."""

    def first(self, method: Method, parts: Parts) -> float:
        """Zero."""
        return 0.0

    def save(self, value: float) -> MethodState:
        """A JSON number."""
        return MethodState({}, {self.name: value})

    def load(self, state: MethodState, method: Method, parts: Parts) -> float:
        """The number."""
        value = state.values.get(self.name)
        if type(value) is not float or not 0 <= value < math.inf:
            raise FormatError(f"'{self.name}' of {value!r} must be a number that is not negative")
        return value


class SampleMemory(Part):
    """Samples of earlier tasks, called ``memory``, as many as the setting ``memory`` allows."""

    def __init__(self, *per_output: str) -> None:
        """A memory.

        Args:
            per_output: Names of vectors kept with each sample, one float32 for each output.
        """
        super().__init__("memory", "memory")
        self.per_output = per_output

    def first(self, method: Method, parts: Parts) -> Memory:
        """An empty one."""
        problem = method.problem
        extras = dict.fromkeys(self.per_output, (problem.outputs,))
        return Memory(method.config.memory, problem.input_shape, method.device, extras)

    def save(self, value: Memory) -> MethodState:
        """Tensors under ``memory.``, and a JSON object."""
        tensors, values = value.state()
        return MethodState(tensors, {self.name: values})

    def load(self, state: MethodState, method: Method, parts: Parts) -> Memory:
        """Samples of the tasks learned."""
        memory = self.first(method, parts)
        memory.load(state.tensors, state.values.get(self.name), method.problem.outputs)
        known = {(info.index, label) for info in method.learned for label in info.classes}
        if not known.issuperset(memory.groups()):
            raise FormatError("the saved memory has samples of tasks that were not learned")
        return memory


class TaskSamples(Part):
    """All samples of each task learned, in order."""

    def first(self, method: Method, parts: Parts) -> list[Samples]:
        """None."""
        return []

    def save(self, value: list[Samples]) -> MethodState:
        """Tensors under the part's name and the task's number; a list of JSON objects."""
        packed = [pack(samples, f"{self.name}.{task}.") for task, samples in enumerate(value)]
        tensors = {name: tensor for found, _ in packed for name, tensor in found.items()}
        return MethodState(tensors, {self.name: [values for _, values in packed]})

    def load(self, state: MethodState, method: Method, parts: Parts) -> list[Samples]:
        """On the method's device."""
        tasks = state.values.get(self.name)
        if not isinstance(tasks, list):
            raise FormatError(f"'{self.name}' must list the samples of each task")
        return [
            unpack(state.tensors, values, f"{self.name}.{task}.").to(method.device)
            for task, values in enumerate(tasks)
        ]


class Derived(Part):
    """What is computed from other parts when needed: None at first, never saved or counted."""

    def first(self, method: Method, parts: Parts) -> None:
        """None."""

    def save(self, value: object) -> MethodState:
        """Nothing."""
        return MethodState({}, {})

    def load(self, state: MethodState, method: Method, parts: Parts) -> None:
        """None: computed again."""


def hidden_layers(network: SparseNetwork) -> dict[str, SparseLayer]:
    """The layers that do not feed the output, in order."""
    output = network.topology.output.name
    names = (layer.name for layer in network.topology.layers if output not in layer.targets)
    return {name: network.layers[name] for name in names}


def _live_counts(network: SparseNetwork) -> dict[str, int]:
    return {name: layer.live_count for name, layer in network.layers.items()}


def plastic_values(network: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors of a network's plastic values, by name, without the empty ones."""
    return {name: value for name, value in network.named_parameters() if value.numel()}
