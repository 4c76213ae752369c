"""The contract that every method keeps: learn one task at a time, predict, give its state.

``learn`` is a generator. It yields events between which the method's state is whole, and returns a
:class:`LearnReport`; whoever drives it shows, records, stops, or leaves it and takes it up later
(:mod:`nispa.training.pausing`). Methods write no files, print
nothing and know nothing of the tasks to come (but for their number, where they say that they need
it). docs/decisions/0003-method-contract.md tells why it is as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import JoinedSamples, Samples, Task, TaskInfo
from nispa.errors import (
    CapacityError,
    ConfigError,
    FormatError,
    NotLearnedError,
    ScenarioError,
    either,
    unknown_name,
)
from nispa.methods.defaults import PUBLISHED_K, RULES, Facts
from nispa.network.models import DataSet, NetworkConfig, NetworkSpec, SparseNetwork
from nispa.training.fit import FitResult, OptimiserConfig
from nispa.training.pausing import EpochEnd, FitBegin, FitPause, FitState

CACHE_BYTES = 2**29
"""Memory that prepared data of one task may take, unless a run says otherwise."""


Incremental = Literal["task", "class", "domain"]
"""What each task adds, after van de Ven and Tolias 2019, arXiv 1904.07734.

``task``: outputs of its own, as if it had a head, among which a prediction that is told the task
chooses. ``class``: new classes among those that came before, to be told from them all. ``domain``:
the same classes in other images.
"""


@settings
class MethodConfig(OptimiserConfig):
    """Settings of every method."""

    incremental: Incremental = setting(
        "task",
        "what a task adds: outputs of its own, new classes among all seen, or other images of the "
        "same classes",
    )
    derived: tuple[str, ...] = setting(
        (), "settings that follow the data of each task instead, by their names"
    )

    def __post_init__(self) -> None:
        for name in self.derived:
            able = [each for each in RULES if hasattr(self, each)]
            if name not in able:
                raise unknown_name("setting that follows the data", name, able)


@dataclass(frozen=True)
class Problem:
    """What a method must know before the first task.

    Attributes:
        input_shape: Channels, height and width of every image.
        outputs: Number of logits: one per class of all tasks to come.
        tasks: How many tasks are planned, or None where that is not known.
    """

    input_shape: tuple[int, int, int]
    outputs: int
    tasks: int | None = None


@dataclass(frozen=True)
class PhaseStart:
    """A phase begins.

    Attributes:
        phase: Its number, from 1; methods without phases have one.
        tau: Share of activation that its candidates were picked with; None where none were.
        epochs: How many epochs it has, at most.
        phases: How many phases the task has, at most.
        stable_share: Share of hidden units that are stable or candidates during the phase.
    """

    phase: int
    epochs: int
    phases: int = 1
    tau: float | None = None
    stable_share: float | None = None


@dataclass(frozen=True)
class PhaseEnd:
    """A phase is over.

    Attributes:
        phase: Its number, from 1.
        accuracy: Validation accuracy of the network it ends with.
        tau: Share of activation for the candidates picked now, None where none are.
        kept: Stable units and candidates picked now, per hidden group.
        dropped: Connections dropped per layer; ``revived``, ``grown`` and ``ungrown`` likewise.
        seconds: Wall time of the phase, rewiring included.
    """

    phase: int
    accuracy: float | None
    seconds: float
    tau: float | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    revived: Mapping[str, int] = field(default_factory=dict)
    grown: Mapping[str, int] = field(default_factory=dict)
    ungrown: Mapping[str, int] = field(default_factory=dict)


Event = PhaseStart | EpochEnd | PhaseEnd
"""What is told of learning."""

Fitting = Generator[Event | FitBegin | FitPause, FitState | None, FitResult]
"""A fit within a task."""


@dataclass(frozen=True)
class LearnReport:
    """How a task was learned.

    Attributes:
        phases: Phases trained, the one that was given up included.
        samples_trained: Training images seen, repetitions included.
        tau: Share of activation that the candidates now stable were picked with, or None.
        stop_reason: Why learning ended, such as ``"epochs"`` or ``"accuracy_drop"``.
    """

    phases: int
    samples_trained: int
    tau: float | None
    stop_reason: str


Learning = Generator[Event | FitBegin | FitPause, FitState | None, LearnReport]
"""Learning one task; whoever drives it may pass over :class:`FitBegin` and :class:`FitPause`."""


@dataclass(frozen=True)
class MethodState:
    """All that a method needs to go on in another process: tensors by name, and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Census:
    """What is there: units and connections counted.

    Attributes:
        stable: Stable units and size of each hidden group.
        connections: Live, frozen and possible connections of each layer.
        owed: Connections of each layer that were dropped and found no place to grow yet.
        live: Live weights and biases in all.
        total: Weights and biases that the same networks would have if they were dense.
        storage: Bytes kept beside the networks from one task to the next, by what they are for:
            ``"memory"`` (samples), ``"importance"``, ``"masks"``.
        model_bytes: Bytes of the networks: live values and where each of them stands. None where
            a method does not say.
    """

    stable: dict[str, tuple[int, int]]
    connections: dict[str, tuple[int, int, int]]
    owed: dict[str, int]
    live: int
    total: int
    storage: Mapping[str, int] = field(default_factory=dict)
    model_bytes: int | None = None


