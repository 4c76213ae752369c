"""CLNP: train sparse, keep the few units that are active enough, and learn on with the rest.

Golkar, Kagan and Cho, "Continual Learning via Neural Pruning", 2019, arXiv 1903.04476.

With S the stable units so far (inputs among them), a task is learned so:

1. Train every plastic value with the loss  cross-entropy + l1 * sum |w|.
2. Measure the mean activation a_u of each hidden unit u over the training set, after ReLU (for a
   channel summed over the positions of its map). At a threshold theta the units that are kept are

       A(theta) = S + {u : a_u > theta} + the outputs of all classes seen.

   theta rises from 0 by ``threshold_step``, one threshold for all layers, as long as the network
   whose connections into A from outside A are cut has

       accuracy >= accuracy of the trained network - margin      (on the validation set).

3. With A of the last theta that passed: cut these connections, freeze all connections within A and
   the biases of A, let S = A, and draw every other weight anew.

What a stable unit computes depends on stable units alone and never changes again, so what was
learned is never forgotten. A later task may read stable units: connections from them into free
units and into outputs of its own stay plastic. What is cut does not grow again elsewhere.

Differences from the paper and from the code of its published comparison (Gurbuz and Dovrolis 2022,
arXiv 2206.09117), whose settings the presets name:
- Frozen values do not count in the penalty. There they add a constant to the loss.
- There the logits of other tasks' classes are multiplied by 0 and stay in the soft-max; here they
  are left out.
- There a theta at which no new unit is left passes without a look at the accuracy; here every theta
  must pass. If not even theta = 0 passes, all units are kept.
- There the new weights are always drawn with ``restart_init=fan_out`` over all positions; here as
  ``restart_init`` and the network's ``fan`` say.
- A theta that leaves the same units as the one before is not tried again, which changes no result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError
from nispa.methods.base import (
    Census,
    Learning,
    LearnReport,
    Method,
    MethodState,
    PhaseEnd,
    PhaseStart,
    count,
    draw_network,
    load_network,
    load_stable,
    network_state,
)
from nispa.methods.epochs import KeepConfig
from nispa.network.models import DataSet, SparseNetwork, restart_plastic
from nispa.network.topology import Topology, UnitSets, complement, live_between
from nispa.training.fit import (
    EVALUATION_BATCH,
    ClassMask,
    accuracy,
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
        "fan_in", "Kaiming-normal mode of the weights drawn anew after each task"
    )


@dataclass(frozen=True)
class Pruning:
    """The units to keep, and what that costs.

    Attributes:
        active: Units per group, ``(units,)`` bool, all stable ones and inputs among them.
        accuracy: Validation accuracy of the network cut down to them.
    """

    active: dict[str, Tensor]
    accuracy: float


class Clnp(Method):
    """Task-incremental CLNP.

    Attributes:
        stable: Which units are stable, per group, ``(units,)`` bool; inputs always are, outputs of
            the classes learned are.
    """

    name = "clnp"
    config_class = ClnpConfig
    shares_classes = False
    config: ClnpConfig

    def start(self) -> None:
        """A network of plastic units."""
        self.network = draw_network(self, self.seed)
        self.stable = self.network.topology.no_units()

    def learn_task(self, task: Task) -> Learning:
        """Trains with the penalty, prunes as far as the margin allows, freezes what is left."""
        started = time.perf_counter()
        train, validation = self.prepare_both(self.network, task)
        classes, full = self._classes(task.classes), self._stable_share == 1.0
        optimiser = make_optimiser(self.config, self.network.parameters())
        yield PhaseStart(1, self.config.epochs, stable_share=self._stable_share)
        result = yield from fit(
            self.network,
            network_step(
                self.network,
                classes.loss,
                optimiser,
                self._penalty if self.config.l1 else None,
            ),
            train,
            epochs=self.config.epochs,
            batch_size=self.config.batch_size,
            order=lambda epoch: stream(self.seed, "batches", task.index, epoch),
            validate=lambda: accuracy(self.network, classes.predict, validation),
            keep=self.config.keep,
            patience=self.config.patience,
            optimiser=optimiser,
            rates=falling_rate(self.config),
        )
        assert result.accuracy is not None  # a task without validation images is refused
        pruning = self._prune(task, classes, train, validation, result.accuracy)
        dropped = cut(self.network, pruning.active)
        self._settle(pruning.active, task.index)
        yield PhaseEnd(
            1,
            pruning.accuracy,
            time.perf_counter() - started,
            kept={
                group.name: int(self.stable[group.name].sum())
                for group in self.network.topology.hidden
            },
            dropped=dropped,
        )
        stop = "epochs" if result.epochs == self.config.epochs else "patience"
        return LearnReport(1, result.samples, None, "capacity" if full else stop)

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
        """Raises the threshold until accuracy falls by more than the margin; cuts nothing yet."""
        self.network.eval()
        total = self.network.activity(images for images, _ in train.batches(EVALUATION_BATCH))
        levels = {
            name: activation_levels(sums / len(train), self.config.threshold_step)
            for name, sums in total.items()
        }
        trained = {name: value.clone() for name, value in self.network.state_dict().items()}
        found = Pruning(self._with_outputs(self._every_unit(), task.classes), trained_accuracy)
        for level in self._steps(levels):
            active = active_units(self.network.topology, levels, self.stable, level)
            active = self._with_outputs(active, task.classes)
            cut(self.network, active)
            reached = accuracy(self.network, classes.predict, validation)
            self.network.load_state_dict(trained)
            assert reached is not None
            if reached < trained_accuracy - self.config.margin / 100:
                break
            found = Pruning(active, reached)
        return found

    def _steps(self, levels: UnitSets) -> list[int]:
        """The numbers of the thresholds at which the set of active units is another."""
        free = [levels[name][~self.stable[name]] for name in levels]
        return sorted({0, *torch.cat(free).tolist()})

    def _settle(self, active: UnitSets, task: int) -> None:
        """Makes the active units stable, freezes what joins them, draws all else anew."""
        self.stable = dict(active)
        patterns = self.network.patterns()
        settled = live_between(self.network.topology, patterns, self.stable, self.stable)
        for name, layer in self.network.layers.items():
            layer.freeze(settled[name], self.stable[layer.spec.target])
        restart_plastic(
            self.network,
            self.config.restart_init,
            self.network_config.fan,
            seed=self.seed,
            task=task,
            gain=self.network_config.gain,
        )

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        self.network.eval()
        return self._classes(self.choices(task)).predict(self.network(images))

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Logits of the classes that compete; see :class:`Method`."""
        self.network.eval()
        logits: Tensor = self.network(images)
        return logits[:, list(self.choices(task))]

    def state(self) -> MethodState:
        """The network and the stable units."""
        stable = {f"mask.{name}": units.clone() for name, units in self.stable.items()}
        return MethodState(network_state(self.network) | stable, {})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        network = load_network(self, state)
        stable = load_stable(state, "mask.", network)
        if not is_settled(network, stable):
            raise FormatError("what is frozen is not what joins the stable units")
        self.network, self.stable = network, stable

    def census(self) -> Census:
        """Stable units and connections; see :class:`Method`."""
        masks = sum(units.nbytes for units in self.stable.values())
        return count({"": self.network}, self.stable, storage={"masks": masks})

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)

    def _with_outputs(self, units: UnitSets, classes: tuple[int, ...]) -> dict[str, Tensor]:
        """``units`` and the outputs of ``classes``."""
        output = units[self.network.topology.output.name].clone()
        output[list(classes)] = True
        return {**units, self.network.topology.output.name: output}

    def _every_unit(self) -> dict[str, Tensor]:
        """All hidden units, and the outputs that are stable."""
        hidden = {
            group.name: torch.ones(group.size, dtype=torch.bool)
            for group in self.network.topology.hidden
        }
        return {**self.stable, **hidden}

    @property
    def _stable_share(self) -> float:
        hidden = self.network.topology.hidden
        stable = sum(int(self.stable[group.name].sum()) for group in hidden)
        return stable / sum(group.size for group in hidden)


