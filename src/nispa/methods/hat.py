"""HAT: each task learns which units it uses, and what a used unit computes is held.

Serra, Suris, Miron and Karatzoglou, "Overcoming Catastrophic Forgetting with Hard Attention to the
Task", ICML 2018, arXiv 1801.01423.

Task t has a gate for each hidden unit u, which multiplies what the unit says:

    a_u = sigmoid(s * e_u)

with an embedding e, learned with the weights, and a scale s that makes gates hard. In each epoch s
rises with the share of samples seen, from 1/s_max towards s_max:

    s = 1/s_max + (s_max - 1/s_max) * (samples seen) / (samples)

Predictions use s_max. With A_u the largest gate that any earlier task gave to unit u (1 for inputs,
0 in the first task), each step of task t

1. takes the gradient of  cross-entropy + strength * sum_u a_u (1 - A_u) / sum_u (1 - A_u),
2. multiplies that of a weight from unit v to unit u by 1 - min(A_u, A_v), that of the bias of u by
   1 - A_u: what earlier tasks use, stays,
3. multiplies that of e by  (s_max / s) (cosh(s e) + 1) / (cosh(e) + 1), as if s had been 1
   (|s e| <= 50 in there),
4. cuts the norm of all gradients to 10,000, updates, and clamps e to [-6, 6].

Each task has outputs of its own, without gates; they are frozen when it ends.

Gates at s_max are nearly 0 or 1, not exactly. So weights that earlier tasks use move a little, and
so do earlier logits. ``binary=true`` makes it exact: when a task ends its gates are rounded, 0 or 1
(1 if above a half), and what joins two units that some task uses is frozen. A task is predicted
without the units that are closed to it, so its logits stay the same, bit for bit.

Differences from the publication:
- The learning rate falls, and the best epoch is chosen, by validation accuracy; in the published
  code by validation loss.
- There is no dropout.
- In a convolution a gate is that of a channel, as published; a connection is a whole kernel.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError
from nispa.methods.base import (
    Learning,
    LearnReport,
    Method,
    MethodState,
    Part,
    PhaseEnd,
    PhaseStart,
)
from nispa.methods.carried import take_tensors
from nispa.methods.epochs import KeepConfig, stop_reason
from nispa.methods.parts import Derived, Network
from nispa.methods.task_networks import TaskNetworks
from nispa.network.layers import Units
from nispa.network.models import SparseNetwork
from nispa.network.operations import PerSample, counting, current
from nispa.network.topology import UnitSets, source_columns
from nispa.training.fit import Batch, Step, accuracy, falling_rate, fit, make_optimiser
from nispa.training.losses import ClassMask
from nispa.training.plateau import Plateau

COSH_BOUND = 50.0
EMBEDDING_BOUND = 6.0
GRADIENT_NORM = 10_000.0

Gates = Mapping[str, Tensor]
"""A number for each unit, per group, ``(units,)``."""


@settings
class HatConfig(KeepConfig):
    """Settings of HAT, with the paper's symbols as aliases."""

    optimiser: Literal["adam", "adamw", "sgd", "adadelta"] = setting(
        "sgd",
        "update rule; any but sgd (published) weakens the hold on earlier tasks",
        aliases=("optimizer",),
    )
    learning_rate: float = setting(
        0.05, "step size of the optimiser", gt=0, le=100, aliases=("lr",), hint="0.05 is published"
    )
    batch_size: int = setting(64, "images per training step", ge=1, le=10_000_000)
    momentum: float = setting(0.0, "momentum, for sgd only", ge=0, lt=1)
    epochs: int = setting(200, "epochs of training per task, at most", ge=1, le=1_000_000)
    rate_patience: int | None = setting(
        5,
        "with decay=none, epochs without a better validation accuracy after which the learning "
        "rate is divided",
        ge=1,
    )
    rate_factor: float = setting(3.0, "what the learning rate is divided by then", gt=1)
    lowest_rate: float = setting(
        1e-4, "the task ends instead where the learning rate would fall below this", ge=0
    )
    strength: float = setting(
        0.75, "weight of the penalty on open gates", ge=0, aliases=("lambda",)
    )
    s_max: float = setting(
        400.0, "largest scale of the gates: the larger, the harder", gt=1, le=100_000
    )
    binary: bool = setting(
        False, "round gates when a task ends and freeze what open units share: forgets nothing"
    )

    @property
    def plateau(self) -> Plateau | None:
        """The schedule of the learning rate, if it follows the validation accuracy."""
        if self.decay != "none" or self.rate_patience is None:
            return None
        return Plateau(self.learning_rate, self.rate_patience, self.rate_factor, self.lowest_rate)


