"""Zero forgetting on every backbone and on users' modules; what leaks is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.errors import IsolationError
from nispa.masked.isolation import check_isolation
from nispa.masked.network import MaskedNetwork, sparsify
from nispa.masked.norms import GenerationNorm, UnitBatchNorm
from tests.backbones.test_groups import SMALL
from tests.graph.foreign import FOREIGN

CLASSES = 4


def called(network: MaskedNetwork, inputs: Any) -> Tensor:
    logits: Tensor = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    return logits


def like(inputs: Any, samples: int = 6) -> Any:
    """Random inputs of the same shapes."""
    if isinstance(inputs, Mapping):
        return {name: like(value, samples) for name, value in inputs.items()}
    if inputs.dtype == torch.bool:
        return torch.ones(samples, *inputs.shape[1:], dtype=torch.bool)
    return torch.randn(samples, *inputs.shape[1:]) * 2 + 0.5


def train(network: MaskedNetwork, inputs: Any, steps: int = 5) -> None:
    """AdamW with decay, on random inputs and labels."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.1)
    outputs = network.graph.output.size
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(called(network, like(inputs)), torch.randint(0, outputs, (6,)))
        loss.backward()
        optimiser.step()


def chosen(network: MaskedNetwork, outputs: list[int]) -> dict[str, Tensor]:
    """A random third of the units, and some outputs."""
    kept = {}
    for group in network.graph.groups:
        kept[group.name] = torch.rand(group.size) < 0.35
        if group.kind == "output":
            kept[group.name] = torch.zeros(group.size, dtype=torch.bool)
            kept[group.name][outputs] = True
        kept[group.name] |= network.stable[group.name]
    return kept


def test_cases() -> None:
    assert set(SMALL) == set(BACKBONES)


def networks() -> dict[str, tuple[Callable[[], nn.Module], Any]]:
    cases: dict[str, tuple[Callable[[], nn.Module], Any]] = {}
    for name, (shape, settings) in SMALL.items():

        def build(name: str = name) -> nn.Module:
            shape, settings = SMALL[name]
            return BACKBONES[name].build(shape, CLASSES, **settings)

        cases[name] = (build, torch.zeros(2, *shape))
    for name, case in FOREIGN.items():
        cases[f"users {name}"] = (case.build, case.example())
    return cases


CASES = networks()


@pytest.mark.parametrize("name", CASES)
def test_kept_logits_stay_through_two_tasks(name: str) -> None:
    torch.manual_seed(0)
    build, example = CASES[name]
    network = sparsify(build(), example, density=0.6)
    inputs = like(example, 5)
    train(network, example)
    known: list[tuple[list[int], Tensor]] = []
    for outputs in ([0], [1]):
        kept = chosen(network, outputs)
        network.drop_into(kept)
        network.settle(kept)
        network.eval()
        with torch.no_grad():
            before = called(network, inputs)
        network.freeze(kept)
        check_isolation(network, inputs)
        with torch.no_grad():
            after = called(network, inputs)
        assert torch.equal(before, after)  # freezing changes nothing
        known.append((outputs, after))
        train(network, example)
        network.eval()
        with torch.no_grad():
            now = called(network, inputs)
        for some, then in known:
            assert torch.equal(now[:, some], then[:, some])
        if not network.stable["output"].all():
            assert not torch.equal(now, after)


def leaking(name: str) -> tuple[MaskedNetwork, Any]:
    """A network after its first task."""
    torch.manual_seed(1)
    build, example = CASES[name]
    network = sparsify(build(), example, density=0.9)
    train(network, example, 2)
    kept = chosen(network, [0, 1])
    network.drop_into(kept)
    network.freeze(kept)
    return network, like(example, 5)


def test_what_is_checked_is_put_back() -> None:
    network, inputs = leaking("resnet18")
    network.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    check_isolation(network, inputs)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_statistics_that_are_not_held_are_found() -> None:
    network, inputs = leaking("resnet18")
    for module in network.modules():
        if isinstance(module, UnitBatchNorm):
            module.stable.zero_()
    with pytest.raises(IsolationError, match=r"first in 'layer1.0.conv1' stable units change"):
        check_isolation(network, inputs)


def test_a_plain_layer_norm_is_found() -> None:
    network, inputs = leaking("vit-tiny")
    for module in network.modules():
        if isinstance(module, GenerationNorm):
            module.generation.zero_()
    with pytest.raises(IsolationError, match=r"first in 'blocks\.0\."):
        check_isolation(network, inputs)


def test_a_connection_that_was_not_dropped_is_found() -> None:
    network, inputs = leaking("resnet18")
    layer = network.graph.layer("layer1.0.conv2")
    rest = {name: ~units for name, units in network.stable.items()}
    pattern = network.patterns()[layer.name] | layer.between(rest, network.stable)
    weight = torch.randn_like(network.weight(layer.name))
    network.connect(layer.name, pattern, weight)
    with pytest.raises(IsolationError, match=r"first in 'layer1.0.conv2'"):
        check_isolation(network, inputs)


class Memory(nn.Module):
    """Keeps something for the next call, where no trace can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.training:
            self.seen = y.detach().mean()
        elif self.seen is not None:
            y = y + self.seen
        logits: Tensor = self.head(y)
        return logits


def test_a_path_that_the_trace_did_not_take_is_found() -> None:
    torch.manual_seed(0)
    network = sparsify(Memory(), torch.zeros(2, 6), density=1.0)
    kept = chosen(network, [0])
    network.drop_into(kept)
    network.freeze(kept)
    network.train()
    called(network, torch.randn(5, 6))
    with pytest.raises(IsolationError, match="a branch that the trace did not take"):
        check_isolation(network, torch.randn(5, 6))


def test_nothing_is_checked_while_nothing_is_kept() -> None:
    build, example = CASES["mlp"]
    check_isolation(sparsify(build(), example), example)
