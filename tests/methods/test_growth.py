"""Dynamic sparse training within the plastic part of NISPA's network."""

from __future__ import annotations

import pytest
import torch

from nispa.methods.base import PhaseEnd
from nispa.methods.growth import drop_smallest
from nispa.methods.nispa import Nispa
from nispa.network.models import NetworkConfig, build_network
from tests.mechanism.drawing import drawn, units

from .toy import accuracy_on, finish, toy_method, toy_task


def test_the_smallest_connections_into_plastic_units_are_dropped() -> None:
    made = build_network(NetworkConfig(hidden=(3,), density=1.0), (1, 1, 4), 2, seed=0)
    layer = made.layers["fc1"]
    values = torch.tensor([0.1, 0.1, 0.5, -0.2, 0.3, -0.9, 0.4, 0.05])
    layer.connect(drawn("xx..", "xxx.", "xx.x"), values)
    kept = {"input": units("xxxx"), "fc1": units("x.."), "output": units("xx")}
    # Into the two plastic units lead 0.5, 0.2, 0.3, 0.9, 0.4, 0.05: two of six are a third.
    assert drop_smallest(made, kept, 0.34) == {"fc1": 2, "head": 0}
    assert torch.equal(layer.pattern, drawn("xx..", "x.x.", "xx.."))
    expected = torch.tensor([0.1, 0.1, 0.5, 0.3, -0.9, 0.4])
    assert torch.equal(layer.weight.detach(), expected)
    assert drop_smallest(made, kept, 0.0) == {"fc1": 0, "head": 0}


def test_a_kernel_is_as_large_as_the_sum_of_its_weights() -> None:
    config = NetworkConfig(architecture="convnet", channels=(2,), fc=(), kernel_size=1, density=1.0)
    made = build_network(config, (2, 2, 2), 2, seed=0)
    layer = made.layers["conv1"]
    layer.connect(drawn("xx", "xx"), torch.tensor([3.0, -4.0, 1.0, -2.0]).view(4, 1, 1))
    kept = {name: torch.zeros(size, dtype=torch.bool) for name, size in
            ((group.name, group.size) for group in made.topology.groups)}  # fmt: skip
    assert drop_smallest(made, kept, 0.25)["conv1"] == 1
    assert torch.equal(layer.pattern, drawn("xx", ".x"))


@pytest.mark.parametrize("name", ["nispa", "nispa-replay"])
def test_learns_with_moves_and_gradients(name: str) -> None:
    method = toy_method(name, growth="gradient", drop_share=0.3, growth_init="zero")
    assert isinstance(method, Nispa)
    method.start()
    live = {each: layer.live_count for each, layer in method.network.layers.items()}
    first = toy_task(0)
    before = method.network.layers["fc1"].pattern
    events, _ = finish(method.learn(first))
    assert accuracy_on(method, first) >= 0.9
    now = {
        each: layer.live_count + method.owed[each] for each, layer in method.network.layers.items()
    }
    assert now == live
    # All sources of the first layer are stable, so what it dropped are its smallest.
    ends = [event for event in events if isinstance(event, PhaseEnd) and event.dropped]
    assert all(event.dropped["fc1"] > 0 for event in ends)
    assert not torch.equal(method.network.layers["fc1"].pattern, before)


def test_what_grows_has_the_largest_gradients() -> None:
    method = toy_method("nispa", growth="gradient", drop_share=0.5)
    assert isinstance(method, Nispa)
    method.start()
    layer, kept = method.network.layers["fc1"], method.topology.no_units()
    kept["fc1"][:4] = True
    before, values = layer.pattern, layer.dense_weight().abs()
    sizes = {
        name: torch.rand(each.shape, generator=torch.Generator().manual_seed(1))
        for name, each in method.network.layers.items()
    }
    change = method.rewire(kept, torch.Generator().manual_seed(0), sizes)["fc1"]
    # Half of the connections into the twelve plastic units of the first layer moved: the smallest.
    movable = before & ~kept["fc1"][:, None]
    count = int(movable.sum()) // 2
    assert change.dropped == count == len(change.grown)
    remaining = movable.clone()
    remaining.view(-1)[values.flatten().where(movable.flatten(), 9.0).argsort()[:count]] = False
    open_places = (~remaining & ~kept["fc1"][:, None]).flatten()
    expected = sizes["fc1"].flatten().where(open_places, -1.0).argsort(descending=True)[:count]
    assert change.grown.tolist() == expected.tolist()
    assert torch.equal(layer.pattern[:4], before[:4])
