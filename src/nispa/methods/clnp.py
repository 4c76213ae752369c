"""CLNP: train sparse, keep the few units that are active enough, and learn on with the rest.

Golkar, Kagan and Cho, "Continual Learning via Neural Pruning", 2019, arXiv 1903.04476.

With S the stable units so far (inputs among them), a task is learned in three steps:

1. Train every plastic value with the loss  cross-entropy + l1 * sum |w|.
2. Measure the mean activation a_u of each hidden unit u over the training set, after ReLU (of a
   channel, the sum over its map). At a threshold theta the active units are

       A(theta) = S + {u : a_u > theta} + the outputs of all classes seen.

   Raise theta from 0 by ``threshold_step``, one threshold for all layers, as long as the network
   without the connections from outside A into A has

       accuracy >= accuracy of the trained network - margin      (on the validation set).

3. With A of the last theta that passed: cut these connections, freeze all connections within A and
   the biases of A, let S = A, and draw every other weight again.

What a stable unit computes depends on stable units alone and never changes, so nothing learned is
forgotten. A later task may read stable units: connections from them into free units and into
outputs of its own stay plastic. No connection grows in place of one that is cut.

Differences from the paper and from the code of its published comparison (Gurbuz and Dovrolis 2022,
arXiv 2206.09117), whose settings the presets use:
- Frozen values do not count in the penalty. There they add a constant to the loss.
- There the logits of other tasks' classes are multiplied by 0 and stay in the soft-max; here they
  are left out.
- There a theta at which no new unit is left passes without a look at the accuracy; here every theta
  must pass. If not even theta = 0 passes, all units are kept.
- There the new weights are always drawn with ``restart_init=fan_out`` over all positions; here as
  ``restart_init`` and the network's ``fan`` say.
- A theta that leaves the same units as the one before is not tried, which changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.errors import FormatError
from nispa.methods.adopting import AdoptsTrained
from nispa.methods.base import Learning, LearnReport, PhaseEnd, PhaseStart
from nispa.methods.epochs import KeepConfig, stop_reason
from nispa.methods.parts import Network, StableUnits
from nispa.methods.stable import freeze_stable, hidden_share, is_frozen, with_outputs
from nispa.network.keeping import drop_into
from nispa.network.models import DataSet
from nispa.network.topology import Topology, UnitSets
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)


@settings
class ClnpConfig(KeepConfig):
    """Settings of CLNP, with the paper's symbols as aliases."""

    l1: float = setting(
        1e-5, "weight of the L1 penalty on plastic values", ge=0, aliases=("alpha",)
    )
    margin: float = setting(
        0.5,
        "validation accuracy that pruning may cost, in points",
        ge=0,
        le=100,
        aliases=("m",),
    )
    threshold_step: float = setting(
        0.02,
        "step by which the threshold on mean activation rises",
        ge=1e-6,
        aliases=("theta_step",),
    )
    restart_init: Literal["fan_in", "fan_out"] = setting(
        "fan_in", "Kaiming-normal mode of the weights drawn again after each task"
    )


@dataclass(frozen=True)
class Pruning:
    """Units to keep, and the accuracy that is left.

    Attributes:
        active: Units per group, ``(units,)`` bool, all stable ones and inputs among them.
        accuracy: Validation accuracy of the network cut down to them.
    """

    active: dict[str, Tensor]
    accuracy: float


