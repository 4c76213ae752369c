"""NISPA: stable units, plastic units, and connections that move from one to the other.

Gurbuz and Dovrolis, "NISPA: Neuro-Inspired Stability-Plasticity Adaptation for Continual Learning
in Sparse Networks", ICML 2022, arXiv 2206.09117.

A network of fixed density learns a task in phases t = 1, 2, ... of ``epochs_per_phase`` epochs.
After each phase the units that hold the share tau(t) of each layer's activation become candidates;
live connections from plastic units into candidates or stable units are dropped, and as many grow
elsewhere, into plastic units. Tau falls, so fewer and fewer units carry the task, until

    acc(t) < max(acc(1), ..., acc(t - 1)) - accuracy_drop   or   tau(t) <= tau_min.

Then the network returns to the end of phase t - 1. The candidates that it was trained with become
stable, all connections between stable units are frozen, every other weight is drawn anew. What a
stable unit computes never changes again, so what was learned is never forgotten.

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
- ``refill``, ``unit_share``, ``settle_epochs``, ``settle_fresh``, ``drop_errors`` are not in the
  paper; all are off unless set or derived from the data. docs/defaults.md says what each does.
- ``mask``, ``fan``, ``init``, ``bias`` of the network: see models.py.
Where a channel feeds a flattened Linear layer, the published code looks at one of its features when
it revives units or grows from stable or plastic units only; here it is always the whole block.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import setting, settings
from nispa.base.seeding import derive, stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError
from nispa.mechanism.grow import GROWTH_RULES, PUBLISHED_NAMES, growth_rule, growth_values
from nispa.mechanism.rewire import Rewiring, rewire
from nispa.mechanism.schedule import SCHEDULES, TAU_MIN, check_schedule, tau
from nispa.mechanism.select import select_candidates, supported
from nispa.methods.base import (
    Census,
    Fitting,
    Learning,
    LearnReport,
    Method,
    MethodConfig,
    MethodState,
    PhaseEnd,
    PhaseStart,
    count,
    draw_network,
    load_network,
    load_stable,
    network_state,
)
from nispa.methods.epochs import Keep
from nispa.network.models import DataSet, restart_plastic
from nispa.network.operations import purpose
from nispa.network.topology import UnitSets, live_between
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    Loss,
    Step,
    accuracy,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)

FEW_IMAGES = 200
"""Validation images below which training images help to judge whether accuracy fell."""


@settings
class NispaConfig(MethodConfig):
    """Settings of NISPA, named as in the paper where the paper names them."""

    epochs_per_phase: int = setting(
        5, "epochs of training in each phase", ge=1, le=1_000_000, aliases=("e",)
    )
    accuracy_drop: float = setting(
        0.75, "tolerated loss of validation accuracy, in points", ge=0, le=100, aliases=("a_f",)
    )
    drop_errors: float = setting(
        0.0,
        "a loss of accuracy counts only beyond so many standard errors of the difference, by the "
        "validation images that one phase has right and the other wrong",
        ge=0,
        le=100,
    )
    unit_share: float = setting(
        0.0,
        "a task ends once it keeps at most this share of the plastic units, layers on average; 0 "
        "never ends it so",
        ge=0,
        le=1,
    )
    keep: Keep = setting(
        "best", "the epoch a phase ends with: best on the validation images, or the last"
    )
    settle_epochs: int = setting(
        0,
        "epochs that the network of the last good phase is trained on before its units become "
        "stable",
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
    restart: bool = setting(True, "draw plastic weights anew after each task")
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
        tau: Share of activation the candidates were picked with; None in the first phase.
    """

    values: dict[str, Tensor]
    kept: dict[str, Tensor]
    owed: dict[str, int]
    tau: float | None


@dataclass(frozen=True)
class _Outcome:
    """What a phase came to.

    Attributes:
        accuracy: Validation accuracy.
        right: Which validation images it has right, ``(n,)`` bool; None if nothing asks.
    """

    accuracy: float
    right: Tensor | None


