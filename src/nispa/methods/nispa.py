"""NISPA: stable units, plastic units, and connections that move from one to the other.

Gurbuz and Dovrolis, "NISPA: Neuro-Inspired Stability-Plasticity Adaptation for Continual Learning
in Sparse Networks", ICML 2022, arXiv 2206.09117, section 3.

A network of fixed density learns a task in phases t = 1, 2, ... of ``epochs_per_phase`` epochs.
After each phase the units that hold the share tau(t) of each layer's activation become candidates;
live connections from plastic units into candidates or stable units are dropped, and as many grow
elsewhere, into plastic units. Tau falls, so fewer and fewer units carry the task, until

    acc(t) < max(acc(1), ..., acc(t - 1)) - accuracy_drop   or   tau(t) <= tau_min.

Then the network returns to the end of phase t - 1. The candidates that it was trained with become
stable, all connections between stable units are frozen, every other weight is drawn again. What a
stable unit computes never changes again, so nothing learned is forgotten.

Differences from the paper. Its text and its code leave these open or differ; each is a setting, and
the preset ``paper`` chooses the published behaviour:
- ``other_logits``: the published code multiplies the logits of other tasks' classes by 0, so they
  stay in the soft-max and can win the arg-max. Here the logits are sliced. (Its class-incremental
  variant, nispa_replay.py, keeps them as they are.)
- ``demote_unsupported``: the published code keeps candidates that nothing stable feeds; they lose
  all their inputs. Here they stay plastic. Stable units are never demoted.
- ``revive_with_growth``: the published code starts the connection of a revived unit at 0. Here it
  starts like every grown one.
- ``carry_over``: the published code loses the connections that find no place. Here they stay owed
  to their layer, and the next rewiring tries again.
- ``refill``, ``unit_share``, ``max_share_per_task``, ``settle_epochs``, ``settle_fresh`` and
  ``drop_errors`` are not in the paper. They are off unless set or derived from the data;
  docs/defaults.md says what each does.
- ``stop_when_full``: there, a task that no plastic unit can help goes on until the schedule ends.
- ``growth=gradient`` and ``drop_share`` are not in it either: dynamic sparse training within the
  plastic part (grow.py). They are off unless set.
- ``mask``, ``fan``, ``init``, ``bias`` of the network: see models.py.
Where a channel feeds a flattened Linear layer, the published code looks at one of its features when
it revives units or grows from stable or plastic units only; here it is always the whole block.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import setting, settings
from nispa.base.seeding import derive, stream
from nispa.data.tasks import Task
from nispa.mechanism.grow import (
    GROWTH_RULES,
    PUBLISHED_NAMES,
    growth_rule,
    growth_values,
    needs_gradients,
)
from nispa.mechanism.rewire import Rewiring, rewire
from nispa.mechanism.room import has_room
from nispa.mechanism.schedule import SCHEDULES, TAU_MIN, check_schedule, tau
from nispa.mechanism.select import select_candidates, supported
from nispa.methods.base import (
    Event,
    Fitting,
    Learning,
    LearnReport,
    MethodConfig,
    Part,
    PhaseEnd,
    PhaseStart,
)
from nispa.methods.epochs import Keep
from nispa.methods.forgetting import ForgetsOnPurpose
from nispa.methods.growth import DynamicConfig, check_growth, drop_smallest, gradient_sizes
from nispa.methods.parts import Network, OwedConnections, StableUnits
from nispa.methods.stable import freeze_stable, hidden_share, with_outputs
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.operations import purpose
from nispa.network.topology import Patterns, Topology, UnitSets
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    Loss,
    Step,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)
from nispa.training.pausing import FitBegin, FitPause, FitState

FEW_IMAGES = 200
"""With fewer validation images, training images help to judge whether accuracy fell."""


@settings
class NispaConfig(DynamicConfig, MethodConfig):
    """Settings of NISPA, named as in the paper where the paper names them."""

    epochs_per_phase: int = setting(
        5, "epochs of training in each phase", ge=1, le=1_000_000, aliases=("e",)
    )
    accuracy_drop: float = setting(
        0.75, "tolerated loss of validation accuracy, in points", ge=0, le=100, aliases=("a_f",)
    )
    drop_errors: float = setting(
        0.0,
        "a loss of accuracy counts only beyond so many standard errors of the difference, from the "
        "validation images that one phase has right and the other wrong",
        ge=0,
        le=100,
    )
    unit_share: float = setting(
        0.0,
        "a task ends once it keeps at most this share of the plastic units, averaged over layers; "
        "0 never ends it so",
        ge=0,
        le=1,
    )
    max_share_per_task: float = setting(
        1.0,
        "share of each layer's units that one task may keep beside those of earlier tasks, where "
        "many tasks must fit; 1 sets no limit",
        gt=0,
        le=1,
    )
    stop_when_full: bool = setting(
        True,
        "a task that finds no plastic unit it could use ends after min_phases and one more, since "
        "rewiring has nothing to move",
    )
    keep: Keep = setting(
        "best", "the epoch a phase ends with: best on the validation images, or the last"
    )
    settle_epochs: int = setting(
        0,
        "further epochs of training for the network of the last good phase, before its units "
        "become stable",
        ge=0,
        le=1_000_000,
    )
    settle_fresh: bool = setting(False, "draw all plastic values again before settle_epochs")
    schedule: str = setting("cosine", "how tau falls", choices=lambda: tuple(SCHEDULES))
    k: float = setting(30.0, "parameter of the tau schedule", gt=0)
    tau_min: float = setting(TAU_MIN, "a task ends when tau is not above this share", ge=0, lt=1)
    min_phases: int = setting(2, "accuracy may end a task only after this many phases", ge=2)
    max_phases: int | None = setting(None, "end a task in this phase at the latest", ge=3)
    growth: str = setting(
        "full",
        "where new connections come from",
        choices=lambda: (*GROWTH_RULES, *PUBLISHED_NAMES),
    )
    growth_init: Literal["normal", "uniform", "zero"] = setting(
        "normal", "values of new connections, like those of the layer or zero"
    )
    refill: bool = setting(
        False, "candidates get back, from kept units, as many connections as they lost"
    )
    restart: bool = setting(True, "draw plastic weights again after each task")
    restart_init: Literal["fan_in", "fan_out"] = setting(
        "fan_in", "Kaiming-normal mode of that draw"
    )
    other_logits: Literal["slice", "zero", "keep"] = setting(
        "slice",
        "logits of classes that do not compete: left out, multiplied by 0 (published), or kept in "
        "the soft-max",
    )
    demote_unsupported: bool = setting(True, "candidates that nothing stable feeds stay plastic")
    revive_with_growth: bool = setting(
        True, "a revived unit's connection starts like a grown one, not at 0 (published)"
    )
    carry_over: bool = setting(
        True, "connections that found no place are tried again at the next rewiring"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        growth_rule(self.growth)
        check_schedule(self.schedule, self.k, self.tau_min)


@dataclass(frozen=True)
class _Phase:
    """A network as one phase left it, and the units it was trained to rely on.

    Attributes:
        values: The network's state.
        kept: Stable units, candidates and the outputs of seen classes, per group.
        owed: Connections per layer that found no place.
        tau: Share of activation that selected the candidates; None in the first phase.
    """

    values: dict[str, Tensor]
    kept: dict[str, Tensor]
    owed: dict[str, int]
    tau: float | None


@dataclass(frozen=True)
class _Outcome:
    """The result of a phase.

    Attributes:
        accuracy: Validation accuracy.
        right: Which validation images it has right, ``(n,)`` bool; None if ``drop_errors`` is 0.
    """

    accuracy: float
    right: Tensor | None


@dataclass(frozen=True)
class Phases:
    """What :meth:`Nispa.learn_in_phases` is told of a task.

    Attributes:
        task: The task.
        classes: The classes that compete while it is learned.
        train: Its training images.
        validation: Its validation images.
        step: From the number of a phase (from 1) and its optimiser to one update.
        validate: Returns the accuracy that chooses an epoch and ends the task.
        rewire: Drops and grows connections, given the units to keep, a source of randomness, and
            the sizes of gradients if the growth rule asks for them.
        restart: Draws plastic values again, given a seed.
    """

    task: Task
    classes: ClassMask
    train: DataSet
    validation: DataSet
    step: Callable[[int, torch.optim.Optimizer], Step]
    validate: Callable[[], float | None]
    rewire: Callable[[UnitSets, torch.Generator, Patterns | None], dict[str, Rewiring]]
    restart: Callable[[int], None]


class Nispa(ForgetsOnPurpose):
    """Task-incremental NISPA.

    Attributes:
        stable: Stable units per group, ``(units,)`` bool; inputs always are stable, and so are the
            outputs of the classes learned.
        owed: Connections per layer that were dropped and found no place.
        candidates: While a task is learned, the stable units and the present candidates, for
            whoever watches; otherwise None.
    """

    name = "nispa"
    forgets_nothing = "yes"
    published = "Gurbuz and Dovrolis, ICML 2022"
    config_class = NispaConfig
    carries: ClassVar[tuple[Part, ...]] = (
        Network(),
        StableUnits("stable", "stable."),
        OwedConnections("owed"),
    )
    shares_classes = False
    any_network = True
    config: NispaConfig
    stable: dict[str, Tensor]
    owed: dict[str, int]
    candidates: UnitSets | None = None

    def learn_task(self, task: Task) -> Learning:
        """Trains and rewires phase after phase, then makes the last good candidates stable."""
        train, validation = self.prepare_both(self.network, task)
        classes = self.class_mask(task.classes)
        loss = self.loss(classes)
        report, self.stable = yield from self.learn_in_phases(
            Phases(
                task,
                classes,
                train,
                validation,
                step=lambda t, optimiser: network_step(self.network, loss, optimiser),
                validate=self.validator(self.network, classes, validation),
                rewire=self.rewire,
                restart=lambda seed: self.redraw_plastic(task, self.config.restart_init, seed),
            )
        )
        freeze_stable(self.network, self.stable)
        if self.config.restart:
            self.redraw_plastic(task, self.config.restart_init)
        return report

    def learn_in_phases(
        self, phases: Phases
    ) -> Generator[
        Event | FitBegin | FitPause, FitState | None, tuple[LearnReport, dict[str, Tensor]]
    ]:
        """Trains and rewires until accuracy falls or the schedule ends; undoes the last phase.

        Returns:
            The report, and the units that the network now relies on, per group, ``(units,)`` bool.
        """
        check_growth(self.network, self.config.growth)
        task, train = phases.task, phases.train
        # The first phase has no candidates: the task may use every plastic unit.
        kept, tau_kept = with_outputs(self.topology, self.stable, task.classes), None
        self.candidates = kept
        previous: _Phase | None = None
        best, samples = _Outcome(0.0, None), 0

        for t in itertools.count(1):
            started, epochs = time.perf_counter(), self.config.epochs_per_phase
            share = hidden_share(self.topology, kept)
            yield PhaseStart(t, epochs, last_phase(self.config), tau_kept, share)
            result = yield from self._train(phases, t, epochs)
            assert result.accuracy is not None
            samples += result.samples

            # acc(t) shows what the candidates of tau(t - 1) can do; tau(t) selects the next ones.
            tau_t = tau(self.config.schedule, t, self.config.k)
            reached = _Outcome(result.accuracy, self._right(phases))
            stop = self._reason_to_stop(t, tau_t, reached, best, kept)
            if stop:
                if stop in ("unit_share", "full"):  # this phase is good: nothing to return to
                    previous = _Phase(copied(self.network), kept, dict(self.owed), tau_kept)
                yield PhaseEnd(t, result.accuracy, time.perf_counter() - started)
                break
            best = reached if reached.accuracy > best.accuracy else best
            # Before it is rewired: rewiring cuts into what the network has just learned.
            previous = _Phase(copied(self.network), kept, dict(self.owed), tau_kept)

            kept, tau_kept = self._select(train, task.classes, tau_t), tau_t
            self.candidates = kept
            sizes = None
            if needs_gradients(growth_rule(self.config.growth)):
                loss, images = self.loss(phases.classes), self.config.gradient_images
                drawn = stream(self.seed, "growth images", task.index, t)
                sizes = gradient_sizes(
                    self.network, task.train.to(self.device), loss, images, drawn
                )
            changes = phases.rewire(kept, stream(self.seed, "growth", task.index, t), sizes)
            yield PhaseEnd(
                t,
                result.accuracy,
                time.perf_counter() - started,
                tau_t,
                kept={group.name: int(kept[group.name].sum()) for group in self.topology.hidden},
                dropped={name: change.dropped for name, change in changes.items()},
                revived={name: len(change.revived) for name, change in changes.items()},
                grown={
                    name: len(change.refilled) + len(change.grown)
                    for name, change in changes.items()
                },
                ungrown={name: change.ungrown for name, change in changes.items()},
            )

        assert previous is not None  # check_schedule: no task ends before its third phase
        self.network.load_state_dict(previous.values)  # of phase t - 1, pattern included
        self.owed = previous.owed
        if epochs := self.config.settle_epochs:
            started, t = time.perf_counter(), t + 1
            share = hidden_share(self.topology, previous.kept)
            if self.config.settle_fresh:  # phases found the structure; now find the values
                phases.restart(derive(self.seed, "settle"))
            yield PhaseStart(t, epochs, t, previous.tau, share)
            result = yield from self._train(phases, t, epochs)
            samples += result.samples
            yield PhaseEnd(t, result.accuracy, time.perf_counter() - started)
        self.candidates = None
        return LearnReport(t, samples, previous.tau, stop), previous.kept

    def _train(self, phases: Phases, t: int, epochs: int) -> Fitting:
        """One phase of training with a fresh optimiser; then the epoch to keep is restored."""
        optimiser = make_optimiser(self.config, self.network.parameters())
        return fit(
            self.network,
            phases.step(t, optimiser),
            phases.train,
            epochs=epochs,
            batch_size=self.config.batch_size,
            order=self.shuffle(phases.task, t),
            validate=phases.validate,
            keep=self.config.keep,
            optimiser=optimiser,
            rates=falling_rate(self.config),
        )

    @torch.no_grad()
    def _right(self, phases: Phases) -> Tensor | None:
        """Which validation images the network has right, ``(n,)`` bool; None if never asked for.

        A few images cannot show even a large loss. Then training images count, too: if the units
        are too few to fit those, they are too few.
        """
        if not self.config.drop_errors:
            return None
        few = len(phases.validation) < FEW_IMAGES
        images_asked = [phases.validation, phases.train] if few else [phases.validation]
        self.network.eval()
        with purpose("validation"):
            return torch.cat(
                [
                    phases.classes.predict(self.network(images)) == labels
                    for part in images_asked
                    for images, labels in part.batches(EVALUATION_BATCH)
                ]
            )

    def _reason_to_stop(
        self, t: int, tau_t: float, reached: _Outcome, best: _Outcome, kept: UnitSets
    ) -> str:
        """Why the task ends in phase ``t``; empty if it goes on."""
        if t > self.config.min_phases:
            fell = reached.accuracy < best.accuracy - self.config.accuracy_drop / 100
            if fell and self._beyond_chance(reached, best):
                return "accuracy_drop"
            if self.config.unit_share and self._within_share(kept):
                return "unit_share"
            if self.config.stop_when_full and not has_room(self.topology, self.stable):
                return "full"
        if tau_t <= self.config.tau_min:
            return "schedule_end"
        return "max_phases" if t == self.config.max_phases else ""

    def _beyond_chance(self, reached: _Outcome, best: _Outcome) -> bool:
        """Whether more images were lost than ``drop_errors`` standard errors of that number."""
        if reached.right is None or best.right is None:
            return True
        # As in McNemar's test: lost - won has the standard error sqrt(lost + won).
        lost = int((best.right & ~reached.right).sum())
        won = int((reached.right & ~best.right).sum())
        return lost - won > self.config.drop_errors * math.sqrt(lost + won)

    def _within_share(self, kept: UnitSets) -> bool:
        """Whether the task takes at most ``unit_share`` of the plastic units, mean over layers."""
        taken = []
        for group in self.topology.hidden:
            free = ~self.stable[group.name]
            taken.append(int((kept[group.name] & free).sum()) / max(1, int(free.sum())))
        return sum(taken) / len(taken) <= self.config.unit_share

    def _select(self, train: DataSet, classes: Iterable[int], tau_t: float) -> dict[str, Tensor]:
        """The units to keep from here on: stable ones, new candidates, outputs of seen classes."""
        self.network.eval()
        activity = self.network.activity(images for images, _ in train.batches(EVALUATION_BATCH))
        candidates = select_candidates(
            self.topology, activity, self.stable, tau_t, self.config.max_share_per_task
        )
        kept = with_outputs(self.topology, candidates, classes)
        if self.config.demote_unsupported:
            kept = supported(self.topology, self.network.patterns(), self.stable, kept)
        return kept

    def rewire(
        self, kept: UnitSets, generator: torch.Generator, sizes: Patterns | None = None
    ) -> dict[str, Rewiring]:
        """Drops connections from plastic into kept units and grows as many elsewhere."""
        small = drop_smallest(self.network, kept, self.config.drop_share)
        owed = {name: number + small[name] for name, number in self.owed.items()}
        patterns = self.network.patterns()
        rule = growth_rule(self.config.growth)
        candidates = {name: units & ~self.stable[name] for name, units in kept.items()}
        changes = rewire(
            self.topology,
            patterns,
            kept,
            rule,
            owed=owed,
            sizes=sizes,
            refill=candidates if self.config.refill else None,
            generator=generator,
        )
        for name, change in changes.items():
            layer = self.network.layers[name]
            remaining = layer.values_at(change.pattern)
            init = self.config.growth_init
            revive_init = init if self.config.revive_with_growth else "zero"
            values = [
                growth_values(init, remaining, len(change.refilled), generator),
                growth_values(revive_init, remaining, len(change.revived), generator),
                growth_values(init, remaining, len(change.grown), generator),
            ]
            layer.rewire(
                change.pattern,
                torch.cat([change.refilled, change.revived, change.grown]),
                torch.cat(values),
            )
            self.owed[name] = change.ungrown if self.config.carry_over else 0
            changes[name] = replace(change, dropped=change.dropped + small[name])
        self.network.settle(kept)
        return changes

    @property
    def topology(self) -> Topology:
        """The network's groups and layers."""
        return self.network.topology

    def class_mask(self, classes: Iterable[int]) -> ClassMask:
        """Loss and prediction among some of the classes, as ``other_logits`` says."""
        how = "zero" if self.config.other_logits == "zero" else "slice"
        return ClassMask(tuple(classes), self.problem.outputs, how, self.device)

    def loss(self, classes: ClassMask) -> Loss:
        """Mean cross-entropy of samples among which ``classes`` compete."""
        return functional.cross_entropy if self.config.other_logits == "keep" else classes.loss


def copied(network: SparseNetwork) -> dict[str, Tensor]:
    """A copy of a network's state."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def last_phase(config: NispaConfig) -> int:
    """The phase in which a task ends at the latest."""
    last = config.max_phases or _ENDLESS
    return next(
        (t for t in range(1, last) if tau(config.schedule, t, config.k) <= config.tau_min), last
    )


_ENDLESS = 10_000
