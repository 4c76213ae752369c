"""The contract of every method: learn one task at a time, predict, give and take its state.

``learn`` is a generator. It yields events between which the method's state is whole, and returns a
:class:`LearnReport` (:mod:`nispa.methods.events`). Methods write no files, print nothing and know
nothing of later tasks, except their number where a method asks for it.
docs/decisions/0003-method-contract.md gives the reasons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.base.shapes import Shape
from nispa.data.augment import OFF, parse_augment
from nispa.data.tasks import JoinedSamples, Samples, Task, TaskInfo
from nispa.errors import ConfigError, NotLearnedError, unknown_name

# Everything that an author of a method needs can be imported from here: "as" makes a name public.
from nispa.methods.carried import Census as Census
from nispa.methods.carried import MethodState as MethodState
from nispa.methods.carried import Part as Part
from nispa.methods.carried import Tally
from nispa.methods.carried import count as count
from nispa.methods.checks import check_classes, check_fit
from nispa.methods.defaults import PUBLISHED_K, RULES, SHARE_FACTOR, Facts
from nispa.methods.events import Adoption as Adoption
from nispa.methods.events import Event as Event
from nispa.methods.events import Fitting as Fitting
from nispa.methods.events import Learning as Learning
from nispa.methods.events import LearnReport as LearnReport
from nispa.methods.events import PhaseEnd as PhaseEnd
from nispa.methods.events import PhaseStart as PhaseStart
from nispa.methods.networks import draw_network as draw_network
from nispa.methods.networks import load_network as load_network
from nispa.methods.networks import network_state as network_state
from nispa.methods.networks import without_path
from nispa.network.initialise import FanMode
from nispa.network.models import (
    DataSet,
    NetworkConfig,
    NetworkSpec,
    OwnModel,
    SparseNetwork,
    restart_plastic,
)
from nispa.training.fit import OptimiserConfig, accuracy
from nispa.training.losses import ClassMask

CACHE_BYTES = 2**29
"""Memory for the prepared data of one task, unless a run says otherwise."""


Incremental = Literal["task", "class", "domain"]
"""What each task adds (van de Ven and Tolias 2019, arXiv 1904.07734).