def derive(
    config: MethodConfig,
    network: NetworkConfig,
    problem: Problem,
    task: Task,
    earlier: Sequence[TaskInfo],
    rehearses: bool = False,
) -> dict[str, Any]:
    """The values of the settings that follow the data of ``task``.

    Args:
        config: The settings as they were given.
        network: The network's settings.
        problem: What the method was built for.
        task: The task.
        earlier: The tasks learned before it.
        rehearses: See :class:`Method`; tasks before are taken to be as large as this one.
    """
    seen = {label for info in earlier for label in info.classes}
    facts = Facts(
        images=len(task.train) * (1 + len(earlier) if rehearses else 1),
        classes=len(set(task.classes) - seen),
        outputs=problem.outputs - len(seen),
        optimiser=config.optimiser,
        kind=network.architecture,
        k=getattr(config, "k", PUBLISHED_K),
    )
    return {name: RULES[name](facts) for name in config.derived}


class Method(ABC):
    """One algorithm of continual learning.

    Attributes:
        name: What the command line calls it.
        config_class: Its settings.
        incremental: What tasks may add, as :data:`Incremental` names it.
        shares_classes: Whether it can learn a task with classes that it has seen before.
        task_agnostic: Whether it can predict without being told the task.
        rehearses: Whether an epoch goes over the images of all tasks so far, not the new one's.
        cache_bytes: Memory that prepared data of one task may take; it changes the time, no number.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    incremental: ClassVar[tuple[Incremental, ...]] = ("task",)
    shares_classes: ClassVar[bool] = True
    task_agnostic: ClassVar[bool] = True
    rehearses: ClassVar[bool] = False

    def __init__(
        self,
        problem: Problem,
        network: NetworkConfig,
        config: Any,
        *,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        """A method without values: call ``start`` or ``load_state`` next.

        Args:
            problem: Shape of images and number of outputs.
            network: The network to learn with.
            config: The method's own settings, of ``config_class``.
            seed: From which all its random streams are derived.
            device: Where to compute; the CPU unless said otherwise.
        """
        self.problem = problem
        self.network_config = network
        self.given = self.config = config
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.cache_bytes = CACHE_BYTES
        self.learned: list[TaskInfo] = []
        self.unreached: tuple[int, ...] = ()  # outputs of the fresh network without a path

    @abstractmethod
    def start(self) -> None:
        """Draws what the first task begins with; instead, ``load_state`` may take over a state."""

    def learn(self, task: Task) -> Learning:
        """Learns one task; see the module's text.

        Raises:
            ScenarioError: The task's data or classes cannot be learned by this method.
            CapacityError: Images or classes do not fit the network.
            DivergedError: The loss is no longer finite. The method is then in mid-task: put it back
                with ``load_state``.
        """
        self.check(task, self.learned)
        values = derive(
            self.given, self.network_config, self.problem, task, self.learned, self.rehearses
        )
        self.config = replace(self.given, **values) if values else self.given
        if not self.learned:  # what was learned may have made paths since, or cut them
            self.check_paths(task.classes)
        report = yield from self.learn_task(task)
        self.learned.append(task.info)
        return report

    def check_paths(self, classes: Iterable[int]) -> None:
        """Whether the fresh network can learn a task at all.

        Raises:
            ConfigError: No path leads from the input to any of its outputs.
        """
        outputs = tuple(classes)
        if set(outputs) <= set(self.unreached):
            raise ConfigError(_without_path(self, outputs, self.seed))

    @abstractmethod
    def learn_task(self, task: Task) -> Learning:
        """The algorithm itself, for a task that fits the network."""

    @abstractmethod
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images.

        Args:
            images: ``(batch, channels, height, width)`` float32 on the method's device.
            task: The task they belong to; None to choose among all classes seen.

        Returns:
            ``(batch,)`` int64.

        Raises:
            NotLearnedError: This method cannot predict that task yet.
        """

    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """How well the classes of :meth:`choices` suit images: the soft-max is their probability.

        Returns:
            ``(batch, classes)`` float32; :meth:`predict` names the class of the highest.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: This method gives classes alone.
        """
        raise ConfigError(f"method '{self.name}' gives classes alone, no scores; use predict")

    @abstractmethod
    def state(self) -> MethodState:
        """What it takes to go on elsewhere, between two tasks."""

    @abstractmethod
    def load_state(self, state: MethodState) -> None:
        """Takes over a state that ``state`` gave, when ``learned`` lists the tasks it is of.

        Raises:
            FormatError: The state does not fit this method or its network.
        """

    @abstractmethod
    def census(self) -> Census:
        """Counts units and connections as they stand."""

    def prepare(self, network: SparseNetwork, samples: Samples | JoinedSamples) -> DataSet:
        """Training data on the method's device, ready for many passes through a network."""
        return network.prepare(samples.to(self.device), self.cache_bytes)

    def prepare_both(self, network: SparseNetwork, task: Task) -> tuple[DataSet, DataSet]:
        """A task's training and validation images, which share the memory by their number."""
        train, validation = task.train.to(self.device), task.validation.to(self.device)
        for_train = self.cache_bytes * len(train) // (len(train) + len(validation))
        return (
            network.prepare(train, for_train),
            network.prepare(validation, self.cache_bytes - for_train),
        )

    @property
    def classes_seen(self) -> tuple[int, ...]:
        """The classes of all tasks learned, in rising order."""
        return tuple(sorted({label for task in self.learned for label in task.classes}))

    def choices(self, task: TaskInfo | None) -> tuple[int, ...]:
        """The classes a prediction may name."""
        if task is not None:
            return task.classes
        if not self.task_agnostic:
            raise NotLearnedError(f"method '{self.name}' must be told the task; pass task=")
        if not self.learned:
            raise NotLearnedError("nothing has been learned yet; call learn first")
        return self.classes_seen

    def check(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Whether this method could learn ``task`` after the ``earlier`` ones.

        Raises:
            ScenarioError: It has classes seen before or new ones, one class, or too few images.
            CapacityError: Its images or classes do not fit the network.
        """
        if task.train.shape != self.problem.input_shape:
            raise CapacityError(
                f"task {task.name}: images of shape {task.train.shape} do not fit the network, "
                f"which was built for {self.problem.input_shape}; all tasks must share one shape"
            )
        if max(task.classes) >= self.problem.outputs:
            raise CapacityError(
                f"task {task.name} has class {max(task.classes)}, but the network has outputs 0 to "
                f"{self.problem.outputs - 1}; build it with more classes"
            )
        if len(task.classes) < 2:
            raise ScenarioError(f"task {task.name} has one class; a task needs at least two")
        for part in ("train", "validation"):
            if len(getattr(task, part)) == 0:
                raise ScenarioError(
                    f"task {task.name} has no {part} images, which decide when to stop; "
                    "pass a validation share above 0, such as 0.1"
                )
        self._check_classes(task, earlier)

    def _check_classes(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Whether a task has the classes that a task to come must have."""
        seen = {label for info in earlier for label in info.classes}
        again, incremental = sorted(seen & set(task.classes)), self.config.incremental
        if again and (incremental == "class" or not self.shares_classes):
            fix = (
                f"tasks that share their classes are learned with {_told('domain')}"
                if incremental == "class" and "domain" in self.incremental
                else "give each task outputs of its own"
            )
            raise ScenarioError(
                f"task {task.name} has classes seen before ({', '.join(map(str, again))}), which "
                f"method '{self.name}' cannot learn again; {fix}"
            )
        if incremental == "domain" and earlier and set(task.classes) != seen:
            raise ScenarioError(
                f"task {task.name} has other classes than the tasks before; with "
                f"{_told('domain')} all tasks share theirs; pass {_told('class')} for new ones"
            )


def _told(incremental: str) -> str:
    """How one says what a task adds."""
    return either(f"incremental='{incremental}'", f"--incremental {incremental}")


def count(
    networks: Mapping[str, SparseNetwork],
    stable: Mapping[str, Tensor] | None = None,
    owed: Mapping[str, int] | None = None,
    storage: Mapping[str, int] | None = None,
) -> Census:
    """The census of some networks.

    Args:
        networks: By the prefix of their layers' names, such as ``"task0/"``, or ``""``.
        stable: Stable units per group, ``(units,)`` bool, where the method has any.
        owed: Connections per layer that found no place, where the method counts them.
        storage: Bytes kept beside the networks, where the method keeps any.
    """
    groups = {}
    if stable is not None:
        topology = networks[""].topology
        groups = {
            group.name: (int(stable[group.name].sum()), group.size) for group in topology.hidden
        }
    layers = {
        prefix + name: (layer.live_count, layer.frozen_count, layer.position_count)
        for prefix, network in networks.items()
        for name, layer in network.layers.items()
    }
    return Census(
        groups,
        layers,
        dict(owed or {}),
        sum(network.live_count() for network in networks.values()),
        sum(network.position_count() for network in networks.values()),
        dict(storage or {}),
        sum(network.stored_bytes() for network in networks.values()),
    )


def network_spec(method: Method) -> NetworkSpec:
    """What the method's networks are drawn from, or loaded into."""
    problem = method.problem
    return NetworkSpec(method.network_config, problem.input_shape, problem.outputs)


def network_state(network: SparseNetwork, prefix: str = "network.") -> dict[str, Tensor]:
    """Copies of a network's tensors under ``prefix``, on the CPU."""
    return {
        prefix + name: value.detach().cpu().clone() for name, value in network.state_dict().items()
    }


def take_tensors(state: MethodState, prefix: str) -> dict[str, Tensor]:
    """The tensors of a state whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }


def load_network(method: Method, state: MethodState, prefix: str = "network.") -> SparseNetwork:
    """The method's network with the values that :func:`network_state` gave.

    Raises:
        FormatError: The tensors do not fit the network.
    """
    tensors = take_tensors(state, prefix)
    if not tensors:  # before anything is built: a header may promise what the file does not hold
        raise FormatError(f"the saved values of '{prefix}' are missing")
    network = network_spec(method).empty()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise FormatError(f"the saved values do not fit the network: {text}") from None
    return network.to(method.device)


def load_stable(state: MethodState, prefix: str, network: SparseNetwork) -> dict[str, Tensor]:
    """The sets of stable units in a state, per group, ``(units,)`` bool.

    Raises:
        FormatError: They do not fit the network.
    """
    stable, expected = take_tensors(state, prefix), network.topology.no_units()
    if {name: (units.shape, units.dtype) for name, units in stable.items()} != {
        name: (units.shape, units.dtype) for name, units in expected.items()
    }:
        raise FormatError("the sets of stable units do not fit the network's groups")
    return stable


def draw_network(method: Method, seed: int) -> SparseNetwork:
    """The method's network with first values drawn from ``seed``.

    Raises:
        ConfigError: No output has a path from the input.
    """
    network = network_spec(method).draw(seed)
    method.unreached = network.unreached()
    if len(method.unreached) == method.problem.outputs:
        raise ConfigError(_without_path(method, method.unreached, seed))
    return network.to(method.device)


def _without_path(method: Method, outputs: Sequence[int], seed: int) -> str:
    """Says that outputs of a fresh network cannot be reached, and with which density they can."""
    spec = network_spec(method)
    density, left = spec.config.density, len(outputs)
    while left:  # all of them are reached at 1 at the latest
        density = min(1.0, float(f"{1.5 * density:.2g}"))
        left = len(spec.at_density(density).draw(seed).unreached())
    named = ", ".join(map(str, outputs[:10])) + (" and more" if len(outputs) > 10 else "")
    return (
        f"density={spec.config.density:g} leaves {len(outputs)} of {spec.outputs} outputs "
        f"({named}) without a path from the input, so that their classes cannot be told apart; "
        f"density={density:g} reaches all of them"
    )