class Nispa(Method):
    """Task-incremental NISPA.

    Attributes:
        stable: Which units are stable, per group, ``(units,)`` bool; inputs always are, outputs of
            the classes learned are.
        owed: Connections per layer that were dropped and found no place.
    """

    name = "nispa"
    config_class = NispaConfig
    shares_classes = False
    config: NispaConfig

    def start(self) -> None:
        """A network of plastic units."""
        self.network = draw_network(self, self.seed)
        self.topology = self.network.topology
        self.stable = self.topology.no_units()
        self.owed = dict.fromkeys(self.network.layers, 0)

    def learn_task(self, task: Task) -> Learning:
        """Trains and rewires phase after phase, then makes the last good candidates stable."""
        train, validation = self.prepare_both(self.network, task)
        kept, tau_kept = self._with_outputs(self.stable, task.classes), None
        previous: _Phase | None = None
        best, samples = _Outcome(0.0, None), 0

        for t in itertools.count(1):
            started = time.perf_counter()
            yield PhaseStart(
                t, self.config.epochs_per_phase, self._last_phase, tau_kept, self._share(kept)
            )
            result = yield from self._train(
                task, t, train, validation, self.config.epochs_per_phase
            )
            assert result.accuracy is not None
            samples += result.samples

            tau_t = tau(self.config.schedule, t, self.config.k)
            reached = _Outcome(result.accuracy, self._right(task, train, validation))
            stop = self._reason_to_stop(t, tau_t, reached, best, kept)
            if stop:
                if stop == "unit_share":  # this phase is good: nothing to return to
                    previous = _Phase(self._values(), kept, dict(self.owed), tau_kept)
                yield PhaseEnd(t, result.accuracy, time.perf_counter() - started)
                break
            best = reached if reached.accuracy > best.accuracy else best
            previous = _Phase(self._values(), kept, dict(self.owed), tau_kept)

            kept, tau_kept = self._select(train, task.classes, tau_t), tau_t
            changes = self._rewire(kept, stream(self.seed, "growth", task.index, t))
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
        self._return_to(previous)
        if epochs := self.config.settle_epochs:
            started, t = time.perf_counter(), t + 1
            share = self._share(previous.kept)
            if self.config.settle_fresh:
                self._restart(task.index, derive(self.seed, "settle"))
            yield PhaseStart(t, epochs, t, previous.tau, share)
            result = yield from self._train(task, t, train, validation, epochs)
            samples += result.samples
            yield PhaseEnd(t, result.accuracy, time.perf_counter() - started)
        self._settle(previous.kept, task.index)
        return LearnReport(t, samples, previous.tau, stop)

    def _train(
        self, task: Task, t: int, train: DataSet, validation: DataSet, epochs: int
    ) -> Fitting:
        """One phase of training with a fresh optimiser; ends with the values of one epoch."""
        optimiser = make_optimiser(self.config, self.network.parameters())
        return fit(
            self.network,
            self._step(task, t, optimiser),
            train,
            epochs=epochs,
            batch_size=self.config.batch_size,
            order=lambda epoch: stream(self.seed, "batches", task.index, t, epoch),
            validate=lambda: self._validate(task, validation),
            keep=self.config.keep,
            optimiser=optimiser,
            rates=falling_rate(self.config),
        )

    def _competing(self, task: Task) -> tuple[int, ...]:
        """The classes that a sample of ``task`` is told from while the task is learned."""
        return task.classes

    def _step(self, task: Task, t: int, optimiser: torch.optim.Optimizer) -> Step:
        """One update in phase ``t``."""
        del t
        return network_step(self.network, self._loss(self._competing(task)), optimiser)

    def _validate(self, task: Task, validation: DataSet) -> float | None:
        """The accuracy that chooses an epoch and ends the task."""
        classes = self._class_mask(self._competing(task))
        return accuracy(self.network, classes.predict, validation)

    @property
    def _freezes_outputs(self) -> bool:
        """Whether what joins stable units to the outputs of seen classes is frozen, too."""
        return True

    @torch.no_grad()
    def _right(self, task: Task, train: DataSet, validation: DataSet) -> Tensor | None:
        """Which validation images the network has right, ``(n,)`` bool; None if nothing asks.

        A few of them cannot show even a large loss. Then training images count, too: units that are
        too few to fit them are too few.
        """
        if not self.config.drop_errors:
            return None
        asked = [validation] if len(validation) >= FEW_IMAGES else [validation, train]
        self.network.eval()
        predict = self._class_mask(self._competing(task)).predict
        with purpose("validation"):
            return torch.cat(
                [
                    predict(self.network(images)) == labels
                    for images, labels in itertools.chain.from_iterable(
                        part.batches(EVALUATION_BATCH) for part in asked
                    )
                ]
            )

    def _reason_to_stop(
        self, t: int, tau_t: float, reached: _Outcome, best: _Outcome, kept: UnitSets
    ) -> str:
        if t > self.config.min_phases:
            fell = reached.accuracy < best.accuracy - self.config.accuracy_drop / 100
            if fell and self._beyond_chance(reached, best):
                return "accuracy_drop"
            if self.config.unit_share and self._within_share(kept):
                return "unit_share"
        if tau_t <= self.config.tau_min:
            return "schedule_end"
        return "max_phases" if t == self.config.max_phases else ""

    def _beyond_chance(self, reached: _Outcome, best: _Outcome) -> bool:
        """Whether more images were lost than ``drop_errors`` standard errors of that number."""
        if reached.right is None or best.right is None:
            return True
        lost = int((best.right & ~reached.right).sum())
        won = int((reached.right & ~best.right).sum())
        return lost - won > self.config.drop_errors * math.sqrt(lost + won)

    def _within_share(self, kept: UnitSets) -> bool:
        """Whether the task takes no more than its share of the plastic units, layers on average."""
        taken = []
        for group in self.topology.hidden:
            free = ~self.stable[group.name]
            taken.append(int((kept[group.name] & free).sum()) / max(1, int(free.sum())))
        return sum(taken) / len(taken) <= self.config.unit_share

    def _select(self, train: DataSet, classes: tuple[int, ...], tau_t: float) -> dict[str, Tensor]:
        """The units to keep from here on: stable ones, new candidates, outputs of seen classes."""
        self.network.eval()
        activity = self.network.activity(images for images, _ in train.batches(EVALUATION_BATCH))
        candidates = select_candidates(self.topology, activity, self.stable, tau_t)
        kept = self._with_outputs(candidates, classes)
        if self.config.demote_unsupported:
            kept = supported(self.topology, self.network.patterns(), self.stable, kept)
        return kept

    def _rewire(self, kept: UnitSets, generator: torch.Generator) -> dict[str, Rewiring]:
        """Drops connections from plastic into kept units and grows as many elsewhere."""
        patterns = self.network.patterns()
        rule = growth_rule(self.config.growth)
        candidates = {name: units & ~self.stable[name] for name, units in kept.items()}
        changes = rewire(
            self.topology,
            patterns,
            kept,
            rule,
            owed=self.owed,
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
        return changes

    def _return_to(self, phase: _Phase) -> None:
        """Makes the network what it was at the end of a phase."""
        self.network.load_state_dict(phase.values)
        self.owed = phase.owed

    def _settle(self, kept: dict[str, Tensor], task: int) -> None:
        """Makes what the network relies on stable and frozen."""
        self.stable = kept
        patterns = self.network.patterns()
        settled = live_between(self.topology, patterns, self.stable, self.stable)
        for name, layer in self.network.layers.items():
            if self._freezes_outputs or layer.spec.target != self.topology.output.name:
                layer.freeze(settled[name], self.stable[layer.spec.target])
        if self.config.restart:
            self._restart(task, self.seed)

    def _restart(self, task: int, seed: int) -> None:
        """Draws every plastic value again."""
        restart_plastic(
            self.network,
            self.config.restart_init,
            self.network_config.fan,
            seed=seed,
            task=task,
            gain=self.network_config.gain,
        )

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        self.network.eval()
        return self._class_mask(self.choices(task)).predict(self.network(images))

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Logits of the classes that compete; see :class:`Method`."""
        self.network.eval()
        logits: Tensor = self.network(images)
        return logits[:, list(self.choices(task))]

    def state(self) -> MethodState:
        """The network, the stable units and what is owed."""
        stable = {f"stable.{name}": units.clone() for name, units in self.stable.items()}
        return MethodState(network_state(self.network) | stable, {"owed": dict(self.owed)})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        network = load_network(self, state)
        stable, owed = load_stable(state, "stable.", network), state.values.get("owed")
        if not isinstance(owed, dict) or set(owed) != set(network.layers):
            raise FormatError("'owed' does not name the network's layers")
        if not all(type(number) is int and number >= 0 for number in owed.values()):
            raise FormatError("'owed' must hold whole numbers")
        self.network, self.topology, self.stable = network, network.topology, stable
        self.owed = dict(owed)

    def census(self) -> Census:
        """Stable units and connections; see :class:`Method`."""
        return count({"": self.network}, self.stable, self.owed)

    def _class_mask(self, classes: tuple[int, ...]) -> ClassMask:
        how = "zero" if self.config.other_logits == "zero" else "slice"
        return ClassMask(classes, self.problem.outputs, how, self.device)

    def _loss(self, classes: tuple[int, ...]) -> Loss:
        """Mean cross-entropy of samples of ``classes``."""
        if self.config.other_logits == "keep":
            return functional.cross_entropy
        return self._class_mask(classes).loss

    def _values(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def _with_outputs(self, units: UnitSets, classes: tuple[int, ...]) -> dict[str, Tensor]:
        """``units`` and the outputs of ``classes``."""
        output = units[self.topology.output.name].clone()
        output[list(classes)] = True
        return {**units, self.topology.output.name: output}

    def _share(self, kept: UnitSets) -> float:
        hidden = self.topology.hidden
        return sum(int(kept[group.name].sum()) for group in hidden) / sum(g.size for g in hidden)

    @property
    def _last_phase(self) -> int:
        """The phase that ends a task at the latest."""
        last = self.config.max_phases or _ENDLESS
        phases = range(1, last)
        ends = (
            t for t in phases if tau(self.config.schedule, t, self.config.k) <= self.config.tau_min
        )
        return next(ends, last)


_ENDLESS = 10_000
