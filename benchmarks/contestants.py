"""The same training step done in several ways: dense with masks, nispa's kernels, its reference.

``masked`` multiplies a dense weight by its mask in every forward pass and lets Adam update all of
it, which is how published code and other frameworks train sparse networks. What is stable it
computes all the same.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.base.seeding import stream
from nispa.data.tasks import Samples
from nispa.kernels import dispatch
from nispa.methods.base import CACHE_BYTES
from nispa.network.layers import SparseConv2d, SparseLayer
from nispa.network.models import DataSet, SparseNetwork
from nispa.training.fit import (
    Batch,
    OptimiserConfig,
    Step,
    batch_of,
    gradient_step,
    make_optimiser,
    network_step,
)

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits ``(n, outputs)`` and labels ``(n,)`` to a mean over samples."""

ADAM = OptimiserConfig(learning_rate=1e-4)


class Contestant:
    """Trains on one batch at each call: gathers it, updates, returns the loss.

    Attributes:
        module: What learns.
        data: What it reads.
        optimiser: What updates it.
    """

    def __init__(
        self,
        module: nn.Module,
        data: DataSet,
        batch: int,
        make_step: Callable[[torch.optim.Optimizer], Step],
    ) -> None:
        """A contestant; all of them see the same batches in the same order."""
        self.module = module
        self.data = data
        if isinstance(module, SparseNetwork):
            self.optimiser = make_optimiser(ADAM, module.parameters())
        else:  # as it comes, which is how published code and its users take it
            self.optimiser = torch.optim.Adam(module.parameters(), lr=ADAM.learning_rate)
        self._step = make_step(self.optimiser)
        order = torch.randperm(len(data), generator=stream(0, "order"))
        self._batches = itertools.cycle(order[: len(data) // batch * batch].split(batch))

    def __call__(self) -> Tensor:
        """One training step."""
        return self._step(batch_of(self.data, next(self._batches)))


class ChannelsLast:
    """Images that lie pixel by pixel, all channels of one side by side."""

    def __init__(self, samples: Samples) -> None:
        self.labels = samples.labels
        self._pixels = samples.images.permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(n, channels, height, width)`` and labels at ``index``."""
        return self._pixels[index].permute(0, 3, 1, 2), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All in order, at most ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)


class Dense(nn.Module):
    """A sparse layer as a dense one with the same values."""

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.dense_weight())
        self.bias = nn.Parameter(layer.dense_bias())
        self.convolution = isinstance(layer, SparseConv2d)
        self.padding = layer.padding if isinstance(layer, SparseConv2d) else 0

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.weight)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with any weight in place of its own."""
        if self.convolution:
            return functional.conv2d(x, weight, self.bias, padding=self.padding)
        return functional.linear(x, weight, self.bias)

    def dense_gradient(self) -> Tensor:
        """Gradient of the weight, ``(target, source, *kernel)``."""
        assert self.weight.grad is not None
        return self.weight.grad


class Masked(Dense):
    """A sparse layer as a dense weight times a mask."""

    mask: Tensor

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__(layer)
        mask = layer.pattern.float().view(*layer.shape, *[1] * len(layer.spec.kernel))
        self.register_buffer("mask", mask.expand(self.weight.shape).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.weight * self.mask)


def swapped(network: SparseNetwork, make: Callable[[SparseLayer], nn.Module]) -> nn.Sequential:
    """The modules of a network, with another module for each sparse layer."""
    assert isinstance(network.body, nn.Sequential)
    return nn.Sequential(
        *[make(part) if isinstance(part, SparseLayer) else part for part in network.body]
    )


def plain(module: nn.Module, data: DataSet, batch: int, loss: Loss) -> Contestant:
    """A module trained as PyTorch trains."""
    return Contestant(
        module,
        data,
        batch,
        lambda optimiser: gradient_step(lambda x, y: loss(module(x), y), optimiser),
    )


def channels_last(module: nn.Module, samples: Samples, batch: int, loss: Loss) -> Contestant:
    """The same with images and weights in the other layout."""
    lying = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return plain(lying, ChannelsLast(samples), batch, loss)


def nispa(
    network: SparseNetwork, samples: Samples, batch: int, loss: Loss, *, cache: bool
) -> Contestant:
    """The way methods train, on the kernels in use.

    Args:
        network: What learns.
        samples: What it reads.
        batch: Images a step.
        loss: What falls.
        cache: Whether to prepare the data set, which keeps the activations of stable units.
    """
    data = network.prepare(samples, CACHE_BYTES) if cache else samples
    return Contestant(
        network, data, batch, lambda optimiser: network_step(network, loss, optimiser)
    )


def reference_kernels() -> AbstractContextManager[object]:
    """Inside it, sparse layers run on the reference kernels."""
    return patch.object(dispatch, "library", lambda: (None, "asked for"))


def nispa_reference(network: SparseNetwork, samples: Samples, batch: int, loss: Loss) -> Contestant:
    """The way methods train where no kernels were compiled."""

    def make_step(optimiser: torch.optim.Optimizer) -> Step:
        step = network_step(network, loss, optimiser)

        def on_reference(batch: Batch) -> Tensor:
            with reference_kernels():
                return step(batch)

        return on_reference

    return Contestant(network, samples, batch, make_step)


def contestants(
    network: SparseNetwork, samples: Samples, batch: int, loss: Loss, *, cache: bool
) -> dict[str, Contestant]:
    """The usual ones, each with a network of its own that starts with the same values."""
    found = {"masked": plain(swapped(network, Masked), samples, batch, loss)}
    if any(isinstance(layer, SparseConv2d) for layer in network.layers.values()):
        lying = channels_last(swapped(network, Masked), samples, batch, loss)
        found["masked, channels-last"] = lying
    own = copy.deepcopy(network)
    found["nispa"] = nispa(own, samples, batch, loss, cache=cache)
    found["nispa, reference"] = nispa_reference(copy.deepcopy(network), samples, batch, loss)
    return found
