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
- ``refill``, ``unit_share``, ``max_share_per_task``, ``settle_epochs``, ``settle_fresh``,
  ``restart_level`` and ``drop_errors`` are not in the paper. They are off unless set or derived
  from the data; docs/defaults.md says what each does.
- ``grow_when_full``: there, a network has a fixed size (widening.py). It is off unless set.
- ``stop_when_full``: there, a task that no plastic unit can help goes on until the schedule ends.
- ``growth=gradient``, ``drop_share`` and ``settle_moves`` are not in it either: dynamic sparse
  training within the plastic part (growth.py). They are off unless set.
- ``mask``, ``fan``, ``init``, ``bias`` of the network: see models.py.
Where a channel feeds a flattened Linear layer, the published code looks at one of its features when
it revives units or grows from stable or plastic units only; here it is always the whole block.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.seeding import derive, stream
from nispa.data.tasks import Task
from nispa.errors import FormatError
from nispa.mechanism.grow import (
    growth_rule,
    growth_values,
    needs_gradients,
)
from nispa.mechanism.rewire import Rewiring, rewire
from nispa.mechanism.room import has_room
from nispa.mechanism.schedule import tau
from nispa.mechanism.select import select_candidates, supported
from nispa.methods.adopting import AdoptsTrained
from nispa.methods.base import (
    Event,
    Fitting,
    Learning,
    LearnReport,
    Part,
    PhaseEnd,
    PhaseStart,
)
from nispa.methods.forgetting import ForgetsOnPurpose
from nispa.methods.growth import drop_smallest, gradient_sizes, move_smallest, part_ends
from nispa.methods.nispa_config import NispaConfig, last_phase
from nispa.methods.nispa_phases import Phases
from nispa.methods.parts import Network, OwedConnections, StableUnits
from nispa.methods.stable import freeze_stable, hidden_share, with_outputs
from nispa.methods.widening import Widenings, nearly_full, widened, wider
from nispa.network.initialise import FanMode
from nispa.network.levelling import level
from nispa.network.models import DataSet, NetworkSpec, SparseNetwork
from nispa.network.operations import purpose
from nispa.network.topology import Patterns, Topology, UnitSets
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    Loss,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)
from nispa.training.pausing import FitBegin, FitPause, FitState

LEVEL_IMAGES = 256
"""With about how many training images drawn weights are levelled."""
FEW_IMAGES = 200
"""With fewer validation images, training images help to judge whether accuracy fell."""


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