class Clnp(AdoptsTrained):
    """Task-incremental CLNP.

    Attributes:
        stable: S, per group, ``(units,)`` bool; inputs always are stable, and so are the outputs of
            the classes learned.
    """

    name = "clnp"
    forgets_nothing = "yes"
    drops_connections = True
    published = "Golkar et al., arXiv 2019"
    config_class = ClnpConfig
    carries = (Network(), StableUnits("stable", "mask.", "masks"))
    shares_classes = False
    any_network = True
    config: ClnpConfig
    stable: dict[str, Tensor]

    def learn_task(self, task: Task) -> Learning:
        """Trains with the penalty, prunes as far as the margin allows, freezes what is left."""
        started = time.perf_counter()
        network, config = self.network, self.config
        train, validation = self.prepare_both(network, task)
        classes, share = self.class_mask(task.classes), hidden_share(network.topology, self.stable)
        optimiser = make_optimiser(config, network.parameters())
        penalty = self._penalty if config.l1 else None
        yield PhaseStart(1, config.epochs, stable_share=share)
        result = yield from fit(
            network,
            network_step(network, classes.loss, optimiser, penalty),
            train,
            epochs=config.epochs,
            batch_size=config.batch_size,
            order=self.shuffle(task),
            validate=self.validator(network, classes, validation),
            keep=config.keep,
            patience=config.patience,
            optimiser=optimiser,
            rates=falling_rate(config),
        )
        assert result.accuracy is not None  # a task without validation images is refused
        # Step 2: the smallest A within the margin.
        pruning = self._prune(task, classes, train, validation, result.accuracy)
        dropped = drop_into(network, pruning.active)
        self.stable = pruning.active
        freeze_stable(network, self.stable)  # step 3: S = A
        self.redraw_plastic(task, config.restart_init)
        kept = {group.name: int(self.stable[group.name].sum()) for group in network.topology.hidden}
        yield PhaseEnd(
            1, pruning.accuracy, time.perf_counter() - started, kept=kept, dropped=dropped
        )
        stop = "capacity" if share == 1.0 else stop_reason(result, config)
        return LearnReport(1, result.samples, None, stop)

    def _penalty(self) -> Tensor:
        """``l1`` times the sum of all absolute plastic values, biases included."""
        sizes = [value.abs().sum() for value in self.network.parameters()]
        return self.config.l1 * torch.stack(sizes).sum()

    def _prune(
        self,
        task: Task,
        classes: ClassMask,
        train: DataSet,
        validation: DataSet,
        trained_accuracy: float,
    ) -> Pruning:
        """Raises theta until accuracy falls by more than the margin; the network stays whole."""
        network, topology = self.network, self.network.topology
        validate = self.validator(network, classes, validation)
        trained = {name: value.clone() for name, value in network.state_dict().items()}
        cuts = self.cuts(task, train)
        best = Pruning(with_outputs(topology, next(cuts), task.classes), trained_accuracy)
        for units in cuts:
            active = with_outputs(topology, units, task.classes)
            drop_into(network, active)
            accuracy = validate()
            network.load_state_dict(trained)  # each threshold cuts the whole network, not the last
            assert accuracy is not None
            if accuracy < trained_accuracy - self.config.margin / 100:
                break
            best = Pruning(active, accuracy)
        return best

    def cuts(self, task: Task, train: DataSet) -> Iterator[dict[str, Tensor]]:
        """All units, then those that are active at each threshold."""
        del task
        network, step = self.network, self.config.threshold_step
        yield self.every_unit()
        network.eval()
        total = network.activity(images for images, _ in train.batches(EVALUATION_BATCH))
        levels = {name: activation_levels(sums / len(train), step) for name, sums in total.items()}
        for level in self._steps(levels):
            yield active_units(network.topology, levels, self.stable, level)

    @property
    def margin(self) -> tuple[str, float]:
        """As for pruning."""
        return "margin", self.config.margin

    def _steps(self, levels: UnitSets) -> list[int]:
        """The thresholds, in steps, at which a unit that is not stable becomes inactive.

        Between two of them the same units are active. Stable units stay whatever their activation.
        """
        free = (levels[name][~self.stable[name]].tolist() for name in levels)
        return sorted({0}.union(*free))

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Exactly the connections between stable units, and all else of them, are frozen."""
        network, stable = parts["network"], parts["stable"]
        if not is_frozen(network, stable) or (self.learned and not network.holds(stable)):
            raise FormatError("what is frozen is not what joins the stable units")


def activation_levels(mean: Tensor, step: float) -> Tensor:
    """The number of steps after which the threshold reaches each unit's mean activation.

    A unit is active at the threshold ``k * step`` if its mean activation is larger, that is, if its
    level ``ceil(mean / step)`` exceeds ``k``.

    Args:
        mean: Mean activation per unit, ``(units,)`` float64, none negative.
        step: Step of the threshold.

    Returns:
        ``(units,)`` int64; 0 for a unit that is never active.
    """
    return (mean / step).ceil().to(torch.int64)


def active_units(
    topology: Topology, levels: UnitSets, stable: UnitSets, level: int
) -> dict[str, Tensor]:
    """Stable units and the hidden units that are active at the threshold ``level * step``.

    Args:
        topology: The network's structure.
        levels: Result of :func:`activation_levels`, per hidden group.
        stable: Stable units per group, ``(units,)`` bool.
        level: The threshold in steps.
    """
    active = {name: units.clone() for name, units in stable.items()}
    for group in topology.hidden:
        active[group.name] |= levels[group.name] > level
    return active
