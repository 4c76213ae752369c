"""Zero forgetting on every backbone and on users' modules; what leaks is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.errors import GraphError, IsolationError
from nispa.graph.trace import find_units
from nispa.graph.units import Group, Span, UnitMap
from nispa.kernels import dispatch
from nispa.mechanism.room import needed
from nispa.methods.stable import is_frozen, thaw_units
from nispa.network.isolation import check_isolation
from nispa.network.keeping import drop_into, freeze
from nispa.network.models import OWN, NetworkConfig, draw_first
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.position_gradients import position_gradients
from nispa.network.sparsify import sparsify, try_isolation
from nispa.network.traced import TracedNetwork
from nispa.network.unit_values import UnitValues
from tests.backbones.test_groups import SMALL
from tests.graph.foreign import FOREIGN
from tests.graph.test_isolated import net_of, plans

CLASSES = 4


def called(network: TracedNetwork, inputs: Any) -> Tensor:
    logits: Tensor = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    return logits


def like(inputs: Any, samples: int = 6) -> Any:
    """Random inputs of the same shapes."""
    if isinstance(inputs, Mapping):
        return {name: like(value, samples) for name, value in inputs.items()}
    if inputs.dtype == torch.bool:
        return torch.ones(samples, *inputs.shape[1:], dtype=torch.bool)
    return torch.randn(samples, *inputs.shape[1:]) * 2 + 0.5


def train(network: TracedNetwork, inputs: Any, steps: int = 5) -> None:
    """AdamW with decay, on random inputs and labels."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.1)
    outputs = network.graph.output.size
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(called(network, like(inputs)), torch.randint(0, outputs, (6,)))
        loss.backward()
        optimiser.step()


Units = dict[str, Tensor]


def chosen(network: TracedNetwork, outputs: list[int], stable: Units | None = None) -> Units:
    """Stable units, a random third of the others, and some outputs."""
    kept = network.topology.no_units() if stable is None else dict(stable)
    for group in network.graph.groups:
        some = torch.rand(group.size) < 0.35
        if group.kind == "output":
            some = torch.zeros(group.size, dtype=torch.bool)
            some[outputs] = True
        kept[group.name] = kept[group.name] | some
    return kept


def test_cases() -> None:
    assert set(SMALL) == set(BACKBONES)


def networks() -> dict[str, tuple[Callable[[], nn.Module], Any]]:
    cases: dict[str, tuple[Callable[[], nn.Module], Any]] = {}
    for name, (shape, _) in SMALL.items():

        def build(name: str = name) -> nn.Module:
            shape, arguments = SMALL[name]
            return BACKBONES[name].build(shape, CLASSES, **arguments)

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
    kept = network.topology.no_units()
    for outputs in ([0], [1]):
        kept = chosen(network, outputs, kept)
        drop_into(network, kept)
        network.eval()
        with torch.no_grad():
            before = called(network, inputs)
        freeze(network, kept)
        check_isolation(network, kept, inputs)
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
        if not kept["output"].all():
            assert not torch.equal(now, after)


def leaking(name: str) -> tuple[TracedNetwork, Units, Any]:
    """A network after its first task."""
    torch.manual_seed(1)
    build, example = CASES[name]
    network = sparsify(build(), example, density=0.9)
    train(network, example, 2)
    kept = chosen(network, [0, 1])
    drop_into(network, kept)
    freeze(network, kept)
    return network, kept, like(example, 5)


def test_what_is_checked_is_put_back() -> None:
    network, kept, inputs = leaking("resnet18")
    network.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    check_isolation(network, kept, inputs)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_statistics_that_are_not_held_are_found() -> None:
    network, kept, inputs = leaking("resnet18")
    for module in network.modules():
        if isinstance(module, UnitBatchNorm):
            module.stable.zero_()
    with pytest.raises(IsolationError, match=r"first in 'layer1.0.conv1' stable units change"):
        check_isolation(network, kept, inputs)


def test_a_plain_layer_norm_is_found() -> None:
    network, kept, inputs = leaking("vit-tiny")
    for module in network.modules():
        if isinstance(module, GenerationNorm):
            module.generation.zero_()
    with pytest.raises(IsolationError, match=r"first in 'blocks\.0\."):
        check_isolation(network, kept, inputs)


def test_a_connection_that_was_not_dropped_is_found() -> None:
    network, kept, inputs = leaking("resnet18")
    layer = network.layers["layer1.0.conv2"]
    rest = {name: ~units for name, units in kept.items()}
    leak = layer.spec.rows_in(kept)[:, None] & layer.spec.columns_in(rest)[None, :]
    grown = leak.flatten().nonzero().flatten()
    layer.rewire(layer.pattern | leak, grown, torch.randn(len(grown), 3, 3))
    with pytest.raises(IsolationError, match=r"first in 'layer1.0.conv2'"):
        check_isolation(network, kept, inputs)


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
    with pytest.raises(IsolationError, match="a branch that the trace did not take"):
        sparsify(Memory(), torch.randn(5, 6), density=1.0)


