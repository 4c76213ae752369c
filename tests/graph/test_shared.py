"""Numbers that meet many units each: a gate of a whole block, one slope for all, weights of a mix.

They learn until the first units are kept, which keeps them, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nispa import Learner, sparsify
from nispa.errors import GraphError, IsolationError
from nispa.network.holding import HoldsUnits
from nispa.network.isolation import check_isolation
from nispa.network.traced import TracedNetwork
from tests.compacted import assert_compact_tells

SHAPE = (1, 6, 6)


class Gated(nn.Module):
    """Residual blocks behind a gate each that starts closed (ReZero)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(36, 16), nn.Linear(16, classes)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in ((), (1,)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.first(x.flatten(1)).relu()
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + gate * block(x).relu()
        logits: Tensor = self.last(x)
        return logits


class Sloped(nn.Sequential):
    """One slope for all channels, behind a convolution and behind a batch norm."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        )  # fmt: skip


class Mixed(nn.Module):
    """A learned mean of what several layers compute, and a temperature of the logits."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(36, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers - 1))
        self.mix, self.temperature = nn.Parameter(torch.zeros(layers)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        found = [F.gelu(self.first(x.flatten(1)))]
        for layer in self.layers:
            found.append(F.gelu(layer(found[-1])))
        shares = self.mix.softmax(0)
        mean = sum(share * each for share, each in zip(shares, found, strict=True))
        logits: Tensor = self.last(mean) * self.temperature.exp()
        return logits


class Pooled(nn.Module):
    """Maps summed with learned weights, and a pool with a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shares, self.power = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([3.0]))
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        one = self.one(x).relu()
        shares = self.shares.relu() / (self.shares.relu().sum() + 1e-4)
        maps = shares[0] * one + shares[1] * self.two(one).relu()
        pooled = maps.clamp(min=1e-6).pow(self.power).mean((2, 3)).pow(1 / self.power)
        logits: Tensor = self.last(pooled)
        return logits


NETWORKS = {"gates": Gated, "slopes": Sloped, "a mix": Mixed, "powers": Pooled}
SETTINGS: dict[str, dict[str, Any]] = {
    "nispa": {"density": 0.5, "max_phases": 3, "settle_epochs": 2},
    "clnp": {"epochs": 3, "density": 0.5},
    "packnet": {"epochs": 3, "density": 0.5},
    "wsn": {"epochs": 3},
}


def tasks() -> tuple[np.ndarray, np.ndarray]:
    """Images of four classes, lighter from one to the next."""
    labels = np.arange(160) % 4
    noise = np.random.default_rng(0).normal(size=(160, *SHAPE))
    return (noise + labels[:, None, None, None] - 1.5).astype("float32"), labels


def shared(learner: Learner) -> dict[str, Tensor]:
    """What no unit owns, by its path."""
    network = learner.method.network
    assert isinstance(network, HoldsUnits)
    return {name: network.values[name.replace(".", "/")].full() for name in network.graph.shared}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "nispa") for name in NETWORKS] + [("a mix", m) for m in ("clnp", "packnet", "wsn")],
)
@pytest.mark.filterwarnings("ignore:the network is")
def test_the_first_task_learns_what_many_units_share(
    name: str, method: str, tmp_path: Path
) -> None:
    images, labels = tasks()
    learner = Learner(
        method, model=NETWORKS[name](), input_shape=SHAPE, classes=4, **SETTINGS[method]
    )
    before = {path: value.clone() for path, value in shared(learner).items()}
    assert before
    learner.learn(images[labels < 2], labels[labels < 2])
    learned = shared(learner)
    assert all(not torch.equal(value, before[path]) for path, value in learned.items())
    told = learner.scores(images, 0)
    learner.learn(images[labels > 1], labels[labels > 1])
    assert all(torch.equal(value, learned[path]) for path, value in shared(learner).items())
    assert (learner.scores(images, 0) == told).all()
    learner.save(tmp_path / "learned.nispa")
    again = Learner.load(tmp_path / "learned.nispa", model=NETWORKS[name]())
    assert (again.scores(images, 0) == told).all()
    if method in ("nispa", "clnp"):
        assert_compact_tells(learner, images, told)


@pytest.mark.filterwarnings("ignore:the network is")
def test_a_forgotten_task_leaves_what_others_share() -> None:
    images, labels = tasks()
    learner = Learner(model=Gated(6), input_shape=SHAPE, classes=6, **SETTINGS["nispa"])
    learner.learn(images[labels < 2], labels[labels < 2])
    learner.learn(images[labels > 1], labels[labels > 1])
    told, kept = learner.scores(images, 1), shared(learner)
    learner.forget(0)
    learner.learn(images[labels < 2], labels[labels < 2])
    assert (learner.scores(images, 1) == told).all()
    assert all(torch.equal(value, kept[path]) for path, value in shared(learner).items())


def test_what_is_shared_belongs_to_no_group() -> None:
    network = sparsify(Gated(), torch.zeros(2, *SHAPE), classes=4)
    graph = network.graph
    assert network.groups().splitlines()[-1] == "shared by all units: gates.0, gates.1"
    assert graph.shared == ("gates.0", "gates.1")
    assert [group.name for group in graph.groups] == ["input", "first", "output"]


def test_a_shared_number_that_still_learns_is_found() -> None:
    network = sparsify(Gated(), torch.zeros(2, *SHAPE), classes=4, density=1.0)
    assert isinstance(network, TracedNetwork)
    everything = {
        group.name: torch.ones(group.size, dtype=torch.bool) for group in network.graph.groups
    }
    for layer in network.layers.values():
        layer.freeze(torch.ones(layer.shape, dtype=torch.bool), torch.ones(layer.shape[0]).bool())
    with pytest.raises(IsolationError):
        check_isolation(network, everything)
    network.hold(everything)
    check_isolation(network, everything)


def test_long_vectors_are_not_shared() -> None:
    with pytest.raises(GraphError, match=r"softmax .* over units of 'mix'"):
        sparsify(Mixed(layers=17), torch.zeros(2, *SHAPE), classes=4)
