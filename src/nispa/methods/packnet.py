"""PackNet: each task keeps the largest of the weights that are still free, and frees the others.

Mallya and Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning", CVPR
2018, arXiv 1711.05769.

The network has a pool of connections, its first pattern. Task number t (from 0) is learned so:

1. Train all free connections; those of tasks 0 to t - 1 are frozen and take part.
2. In each hidden layer free the share ``prune`` of the connections just trained, those of the
   smallest magnitude:  owner(c) = t for the others. Only hidden layers are pruned.
3. Train the connections of task t again for ``retrain_epochs`` at a smaller step size, without the
   freed ones; then freeze them. The freed ones wait for the next task.

To predict task t the network has the connections with owner <= t and no others. These never change,
and neither do the biases: those of hidden units are frozen after the first task, as in the paper.
So the logits of a task are the same, bit for bit, whatever is learned later.

The head is no part of the pool, as in the paper, where each data set has a classifier of its own:
the connections into a task's outputs, with these outputs' biases, are all trained with the task,
never pruned, and frozen at its end.

Differences from the paper and from the published code:
- A connection into a convolution is a whole kernel and is kept or freed as one, by the sum of its
  absolute weights; the paper frees single weights. For Linear layers the two are the same.
- The paper begins with a network trained on ImageNet. Here the first task begins with random
  values.
- The published code prunes after every task but the last. Here there is always another one to come.
- Best epochs are chosen by validation images; the published code looks at the test set.
- Where the network's density is below 1, the pool is that sparse; what is not in it is never live.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError, FormatError, NotLearnedError
from nispa.methods.base import (
    Census,
    Fitting,
    Learning,
    LearnReport,
    Method,
    MethodState,
    PhaseEnd,
    PhaseStart,
    count,
    draw_network,
    load_network,
    network_state,
    take_tensors,
)
from nispa.methods.epochs import KeepConfig
from nispa.network.models import DataSet, SparseNetwork, empty_network, restart_plastic
from nispa.network.topology import Patterns
from nispa.training.fit import (
    ClassMask,
    accuracy,
    falling_rate,
    fit,
    make_optimiser,
    network_step,
)

OWNER = torch.int16
"""Type of the place of the task that a frozen connection belongs to."""


@settings
class PackNetConfig(KeepConfig):
    """Settings of PackNet."""

    prune: tuple[float, ...] = setting(
        (0.5, 0.75),
        "share of its free connections that each hidden layer frees again: after the first task, "
        "the second, ...; the last share holds for all that follow",
    )
    retrain_epochs: int = setting(
        10, "epochs of training after the pruning, at most", ge=0, le=1_000_000
    )
    retrain_rate: float = setting(0.1, "factor on the learning rate after the pruning", gt=0, le=1)
    free_values: Literal["zero", "draw"] = setting(
        "zero", "what freed weights start the next task with: 0 (published), or drawn anew"
    )

    def __post_init__(self) -> None:
        if not self.prune or not all(0 <= share < 1 for share in self.prune):
            shown = ",".join(map(str, self.prune))
            raise ConfigError(
                f"prune={shown} must be shares in [0, 1), such as 0.5,0.75; a task must keep "
                "something"
            )

    def share(self, place: int) -> float:
        """The share freed after the task at ``place`` in the sequence, from 0."""
        return self.prune[min(place, len(self.prune) - 1)]


class PackNet(Method):
    """Task-incremental PackNet.

    Between two tasks the frozen connections of hidden layers belong to a task each, and the plastic
    ones are free.

    Attributes:
        tasks: Places in the scenario of the tasks learned, in the order of learning.
        owner: Per layer, for each frozen connection in order of position, the place in ``tasks`` of
            the task it belongs to; ``(frozen,)`` int16 on the CPU.
    """

    name = "packnet"
    config_class = PackNetConfig
    shares_classes = False
    task_agnostic = False
    config: PackNetConfig

    def start(self) -> None:
        """A network of free connections."""
        self.network = draw_network(self, self.seed)
        self.tasks: list[int] = []
        self.owner = {name: torch.zeros(0, dtype=OWNER) for name in self.network.layers}
        self._view: tuple[int, SparseNetwork] | None = None

    def learn_task(self, task: Task) -> Learning:
        """Trains what is free, frees most of it again, trains and freezes the rest."""
        place, pool = len(self.tasks), self.network.patterns()
        train, validation = self.prepare_both(self.network, task)
        something_free = any(
            len(self.network.layers[name].weight) for name in hidden_layers(self.network)
        )
        phases = 2 if self.config.retrain_epochs and something_free else 1

        started = time.perf_counter()
        yield PhaseStart(1, self.config.epochs, phases)
        result = yield from self._train(task, 1, train, validation, self.config)
        freed = self._prune(self.config.share(place))
        left = accuracy(self.network, self._classes(task.classes).predict, validation)
        yield PhaseEnd(1, left, time.perf_counter() - started, dropped=freed)

        stop = "epochs" if result.epochs == self.config.epochs else "patience"
        phase, samples = 1, result.samples
        if phases == 2 and any(freed.values()):
            started, phase = time.perf_counter(), 2
            yield PhaseStart(2, self.config.retrain_epochs, phases)
            slower = dataclasses.replace(
                self.config,
                epochs=self.config.retrain_epochs,
                learning_rate=self.config.learning_rate * self.config.retrain_rate,
            )
            result = yield from self._train(task, 2, train, validation, slower)
            samples += result.samples
            yield PhaseEnd(2, result.accuracy, time.perf_counter() - started)
        self._claim(task)
        self._release(pool, task.index)
        return LearnReport(phase, samples, None, stop if something_free else "capacity")

    def _train(
        self, task: Task, phase: int, train: DataSet, validation: DataSet, config: PackNetConfig
    ) -> Fitting:
        """One fit with a fresh optimiser; ends with the values of its best epoch."""
        classes = self._classes(task.classes)
        optimiser = make_optimiser(config, self.network.parameters())
        return fit(
            self.network,
            network_step(self.network, classes.loss, optimiser),
            train,
            epochs=config.epochs,
            batch_size=config.batch_size,
            order=lambda epoch: stream(self.seed, "batches", task.index, phase, epoch),
            validate=lambda: accuracy(self.network, classes.predict, validation),
            keep=config.keep,
            patience=config.patience,
            optimiser=optimiser,
            rates=falling_rate(config),
        )

    def _prune(self, share: float) -> dict[str, int]:
        """Removes the smallest free connections of each hidden layer.

        Returns:
            How many each layer lost.
        """
        freed = {}
        for name in hidden_layers(self.network):
            layer = self.network.layers[name]
            weights = layer.weight.detach().cpu().view(-1, layer.weights_each)
            gone = layer.plastic_index.cpu()[smallest(weights.abs().sum(1), share)]
            pattern, nothing = layer.pattern, torch.zeros(0, dtype=torch.int64)
            pattern.view(-1)[gone] = False
            layer.rewire(pattern, nothing, torch.zeros(0, *layer.spec.kernel))
            freed[name] = len(gone)
        return freed

    def _claim(self, task: Task) -> None:
        """Freezes what the task trained and enters its name."""
        output = self.network.topology.output
        outputs = torch.zeros(output.size, dtype=torch.bool)
        outputs[list(task.classes)] = True
        for name, layer in self.network.layers.items():
            every = torch.ones(layer.shape[0], dtype=torch.bool)
            rows = every if layer.spec.target != output.name else outputs
            before = layer.frozen_index.cpu()
            layer.freeze(rows.unsqueeze(1).expand(layer.shape), rows)
            after = layer.frozen_index.cpu()
            owner = torch.full((len(after),), len(self.tasks), dtype=OWNER)
            owner[torch.isin(after, before)] = self.owner[name]  # both in order of position
            self.owner[name] = owner
        self.tasks.append(task.index)

    def _release(self, pool: Patterns, task: int) -> None:
        """Gives the connections of the pool that no task owns to the next one."""
        for name in hidden_layers(self.network):
            layer = self.network.layers[name]
            free = (pool[name] & ~layer.pattern).flatten().nonzero().squeeze(1)
            layer.rewire(pool[name], free, torch.zeros(len(free), *layer.spec.kernel))
        if self.config.free_values == "draw":
            restart_plastic(
                self.network,
                self.network_config.init,
                self.network_config.fan,
                seed=self.seed,
                task=task,
                gain=self.network_config.gain,
            )

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        classes = self.choices(task)
        assert task is not None  # choices refuses None
        return self._classes(classes).predict(self.network_of(task)(images))

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Logits of the task's classes; see :class:`Method`."""
        classes = self.choices(task)
        assert task is not None  # choices refuses None
        logits: Tensor = self.network_of(task)(images)
        return logits[:, list(classes)]

    def network_of(self, task: TaskInfo) -> SparseNetwork:
        """The network of one task: what it owns and what tasks before it own, and nothing else.

        The logits of the task's classes are the same after any later task. Those of other classes
        mean nothing.

        Raises:
            NotLearnedError: That task has not been learned.
        """
        if task.index not in self.tasks:
            raise NotLearnedError(f"the task with classes {task.classes} has not been learned yet")
        place = self.tasks.index(task.index)
        if self._view is None or self._view[0] != place:
            self._view = place, self._restricted(place)
        return self._view[1].eval()

    def _restricted(self, place: int) -> SparseNetwork:
        """A copy of the network with the connections of the tasks up to ``place`` only."""
        values = dict(self.network.state_dict())
        paths = {module: path for path, module in self.network.named_modules()}
        for name, layer in self.network.layers.items():
            own, path = (self.owner[name] <= place).to(self.device), paths[layer]
            values[f"{path}.weight"] = layer.weight.detach()[:0]
            values[f"{path}.plastic_index"] = layer.plastic_index[:0]
            values[f"{path}.frozen_weight"] = layer.frozen_weight[own]
            values[f"{path}.frozen_index"] = layer.frozen_index[own]
        problem = self.problem
        view = empty_network(self.network_config, problem.input_shape, problem.outputs)
        view = view.to(self.device)
        view.load_state_dict(values)
        return view

    def state(self) -> MethodState:
        """The network, and which task each frozen connection belongs to."""
        masks = {f"mask.{name}": owner.clone() for name, owner in self.owner.items()}
        return MethodState(network_state(self.network) | masks, {"tasks": list(self.tasks)})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        tasks = state.values.get("tasks")
        if not isinstance(tasks, list) or not all(type(task) is int for task in tasks):
            raise FormatError("'tasks' must list the tasks learned")
        if len(set(tasks)) != len(tasks):
            raise FormatError("'tasks' names a task twice")
        network, owner = load_network(self, state), take_tensors(state, "mask.")
        if set(owner) != set(network.layers):
            raise FormatError("the owners of connections do not fit the network's layers")
        for name, layer in network.layers.items():
            places = owner[name]
            if places.dtype != OWNER or places.shape != (layer.frozen_count,):
                raise FormatError(f"layer {name}: each frozen connection must have one owner")
            if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(tasks):
                raise FormatError(f"layer {name}: a connection's owner is not a task learned")
        if not is_packed(network, bool(tasks)):
            raise FormatError("what is frozen does not fit the tasks learned")
        self.network, self.tasks, self.owner, self._view = network, list(tasks), owner, None

    def census(self) -> Census:
        """Connections; see :class:`Method`. Those that are live and not frozen are free."""
        masks = sum(owner.nbytes for owner in self.owner.values())
        return count({"": self.network}, storage={"masks": masks})

    def _classes(self, classes: tuple[int, ...]) -> ClassMask:
        return ClassMask(classes, self.problem.outputs, "slice", self.device)