def scale(done: float, s_max: float) -> float:
    """The scale s when a share ``done`` of an epoch's samples has been seen."""
    return 1 / s_max + (s_max - 1 / s_max) * done


def compensation(embedding: Tensor, s: float, s_max: float) -> Tensor:
    """The factor on an embedding's gradient: step 3."""
    hard = (s * embedding).clamp(-COSH_BOUND, COSH_BOUND).cosh() + 1
    return s_max / s * hard / (embedding.cosh() + 1)


def taken(gates: Gates, used: Gates) -> Tensor:
    """The share of the free capacity that open gates take, a scalar: the penalty of step 1.

    Args:
        gates: a of each hidden group.
        used: A of these groups at least. Where nothing is free, nothing is taken.
    """
    free = {name: 1 - used[name] for name in gates}
    room = torch.stack([each.sum() for each in free.values()]).sum()
    claims = torch.stack([(gate * free[name]).sum() for name, gate in gates.items()]).sum()
    return claims / room if room > 0 else claims


def free_shares(network: SparseNetwork, used: Gates) -> list[tuple[nn.Parameter, Tensor]]:
    """Each tensor of plastic values with the factors on its gradient: step 2.

    Args:
        network: The network.
        used: A of every group.
    """
    shares = []
    for layer in network.layers.values():
        rows, columns = layer.ends(layer.plastic_index)
        held = torch.minimum(used[layer.spec.target][rows], used[layer.spec.source][columns])
        shares.append((layer.weight, 1 - held.view(-1, *[1] * len(layer.spec.kernel))))
        shares.append((layer.bias, 1 - used[layer.spec.target][layer.bias_index]))
    return shares


class Gated(nn.Module):
    """A network with the embeddings of one task: what an epoch to keep restores.

    Attributes:
        network: The network.
        embeddings: e of each hidden group.
        gates: What its next pass multiplies the units of each group by.
    """

    def __init__(self, network: SparseNetwork, embeddings: Gates) -> None:
        """A network with open gates until others are set."""
        super().__init__()
        self.network = network
        self.embeddings = nn.ParameterDict(
            {name: nn.Parameter(value) for name, value in embeddings.items()}
        )
        self.gates: Gates = {name: torch.ones_like(value) for name, value in embeddings.items()}

    def at(self, s: float) -> dict[str, Tensor]:
        """The gates at a scale."""
        return {name: torch.sigmoid(s * value) for name, value in self.embeddings.items()}

    def forward(self, images: Any) -> Tensor:
        """Logits, ``(batch, outputs)``; within :meth:`attached`."""
        logits: Tensor = self.network(images)
        return logits

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While active, gates act on the network."""

        def gate(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert isinstance(module, Units)
            return output * self.gates[module.group].view(-1, *[1] * (output.dim() - 2))

        marks = [module for module in self.network.modules() if isinstance(module, Units)]
        handles = [mark.register_forward_hook(gate) for mark in marks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class TaskGates(Part):
    """The gates of each task learned, by its number: float32, or bool where they are rounded."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> dict[int, Gates]:
        """None yet."""
        return {}

    def save(self, value: Mapping[int, Gates]) -> MethodState:
        """A tensor for each task and group."""
        tensors = {
            f"mask.{task}.{name}": gate.detach().cpu().clone()
            for task, gates in value.items()
            for name, gate in gates.items()
        }
        return MethodState(tensors, {})

    def load(
        self, state: MethodState, method: Method, parts: Mapping[str, Any]
    ) -> dict[int, Gates]:
        """Those of the tasks learned, for every unit."""
        kind = torch.bool if method.config.binary else torch.float32
        groups = parts["network"].topology.hidden
        found = take_tensors(state, "mask.")
        loaded: dict[int, Gates] = {}
        for task in (info.index for info in method.learned):
            gates = {g.name: found.pop(f"{task}.{g.name}", torch.empty(0)) for g in groups}
            for group in groups:
                gate = gates[group.name]
                if gate.shape != (group.size,) or gate.dtype != kind:
                    raise FormatError(
                        f"the gates of task {task} in '{group.name}' must be {group.size} numbers "
                        f"of type {kind}"
                    )
                if not bool(((gate >= 0) & (gate <= 1)).all()):
                    raise FormatError(f"a gate of task {task} in '{group.name}' is not in [0, 1]")
            loaded[task] = {name: gate.to(method.device) for name, gate in gates.items()}
        if found:
            raise FormatError(
                f"there are gates of a task that was not learned: '{next(iter(found))}'"
            )
        return loaded


