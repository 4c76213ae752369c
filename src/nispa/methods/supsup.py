"""SupSup: each task chooses a part of one random network that is never trained.

Wortsman, Ramanujan, Liu, Kembhavi, Rastegari, Yosinski and Farhadi, "Supermasks in Superposition",
NeurIPS 2020, arXiv 2006.14769.

Every weight is +c or -c at random, c the deviation that Kaiming's rule gives the layer, and stays
so. Task t has a score s for each connection, drawn anew, and learns it so:

1. The mask m is 1 for the share ``capacity`` of a layer's connections with the largest abs(s)
   (``rule=largest``), or where s >= 0 (``rule=positive``). The network computes with w m.
2. With g the gradient of the cross-entropy among *all* outputs by w m, that of s is,
   straight-through, g w sign(s), or g w for ``rule=positive``.
3. At the end only m is kept.

Told the task, a prediction computes with w m. Not told, it first infers the task. With the masks
m_1 to m_k of all tasks, the network computes with  w sum_i alpha_i m_i, alpha_i = 1/k. H is the
mean entropy of the soft-max of its outputs, over the images that are inferred together. The chain
rule gives  dH/dalpha_i = sum over connections of  g w m_i, g the gradient of H by the product. So a
single pass, forward and backward, ranks all tasks:

- ``infer=gradient``: the task is the one with the smallest dH/dalpha_i: a little more of its mask
  lowers the entropy most;
- ``infer=halving``: the half with the smaller ones stays, with equal alpha, until one task is left:
  log2(k) passes.

``objective=surplus`` (variant G) puts  log sum_o exp(y_o)  in the place of H, where the gradient
passes through the outputs o that belong to no class alone. Training has pushed them down for images
of the mask's own task. The network needs such outputs then: ``surplus`` of them.

Differences from the paper and from the published code:
- There tasks share outputs, and an answer with the wrong mask counts as wrong. Here each task has
  outputs of its own, unless tasks share their classes (``incremental=domain``). The outputs of
  other tasks are trained down like surplus ones.
- A connection into a convolution is a whole kernel with one score; the paper scores single weights.
  For Linear layers the two are the same.
- A layer's mask has exactly round(capacity n) of n connections, at least one.
- There are no biases, as in the paper. Norms, depthwise kernels and positions of a module keep
  their first values, and a batch norm changes nothing; in the paper it takes statistics of the
  batch.
- The published code infers the task of a batch by its first image. Here ``together`` images in a
  row are inferred as one task; with 1, the default, each image is inferred by itself.
- The published optimiser on permuted MNIST is RMSprop.
- The paper's way to transfer, scores that begin at the mean of earlier tasks', is left out, as is
  its storage of masks in a Hopfield network.
- With a density below 1, connections outside the first pattern are never live.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import Incremental, Learning, Method, Part, draw_network
from nispa.methods.epochs import KeepConfig
from nispa.methods.inferring import InfersTask
from nispa.methods.parts import Derived, Network, TaskConnections
from nispa.methods.subnetworks import (
    Numbered,
    Subnetworks,
    chosen,
    largest,
    load_others,
    slope_by_size,
)
from nispa.network.initialise import kaiming_deviations
from nispa.network.models import SparseNetwork

Objective = Callable[[Tensor], Tensor]
"""From logits ``(n, outputs)`` to a mean over samples."""


@settings
class SupSupConfig(KeepConfig):
    """Settings of SupSup."""

    rule: Literal["largest", "positive"] = setting(
        "largest",
        "a task's connections: the share capacity with the largest scores, or all with s >= 0",
    )
    capacity: float = setting(
        0.5, "with rule=largest, share of its connections that each layer uses for a task",
        gt=0, le=1,
    )  # fmt: skip
    infer: Literal["gradient", "halving"] = setting(
        "gradient", "how an unknown task is found: by one gradient, or by halving the tasks"
    )
    objective: Literal["entropy", "surplus"] = setting(
        "entropy",
        "what the right mask makes small: the entropy, or the surplus outputs (variant G)",
    )
    surplus: int = setting(
        0, "outputs that belong to no class, for objective=surplus", ge=0, le=100_000
    )
    together: int = setting(1, "images in a row that are inferred as one task", ge=1, le=10_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "surplus" and not self.surplus:
            raise ConfigError(
                "objective=surplus needs outputs that belong to no class, and surplus=0 makes "
                "none; pass surplus=90, published for 10 classes"
            )


def entropy(logits: Tensor) -> Tensor:
    """H: the mean entropy of the soft-max of logits ``(n, outputs)``, a scalar."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def surplus_size(real: int) -> Objective:
    """G: the log-sum-exp of all logits, as a function of those after the first ``real`` alone."""

    def size(logits: Tensor) -> Tensor:
        seen = torch.cat([logits[:, :real].detach(), logits[:, real:]], 1)
        return seen.logsumexp(1).mean()

    return size


