"""NICE: units grow up with the task they learn, and tell later whose images they see.

Gurbuz, Moorman and Dovrolis, "NICE: Neurogenesis Inspired Contextual Encoding for Replay-free Class
Incremental Learning", CVPR 2024.

A hidden unit or output has an age: 0 is young, 1 a learner, 2 and more is mature. Inputs count as
mature. A task is learned in a fixed number of ``phases``:

1. In the first phase all hidden units that are not mature are learners; later those of them that
   hold the share ``activity_share`` of their layer's activation, the most active first. The others
   become young. The task's outputs are learners.
2. Connections from young units into learners are dropped. All connections into young units are
   live, new ones at 0.
3. The network trains for ``epochs_per_phase`` epochs with a new optimiser. The logits of all other
   classes count as 0 in the soft-max. What leads into mature units is frozen.

After the last phase every age but 0 rises by 1. In the last task planned, all units that are not
mature are learners in all phases.

What a mature unit reads is as old as itself or older, and frozen. So the logits of learned classes
stay as they are, bit for bit. Young units read mature ones: later tasks reuse what earlier ones
found. A unit's age tells with which task it grew up.

Not told the task, a prediction first infers it. Units of a task, and those that were mature before,
are more active for its own images than for others. Their activations become bits, above mean +
deviation of their layer or not; for each task but the last a logistic model tells its bits from
those of later tasks, p_k, on a few images of each class; and

    P(k) = p_k (1 - p_1) ... (1 - p_(k-1));  the last task takes what is left.

The task with the highest P(k) is taken, then the highest of its outputs. context.py has the
detector; here it reads inputs, hidden units and outputs, of a map the mean.

Differences from the paper and from the published code:
- Activation is measured on all training images; the code takes the first 1,024, or 512.
- The detector's images are drawn at random; the code takes the first of each class. Its logistic
  models are fitted to the end, and not for 50 steps.
- The published penalty is lambda times the sum of all squares; ``weight_decay`` is twice lambda.
- With a density below 1, connections outside the first pattern are never live.
- An MLP's input units are its pixels. The published networks begin with convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError
from nispa.mechanism.select import most_active
from nispa.methods.base import (
    Fitting,
    Incremental,
    Learning,
    LearnReport,
    Method,
    MethodConfig,
    MethodState,
    Part,
    PhaseEnd,
    PhaseStart,
    draw_network,
)
from nispa.methods.carried import Tally, take_tensors
from nispa.methods.context import Activations, ContextConfig, Features, network_device, posterior
from nispa.methods.inferring import ContextPart, InfersTask, scores_within
from nispa.methods.parts import Network
from nispa.methods.stable import freeze_stable, hidden_share, is_frozen, with_outputs
from nispa.network.keeping import drop_into
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.topology import UnitSets
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)

YOUNG, MATURE = 0, 2
"""Ages of a unit that has learned nothing, and of one whose task has just ended."""


@settings
class NiceConfig(MethodConfig):
    """Settings of NICE."""

    incremental: Incremental = setting("class", "what a task adds: new classes among all seen")
    phases: int = setting(5, "phases of each task", ge=2, le=10_000)
    epochs_per_phase: int = setting(5, "epochs of training in each phase", ge=1, le=1_000_000)
    activity_share: float = setting(
        0.95,
        "share of each layer's activation that the learners of the next phase hold",
        gt=0,
        le=1,
    )
    samples_per_class: int = setting(
        50, "images of each class whose bits are kept to tell tasks apart", ge=1, le=100_000
    )
    fit_strength: float = setting(
        0.4, "weight of the samples beside the penalty, in logistic models", gt=0, le=1e6
    )


class Ages(Part):
    """The age of each hidden unit and output, by group, ``(units,)`` int16 on the CPU."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> dict[str, Tensor]:
        """All are young."""
        groups = parts["network"].topology.groups
        return {
            group.name: torch.full((group.size,), YOUNG, dtype=torch.int16)
            for group in groups
            if group.role != "input"
        }

    def save(self, value: Mapping[str, Tensor]) -> MethodState:
        """One tensor for each group."""
        return MethodState(
            {f"{self.name}.{name}": ages.clone() for name, ages in value.items()}, {}
        )

    def load(
        self, state: MethodState, method: Method, parts: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Young or mature ones; an output's age is that of the task with its class."""
        found, expected = take_tensors(state, f"{self.name}."), self.first(method, parts)
        if {name: (ages.shape, ages.dtype) for name, ages in found.items()} != {
            name: (ages.shape, ages.dtype) for name, ages in expected.items()
        }:
            raise FormatError("the saved ages do not fit the network's groups")
        oldest = MATURE + len(method.learned) - 1
        for ages in found.values():
            if not bool(((ages == YOUNG) | ((ages >= MATURE) & (ages <= oldest))).all()):
                raise FormatError(f"an age must be {YOUNG}, or {MATURE} to {oldest}")
        output = parts["network"].topology.output.name
        for place, info in enumerate(method.learned):
            expected[output][list(info.classes)] = oldest - place
        if not torch.equal(found[output], expected[output]):
            raise FormatError("the saved ages of outputs do not fit the tasks learned")
        return found

    def count(self, value: Mapping[str, Tensor], tally: Tally) -> None:
        """Mature units count as stable."""
        tally.stable = {name: ages >= MATURE for name, ages in value.items()}


class NiceFeatures(Features):
    """Every unit of a network, inputs and outputs among them."""

    def units_of(self, network: SparseNetwork, images: Tensor) -> Tensor:
        """The activation of every unit; outputs come last, as logits."""
        images = images.to(network_device(network))
        seen = network.eval().observe(images, _mean)
        logits: Tensor = network(images)
        size = self.groups[self.inputs]
        parts = [images.reshape(len(images), size, -1).mean(2).relu()]
        parts += [seen[name] for name in self.groups if name in seen]
        return torch.cat([*parts, logits], 1).float().cpu()


class NiceContext(ContextPart):
    """NICE's detector; saved under ``memory.``."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> Activations:
        """One that knows no task."""
        topology, config = parts["network"].topology, method.config
        (inputs,) = (group.name for group in topology.groups if group.role == "input")
        features = NiceFeatures({group.name: group.size for group in topology.groups}, inputs)
        kept = ContextConfig(
            context="activations",
            samples_per_class=config.samples_per_class,
            fit_strength=config.fit_strength,
        )
        return Activations(features, kept)


class Nice(InfersTask):
    """NICE for new classes, told the task or not.

    Attributes:
        ages: Of each hidden unit and output, by group, ``(units,)`` int16; none is 1 between tasks.
        context: What tells tasks apart.
    """

    name = "nice"
    forgets_nothing = "yes"
    drops_connections = True
    published = "Gurbuz et al., CVPR 2024"
    config_class = NiceConfig
    carries: ClassVar[tuple[Part, ...]] = (
        Network(),
        Ages("ages"),
        NiceContext("context", "memory"),
    )
    incremental: ClassVar[tuple[Incremental, ...]] = ("class", "task")
    shares_classes = False
    config: NiceConfig
    ages: dict[str, Tensor]
    context: Activations

    @classmethod
    def stores_samples(cls) -> bool:
        """No: bits of what units make of some samples."""
        return False

    def learn_task(self, task: Task) -> Learning:
        """Trains in phases, each with fewer learners, which then are mature."""
        network, config, topology = self.network, self.config, self.network.topology
        train, validation = self.prepare_both(network, task)
        validate = self.validator(network, self.class_mask(task.classes), validation)
        mature = stable_units(network, self.ages)
        pool = draw_network(self, self.seed).patterns()
        last_task = len(self.learned) + 1 == self.problem.tasks
        share = 1.0 if last_task else config.activity_share

        every = {group.name: torch.ones(group.size).bool() for group in topology.hidden}
        kept, samples = with_outputs(topology, {**mature, **every}, task.classes), 0
        room = hidden_share(topology, mature) < 1
        for phase in range(1, config.phases + 1):
            started, tau = time.perf_counter(), share if phase > 1 else None
            yield PhaseStart(
                phase, config.epochs_per_phase, config.phases, tau, hidden_share(topology, kept)
            )
            result = yield from self._train(task, phase, train, validate)
            samples += result.samples
            dropped: dict[str, int] = {}
            grown: dict[str, int] = {}
            if phase < config.phases:
                if share < 1:
                    kept = self._still_learning(train, mature, kept)
                dropped = drop_into(network, kept)
                grown = connect_others(network, kept, pool)
            yield PhaseEnd(
                phase,
                result.accuracy,
                time.perf_counter() - started,
                share if phase < config.phases else None,
                kept={group.name: int(kept[group.name].sum()) for group in topology.hidden},
                dropped=dropped,
                grown=grown,
            )
        self.ages = {
            name: torch.where(mature[name], ages + 1, MATURE * kept[name]).to(ages.dtype)
            for name, ages in self.ages.items()
        }
        stable = stable_units(network, self.ages)
        freeze_stable(network, stable)
        self.context.learn(network, task, stable, stream(self.seed, "context", task.index))
        return LearnReport(config.phases, samples, share, "epochs" if room else "capacity")

    def _train(self, task: Task, phase: int, train: DataSet, validate: Any) -> Fitting:
        """One phase with a fresh optimiser."""
        loss = ClassMask(task.classes, self.logits, "zero", self.device).loss
        optimiser = make_optimiser(self.config, self.network.parameters())
        return fit(
            self.network,
            network_step(self.network, loss, optimiser),
            train,
            epochs=self.config.epochs_per_phase,
            batch_size=self.config.batch_size,
            order=self.shuffle(task, phase),
            validate=validate,
            keep="last",
            optimiser=optimiser,
            rates=falling_rate(self.config),
        )

    def _still_learning(
        self, train: DataSet, mature: UnitSets, kept: UnitSets
    ) -> dict[str, Tensor]:
        """Mature units, learned and learning outputs, and the learners that are active enough."""
        network = self.network.eval()
        activity = network.activity(images for images, _ in train.batches(EVALUATION_BATCH))
        chosen = dict(kept)
        for group in network.topology.hidden:
            learners = kept[group.name] & ~mature[group.name]
            active = activity[group.name] * learners
            picked = most_active(active, self.config.activity_share)
            chosen[group.name] = mature[group.name] | picked
        return chosen

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Scores of classes; without a task float64, and each task's best class has log P(task)."""
        if task is not None:
            return super().scores(images, task)
        units = self.context.features.units_of(self.network, images)
        chances = posterior(self.context.odds(units[:, self.context.features.places]), len(images))
        logits = units[:, units.shape[1] - self.logits :].double()
        return scores_within(chances, logits, self.learned, self.choices(None)).to(images.device)

    def check_parts(self, parts: dict[str, Any]) -> None:
        """What leads into mature units is frozen, and they are those that the detector reads."""
        ages, features = parts["ages"], parts["context"].features
        if not is_frozen(parts["network"], stable_units(parts["network"], ages)):
            raise FormatError("what is frozen is not what mature units read")
        oldest = MATURE + len(self.learned) - 1
        for place, count in enumerate(features.counts):
            marks = [
                ages[name] >= oldest - place if name in ages else torch.ones(size).bool()
                for name, size in features.groups.items()
            ]
            known = features.places[:count].sort().values
            if not torch.equal(known, torch.cat(marks).nonzero().squeeze(1)):
                raise FormatError("the saved features do not fit the ages of units")


def stable_units(network: SparseNetwork, ages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs and mature units, per group, ``(units,)`` bool."""
    return network.topology.no_units() | {name: each >= MATURE for name, each in ages.items()}


def connect_others(network: SparseNetwork, kept: UnitSets, pool: UnitSets) -> dict[str, int]:
    """Makes all connections into units that are not kept live; new ones start at 0.

    Args:
        network: The network.
        kept: Units per group, ``(units,)`` bool.
        pool: The connections there may be, ``(target, source * block)`` bool.

    Returns:
        How many each layer got.
    """
    grown = {}
    for name, layer in network.layers.items():
        pattern = layer.pattern
        new = pool[name] & ~layer.spec.rows_in(kept).unsqueeze(1) & ~pattern
        index = new.flatten().nonzero().squeeze(1)
        layer.rewire(pattern | new, index, torch.zeros(len(index), *layer.spec.kernel))
        grown[name] = len(index)
    return grown


def _mean(activations: Tensor) -> Tensor:
    return activations.flatten(2).mean(2) if activations.dim() > 2 else activations