def hidden_layers(network: SparseNetwork) -> list[str]:
    """The layers that do not feed the output, in order."""
    output = network.topology.output.name
    return [layer.name for layer in network.topology.layers if layer.target != output]


def smallest(sizes: Tensor, share: float) -> Tensor:
    """The places of the smallest ``share`` of some magnitudes, but for one at least.

    Args:
        sizes: ``(n,)``, none negative. Of equal ones the first go first.
        share: In [0, 1).

    Returns:
        ``(round(share * n),)`` int64, or one fewer if these are all.
    """
    count = min(round(share * len(sizes)), max(0, len(sizes) - 1))
    return sizes.argsort(stable=True)[:count]


def is_packed(network: SparseNetwork, learned: bool) -> bool:
    """Whether what is frozen is what PackNet freezes.

    Biases of hidden units are frozen once anything was learned; outputs are frozen with all their
    connections or not at all.

    Args:
        network: The network.
        learned: Whether any task was learned.
    """
    hidden = hidden_layers(network)
    for name, layer in network.layers.items():
        fixed = torch.zeros(layer.shape[0], dtype=torch.bool)
        fixed[layer.frozen_bias_index.cpu()] = True
        if name in hidden and not bool((fixed == learned).all()):
            return False
        if name not in hidden and not torch.equal(layer.frozen, layer.pattern & fixed[:, None]):
            return False
    return True