def activation_levels(mean: Tensor, step: float) -> Tensor:
    """How many steps the threshold must rise until each unit is no longer active.

    A unit is active at the threshold ``k * step`` if its mean activation lies above it, that is, if
    its level ``ceil(mean / step)`` does not lie at or below ``k``.

    Args:
        mean: Mean activation per unit, ``(units,)`` float64, none negative.
        step: By how much the threshold rises.

    Returns:
        ``(units,)`` int64; 0 for a unit that is never active.
    """
    return (mean / step).ceil().to(torch.int64)


def active_units(
    topology: Topology, levels: UnitSets, stable: UnitSets, level: int
) -> dict[str, Tensor]:
    """Stable units and the hidden units that are active at the threshold number ``level``.

    Args:
        topology: The network's structure.
        levels: What :func:`activation_levels` gives, per hidden group.
        stable: Units that are stable, per group, ``(units,)`` bool.
        level: The threshold in steps.
    """
    active = {name: units.clone() for name, units in stable.items()}
    for group in topology.hidden:
        active[group.name] |= levels[group.name] > level
    return active


def cut(network: SparseNetwork, active: UnitSets) -> dict[str, int]:
    """Removes every connection from a unit that is not active into one that is.

    Returns:
        How many connections each layer lost.
    """
    patterns = network.patterns()
    removed = live_between(network.topology, patterns, complement(active), active)
    for name, layer in network.layers.items():
        nothing = torch.zeros(0, dtype=torch.int64)
        layer.rewire(patterns[name] & ~removed[name], nothing, torch.zeros(0, *layer.spec.kernel))
    return {name: int(connections.sum()) for name, connections in removed.items()}


def is_settled(network: SparseNetwork, stable: UnitSets) -> bool:
    """Whether nothing free feeds a stable unit, and what is frozen is what stable units rely on."""
    topology, patterns = network.topology, network.patterns()
    foreign = live_between(topology, patterns, complement(stable), stable)
    within = live_between(topology, patterns, stable, stable)
    return all(
        not bool(foreign[name].any())
        and torch.equal(layer.frozen, within[name])
        and torch.equal(
            layer.frozen_bias_index.cpu(), stable[layer.spec.target].nonzero().squeeze(1)
        )
        for name, layer in network.layers.items()
    )
