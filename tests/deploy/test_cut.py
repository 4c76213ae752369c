"""Units that reach no chosen output are cut from any module, and what is left computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from nispa.deploy import constants, kept, layers, norms, plain
from nispa.errors import ConfigError
from nispa.network.keeping import drop_into, freeze
from nispa.network.norms import UnitBatchNorm
from nispa.network.sparsify import sparsify
from nispa.network.traced import TracedNetwork
from tests.extent import ALL
from tests.graph.test_isolated import plans
from tests.network.test_isolation import CASES, chosen, like, random_network, train

QUICK = {"vit-tiny", "conv1d", "users dense", "users functional"}
LONG = {"resnet18", "vgg11-bn", "mobilenet-small"}
NAMES = [
    pytest.param(
        name, marks=[pytest.mark.slow] if name in LONG else [pytest.mark.ci] * (name not in QUICK)
    )
    for name in CASES
    if name != "users encoder"  # takes more than images
]


def after_two_tasks(name: str) -> tuple[TracedNetwork, Tensor]:
    """A network that keeps units for two tasks, and goes on learning; and images."""
    torch.manual_seed(1)
    build, example = CASES[name]
    network = sparsify(build(), example, density=0.6)
    network.input_shape = tuple(example.shape[1:])
    train(network, example)
    stable = network.topology.no_units()
    for outputs in ([0], [1]):
        stable = chosen(network, outputs, stable)
        drop_into(network, stable)
        freeze(network, stable)
        train(network, example, 2)
    return network.eval(), like(example, 5)


def cut(network: TracedNetwork, *outputs: list[int]) -> list[fx.GraphModule]:
    """A module for each list of outputs."""
    return plain.plain([(network, some) for some in outputs])


def difference(
    network: TracedNetwork, made: nn.Module, outputs: list[int], images: Tensor
) -> float:
    """The largest difference of a logit, as a share of the largest or of 1, at two batch sizes."""
    worst = 0.0
    with torch.no_grad():
        for some in (images, images[:1]):
            wanted = network(some)[:, outputs]
            off = (made(some) - wanted).abs().max() / max(1.0, float(wanted.abs().max()))
            worst = max(worst, float(off.nan_to_num(torch.inf)))
    return worst


def numbers(made: nn.Module) -> int:
    return sum(each.numel() for each in made.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_computes_the_same(name: str) -> None:
    network, images = after_two_tasks(name)
    sizes, wanted = [], ([0], [1, 0])
    for outputs, made in zip(wanted, cut(network, *wanted), strict=True):
        assert difference(network, made, outputs, images) <= 1e-5
        assert all(type(each).__module__.startswith("torch.") for each in made.modules())
        sizes.append(numbers(made))
    assert sizes[0] <= sizes[1] < 0.6 * network.position_count()  # a third was kept, twice


@settings(max_examples=12 if ALL else 5, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans, end=st.integers(0, 1000), which=st.sampled_from([[0], [1], [1, 0], [2, 0]]))
@example(plan=[("convolution", 1), ("overwritten", 0)], end=0, which=[0])
def test_a_random_network_computes_the_same(
    plan: list[tuple[str, int]], end: int, which: list[int]
) -> None:
    network = random_network(plan, end)
    if network is None:
        return
    stable = network.topology.no_units()
    for outputs in ([0], [1]):
        stable = chosen(network, outputs, stable)
        drop_into(network, stable)
        freeze(network, stable)
        network.train()
        network(torch.randn(6, 2, 6, 6) * 2 + 1)
    network.eval()
    some, whole = cut(network, which, [0, 1, 2, 3])
    assert difference(network, some, which, torch.randn(5, 2, 6, 6)) <= 1e-5
    assert numbers(some) <= numbers(whole)


class Residual(nn.Module):
    """A stream that two layers write, and a layer beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.inner, self.outer = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = x + self.norm(self.outer(self.inner(x).relu()))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def by_hand() -> tuple[TracedNetwork, Tensor]:
    """A network whose connections are known, and images."""
    torch.manual_seed(0)
    network = sparsify(Residual(), torch.zeros(2, 1, 4, 4))
    network.input_shape = (1, 4, 4)
    live = {
        "first": [[1], [1], [1], [0]],  # nothing leads to unit 3 of the stream
        "inner": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
        "outer": [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]],
        "head": [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]],
    }
    for name, pattern in live.items():
        layer, wanted = network.layers[name], torch.tensor(pattern).bool()
        layer.connect(wanted, torch.rand(int(wanted.sum()), *layer.spec.kernel) + 0.5)
        with torch.no_grad():
            layer.bias.copy_(torch.rand(len(layer.bias)) + 0.5)
    (_, norm), *_ = network.norms
    assert isinstance(norm, UnitBatchNorm)
    norm.running_var.fill_(4.0)
    norm.running_mean.fill_(0.25)
    return network.eval(), torch.randn(4, 1, 4, 4)


def shapes(made: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows and columns of each weight."""
    return {
        name.removesuffix(".weight"): tuple(each.shape[:2])
        for name, each in made.state_dict().items()
        if each.dim() > 1
    }


def test_what_is_cut_of_a_stream_and_beside_it() -> None:
    network, images = by_hand()
    one, other = cut(network, [0], [1])
    # Output 0 reads units 1 and 3; 1 is written by inner 0, which reads unit 0; 3 is constant.
    assert shapes(one) == {"first": (2, 1), "inner": (1, 2), "outer": (2, 1), "head": (1, 2)}
    assert difference(network, one, [0], images) <= 1e-6
    # Output 1 reads unit 0, to which outer adds the constant inner 2: no unit of inner is needed,
    # but a layer must read something.
    assert shapes(other) == {"first": (1, 1), "inner": (1, 1), "outer": (1, 1), "head": (1, 1)}
    assert difference(network, other, [1], images) <= 1e-6


def with_parts(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    """Lets norms take other entries together: pairs of entries and of how many of them are new."""
    parts = norms._OverUnits._parts
    monkeypatch.setattr(norms._OverUnits, "_parts", lambda self, idle: change(parts(self, idle)))


def without_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch, lambda parts: [(parts[-1][0], len(parts[-1][0]))])


def without_older_units(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch, lambda parts: [(every[-new:], new) for every, new in parts])


def without_a_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    live = kept.live
    monkeypatch.setattr(
        kept, "live", lambda weight: live(weight) & (weight.shape[0] < weight.shape[1])
    )
    monkeypatch.setattr(layers, "live", lambda weight: torch.zeros(weight.shape[:2]).bool())


def without_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = constants._Constants._layer

    def layer(self: Any, *more: Any) -> Tensor:
        found = seen(self, *more)
        for read in self.reads.values():
            read.value = torch.zeros_like(read.value)
        return found

    monkeypatch.setattr(constants._Constants, "_layer", layer)


def vit() -> tuple[TracedNetwork, Tensor]:
    return after_two_tasks("vit-tiny")


WRONG: dict[str, tuple[Any, Callable[[pytest.MonkeyPatch], None]]] = {
    "one norm for all generations": (vit, without_generations),
    "norms without older units": (vit, without_older_units),
    "a layer that reads less": (vit, without_a_writer),
    "constants that are lost": (by_hand, without_constants),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_cut_wrongly_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, change = WRONG[name]
    network, images = build()
    outputs = [0, 1]
    change(monkeypatch)
    with pytest.raises(ConfigError, match="something else"):
        cut(network, outputs)
    monkeypatch.setattr(plain, "CLOSE", torch.inf)  # the check inside is not the only one
    (made,) = cut(network, outputs)
    assert difference(network, made, outputs, images) > 1e-5
