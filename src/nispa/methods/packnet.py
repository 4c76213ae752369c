"""PackNet: each task keeps the largest of the free weights and frees the others.

Mallya and Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning", CVPR
2018, arXiv 1711.05769, section 3.

The network has a pool of connections, its first pattern. Task number t (from 0) is learned so:

1. Train all free connections; those of tasks 0 to t - 1 are frozen and take part.
2. In each hidden layer free the share ``prune`` of the connections just trained, those of the
   smallest magnitude; the others get the owner t. Only hidden layers are pruned.
3. Train the connections of task t again for ``retrain_epochs`` at a smaller step size, without the
   freed ones; then freeze them. The freed ones wait for the next task.

Task t is predicted with the connections whose owner is at most t, and no others. These never
change, and neither do the biases: those of hidden units are frozen after the first task, as in the
paper. So the logits of a task stay the same, bit for bit, whatever is learned later.

The head is not part of the pool, as in the paper, where each data set has a classifier of its own:
the connections into a task's outputs, with these outputs' biases, are all trained with the task,
never pruned, and frozen at its end.

Differences from the paper and from the published code:
- A connection into a convolution is a whole kernel and is kept or freed as one, by the sum of its
  absolute weights; the paper frees single weights. For Linear layers the two are the same.
- The paper starts from a network trained on ImageNet. Here the first task starts from random
  values.
- The published code prunes after every task but the last. Here there is always a next one.
- Best epochs are chosen by validation images; the published code looks at the test set.
- With a density below 1, the pool is that sparse; connections outside it are never live.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import (
    Fitting,
    Learning,
    LearnReport,
    PhaseEnd,
    PhaseStart,
)
from nispa.methods.epochs import KeepConfig, stop_reason
from nispa.methods.parts import ConnectionOwners, Derived, Network, hidden_layers
from nispa.methods.task_networks import TaskNetworks
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.taskmasks import Owners
from nispa.network.topology import Patterns
from nispa.training.fit import falling_rate, fit, make_optimiser, network_step


@settings
class PackNetConfig(KeepConfig):
    """Settings of PackNet."""

    prune: tuple[float, ...] = setting(
        (0.5, 0.75),
        "share of its free connections that each hidden layer frees again: after the first task, "
        "the second, ...; the last share holds for all later tasks",
    )
    retrain_epochs: int = setting(
        10, "epochs of training after the pruning, at most", ge=0, le=1_000_000
    )
    retrain_rate: float = setting(0.1, "factor on the learning rate after the pruning", gt=0, le=1)
    free_values: Literal["zero", "draw"] = setting(
        "zero", "initial values of freed weights in the next task: 0 (published), or drawn again"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prune or not all(0 <= share < 1 for share in self.prune):
            shown = ",".join(map(str, self.prune))
            raise ConfigError(
                f"prune={shown} must be shares in [0, 1), such as 0.5,0.75; a task must keep "
                "something"
            )

    def share(self, place: int) -> float:
        """The share freed after task number ``place``, from 0."""
        return self.prune[min(place, len(self.prune) - 1)]


class PackNet(TaskNetworks):
    """Task-incremental PackNet.

    Between two tasks, every frozen connection belongs to a task and every plastic one is free.

    Attributes:
        owners: The task of each frozen connection.
    """

    name = "packnet"
    forgets_nothing = "yes"
    published = "Mallya and Lazebnik, CVPR 2018"
    config_class = PackNetConfig
    carries = (Network(), ConnectionOwners("owners", "masks"), Derived("_view"))
    any_network = True
    config: PackNetConfig
    owners: Owners

    def learn_task(self, task: Task) -> Learning:
        """Trains all free connections, frees most of them again, trains and freezes the rest."""
        network, config, pool = self.network, self.config, self.network.patterns()
        train, validation = self.prepare_both(network, task)
        validate = self.validator(network, self.class_mask(task.classes), validation)
        something_free = any(len(layer.weight) for layer in hidden_layers(network).values())
        phases = 2 if config.retrain_epochs and something_free else 1

        started = time.perf_counter()
        yield PhaseStart(1, config.epochs, phases)
        result = yield from self._train(task, 1, train, validation, config)
        freed = self._prune(config.share(len(self.owners.tasks)))  # step 2
        yield PhaseEnd(1, validate(), time.perf_counter() - started, dropped=freed)

        # Step 3: with freed connections dead, not 0, so that training cannot revive them.
        stop, phase, samples = stop_reason(result, config), 1, result.samples
        if phases == 2 and any(freed.values()):
            started, phase = time.perf_counter(), 2
            yield PhaseStart(2, config.retrain_epochs, phases)
            slower = dataclasses.replace(
                config,
                epochs=config.retrain_epochs,
                learning_rate=config.learning_rate * config.retrain_rate,
            )
            result = yield from self._train(task, 2, train, validation, slower)
            samples += result.samples
            yield PhaseEnd(2, result.accuracy, time.perf_counter() - started)
        self._claim(task)
        self._release(pool, task)
        self.check_isolated(task)
        return LearnReport(phase, samples, None, stop if something_free else "capacity")

    def _train(
        self, task: Task, phase: int, train: DataSet, validation: DataSet, config: PackNetConfig
    ) -> Fitting:
        """One fit with a fresh optimiser; then the epoch to keep is restored."""
        classes = self.class_mask(task.classes)
        optimiser = make_optimiser(config, self.network.parameters())
        return fit(
            self.network,
            network_step(self.network, classes.loss, optimiser),
            train,
            epochs=config.epochs,
            batch_size=config.batch_size,
            order=self.shuffle(task, phase),
            validate=self.validator(self.network, classes, validation),
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
            # A kernel's size is that of all its weights: it is kept or freed as one.
            weights = layer.weight.detach().cpu().view(-1, layer.weights_each)
            freed_index = layer.plastic_index.cpu()[smallest(weights.abs().sum(1), share)]
            pattern, nothing = layer.pattern, torch.zeros(0, dtype=torch.int64)
            pattern.view(-1)[freed_index] = False
            layer.rewire(pattern, nothing, torch.zeros(0, *layer.spec.kernel))
            freed[name] = len(freed_index)
        return freed

    def _claim(self, task: Task) -> None:
        """Freezes the connections that the task trained and makes it their owner."""
        network, output = self.network, self.network.topology.output
        layers, hidden = network.layers, hidden_layers(network)
        outputs = torch.zeros(output.size, dtype=torch.bool)
        outputs[list(task.classes)] = True
        before = {name: layer.frozen_index.cpu() for name, layer in layers.items()}
        for name, layer in layers.items():
            # Of the head the task's rows only: other outputs belong to later tasks.
            every = torch.ones(layer.shape[0], dtype=torch.bool)
            rows = every if name in hidden else outputs
            layer.freeze(rows.unsqueeze(1).expand(layer.shape), rows)
        now = {name: layer.frozen_index.cpu() for name, layer in layers.items()}
        self.owners.claim(task.index, before, now)
        self.hold_shared(task.classes)

    def _release(self, pool: Patterns, task: Task) -> None:
        """Makes the connections of the pool that no task owns live again, for the next task."""
        for name in hidden_layers(self.network):
            layer = self.network.layers[name]
            free = (pool[name] & ~layer.pattern).flatten().nonzero().squeeze(1)
            layer.rewire(pool[name], free, torch.zeros(len(free), *layer.spec.kernel))
        if self.config.free_values == "draw":
            self.redraw_plastic(task, self.network_config.init)

    def task_network(self, task: TaskInfo) -> SparseNetwork:
        """Its connections and those of earlier tasks; free ones belong to no task."""
        layers = self.network.layers
        found = {}
        for name, owned in self.owners.of(task.index, earlier=True).items():
            owned = owned.to(self.device)
            found[name] = layers[name].frozen_index[owned], layers[name].frozen_weight[owned]
        return self.part_with(found)

    def check_parts(self, parts: dict[str, Any]) -> None:
        """The right connections and biases are frozen."""
        if not is_packed(parts["network"], bool(parts["owners"].tasks)):
            raise FormatError("what is frozen does not fit the tasks learned")
        if not self.shared_held(parts["network"]):
            raise FormatError("norms and values are not kept as after the first task")


def smallest(sizes: Tensor, share: float) -> Tensor:
    """Indices of the smallest ``share``; at least one size is not among them.

    Args:
        sizes: ``(n,)``, none negative. Among equal ones, the first count as smaller.
        share: In [0, 1).

    Returns:
        ``(round(share * n),)`` int64, or one fewer if that is all.
    """
    count = min(round(share * len(sizes)), max(0, len(sizes) - 1))
    return sizes.argsort(stable=True)[:count]


def is_packed(network: SparseNetwork, learned: bool) -> bool:
    """Whether exactly the right biases and output connections are frozen.

    Biases of hidden units are frozen after the first task; outputs are frozen with all their
    connections or not at all.

    Args:
        network: The network.
        learned: Whether any task was learned.
    """
    hidden = hidden_layers(network)
    for name, layer in network.layers.items():
        fixed = torch.zeros(layer.shape[0], dtype=torch.bool)
        fixed[layer.frozen_bias_index.cpu()] = True
        if name in hidden and layer.biases and not bool((fixed == learned).all()):
            return False
        if not layer.biases:
            fixed = layer.frozen.any(1)
        if name not in hidden and not torch.equal(layer.frozen, layer.pattern & fixed[:, None]):
            return False
    return True