class Nispa(AdoptsTrained, ForgetsOnPurpose):
    """Task-incremental NISPA.

    Attributes:
        stable: Stable units per group, ``(units,)`` bool; inputs always are stable, and so are the
            outputs of the classes learned.
        owed: Connections per layer that were dropped and found no place.
        widenings: How often the network has grown.
        candidates: While a task is learned, the stable units and the present candidates, for
            whoever watches; otherwise None.
    """

    name = "nispa"
    forgets_nothing = "yes"
    drops_connections = True
    published = "Gurbuz and Dovrolis, ICML 2022"
    config_class = NispaConfig
    carries: ClassVar[tuple[Part, ...]] = (
        Widenings("widenings"),
        Network(),
        StableUnits("stable", "stable."),
        OwedConnections("owed"),
    )
    shares_classes = False
    any_network = True
    config: NispaConfig
    stable: dict[str, Tensor]
    owed: dict[str, int]
    widenings: int
    candidates: UnitSets | None = None

    def learn_task(self, task: Task) -> Learning:
        """Trains and rewires phase after phase, then makes the last good candidates stable."""
        if self.config.grow_when_full and nearly_full(self.topology, self.stable):
            self.widen(task)
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
            reached = self._outcome(phases, result.accuracy)
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
                sizes = self._gradients(phases, stream(self.seed, "growth images", task.index, t))
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
        if self.config.settle_epochs:
            before = self._outcome(phases, phases.validate())
            share = hidden_share(self.topology, previous.kept)
            for fresh in dict.fromkeys((self.config.settle_fresh, False)):
                started, t = time.perf_counter(), t + 1
                if fresh:  # phases found the structure; now find the values
                    phases.restart(derive(self.seed, "settle"))
                yield PhaseStart(t, self.config.settle_epochs, t, previous.tau, share)
                result = yield from self._settle(phases, t, previous.kept)
                samples += result.samples
                yield PhaseEnd(t, result.accuracy, time.perf_counter() - started)
                if not self._fell(self._outcome(phases, result.accuracy), before):
                    break
                # Such as one whose units ceased to fire. Values of the phases are better than that.
                self.network.load_state_dict(previous.values)
        self.candidates = None
        return LearnReport(t, samples, previous.tau, stop), previous.kept

    def _settle(self, phases: Phases, t: int, kept: UnitSets) -> Fitting:
        """The last fit; connections into the task's units may move on its way."""
        config, begin, samples = self.config, 0, 0
        own = {name: units & ~self.stable[name] for name, units in kept.items()}
        for end in part_ends(config.settle_epochs, config.settle_moves):
            if begin:
                drawn = stream(self.seed, "settle images", phases.task.index, begin)
                share = config.settle_move_share * (1.0 - begin / config.settle_epochs)
                move_smallest(self.network, kept, own, share, self._gradients(phases, drawn))
            part = begin, config.settle_epochs
            result = yield from self._train(phases, t, end - begin, part)
            begin, samples = end, samples + result.samples
        return replace(result, samples=samples)

    def _gradients(self, phases: Phases, drawn: torch.Generator) -> dict[str, Tensor]:
        """The size of the gradient by every possible connection."""
        loss, images = self.loss(phases.classes), self.config.gradient_images
        return gradient_sizes(self.network, phases.task.train.to(self.device), loss, images, drawn)

    def _train(
        self, phases: Phases, t: int, epochs: int, part: tuple[int, int] | None = None
    ) -> Fitting:
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
            part=part,
        )

    def _outcome(self, phases: Phases, accuracy: float | None) -> _Outcome:
        assert accuracy is not None
        return _Outcome(accuracy, self._right(phases))

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
            if self._fell(reached, best):
                return "accuracy_drop"
            if self.config.unit_share and self._within_share(kept):
                return "unit_share"
            if self.config.stop_when_full and not has_room(self.topology, self.stable):
                return "full"
        if tau_t <= self.config.tau_min:
            return "schedule_end"
        return "max_phases" if t == self.config.max_phases else ""

    def _fell(self, reached: _Outcome, best: _Outcome) -> bool:
        """Whether accuracy fell by more than ``accuracy_drop``, and more than chance explains."""
        if reached.accuracy >= best.accuracy - self.config.accuracy_drop / 100:
            return False
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
        return sum(taken) <= self.config.unit_share * len(taken)

    def _select(self, train: DataSet, classes: Iterable[int], tau_t: float) -> dict[str, Tensor]:
        """The units to keep from here on: stable ones, new candidates, outputs of seen classes."""
        return self._chosen(self._activity(train), classes, tau_t)

    def _activity(self, train: DataSet) -> dict[str, Tensor]:
        self.network.eval()
        return self.network.activity(images for images, _ in train.batches(EVALUATION_BATCH))

    def _chosen(
        self, activity: UnitSets, classes: Iterable[int], tau_t: float
    ) -> dict[str, Tensor]:
        candidates = select_candidates(
            self.topology, activity, self.stable, tau_t, self.config.max_share_per_task
        )
        kept = with_outputs(self.topology, candidates, classes)
        if self.config.demote_unsupported:
            network = self.network
            kept = supported(
                self.topology, network.patterns(), self.stable, kept, network.sources()
            )
        return kept

    def cuts(self, task: Task, train: DataSet) -> Iterator[dict[str, Tensor]]:
        """All units, then the candidates of a falling tau."""
        if self.config.max_share_per_task == 1.0:
            yield self.every_unit()
        activity, last = self._activity(train), -1
        for percent in range(98, 0, -2):
            kept = self._chosen(activity, task.classes, percent / 100)
            count = sum(int(units.sum()) for units in kept.values())
            if percent / 100 > self.config.tau_min and count != last:  # each set holds the next
                yield kept
            last = count

    def widen(self, task: Task) -> None:
        """Makes all hidden layers wider, before a task; see :mod:`.widening`."""
        larger = widened(self, task)
        self.network, self.stable, self.owed = larger.network, larger.stable, larger.owed
        self.widenings += 1
        if self.config.restart:
            self.redraw_plastic(task, self.config.restart_init, derive(self.seed, "growth"))

    def spec(self, parts: Mapping[str, Any] | None = None) -> NetworkSpec:
        """What its network is drawn from or loaded into, as wide as it has grown."""
        spec, times = super().spec(), (vars(self) if parts is None else parts).get("widenings", 0)
        if times:
            spec = replace(spec, config=wider(spec.config, self.given.grow_when_full, times))
        return spec

    def redraw_plastic(self, task: Task, mode: FanMode, seed: int | None = None) -> None:
        """Draws plastic values again, levelled if trained units are among those that are read."""
        super().redraw_plastic(task, mode, seed)
        trained = any(bool(self.stable[group.name].any()) for group in self.topology.hidden)
        if self.config.restart_level and trained:
            count = len(task.train)
            some = torch.arange(0, count, max(1, count // LEVEL_IMAGES))  # they may lie by class
            images, _ = task.train.to(self.device).batch(some.to(self.device))
            fresh = self.spec().draw(self.seed).to(self.device)
            with purpose("activity"):
                level(self.network, fresh, images)

    @property
    def margin(self) -> tuple[str, float]:
        """As for a phase."""
        return "accuracy_drop", self.config.accuracy_drop

    def take_note(self, dropped: dict[str, int]) -> None:
        """They may grow elsewhere, at the next rewiring."""
        if self.config.carry_over:
            self.owed = {name: number + dropped[name] for name, number in self.owed.items()}

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

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Norms and values are kept of the stable units, and of no others."""
        network: SparseNetwork = parts["network"]
        if self.learned and not network.holds(self.kept_whole(network, parts["stable"])):
            raise FormatError("norms and values are not kept of exactly the stable units")

    def kept_whole(self, network: SparseNetwork, stable: UnitSets) -> UnitSets:
        """The stable units of which norms and values are kept, too."""
        del network
        return stable

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