class Superposition:
    """A network that computes with weighted sums of masks.

    Attributes:
        network: A copy of the network, which holds the last sum.
    """

    def __init__(
        self, fixed: SparseNetwork, empty: SparseNetwork, masks: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """The masks of some tasks.

        Args:
            fixed: A network whose connections are all frozen, and whose biases are 0.
            empty: The same without connections; it becomes :attr:`network`.
            masks: For each task its connections by layer, ``(live,)`` bool in order of position.
        """
        self.network = empty.eval()
        load_others(fixed, empty)
        self._weights = {name: layer.frozen_weight for name, layer in fixed.layers.items()}
        self._masks: dict[str, Tensor] = {}
        for name, weights in self._weights.items():
            empty.layers[name].connect(fixed.layers[name].pattern, weights)
            self._masks[name] = torch.stack([mask[name] for mask in masks]).to(weights)

    def slopes(self, images: Tensor, objective: Objective, alphas: Tensor) -> Tensor:
        """The derivatives of an objective by each task's alpha, ``(tasks,)``.

        Args:
            images: ``(n, channels, height, width)``.
            objective: A mean over samples.
            alphas: ``(tasks,)``.
        """
        alphas = alphas.to(images)
        with torch.no_grad():
            for name, weights in self._weights.items():
                sums = alphas @ self._masks[name]
                self.network.layers[name].weight.copy_(
                    weights * sums.view(-1, *(1,) * (weights.dim() - 1))
                )
        unused = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with torch.enable_grad():
            self.network.gradients(images, unused, lambda logits, _: objective(logits))
        total = torch.zeros_like(alphas)
        for name, weights in self._weights.items():
            slope = self.network.layers[name].weight.grad
            if slope is not None:
                by_product = (slope * weights).reshape(len(weights), -1).sum(1)
                total += self._masks[name] @ by_product
        return total


def infer(slopes: Callable[[Tensor], Tensor], tasks: int, how: str) -> int:
    """The place of the task whose mask fits best.

    Args:
        slopes: From alphas ``(tasks,)`` to the derivatives of the objective by them.
        tasks: How many there are.
        how: ``"gradient"`` or ``"halving"``.
    """
    left = torch.arange(tasks)
    while len(left) > 1:
        alphas = torch.zeros(tasks)
        alphas[left] = 1 / len(left)
        ranked = left[slopes(alphas).cpu()[left].argsort(stable=True)]
        left = ranked[: 1 if how == "gradient" else (len(ranked) + 1) // 2]
    return int(left[0])


class FixedNetwork(Network):
    """A frozen network with weights +c and -c, c the Kaiming deviation, and without biases."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> SparseNetwork:
        """Signs drawn from the method's seed."""
        if method.problem.model is not None and method.logits != method.problem.outputs:
            raise ConfigError(
                "surplus outputs work on networks that are built by name; pass surplus=0"
            )
        network, config = draw_network(method, method.seed), method.network_config
        for layer in network.layers.values():
            sizes = kaiming_deviations(layer.spec, layer.pattern, config.init, config.fan)
            signs = torch.where(layer.weight.detach() < 0, -1.0, 1.0)
            each = (config.gain * sizes).to(signs).view(-1, *(1,) * (signs.dim() - 1))
            layer.restart_plastic(signs * each, torch.zeros(layer.shape[0]))
            layer.freeze(layer.pattern, torch.ones(layer.shape[0], dtype=torch.bool))
        groups = network.topology.groups
        network.hold({group.name: torch.ones(group.size, dtype=torch.bool) for group in groups})
        return network


class SupSup(InfersTask, Subnetworks):
    """SupSup for tasks, classes or images that are told, or inferred."""

    name = "supsup"
    forgets_nothing = "yes"
    published = "Wortsman et al., NeurIPS 2020"
    config_class = SupSupConfig
    carries: ClassVar[tuple[Part, ...]] = (
        FixedNetwork(),
        TaskConnections("masks", "masks"),
        Derived("_view"),
        Derived("_all"),
    )
    incremental: ClassVar[tuple[Incremental, ...]] = ("task", "class", "domain")
    shares_classes = True
    task_agnostic = True
    config: SupSupConfig
    _all: Superposition | None

    @property
    def logits(self) -> int:
        """One for each class, and the surplus."""
        surplus: int = self.given.surplus
        return self.problem.outputs + surplus

    def learn_task(self, task: Task) -> Learning:
        """Trains scores alone, then keeps their mask."""
        numbered = Numbered(self.network, self.first_scores(task))
        slope = slope_by_size if self.config.rule == "largest" else straight
        among_all = self.class_mask(range(self.logits)).loss
        report = yield from self.train_masked(
            task, numbered, self.choose, slope, self.config, among_all
        )
        self.masks.add(task.index, chosen(numbered, self.choose))
        self._all = None
        self.check_isolated(task)
        return report

    def first_scores(self, task: Task) -> dict[str, Tensor]:
        """Scores of each layer, ``(live,)``: evenly between -b and b, b = 1 / sqrt(inputs)."""
        drawn = {}
        for name, layer in self.network.layers.items():
            bound = (layer.shape[1] * layer.weights_each) ** -0.5
            generator = stream(self.seed, "scores", task.index, name)
            drawn[name] = (2 * torch.rand(layer.live_count, generator=generator) - 1) * bound
        return {name: each.to(self.device) for name, each in drawn.items()}

    def choose(self, scores: Tensor) -> Tensor:
        """The mask of a layer."""
        if self.config.rule == "positive":
            return scores >= 0
        return largest(scores.abs(), self.config.capacity)

    def infer_tasks(self, images: Tensor) -> list[int]:
        """The number of the task that each image is taken to belong to.

        Args:
            images: ``(batch, channels, height, width)``.
        """
        tasks = self.masks.tasks
        if self._all is None:
            masks = [self.masks.of(task) for task in tasks]
            empty = self.spec().empty().to(self.device)
            self._all = Superposition(self.network, empty, masks)
        every, objective = self._all, self.objective()
        found: list[int] = []
        for part in images.split(self.config.together):
            slopes = functools.partial(every.slopes, part, objective)
            place = infer(slopes, len(tasks), self.config.infer)
            found += [tasks[place]] * len(part)
        return found

    def objective(self) -> Objective:
        """What the right mask makes small."""
        if self.config.objective == "entropy":
            return entropy
        return surplus_size(self.problem.outputs)

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Scores of classes; see :meth:`Method.scores`. Classes of other tasks have the lowest."""
        if task is not None:
            return super().scores(images, task)
        classes = self.choices(None)
        scores = images.new_full((len(images), len(classes)), torch.finfo(images.dtype).min)
        tasks = torch.tensor(self.infer_tasks(images), device=images.device)
        for info in self.learned:
            rows = (tasks == info.index).nonzero()
            if len(rows):
                logits = self.network_for(info)(images[rows[:, 0]])
                columns = torch.tensor([classes.index(each) for each in info.classes])
                scores[rows, columns.to(images.device)] = logits[:, list(info.classes)]
        return scores

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Everything is frozen."""
        if any(value.numel() for value in parts["network"].parameters()):
            raise FormatError("a value of the fixed network is not frozen")


def straight(score: Tensor, of_bit: Tensor) -> Tensor:
    """The straight-through gradient of scores whose sign decides, from that of their bits."""
    return of_bit