def test_nothing_is_checked_while_nothing_is_kept() -> None:
    build, example = CASES["mlp"]
    network = sparsify(build(), example)
    check_isolation(network, network.topology.no_units(), example)


def test_an_untied_shortcut_is_found() -> None:
    torch.manual_seed(0)
    body = BACKBONES["resnet18"].build((3, 8, 8), CLASSES, width=4)
    graph = find_units(body, torch.zeros(2, 3, 8, 8))
    layers = tuple(
        replace(layer, rows=UnitMap((Span("alone", 0, len(layer.rows)),)))
        if layer.name == "layer2.0.shortcut.0"
        else layer
        for layer in graph.layers
    )
    size = len(graph.layer("layer2.0.shortcut.0").rows)
    groups = (*graph.groups, Group("alone", size, "hidden"))
    network = TracedNetwork(body, replace(graph, groups=groups, layers=layers), (3, 8, 8))
    draw_first(network, NetworkConfig(architecture=OWN, density=0.9), frozenset(), 0)
    with pytest.raises(IsolationError, match=r"first in 'layer"):
        try_isolation(network, torch.randn(5, 3, 8, 8))


def test_a_fast_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(dispatch, "library", lambda: (None, "as that path reads weights"))
    case = FOREIGN["standard"]
    network = sparsify(case.build(), case.example(), density=0.9)  # it is switched off
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", lambda _: None)
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 2
    with pytest.raises(IsolationError):
        try_isolation(network, case.example())


def test_a_scale_that_still_learns_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnitValues, "hold", lambda *_: None)
    build, example = CASES["resnet18"]
    with pytest.raises(IsolationError, match=r"first in 'layer1.0.conv1' stable units change"):
        sparsify(build(), example)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans, end=st.integers(0, 1000))
def test_a_random_network_is_isolated_or_refused(plan: list[tuple[str, int]], end: int) -> None:
    model, images = net_of(plan, end), torch.randn(3, 2, 6, 6)
    try:
        network = TracedNetwork(model, find_units(model, images), (2, 6, 6))
    except GraphError:
        return
    draw_first(network, NetworkConfig(architecture=OWN, density=0.7), frozenset(), end)
    kept = chosen(network, [0, 2])
    drop_into(network, kept)
    freeze(network, kept)
    network.train()
    network(images)
    check_isolation(network, kept, images)


def random_network(plan: list[tuple[str, int]], end: int) -> TracedNetwork | None:
    """A network of random layers; None if it is refused."""
    model, images = net_of(plan, end), torch.randn(3, 2, 6, 6)
    try:
        network = TracedNetwork(model, find_units(model, images), (2, 6, 6))
    except GraphError:
        return None
    draw_first(network, NetworkConfig(architecture=OWN, density=0.7), frozenset(), end)
    return network


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans, end=st.integers(0, 1000), which=st.integers(0, 1))
def test_units_given_back_are_needed_by_no_other_output(
    plan: list[tuple[str, int]], end: int, which: int
) -> None:
    network, images = random_network(plan, end), torch.randn(3, 2, 6, 6)
    if network is None:
        return
    stable, output = network.topology.no_units(), network.topology.output.name
    for label in (0, 1):
        stable = chosen(network, [label], stable)
        drop_into(network, stable)
        freeze(network, stable)
        network.train()
        network(images)
    network.eval()
    with torch.no_grad():
        before = network(images)[:, 1 - which]
    others = torch.arange(len(stable[output])) == 1 - which
    kept = needed(network.topology, network.patterns(), others, network.tied)
    free = {
        group.name: stable[group.name] & ~kept[group.name] & (group.role != "input")
        for group in network.topology.groups
    }
    thaw_units(network, free)
    left = {name: units & ~free[name] for name, units in stable.items()}
    assert network.holds(left)
    assert is_frozen(network, left)
    check_isolation(network, left, images)
    with torch.no_grad():
        assert torch.equal(network(images)[:, 1 - which], before)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans, end=st.integers(0, 1000))
def test_gradients_at_live_places_are_those_of_the_network(
    plan: list[tuple[str, int]], end: int
) -> None:
    network, images = random_network(plan, end), torch.randn(3, 2, 6, 6)
    if network is None:
        return
    labels = torch.arange(3) % 2
    network.eval()
    found = position_gradients(network, [(images, labels)], F.cross_entropy)
    network.gradients(images, labels, F.cross_entropy)
    for name, layer in network.layers.items():
        assert layer.weight.grad is not None
        wanted = layer.weight.grad.reshape(len(layer.plastic_index), -1).norm(dim=1)
        there = found[name].flatten()[layer.plastic_index]
        torch.testing.assert_close(there, wanted, rtol=1e-3, atol=1e-5)
