"""SpaceNet: each task trains sparse connections from nothing, packed into few units.

Sokar, Mocanu and Pechenizkiy, "SpaceNet: Make Free Space for Continual Learning", Neurocomputing
439 (2021), arXiv 2007.07617.

The network begins without any connection. Task t is learned so:

1. In each hidden layer the share ``selected`` of the units is drawn at random from those that are
   not reserved, and with them all inputs and the task's outputs. Between these units the task gets
   ``budget`` connections in each layer, at random where none is live. Only these are trained. Those
   of earlier tasks are frozen, but take part, and so do the units that they feed.
2. Every step moves a weight w by dw against the gradient g. A connection's importance is what the
   task's steps have changed the loss by it; a unit's is that of its inputs (of an input unit, that
   of the connections it feeds):

       omega_ij = sum over steps of abs(dw_ij g_ij),     omega_i = sum over j of omega_ij.

3. After each epoch but the last, in each hidden layer: the share ``drop_share`` of the task's
   connections, those of least omega_ij, are dropped; as many grow, at 0, between the task's units
   where none is live and omega_j omega_i is largest. So the task's density stays, and its
   connections gather at few units.
4. At the end the task's connections are frozen. In each hidden layer the share ``reserved`` of the
   units, those of the largest omega_i, is reserved: no later task may feed them or hear them.

Units that the task used without reserving them are shared: later tasks feed them more, and train
their biases. Whatever hears them changes. So old logits drift, unless all selected units are
reserved (``reserved`` = ``selected``): then no task touches what another computes.

While a task is learned with ``incremental=class``, the outputs of all other classes compete in the
soft-max with their biases alone, as if nothing fed them: the images must excite the task's own
outputs above that, and it is all that makes outputs of different tasks comparable later.

Differences from the paper and from the published code:
- In the code a unit's importance sums, over the steps, the sums omega_i so far, so early steps
  count more. Here it is omega_i, as in the paper. Dropped connections count in it, as in the code.
- In the code a connection that grows again has the importance it had when it was dropped. Here it
  begins at 0.
- A connection into a convolution is a whole kernel; its importance is the sum over its weights.
- New weights are drawn like a network's first ones (Kaiming, over the task's own connections of
  each unit); the code takes Xavier's values for a dense layer.
- Where less than the budget finds room between the units, or where less finds room than was
  dropped, the task has, or drops, as much as finds room.
- The optimiser is new after each rewiring. The published one has no state.
- Validation images measure and decide nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.errors import CapacityError, ConfigError, FormatError
from nispa.mechanism.grow import choose, largest
from nispa.methods.base import (
    Fitting,
    Incremental,
    Learning,
    LearnReport,
    Method,
    MethodConfig,
    Part,
    PhaseEnd,
    PhaseStart,
    Problem,
)
from nispa.methods.parts import Network, StableUnits, hidden_layers
from nispa.methods.stable import with_outputs
from nispa.network.initialise import kaiming_values, layer_densities
from nispa.network.layers import SparseLayer
from nispa.network.models import DataSet, NetworkConfig, SparseNetwork
from nispa.network.topology import UnitSets, source_columns
from nispa.training.fit import (
    Batch,
    ClassMask,
    Loss,
    Step,
    batch_gradients,
    fit,
    make_optimiser,
)
from nispa.training.pausing import Carried

USUAL_TASKS = 5
"""Among so many tasks units and connections are divided where their number is unknown."""
LEAST_SELECTED = 0.2
"""The published share of units; with more tasks an equal share would leave a task very few."""


@settings
class SpaceNetConfig(MethodConfig):
    """Settings of SpaceNet."""

    incremental: Incremental = setting("class", "what a task adds: new classes among all seen")
    epochs: int = setting(20, "epochs of training per task", ge=1, le=1_000_000)
    rewire_every: int = setting(1, "epochs between two rewirings", ge=1, le=1_000_000)
    drop_share: float = setting(
        0.2, "share of a task's connections that each rewiring moves", ge=0, lt=1
    )
    selected: float | None = setting(
        None,
        "share of each hidden layer's units that a task uses; by default an equal share for each "
        "planned task, at least 0.2",
        gt=0,
        le=1,
    )
    reserved: float | None = setting(
        None,
        "share of each hidden layer's units that a task keeps for itself; by default half of an "
        "equal share",
        ge=0,
        le=1,
    )
    budget: tuple[float, ...] = setting(
        (),
        "share of a layer's connections, as the density allows them, that a task gets, layer by "
        "layer; the last value holds for further layers; by default an equal share",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < share <= 1 for share in self.budget):
            shown = ",".join(map(str, self.budget))
            raise ConfigError(f"budget={shown} must be shares in (0, 1], such as 0.2")


class EmptyNetwork(Network):
    """A network without connections; its biases are first ones."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> SparseNetwork:
        """As drawn, but every connection is dropped."""
        network = super().first(method, parts)
        for layer in network.layers.values():
            empty = torch.zeros(layer.shape, dtype=torch.bool)
            layer.rewire(empty, layer.plastic_index[:0], layer.weight[:0])
        return network


