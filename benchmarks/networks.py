"""What the benchmarks train: two networks, images of noise, and NISPA's own stable structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.data.tasks import Samples
from nispa.mechanism.grow import growth_rule, growth_values
from nispa.mechanism.rewire import rewire
from nispa.network.models import NetworkConfig, SparseNetwork, build_network
from nispa.network.topology import live_between
from nispa.training.fit import ClassMask

Net = Literal["mlp", "convnet"]

NETS: dict[Net, tuple[tuple[int, int, int], int, int, int]] = {
    "mlp": ((1, 28, 28), 57, 512, 20_000),
    "convnet": ((3, 32, 32), 10, 128, 9_000),
}
"""Shape of an image, number of outputs, images in a batch, and in the data set.

The data sets are as large as a task of EFMNIST and of split CIFAR-10: what is kept must share the
same memory.
"""


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        net: A name in :data:`NETS`.
        density: Share of live connections; the ConvNet's first layer is always dense.
        batch: Images in a batch.
        stable: Share of stable units in each hidden group, and of outputs learned before.
        cache: Whether NISPA keeps the activations of stable units.
        threads: Threads that compute.
        rounds: How often each contestant has its turn.
    """

    net: Net
    density: float
    batch: int
    stable: float = 0.0
    cache: bool = True
    threads: int = 2
    rounds: int = 9

    @property
    def outputs(self) -> int:
        """Number of the network's outputs."""
        return NETS[self.net][1]

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that are learned: those whose outputs are not stable yet."""
        stable = first(self.outputs, self.stable)
        return tuple((~stable).nonzero().squeeze(1).tolist())


def first(size: int, share: float) -> Tensor:
    """Marks the first ``share`` of ``size`` units, ``(size,)`` bool."""
    return torch.arange(size) < share * size


def make_network(case: Case) -> SparseNetwork:
    """The network of a case, with its stable structure."""
    config = NetworkConfig(architecture=case.net, density=case.density)
    network = build_network(config, NETS[case.net][0], case.outputs, seed=0)
    if case.stable:
        settle(network, case.stable)
    return network


def settle(network: SparseNetwork, share: float) -> dict[str, Tensor]:
    """Makes the first units of each group stable, as NISPA does at the end of a task.

    Connections from plastic into stable units are dropped and as many grow elsewhere, so the
    density stays what it was; then what is live between stable units is frozen, biases included.

    Args:
        network: What to change.
        share: Share of each hidden group, and of the outputs.

    Returns:
        The stable units of each group, ``(units,)`` bool; inputs always are.
    """
    topology, generator = network.topology, stream(0, "rewiring")
    stable = {
        group.name: first(group.size, 1.0 if group.role == "input" else share)
        for group in topology.groups
    }
    rule = growth_rule("full")
    changes = rewire(topology, network.patterns(), stable, rule, generator=generator)
    for name, change in changes.items():
        layer = network.layers[name]
        grown = torch.cat([change.revived, change.grown])
        values = growth_values("normal", layer.values_at(change.pattern), len(grown), generator)
        layer.rewire(change.pattern, grown, values)
    settled = live_between(topology, network.patterns(), stable, stable)
    for name, layer in network.layers.items():
        layer.freeze(settled[name], stable[layer.spec.target])
    return stable


def make_samples(case: Case) -> Samples:
    """Noise with labels of the classes that are learned."""
    generator = stream(0, "images")
    shape, _, _, count = NETS[case.net]
    images = torch.rand(count, *shape, generator=generator)
    classes = torch.tensor(case.classes)
    return Samples(images, classes[torch.randint(len(classes), (count,), generator=generator)])


def make_loss(case: Case) -> ClassMask:
    """The loss over the classes that are learned, as NISPA takes it."""
    return ClassMask(case.classes, case.outputs, "slice", torch.device("cpu"))
