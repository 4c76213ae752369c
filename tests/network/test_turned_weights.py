"""Parameters that hold columns first: ``x @ weight``, GPT-2's Conv1D, transposed convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nispa import Learner, sparsify
from nispa.errors import GraphError

SHAPE = (1, 8, 8)
EXAMPLE = torch.zeros(2, *SHAPE)


class Decoder(nn.Module):
    """Transposed convolutions, and matrices written in every usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.smooth = nn.ConvTranspose2d(8, 10, 3, padding=1, bias=False)
        self.first = nn.Parameter(torch.randn(40, 20) / 6)
        self.shift = nn.Parameter(torch.zeros(20))
        self.second = nn.Parameter(torch.randn(20, 16) / 4)
        self.third = nn.Parameter(torch.randn(16, 18) / 4)
        self.bias = nn.Parameter(torch.zeros(18))
        self.fourth = nn.Parameter(torch.randn(18, 14) / 4)
        self.last = nn.Parameter(torch.randn(4, 14) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.norm(self.conv(x)).relu()
        x = self.smooth(self.up(functional.max_pool2d(x, 2)).relu()).relu()
        x = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        x = (x @ self.first + self.shift).relu()
        x = torch.mm(x, self.second).relu()
        x = torch.addmm(self.bias, x, self.third).relu()
        x = functional.linear(x, self.fourth.t()).relu()
        return x @ self.last.T


def toy() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images of four classes, each brighter in another part."""
    labels = np.arange(200) % 4
    images = np.random.default_rng(0).normal(size=(len(labels), *SHAPE)).astype("float32")
    images[labels == 1, :, :4] += 1
    images[labels == 2, :, 4:] += 1
    images[labels == 3, :, :, :4] += 1
    return images, labels


def test_who_writes_and_reads_each_group() -> None:
    graph = sparsify(Decoder(), EXAMPLE, density=0.5).graph
    layers = {layer.name: layer for layer in graph.layers}
    assert [name for name, layer in layers.items() if layer.turned] == [
        "up", "smooth", "first", "second", "third", "fourth",
    ]  # fmt: skip
    sizes = {group.name: (group.size, group.writers, group.readers) for group in graph.groups}
    assert sizes["up"] == (8, ("up",), ("smooth",))
    assert sizes["smooth"] == (10, ("smooth",), ("first",))
    assert sizes["second"] == (16, ("second",), ("third",))
    assert (layers["third"].bias, layers["first"].bias) == ("bias", None)


def test_its_own_values_give_its_own_logits_and_operations() -> None:
    model, images = Decoder().eval(), torch.randn(3, *SHAPE)
    network = sparsify(model, EXAMPLE, density=1.0, values="model").eval()
    torch.testing.assert_close(network(images), model(images))
    with FlopCounterMode(display=False) as counted:
        model(images[:1])
    products = sum(
        2 * layer.weights_each * layer.places * layer.live_count
        for layer in network.layers.values()
    )
    assert products == counted.get_total_flops()


@pytest.mark.parametrize(
    ("method", "brief"),
    [
        ("nispa", {"density": 0.5, "max_phases": 3}),
        ("nispa", {"density": 0.5, "max_phases": 3, "growth": "gradient", "drop_share": 0.2}),
        ("packnet", {"epochs": 15}),
    ],
)
@pytest.mark.filterwarnings("ignore:the network is")
def test_tasks_stay_and_are_shipped(method: str, brief: dict[str, Any], tmp_path: Path) -> None:
    images, labels = toy()
    learner = Learner(model=Decoder(), input_shape=SHAPE, classes=4, method=method, **brief)
    first = labels < 2
    learner.learn(images[first], labels[first])
    told = learner.predict_proba(images, task=0)
    assert learner.accuracy(images[first], labels[first], task=0) > 0.7
    learner.learn(images[~first], labels[~first])
    assert (learner.predict_proba(images, task=0) == told).all()

    learner.save(tmp_path / "net.nispa")
    again = Learner.load(tmp_path / "net.nispa", model=Decoder())
    assert (again.predict_proba(images, task=0) == told).all()
    shipped = again.export(tmp_path / "net.pt2", tasks=0, images=images)
    assert shipped.difference < 1e-5
    assert again.export(tmp_path / "small.pt2", tasks=0, images=images, int8=True).agreement > 0.9


@pytest.mark.filterwarnings("ignore:the network is")
def test_layers_of_few_units_learn_without_a_setting() -> None:
    images, labels = toy()
    learner = Learner(model=Decoder(), input_shape=SHAPE, classes=4)
    first = labels < 2
    learner.learn(images[first], labels[first])
    # At a density of 0.1, which leaves units one input or none, it stays at chance.
    assert learner.accuracy(images[first], labels[first], task=0) > 0.9
    assert learner.settings.network.min_inputs == 6
    exactly = Learner(model=Decoder(), input_shape=SHAPE, classes=4, density=0.1)
    assert exactly.settings.network.min_inputs == 0


class Projection(nn.Module):
    """The Conv1D of GPT-2, with columns first."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(before, after) / 4)
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, before)`` to ``(batch, tokens, after)``."""
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """A block of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.packed, self.out = Projection(12, 36), Projection(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, whose rows are tokens."""
        x = self.embed(x[:, 0])
        parts = self.packed(self.norm(x)).split(12, dim=2)
        q, k, v = (part.view(*part.shape[:2], 3, 4).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        logits: Tensor = self.head(x.mean(1))
        return logits


@pytest.mark.filterwarnings("ignore:the network is")
def test_the_heads_of_gpt_2_are_units() -> None:
    groups = {group.name: group for group in sparsify(Attention(), EXAMPLE).graph.groups}
    assert (groups["packed"].kind, groups["packed"].size) == ("head", 3)
    assert groups["embed"].writers == ("embed", "out")
    images, labels = toy()
    brief: dict[str, Any] = {"max_phases": 3, "settle_epochs": 10}
    learner = Learner(model=Attention(), input_shape=SHAPE, classes=4, **brief)
    learner.learn(images[labels < 2], labels[labels < 2])
    told = learner.predict_proba(images, task=0)
    learner.learn(images[labels > 1], labels[labels > 1])
    assert (learner.predict_proba(images, task=0) == told).all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x.flatten(1), self.weight).relu()
        logits: Tensor = self.head((x @ self.weight).relu())
        return logits


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.up(self.conv(x)).flatten(1))
        return logits


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(64, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(1), self.weight, alpha=2.0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Tied, "takes rows of 'weight' that are taken otherwise, too"),
        (Grouped, "is in groups; take groups=1"),
        (Doubled, "or by a factor"),
    ],
)
def test_what_cannot_be_such_a_weight_is_refused(model: type[nn.Module], reason: str) -> None:
    made = model()
    made(EXAMPLE)
    with pytest.raises(GraphError, match=reason):
        sparsify(made, EXAMPLE)