class Hat(TaskNetworks):
    """Task-incremental HAT.

    Attributes:
        gates: For each task learned, by its number, the gates of each hidden group at s_max.
    """

    name = "hat"
    forgets_nothing = "binary=true"
    not_any = "a norm over units reads them before any gate could close them for a task"
    published = "Serra et al., ICML 2018"
    config_class = HatConfig
    carries = (Network(), TaskGates("gates", "masks"), Derived("_view"))
    config: HatConfig
    gates: dict[int, Gates]

    def learn_task(self, task: Task) -> Learning:
        """Trains weights and gates, keeps the gates, freezes what must not change."""
        started = time.perf_counter()
        network, config, used = self.network, self.config, self.used()
        full = all(bool((used[group.name] == 1).all()) for group in network.topology.hidden)
        gated = Gated(network, self._embeddings(task))
        optimiser = make_optimiser(config, gated.parameters())
        classes = self.class_mask(task.classes)
        with gated.attached():
            train, validation = self.prepare_both(network, task)

            def validate() -> float | None:
                gated.gates = {name: gate.float() for name, gate in self._final(gated).items()}
                return accuracy(gated, classes.predict, validation)

            yield PhaseStart(1, config.epochs)
            result = yield from fit(
                gated,
                self._step(gated, classes, used, optimiser, len(train)),
                train,
                epochs=config.epochs,
                batch_size=config.batch_size,
                order=self.shuffle(task),
                validate=validate,
                keep=config.keep,
                patience=config.patience,
                optimiser=optimiser,
                rates=falling_rate(config),
                plateau=config.plateau,
            )
        self.gates[task.index] = self._final(gated)
        self._view = None
        fixed = held(network, self.gates if config.binary else {}, [*self.learned, task.info])
        for name, (connections, biases) in fixed.items():
            network.layers[name].freeze(connections, biases)
        yield PhaseEnd(1, result.accuracy, time.perf_counter() - started)
        return LearnReport(
            1, result.samples, None, "capacity" if full else stop_reason(result, config)
        )

    def _embeddings(self, task: Task) -> dict[str, Tensor]:
        """First embeddings, from the standard normal distribution."""
        return {
            group.name: torch.randn(
                group.size, generator=stream(self.seed, "gates", task.index, group.name)
            ).to(self.device)
            for group in self.network.topology.hidden
        }

    def _step(
        self,
        gated: Gated,
        classes: ClassMask,
        used: Gates,
        optimiser: torch.optim.Optimizer,
        samples: int,
    ) -> Step:
        """One update, of an epoch with so many samples."""
        config, shares = self.config, free_shares(gated.network, used)

        def step(batch: Batch) -> Tensor:
            s = scale((batch.number - 1) * config.batch_size / samples, config.s_max)
            optimiser.zero_grad(set_to_none=True)
            gated.gates = gates = gated.at(s)
            with counting(None):
                loss = classes.loss(gated(batch.images), batch.labels)
                loss = loss + config.strength * taken(gates, used)
                loss.backward()
            count_pass(gated.network, len(batch))
            for values, share in shares:
                if values.grad is not None:
                    values.grad *= share
            for embedding in gated.embeddings.values():
                if embedding.grad is not None:
                    embedding.grad *= compensation(embedding.detach(), s, config.s_max)
            nn.utils.clip_grad_norm_(gated.parameters(), GRADIENT_NORM)
            optimiser.step()
            with torch.no_grad():
                for embedding in gated.embeddings.values():
                    embedding.clamp_(-EMBEDDING_BOUND, EMBEDDING_BOUND)
            return loss.detach()

        return step

    @torch.no_grad()
    def _final(self, gated: Gated) -> dict[str, Tensor]:
        """The gates that predictions use: at s_max, rounded if they are to be."""
        gates = gated.at(self.config.s_max)
        return {name: gate > 0.5 for name, gate in gates.items()} if self.config.binary else gates

    def used(self) -> dict[str, Tensor]:
        """A: the largest gate of each unit so far, per group; 1 for inputs, 0 for outputs."""
        used = {
            group.name: torch.full((group.size,), float(group.role == "input"), device=self.device)
            for group in self.network.topology.groups
        }
        for gates in self.gates.values():
            for name, gate in gates.items():
                used[name] = torch.maximum(used[name], gate.float())
        return used

    @torch.no_grad()
    def task_network(self, task: TaskInfo) -> SparseNetwork:
        """The connections between open units, gates multiplied into the weights that leave them.

        Units whose gate is 0 are cut off, and so are the outputs of other tasks.
        """
        groups = self.network.topology.groups
        gates = {group.name: torch.ones(group.size, device=self.device) for group in groups}
        gates |= {name: gate.float() for name, gate in self.gates[task.index].items()}
        output = gates[self.network.topology.output.name]
        output.zero_()[list(task.classes)] = 1
        found = {}
        for name, layer in self.network.layers.items():
            index = torch.cat([layer.plastic_index, layer.frozen_index])
            order = index.argsort()
            index, weight = index[order], torch.cat([layer.weight, layer.frozen_weight])[order]
            rows, columns = layer.ends(index)
            leaving = gates[layer.spec.source][columns]
            live = (leaving > 0) & (gates[layer.spec.target][rows] > 0)
            factors = leaving.view(-1, *[1] * len(layer.spec.kernel))
            found[name] = index[live], (weight * factors)[live]
        return self.part_with(found)

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Exactly what must not change is frozen."""
        network, gates = parts["network"], parts["gates"] if self.config.binary else {}
        for name, (connections, biases) in held(network, gates, self.learned).items():
            layer = network.layers[name]
            fixed = layer.frozen_bias_index.cpu()
            if not torch.equal(layer.frozen, connections) or not torch.equal(
                fixed, biases.nonzero().squeeze(1)
            ):
                raise FormatError(f"what is frozen in layer {name} does not fit the tasks learned")


def held(
    network: SparseNetwork, gates: Mapping[int, UnitSets], learned: Sequence[TaskInfo]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What must not change: whole heads, and what joins two units that some task uses.

    Args:
        network: The network.
        gates: Rounded gates of each task; none where gates are soft.
        learned: The tasks.

    Returns:
        For each layer, live connections ``(target, source * block)`` and biases ``(target,)``, on
        the CPU.
    """
    topology = network.topology
    output, units = topology.output.name, topology.no_units()
    for each in gates.values():
        for name, opened in each.items():
            units[name] |= opened.cpu()
    units[output][[label for info in learned for label in info.classes]] = True
    found = {}
    for name, layer in network.layers.items():
        connections = layer.pattern & units[layer.spec.target].unsqueeze(1)
        if layer.spec.target != output:
            connections &= source_columns(layer.spec, units[layer.spec.source])
        found[name] = connections, units[layer.spec.target]
    return found


def count_pass(network: SparseNetwork, samples: int) -> None:
    """Enters a step's pass into the ledger: gates need a gradient into every hidden unit."""
    ledger = current()
    if ledger is None:
        return
    cost, inputs = network.per_sample(), network.topology.no_units()
    into = sum(
        2 * layer.weights_each * layer.places * layer.live_count
        for layer in network.layers.values()
        if not bool(inputs[layer.spec.source].any())
    )
    ledger.forward(samples, cost, learning=True)
    ledger.backward(samples, PerSample(cost.forward, cost.weights, into))
