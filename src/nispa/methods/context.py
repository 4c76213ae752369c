"""Which task an image belongs to, told by what stable units make of it.

A stable unit never computes anything else, so what it did for the images of a task can be kept, and
compared with what it does for any image later. Features are the activations of stable units (of a
channel, the mean over its map; in a network of any module, of the units that the outputs read) and,
on request, the inputs, which are stable from the start. They are listed in the order in which units
became stable: those that were stable after task k are the first d_k. Tasks are told apart one after
another, as in Gurbuz, Moorman and Dovrolis, "NICE: Neurogenesis Inspired Contextual Encoding for
Replay-free Class Incremental Learning", CVPR 2024:

    p_k(x) = P(task k | task k or later),  from the first d_k features of x
    P(k)   = p_k (1 - p_1) ... (1 - p_(k-1));  the last task takes what is left.

Task k and all later tasks have these features; an earlier task need not. Two detectors find p_k.

:class:`Activations` is NICE's. Some samples of each class are kept as bits: is the activation above
its group's threshold, mean + deviation over the first task's samples? A logistic model for each
task but the last separates its bits from those of later tasks.

:class:`Statistics` keeps no sample. It keeps for each class c the number n_c and the mean mu_c of
its training images' features, and for each task k the covariance S of its features within classes,
pooled over the classes of task k and later ones. With the share ``shrinkage`` of S's mean variance
added to all variances,

    g_c(x) = x . S^-1 mu_c - mu_c . S^-1 mu_c / 2 + log n_c,   p_k = sum of exp g_c over classes of
    task k / the same sum over classes of task k and later ones,

the linear discriminant: Bayes' rule for normal features with one covariance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nispa.base.config import setting, settings
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, FormatError, installed, missing, needs
from nispa.network.operations import purpose
from nispa.network.reads import unit_means
from nispa.network.sparse_network import SparseNetwork
from nispa.network.topology import UnitSets
from nispa.training.fit import EVALUATION_BATCH

MOST_FEATURES = 8192
"""Of ``statistics``: the covariance of each task then takes 256 MB."""

ITERATIONS = 10_000
"""Of a logistic model at most; it takes a few hundred."""


@settings
class ContextConfig:
    """Settings of what tells tasks apart."""

    context: Literal["activations", "statistics", "entropy", "energy"] = setting(
        "statistics",
        "what tells the task: bits of stable units of some samples, means and covariances of all "
        "training images' features, or the heads' entropy or energy",
    )
    samples_per_class: int = setting(
        50, "samples of each class kept as bits, for context=activations", ge=1, le=100_000
    )
    context_inputs: bool = setting(
        True, "inputs are features beside stable units, for activations and statistics"
    )
    fit_strength: float = setting(
        0.4, "weight of the samples beside the penalty, in logistic models", gt=0, le=1e6
    )
    shrinkage: float = setting(
        0.01, "share of the mean variance added to each variance, for statistics", gt=0, le=1000
    )


class Features:
    """The features of a network: units in the order in which they became stable.

    Attributes:
        groups: Groups that have features, by the number of their units.
        places: Feature to unit, counted through all groups, ``(features,)`` int64.
        counts: How many features there were after each task.
    """

    def __init__(self, groups: Mapping[str, int], inputs: str) -> None:
        """No feature yet.

        Args:
            groups: The number of units of each group, in order.
            inputs: The group of the inputs, whose units are pixels of an image.
        """
        self.groups, self.inputs = dict(groups), inputs
        self.places = torch.zeros(0, dtype=torch.int64)
        self.counts: list[int] = []

    def extend(self, stable: UnitSets) -> None:
        """Adds the units that became stable with a task; all inputs with the first.

        Args:
            stable: Stable units per group, ``(units,)`` bool.
        """
        marks = [
            torch.ones(size, dtype=torch.bool) if name == self.inputs else stable[name].cpu()
            for name, size in self.groups.items()
        ]
        new = torch.cat(marks)
        new[self.places] = False
        self.places = torch.cat([self.places, new.nonzero().squeeze(1)])
        self.counts.append(len(self.places))

    def units_of(self, network: SparseNetwork, images: Tensor) -> Tensor:
        """The activation of every unit, stable or not, ``(batch, units)`` float32 on the CPU."""
        seen = unit_means(network, images)
        parts = [images.flatten(1) if name == self.inputs else seen[name] for name in self.groups]
        return torch.cat([part.float().cpu() for part in parts], 1)

    def of(self, network: SparseNetwork, images: Tensor) -> Tensor:
        """The features of images, ``(batch, features)`` float32 on the CPU."""
        return self.units_of(network, images)[:, self.places]


class Detector(ABC):
    """Tells tasks apart by features, whose list it extends with each task.

    Attributes:
        features: The features.
        tasks: The classes of each task learned.
    """

    def __init__(self, features: Features, config: ContextConfig) -> None:
        self.features, self.config = features, config
        self.tasks: list[tuple[int, ...]] = []
        self._rules: list[Any] | None = None  # how to find the odds, from what is kept

    @torch.no_grad()
    def learn(
        self, network: SparseNetwork, task: Task, stable: UnitSets, generator: torch.Generator
    ) -> None:
        """Takes up a task that was learned.

        Args:
            network: The network, at the end of the task.
            task: The task; its training images are used.
            stable: Stable units per group, ``(units,)`` bool.
            generator: Source of randomness.
        """
        self._rules = None
        self.features.extend(stable)
        self.tasks.append(task.classes)
        with purpose("activity"):
            self.take(network, task.train, generator)

    @abstractmethod
    def take(self, network: SparseNetwork, samples: Samples, generator: torch.Generator) -> None:
        """Keeps what it needs of the last task."""

    @abstractmethod
    def odds(self, features: Tensor) -> list[Tensor]:
        """Log odds of p_k for each task but the last, ``(batch,)`` float64 each.

        Args:
            features: ``(batch, features)`` float32.
        """

    @torch.no_grad()
    def log_posterior(self, network: SparseNetwork, images: Tensor) -> Tensor:
        """The log probability of each task, ``(batch, tasks)`` float64 on the CPU."""
        return posterior(self.odds(self.features.of(network, images)), len(images))

    def state(self) -> dict[str, Tensor]:
        """Copies of all its tensors."""
        return {
            "places": self.features.places.to(torch.int32),
            "counts": torch.tensor(self.features.counts, dtype=torch.int64),
        }

    def load(self, found: Mapping[str, Tensor], tasks: Sequence[tuple[int, ...]]) -> None:
        """Restores what :meth:`state` gave.

        Args:
            found: Its tensors.
            tasks: The classes of each task learned.

        Raises:
            FormatError: They do not fit.
        """
        units = sum(self.features.groups.values())
        places = tensor_of(found, "places", torch.int32).long()
        counts = tensor_of(found, "counts", torch.int64).tolist()
        ends = counts[-1] if counts else 0
        if len(counts) != len(tasks) or counts != sorted(counts) or ends != len(places):
            raise FormatError("the saved features do not fit the tasks learned")
        if counts and counts[0] < 0:
            raise FormatError("a saved number of features is negative")
        if len(places.unique()) != len(places) or bool(((places < 0) | (places >= units)).any()):
            raise FormatError("the saved features are not different units of the network")
        self.features.places, self.features.counts = places, counts
        self.tasks, self._rules = list(tasks), None


def posterior(odds: Sequence[Tensor], count: int) -> Tensor:
    """NICE's chain: the log probability of each task, ``(count, tasks)`` float64.

    Args:
        odds: Log odds of task k against all later tasks, for each task but the last, ``(count,)``.
        count: Number of samples.
    """
    left = torch.zeros(count, dtype=torch.float64)  # log of the product of 1 - p_j
    found = []
    for each in odds:
        found.append(left + logsigmoid(each))
        left = left + logsigmoid(-each)
    return torch.stack([*found, left], 1)


class Activations(Detector):
    """Bits of the features of some samples, and a logistic model for each task but the last.

    Attributes:
        thresholds: Of each group, ``(groups,)`` float32; empty before the first task.
        bits: Of the samples of each task, ``(samples, ceil(features / 8))`` uint8, packed.
    """

    def __init__(self, features: Features, config: ContextConfig) -> None:
        super().__init__(features, config)
        if not installed("sklearn"):  # it is imported to predict: too late to say so
            raise missing("sklearn", "context=activations", "sklearn")
        self.thresholds = torch.zeros(0)
        self.bits: list[Tensor] = []
        self._rules: list[tuple[Tensor, float]] | None = None

    def take(self, network: SparseNetwork, samples: Samples, generator: torch.Generator) -> None:
        """Keeps the bits of samples of each class, drawn at random."""
        drawn = []
        for label in self.tasks[-1]:
            index = (samples.labels == label).nonzero().squeeze(1).cpu()
            order = torch.randperm(len(index), generator=generator)
            drawn.append(index[order[: self.config.samples_per_class]])
        chosen = samples.subset(torch.cat(drawn).to(samples.labels.device))
        chosen = chosen.to(network_device(network))
        units = torch.cat(
            [
                self.features.units_of(network, images)
                for images, _ in chosen.batches(EVALUATION_BATCH)
            ]
        )
        if not len(self.thresholds):
            parts = units.split(list(self.features.groups.values()), dim=1)
            self.thresholds = torch.stack([p.mean() + p.std(correction=0) for p in parts])
        bits = self.binary(units[:, self.features.places]).numpy()
        self.bits.append(torch.from_numpy(np.packbits(bits, axis=1)))

    def binary(self, features: Tensor) -> Tensor:
        """Which features are above their threshold, ``(batch, features)`` bool."""
        sizes = torch.tensor(list(self.features.groups.values()))
        return features > self.thresholds.repeat_interleave(sizes)[self.features.places]

    def odds(self, features: Tensor) -> list[Tensor]:
        """Those of the logistic models, which are fitted when they are first asked for."""
        if self._rules is None:
            self._rules = [self._fitted(task) for task in range(len(self.tasks) - 1)]
        bits = self.binary(features).double()
        return [bits[:, : len(weights)] @ weights + bias for weights, bias in self._rules]

    def _fitted(self, task: int) -> tuple[Tensor, float]:
        """Weights ``(features,)`` float64 and bias of a task's model."""
        with needs("sklearn", "context=activations"):
            from sklearn.linear_model import LogisticRegression  # importing it takes a second
        count = self.features.counts[task]
        later = [np.unpackbits(bits.numpy(), axis=1)[:, :count] for bits in self.bits[task:]]
        own, rest = len(later[0]), sum(map(len, later[1:]))
        if not count:
            return torch.zeros(0, dtype=torch.float64), math.log(own / rest)
        model = LogisticRegression(C=self.config.fit_strength, max_iter=ITERATIONS)
        model.fit(np.concatenate(later).astype(np.float64), np.arange(own + rest) < own)
        return torch.from_numpy(model.coef_[0].copy()), float(model.intercept_[0])

    def state(self) -> dict[str, Tensor]:
        """Copies of all its tensors."""
        bits = {f"bits{task}": bits.clone() for task, bits in enumerate(self.bits)}
        return {**super().state(), "thresholds": self.thresholds.clone(), **bits}

    def load(self, found: Mapping[str, Tensor], tasks: Sequence[tuple[int, ...]]) -> None:
        """Restores what :meth:`state` gave."""
        super().load(found, tasks)
        self.thresholds = tensor_of(found, "thresholds", torch.float32)
        if len(self.thresholds) != (len(self.features.groups) if tasks else 0):
            raise FormatError("the saved thresholds do not fit the groups of units")
        self.bits = []
        for task, count in enumerate(self.features.counts):
            bits = tensor_of(found, f"bits{task}", torch.uint8, 2)
            most = self.config.samples_per_class * len(tasks[task])
            if bits.shape[1] != -(-count // 8) or not 0 < len(bits) <= most:
                raise FormatError(f"the saved bits of task {task} do not fit its features")
            self.bits.append(bits)


class Statistics(Detector):
    """Means of classes, and a covariance for each task: linear discriminants.

    Attributes:
        images: Training images of each class, by task, ``(classes,)`` int64 each.
        means: Of each class, by task, ``(classes, features)`` float32 each.
        scatters: For each task the sum over its training images, and those of later tasks, of
            (x - mu)(x - mu)', mu the mean of the image's class, over the task's features;
            ``(features, features)`` float32 each.
    """

    def __init__(self, features: Features, config: ContextConfig) -> None:
        super().__init__(features, config)
        self.images: list[Tensor] = []
        self.means: list[Tensor] = []
        self.scatters: list[Tensor] = []
        self._rules: list[tuple[Tensor, Tensor, int]] | None = None

    def take(self, network: SparseNetwork, samples: Samples, generator: torch.Generator) -> None:
        """Adds up the features of all images and their products."""
        del generator
        classes, count = self.tasks[-1], len(self.features.places)
        sums = torch.zeros(len(classes), count, dtype=torch.float64)
        products = torch.zeros(count, count, dtype=torch.float64)
        images = torch.zeros(len(classes), dtype=torch.int64)
        place_of = {label: place for place, label in enumerate(classes)}
        for batch, labels in samples.to(network_device(network)).batches(EVALUATION_BATCH):
            x = self.features.of(network, batch).double()
            places = torch.tensor([place_of[label] for label in labels.tolist()])
            sums.index_add_(0, places, x)
            products.addmm_(x.T, x)
            images += torch.bincount(places, minlength=len(classes))
        means = sums / images.clamp(min=1).unsqueeze(1)
        scatter = (products - means.T @ sums).float()
        for earlier in self.scatters:
            earlier += scatter[: len(earlier), : len(earlier)]
        self.scatters.append(scatter)
        self.images.append(images)
        self.means.append(means.float())

    def odds(self, features: Tensor) -> list[Tensor]:
        """Those of the linear discriminant, which is found when it is first asked for."""
        if self._rules is None:
            self._rules = [self._rule(task) for task in range(len(self.tasks) - 1)]
        x, found = features.double(), []
        for weights, bias, own in self._rules:
            g = x[:, : weights.shape[1]] @ weights.T + bias
            found.append(g[:, :own].logsumexp(1) - g[:, own:].logsumexp(1))
        return found

    def _rule(self, task: int) -> tuple[Tensor, Tensor, int]:
        """The discriminant of the classes of a task and later ones.

        Returns:
            Weights ``(classes, features)`` and biases ``(classes,)``, float64, and how many of the
            classes, the first ones, are the task's.
        """
        count = self.features.counts[task]
        means = torch.cat([each[:, :count] for each in self.means[task:]]).double()
        images = torch.cat(self.images[task:]).double()
        bias, own = images.log(), len(self.images[task])
        if not count:
            return means, bias, own
        covariance = self.scatters[task].double() / images.sum()
        ridge = self.config.shrinkage * float(covariance.diagonal().mean()) or 1.0
        factor = None
        while factor is None:  # rounding may have left more than a small ridge mends
            loaded = covariance + ridge * torch.eye(count, dtype=torch.float64)
            lower, failed = torch.linalg.cholesky_ex(loaded)
            factor, ridge = (None if bool(failed) else lower), 2 * ridge
        weights = torch.cholesky_solve(means.T, factor).T
        return weights, bias - 0.5 * (weights * means).sum(1), own

    def state(self) -> dict[str, Tensor]:
        """Copies of all its tensors; of scatters, which are symmetric, one half."""
        found = super().state()
        for task, scatter in enumerate(self.scatters):
            rows, columns = torch.tril_indices(*scatter.shape)
            found[f"scatter{task}"] = scatter[rows, columns]
            found[f"images{task}"] = self.images[task].clone()
            found[f"means{task}"] = self.means[task].clone()
        return found

    def load(self, found: Mapping[str, Tensor], tasks: Sequence[tuple[int, ...]]) -> None:
        """Restores what :meth:`state` gave."""
        super().load(found, tasks)
        self.images, self.means, self.scatters = [], [], []
        for task, (classes, count) in enumerate(zip(tasks, self.features.counts, strict=True)):
            images = tensor_of(found, f"images{task}", torch.int64)
            means = tensor_of(found, f"means{task}", torch.float32, 2)
            half = tensor_of(found, f"scatter{task}", torch.float32)
            if images.shape != (len(classes),) or means.shape != (len(classes), count):
                raise FormatError(f"the saved means of task {task} do not fit its classes")
            if bool((images < 1).any()):
                raise FormatError(f"a class of task {task} has no image")
            if len(half) != count * (count + 1) // 2:
                raise FormatError(f"the saved scatter of task {task} does not fit its features")
            rows, columns = torch.tril_indices(count, count)
            scatter = torch.zeros(count, count)
            scatter[rows, columns] = half
            scatter[columns, rows] = half
            self.images.append(images)
            self.means.append(means)
            self.scatters.append(scatter)


def network_device(network: SparseNetwork) -> torch.device:
    """Where a network's values are."""
    return next(network.parameters()).device


def tensor_of(
    found: Mapping[str, Tensor], name: str, dtype: torch.dtype, dimensions: int = 1
) -> Tensor:
    """A copy of a tensor of a saved detector.

    Raises:
        FormatError: It is missing, of another type or number of dimensions, or not finite.
    """
    tensor = found.get(name)
    if tensor is None or tensor.dtype != dtype or tensor.dim() != dimensions:
        raise FormatError(f"the saved detector has no '{name}' of type {dtype}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise FormatError(f"'{name}' of the saved detector holds a value that is not finite")
    return tensor.clone()


DETECTORS: Mapping[str, type[Detector]] = {"activations": Activations, "statistics": Statistics}
"""The detectors by the setting ``context``."""


def make_detector(
    config: ContextConfig, network: SparseNetwork, groups: Iterable[str]
) -> Detector | None:
    """The detector that the settings ask for; None where the heads alone tell the task.

    Args:
        config: The settings.
        network: The network whose units are features.
        groups: The hidden groups whose units are.

    Raises:
        ConfigError: There would be too many features.
    """
    if config.context not in DETECTORS:
        return None
    inputs = next(group.name for group in network.topology.groups if group.role == "input")
    sizes = {inputs: math.prod(network.input_shape)} if config.context_inputs else {}
    sizes |= {name: network.topology.group(name).size for name in groups}
    if config.context == "statistics" and sum(sizes.values()) > MOST_FEATURES:
        fix = "context=activations"
        if config.context_inputs and sum(sizes.values()) - sizes[inputs] <= MOST_FEATURES:
            fix = "context_inputs=false"
        raise ConfigError(
            f"context=statistics keeps the covariance of {sum(sizes.values())} features, inputs "
            f"and units; at most {MOST_FEATURES} are possible; pass {fix}"
        )
    return DETECTORS[config.context](Features(sizes, inputs), config)