``task``: outputs of its own, as if it had a head; a prediction that is told the task chooses among
them. ``class``: new classes, which compete with all classes before. ``domain``: the same classes in
other images.
"""


@settings
class MethodConfig(OptimiserConfig):
    """Settings of every method."""

    incremental: Incremental = setting(
        "task",
        "what a task adds: outputs of its own, new classes among all seen, or other images of the "
        "same classes",
    )
    augment: str = setting(
        OFF,
        "random changes to training images, new in each epoch: shift, crop and flip, or off",
        hint="pass crop:3,flip or off",
    )
    derived: tuple[str, ...] = setting(
        (), "settings that follow the data of each task instead, by their names"
    )

    def __post_init__(self) -> None:
        parse_augment(self.augment)
        for name in self.derived:
            able = [each for each in RULES if hasattr(self, each)]
            if name not in able:
                raise unknown_name("setting that follows the data", name, able)


@dataclass(frozen=True)
class Problem:
    """What a method must know before the first task.

    Attributes:
        input_shape: The shape of every sample: ``(channels, height, width)`` of images,
            ``(channels, length)`` of series, ``(features,)`` of tables.
        outputs: Number of logits: one for each class of all tasks.
        tasks: How many tasks are planned; None if unknown.
        model: The user's module to learn with, if there is one.
    """

    input_shape: Shape
    outputs: int
    tasks: int | None = None
    model: OwnModel | None = None


def derive(
    config: MethodConfig,
    network: NetworkConfig,
    problem: Problem,
    task: Task,
    earlier: Sequence[TaskInfo],
    rehearses: bool = False,
    own_heads: bool = False,
) -> dict[str, Any]:
    """The values of the settings that follow the data of ``task``.

    Args:
        config: The settings as given.
        network: The network's settings.
        problem: What the method was built for.
        task: The task.
        earlier: The tasks learned before it.
        rehearses: See :class:`Method`; earlier tasks are assumed to be as large as this one.
        own_heads: See :class:`Method`.
    """
    seen = {label for info in earlier for label in info.classes}
    fits = getattr(config, "settle_epochs", 0) > 0 or "settle_epochs" in config.derived
    fresh = None if "settle_fresh" in config.derived else getattr(config, "settle_fresh", False)
    facts = Facts(
        images=len(task.train) * (1 + len(earlier) if rehearses else 1),
        shape=problem.input_shape,
        classes=len(set(task.classes) - seen),
        outputs=problem.outputs - len(seen),
        all_outputs=problem.outputs,
        optimiser=config.optimiser,
        kind=network.architecture,
        incremental="task" if own_heads else config.incremental,
        k=getattr(config, "k", PUBLISHED_K),
        share_factor=getattr(config, "share_factor", SHARE_FACTOR),
        fresh=fresh if fits else False,
    )
    return {name: RULES[name](facts) for name in config.derived}


class Method(ABC):
    """One algorithm of continual learning.

    A subclass writes ``learn_task`` and lists in ``carries`` what it keeps from task to task; the
    rest of the contract follows, unless it overrides more.

    Attributes:
        name: Its name on the command line.
        config_class: Its settings.
        carries: What outlives a task, in the order in which it is drawn and loaded.
        incremental: What tasks may add, see :data:`Incremental`.
        shares_classes: Whether it can learn a task with classes that it has seen before.
        task_agnostic: Whether it can predict without being told the task.
        forgets_nothing: Whether logits of a task that was learned stay as they are, bit for bit:
            yes, no, or with which setting.
        any_network: Whether it works on networks of any module, or on those built by hand alone.
        not_any: Why it does not, as a part of a sentence.
        published: Who published it, and where; empty if nobody did.
        rehearses: Whether an epoch covers the images of all tasks so far, not only the new one's.
        own_heads: Whether a task's outputs learn by themselves, whatever ``incremental`` says.
        drops_connections: Whether a network in which all are live may lose some between tasks. It
            never runs as dense products then: logits that must stay need one way of rounding.
        cache_bytes: Memory for prepared data of one task; it changes the time, no number.
        network: The network, of methods that carry one.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    carries: ClassVar[tuple[Part, ...]] = ()
    incremental: ClassVar[tuple[Incremental, ...]] = ("task",)
    shares_classes: ClassVar[bool] = True
    task_agnostic: ClassVar[bool] = True
    forgets_nothing: ClassVar[str] = "no"
    any_network: ClassVar[bool] = False
    not_any: ClassVar[str] = ""
    published: ClassVar[str] = ""
    rehearses: ClassVar[bool] = False
    own_heads: ClassVar[bool] = False
    drops_connections: ClassVar[bool] = False
    network: SparseNetwork

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
            seed: Source of all its random streams.
            device: Where to compute; by default the CPU.

        Raises:
            ConfigError: The samples are no images, or too small, to be varied as ``augment`` says.
        """
        parse_augment(config.augment, problem.input_shape).check(problem.input_shape)
        self.problem = problem
        self.network_config = network
        self.given = self.config = config
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.cache_bytes = CACHE_BYTES
        self.learned: list[TaskInfo] = []
        self.unreached: tuple[int, ...] = ()  # outputs of the fresh network without a path

    @classmethod
    def stores_samples(cls) -> bool:
        """Whether it keeps samples of earlier tasks: what it carries says so."""
        return any(part.purpose == "memory" for part in cls.carries)

    # What it carries from task to task.

    def start(self) -> None:
        """Makes everything as it is before the first task; ``load_state`` is the alternative."""
        parts: dict[str, Any] = {}
        for part in self.carries:
            parts[part.name] = part.first(self, parts)
            setattr(self, part.name, parts[part.name])

    def state(self) -> MethodState:
        """A copy of everything it carries, between two tasks."""
        saved = [part.save(getattr(self, part.name)) for part in self.carries]
        return MethodState(
            {name: tensor for each in saved for name, tensor in each.tensors.items()},
            {name: value for each in saved for name, value in each.values.items()},
        )

    def load_state(self, state: MethodState) -> None:
        """Restores what ``state`` returned; ``learned`` must list its tasks already.

        Raises:
            FormatError: The state does not fit this method or its network. Nothing has changed.
        """
        parts: dict[str, Any] = {}
        for part in self.carries:
            parts[part.name] = part.load(state, self, parts)
        self.check_parts(parts)
        for name, value in parts.items():
            setattr(self, name, value)

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Whether loaded parts fit each other; each part has been checked by itself.

        Raises:
            FormatError: They do not.
        """
        del parts

    def census(self) -> Census:
        """Counts units, connections and bytes as they are now."""
        tally = Tally()
        for part in self.carries:
            part.count(getattr(self, part.name), tally)
        return count(tally.networks, tally.stable, tally.owed, tally.storage)

    # Learning.

    def learn(self, task: Task) -> Learning:
        """Learns one task; see the module's text.

        Raises:
            ScenarioError: The task's data or classes cannot be learned by this method.
            CapacityError: Images or classes do not fit the network.
            DivergedError: The loss is no longer finite. The task is then half learned: restore the
                method with ``load_state``.
        """
        self.check(task, self.learned)
        values = derive(
            self.given,
            self.network_config,
            self.problem,
            task,
            self.learned,
            self.rehearses,
            self.own_heads,
        )
        self.config = replace(self.given, **values) if values else self.given
        if not self.learned:  # learning may have made paths since, or cut them
            self.check_paths(task.classes)
        report = yield from self.learn_task(self.varied(task))
        self.learned.append(task.info)
        return report

    def varied(self, task: Task) -> Task:
        """The task with the random changes to training images that the settings ask for."""
        augment = parse_augment(self.config.augment, task.train.shape)
        return replace(task, train=replace(task.train, augment=augment)) if augment else task

    @abstractmethod
    def learn_task(self, task: Task) -> Learning:
        """The algorithm itself, for a task that fits the network."""

    def spec(self, parts: Mapping[str, Any] | None = None) -> NetworkSpec:
        """What its networks are drawn from, or loaded into.

        Args:
            parts: What it carries, if that decides about it; None for what it carries now.
        """
        del parts
        problem = self.problem
        return NetworkSpec(
            self.network_config,
            problem.input_shape,
            self.logits,
            problem.model,
            dense_if_full=not self.drops_connections,
        )

    @property
    def logits(self) -> int:
        """The number of outputs of its networks, one for each class unless a method wants more."""
        return self.problem.outputs

    def class_mask(self, classes: Iterable[int]) -> ClassMask:
        """Loss and prediction among some of the classes."""
        return ClassMask(tuple(classes), self.logits, "slice", self.device)

    def shuffle(self, task: Task, *phase: int) -> Callable[[int], torch.Generator]:
        """From an epoch's number to the stream that shuffles a task's images.

        Args:
            task: The task.
            phase: Number of the phase, if the task is learned in several fits.
        """
        return lambda epoch: stream(self.seed, "batches", task.index, *phase, epoch)

    def validator(
        self, network: SparseNetwork, classes: ClassMask, samples: DataSet
    ) -> Callable[[], float | None]:
        """A function that measures a network's accuracy on ``samples`` as it is when called."""
        return lambda: accuracy(network, classes.predict, samples)

    def redraw_plastic(self, task: Task, mode: FanMode, seed: int | None = None) -> None:
        """Draws every plastic weight of the network again; plastic biases become 0.

        Args:
            task: Each task has random numbers of its own.
            mode: Kaiming-normal mode of the draw.
            seed: Where they come from; None takes the method's seed.
        """
        config, seed = self.network_config, self.seed if seed is None else seed
        restart_plastic(
            self.network, mode, config.fan, seed=seed, task=task.index, gain=config.gain
        )

    def prepare(self, network: SparseNetwork, samples: Samples | JoinedSamples) -> DataSet:
        """Training data on the method's device, ready for many passes through a network."""
        return network.prepare(samples.to(self.device), self.cache_bytes)

    def prepare_both(self, network: SparseNetwork, task: Task) -> tuple[DataSet, DataSet]:
        """A task's training and validation images; they share the memory by their number."""
        train, validation = task.train.to(self.device), task.validation.to(self.device)
        for_train = self.cache_bytes * len(train) // (len(train) + len(validation))
        return (
            network.prepare(train, for_train),
            network.prepare(validation, self.cache_bytes - for_train),
        )

    def forget(self, task: TaskInfo, *, dry_run: bool = False) -> dict[str, int]:
        """Gives back the units that a learned task alone needs; the task is then unknown.

        Args:
            task: The task.
            dry_run: Changes nothing.

        Returns:
            How many units of each hidden group that are.

        Raises:
            ConfigError: This method cannot.
            NotLearnedError: The task is not known.
        """
        del task, dry_run
        raise ConfigError(f"method '{self.name}' cannot forget a task on purpose; nispa can")

    def adopt(self, task: Task) -> Adoption:
        """Makes a trained network the first task, without training; see :mod:`.adopting`.

        Args:
            task: The classes it knows, with examples.

        Raises:
            ConfigError: This method cannot, or the network is no trained one.
        """
        del task
        raise ConfigError(
            f"method '{self.name}' cannot adopt a trained network; nispa, nispa-context and clnp "
            "can"
        )

    # Prediction.

    def network_for(self, task: TaskInfo | None) -> SparseNetwork:
        """The network that predicts a task.

        Raises:
            NotLearnedError: There is none yet.
        """
        return self.network

    @torch.no_grad()
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
        classes = self.choices(task)
        return self.class_mask(classes).predict(self.network_for(task).eval()(images))

    @property
    def has_scores(self) -> bool:
        """Whether :meth:`scores` suits :meth:`predict`: both are inherited, or it has its own."""
        return type(self).predict is Method.predict or type(self).scores is not Method.scores

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Scores of the classes in :meth:`choices`; their soft-max gives probabilities.

        Returns:
            ``(batch, classes)`` float32; :meth:`predict` returns the class of the highest.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method predicts in a way of its own, without scores.
        """
        if not self.has_scores:
            raise ConfigError(f"method '{self.name}' has no scores, only classes; use predict")
        classes = self.choices(task)
        logits: Tensor = self.network_for(task).eval()(images)
        return logits[:, list(classes)]

    def choices(self, task: TaskInfo | None) -> tuple[int, ...]:
        """The classes a prediction may name."""
        if task is not None:
            return task.classes
        if not self.task_agnostic:
            raise NotLearnedError(f"method '{self.name}' must be told the task; pass task=")
        if not self.learned:
            raise NotLearnedError("nothing has been learned yet; call learn first")
        return self.classes_seen

    @property
    def classes_seen(self) -> tuple[int, ...]:
        """The classes of all tasks learned, in rising order."""
        return tuple(sorted({label for task in self.learned for label in task.classes}))

    # What it refuses.

    def check_paths(self, classes: Iterable[int]) -> None:
        """Whether the fresh network can learn a task at all.

        Raises:
            ConfigError: No path leads from the input to any of its outputs.
        """
        outputs = tuple(classes)
        if set(outputs) <= set(self.unreached):
            raise ConfigError(without_path(self, outputs, self.seed))

    def check(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Whether this method could learn ``task`` after the ``earlier`` ones.

        Raises:
            ScenarioError: It has classes seen before or new ones, one class, or too few images.
            CapacityError: Its images or classes do not fit the network.
        """
        check_fit(task, self.problem)
        check_classes(self, task, earlier)