class SpaceNet(Method):
    """SpaceNet for new classes, told the task or not.

    Attributes:
        reserved: Units that only their own task may use, per group, ``(units,)`` bool; inputs and
            the outputs of classes learned are among them.
    """

    name = "spacenet"
    published = "Sokar et al., Neurocomputing 2021"
    config_class = SpaceNetConfig
    carries: ClassVar[tuple[Part, ...]] = (EmptyNetwork(), StableUnits("reserved", "reserved."))
    incremental: ClassVar[tuple[Incremental, ...]] = ("class", "task")
    shares_classes = False
    config: SpaceNetConfig
    reserved: dict[str, Tensor]

    def __init__(
        self,
        problem: Problem,
        network: NetworkConfig,
        config: Any,
        *,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        """Raises ConfigError if the shares of units do not fit each other or the tasks planned."""
        super().__init__(problem, network, config, seed=seed, device=device)
        equal = 1 / (problem.tasks or USUAL_TASKS)
        self.select = max(LEAST_SELECTED, equal) if config.selected is None else config.selected
        usual = min(equal / 2, self.select)
        self.reserve = usual if config.reserved is None else config.reserved
        self.budget = config.budget or (equal,)
        if self.reserve > self.select:
            raise ConfigError(
                f"reserved={self.reserve:g} is more than selected={self.select:g}, and a task can "
                f"only keep units that it uses; pass reserved={self.select:g} or less"
            )
        self._check_room()

    def _check_room(self) -> None:
        """Raises ConfigError if all planned tasks together reserve more units than there are."""
        earlier = (self.problem.tasks or 1) - 1
        if not earlier:
            return
        sizes = {group.name: group.size for group in self.spec().empty().topology.hidden}
        for name, size in sizes.items():
            count = units_in(size, self.reserve)
            if count * earlier >= size:
                most = min((units - 1) // earlier / units for units in sizes.values())
                lower = f"reserved={math.floor(1000 * most) / 1000:g}{' or less' * (most > 0)}"
                raise ConfigError(
                    f"reserved={self.reserve:g} keeps {count} of the {size} units of {name} for "
                    f"each of {self.problem.tasks} tasks, which leaves none for the last; pass "
                    f"{lower}, or wider layers"
                )

    def learn_task(self, task: Task) -> Learning:
        """Trains connections of the task's own, which move between epochs to where they matter."""
        network, config = self.network, self.config
        units = self.choose_units(task)  # step 1
        self.allocate(task, units)
        train, validation = self.prepare_both(network, task)
        validate = self.validator(network, self.competing(task), validation)
        loss = self.loss(task)
        groups, hidden = network.topology.groups, hidden_layers(network)
        omega = {name: torch.zeros(len(layer.weight)) for name, layer in hidden.items()}
        of_units = {group.name: torch.zeros(group.size) for group in groups}
        (inputs,) = (group.name for group in groups if group.role == "input")
        phases, samples = math.ceil(config.epochs / config.rewire_every), 0
        for phase in range(1, phases + 1):
            started = time.perf_counter()
            epochs = min(config.rewire_every, config.epochs - (phase - 1) * config.rewire_every)
            yield PhaseStart(phase, epochs, phases)
            gained = {
                name: torch.zeros(len(layer.weight), device=self.device)
                for name, layer in hidden.items()
            }
            result = yield from self._train(task, phase, epochs, train, validate, loss, gained)
            samples += result.samples
            for name, layer in hidden.items():  # step 2
                gain = gained[name].cpu()  # where sums are the same every time
                omega[name] += gain
                rows, columns = layer.ends(layer.plastic_index.cpu())
                of_units[layer.spec.target].index_add_(0, rows, gain)
                if layer.spec.source == inputs:
                    of_units[inputs].index_add_(0, columns, gain)
            moved = {}
            if phase < phases:
                for name, layer in hidden.items():  # step 3
                    omega[name], moved[name] = move(
                        layer, omega[name], of_units, units, config.drop_share
                    )
            yield PhaseEnd(
                phase, result.accuracy, time.perf_counter() - started, dropped=moved, grown=moved
            )
        self._keep(task, units, of_units)  # step 4
        return LearnReport(phases, samples, None, "epochs")

    def choose_units(self, task: Task) -> dict[str, Tensor]:
        """The task's units per group, ``(units,)`` bool: inputs, drawn hidden ones, its outputs.

        Raises:
            CapacityError: In a layer every unit is reserved.
        """
        topology = self.network.topology
        units = with_outputs(topology, topology.no_units(), task.classes)
        for group in topology.hidden:
            generator = stream(self.seed, "units", task.index, group.name)
            wanted = units_in(group.size, self.select)
            found = choose(~self.reserved[group.name], wanted, generator)
            if not len(found):
                raise CapacityError(
                    f"every unit of {group.name} is reserved by an earlier task; pass a smaller "
                    f"share than reserved={self.reserve:g}, or wider layers"
                )
            units[group.name][found] = True
        return units

    def allocate(self, task: Task, units: UnitSets) -> None:
        """Gives the task its connections between its units, with values drawn like first ones."""
        network, config, kind = self.network, self.network_config, self.network_config.kind
        densities = layer_densities(
            network.topology,
            config.density,
            config.distribution,
            kind.dense,
            config.min_inputs,
        )
        for place, (name, layer) in enumerate(network.layers.items()):
            share = self.budget[min(place, len(self.budget) - 1)]
            count = max(1, round(share * densities[name] * layer.position_count))
            pattern, generator = layer.pattern, stream(self.seed, "connections", task.index, name)
            index = choose(between(layer, units) & ~pattern, count, generator).sort().values
            new = torch.zeros_like(pattern)
            new.view(-1)[index] = True
            values = kaiming_values(
                layer.spec, new, config.init, config.fan, generator, config.gain
            )
            layer.rewire(pattern | new, index, values)

    def competing(self, task: Task) -> ClassMask:
        """The outputs among which validation images are told: the task's, or all seen."""
        if self.config.incremental == "task":
            return self.class_mask(task.classes)
        return self.class_mask(sorted({*self.classes_seen, *task.classes}))

    def loss(self, task: Task) -> Loss:
        """The cross-entropy among the task's outputs, or among all, of which others are still."""
        if self.config.incremental == "task":
            return self.class_mask(task.classes).loss
        own = torch.zeros(self.logits, dtype=torch.bool, device=self.device)
        own[list(task.classes)] = True
        (head,) = self.network.topology.feeders(self.network.topology.output.name)
        biases = self.network.layers[head.name].dense_bias()

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(torch.where(own, logits, biases), labels)

        return loss

    def _train(
        self,
        task: Task,
        phase: int,
        epochs: int,
        train: DataSet,
        validate: Any,
        loss: Loss,
        gained: Mapping[str, Tensor],
    ) -> Fitting:
        """Some epochs that add to the importance ``gained`` by each hidden connection."""
        config, network = self.config, self.network
        ahead = (phase - 1) * config.rewire_every
        rates = None
        if config.decay == "linear":  # over the whole task

            def rates(done: float) -> float:
                return config.learning_rate * (1 - (ahead + done * epochs) / config.epochs)

        def load(tensors: Mapping[str, Tensor], _: Any) -> None:
            for name, gain in gained.items():
                gain.copy_(tensors[name].view(gain.shape))

        optimiser = make_optimiser(config, network.parameters())
        return fit(
            network,
            measured(network, loss, optimiser, gained),
            train,
            epochs=epochs,
            batch_size=config.batch_size,
            order=self.shuffle(task, phase),
            validate=validate,
            keep="last",
            optimiser=optimiser,
            carried=[Carried(lambda: ({n: g.cpu().clone() for n, g in gained.items()}, {}), load)],
            rates=rates,
        )

    def _keep(self, task: Task, units: UnitSets, worth: Mapping[str, Tensor]) -> None:
        """Freezes what the task has learned, and reserves the units of the largest worth."""
        topology = self.network.topology
        reserved = with_outputs(topology, self.reserved, task.classes)
        for group in topology.hidden:
            count = units_in(group.size, self.reserve)
            chosen = largest(units[group.name], count, worth[group.name])
            reserved[group.name] = reserved[group.name].clone()
            reserved[group.name][chosen] = True
        self.reserved = reserved
        for layer in self.network.layers.values():
            layer.freeze(layer.pattern, layer.spec.rows_in(reserved))

    def check_parts(self, parts: dict[str, Any]) -> None:
        """All connections are frozen, and the biases of reserved units alone."""
        reserved, network = parts["reserved"], parts["network"]
        for layer in network.layers.values():
            rows = layer.spec.rows_in(reserved).nonzero().squeeze(1)
            if len(layer.weight) or not torch.equal(layer.frozen_bias_index.cpu(), rows):
                raise FormatError("what is frozen does not fit the units that are reserved")


def units_in(size: int, share: float) -> int:
    """A share of a layer's units, rounded, at least one unless the share is 0."""
    return max(1, round(share * size)) if share else 0


def measured(
    network: SparseNetwork,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    gained: Mapping[str, Tensor],
) -> Step:
    """An update that adds ``abs(dw g)`` of each plastic connection to ``gained``.

    Args:
        network: The network.
        loss: A mean over samples.
        optimiser: Over the network's values.
        gained: By layer, ``(plastic,)``; of a kernel it gets the sum over the weights.
    """
    gradients = batch_gradients(network, loss)

    @torch.no_grad()
    def step(batch: Batch) -> Tensor:
        with torch.enable_grad():
            value = gradients(batch.images, batch.labels)
        before = {name: network.layers[name].weight.clone() for name in gained}
        optimiser.step()
        for name, gain in gained.items():
            weight = network.layers[name].weight
            if weight.grad is not None:
                change = ((weight - before[name]) * weight.grad).abs()
                gain += change.view(len(gain), -1).sum(1) if len(gain) else 0
        return value

    return step


def between(layer: SparseLayer, units: UnitSets) -> Tensor:
    """The positions between units of a set, ``(target, source * block)`` bool."""
    return layer.spec.rows_in(units).unsqueeze(1) & layer.spec.columns_in(units).unsqueeze(0)


def move(
    layer: SparseLayer,
    omega: Tensor,
    of_units: Mapping[str, Tensor],
    units: UnitSets,
    share: float,
) -> tuple[Tensor, int]:
    """Moves a layer's plastic connections of least importance between important units.

    Args:
        layer: The layer.
        omega: The importance of each plastic connection, ``(plastic,)``, on the CPU.
        of_units: That of each unit, per group, likewise.
        units: Those between which connections may grow, per group, ``(units,)`` bool.
        share: How many move at most, of the plastic ones, rounded down.

    Returns:
        The importance of the plastic connections of now, 0 of new ones, and how many moved.
    """
    pattern, spec, index = layer.pattern, layer.spec, layer.plastic_index.cpu()
    absent = between(layer, units) & ~pattern
    count = min(int(share * len(index)), int(absent.sum()))
    worth = torch.outer(of_units[spec.target], source_columns(spec, of_units[spec.source]))
    grown = largest(absent, count, worth)
    dropped = omega.argsort(stable=True)[:count]
    importance = torch.zeros(pattern.shape)
    importance.view(-1)[index] = omega
    importance.view(-1)[index[dropped]] = 0
    pattern.view(-1)[index[dropped]] = False
    pattern.view(-1)[grown] = True
    layer.rewire(pattern, grown, torch.zeros(count, *spec.kernel))
    return importance.view(-1)[layer.plastic_index.cpu()], count
