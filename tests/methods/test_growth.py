"""Dynamic sparse training within the plastic part of NISPA's network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nispa.methods.base import PhaseEnd, PhaseStart
from nispa.methods.growth import drop_smallest, move_smallest, part_ends
from nispa.methods.nispa import Nispa
from nispa.network.models import NetworkConfig, build_network
from nispa.training.pausing import EpochEnd
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


def test_a_move_by_hand() -> None:
    made = build_network(NetworkConfig(hidden=(3,), density=1.0), (1, 1, 4), 2, seed=0)
    layer = made.layers["fc1"]
    values = torch.tensor([0.01, 0.02, 0.5, -0.2, 0.3, -0.9, 0.4])
    layer.connect(drawn("xx..", "xxx.", "xx.."), values)
    kept = {"input": units("xxxx"), "fc1": units("xx."), "output": units("xx")}
    own = {"input": units("...."), "fc1": units(".x."), "output": units("..")}
    gradients = {
        "fc1": torch.tensor([[9.0] * 4, [1, 1, 1, 0.5], [9.0] * 4]),
        "head": torch.ones(2, 3),
    }
    # The second unit alone may change: 0.2 goes, and there is one place to grow in.
    move_smallest(made, kept, own, 0.67, gradients)
    assert torch.equal(layer.pattern, drawn("xx..", "x.xx", "xx.."))
    expected = torch.tensor([0.01, 0.02, 0.5, 0.3, 0.0, -0.9, 0.4])
    assert torch.equal(layer.weight.detach(), expected)


def test_moves_are_even_and_over_after_three_quarters() -> None:
    assert part_ends(28, 7) == [3, 6, 9, 12, 15, 18, 21, 28]
    assert part_ends(28, 0) == [28]
    assert part_ends(2, 5) == [1, 2]
    assert part_ends(1, 3) == [1]


def test_the_last_fit_moves_to_where_the_gradient_is_and_counts_on() -> None:
    method = toy_method(
        "nispa", max_phases=3, settle_epochs=8, settle_moves=3, settle_move_share=0.9
    )
    assert isinstance(method, Nispa)
    method.start()
    live = {each: layer.live_count for each, layer in method.network.layers.items()}
    task = toy_task(0)
    last: list[int] = []
    seen: dict[int, Tensor] = {}
    learning = method.learn(task)
    for event in learning:
        if isinstance(event, PhaseStart):
            last = []
        elif isinstance(event, EpochEnd):
            last.append(event.epoch)
            seen[event.epoch] = method.network.layers["fc1"].pattern
    assert last == [1, 2, 3, 4, 5, 6, 7, 8]
    changed = [n for n in range(2, 9) if not torch.equal(seen[n], seen[n - 1])]
    assert changed == [3, 5, 7]
    assert accuracy_on(method, task) >= 0.9
    owned = {
        each: layer.live_count + method.owed[each] for each, layer in method.network.layers.items()
    }
    assert owned == live
