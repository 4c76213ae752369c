"""Weights drawn beside trained units: factors as worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.network.levelling import level
from nispa.network.models import NetworkConfig, SparseNetwork, build_network

MLP: dict[str, Any] = {"hidden": (200, 200)}
CONVNET: dict[str, Any] = {"architecture": "convnet", "channels": (16, 16), "fc": (100,)}


def drawn(seed: int, **settings: Any) -> SparseNetwork:
    network = build_network(NetworkConfig(density=0.5, **settings), (1, 8, 8), 4, seed=seed)
    with torch.no_grad():
        for layer in network.layers.values():
            layer.bias.zero_()
    return network


def images() -> Tensor:
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [MLP, CONVNET])
def test_a_fresh_network_is_level(settings: dict[str, Any]) -> None:
    network = drawn(0, **settings)
    assert set(level(network, drawn(0, **settings), images()).values()) == {1.0}
    other = level(network, drawn(1, **settings), images())
    assert len(other) == len(network.layers) - 1
    assert all(0.5 < factor < 2 for factor in other.values())


@pytest.mark.parametrize("settings", [MLP, CONVNET])
def test_weights_shrink_by_how_much_more_they_read(settings: dict[str, Any]) -> None:
    network, fresh = drawn(0, **settings), drawn(0, **settings)
    with torch.no_grad():
        next(iter(network.layers.values())).weight.mul_(3)  # as if a task had trained it
    factors = list(level(network, fresh, images()).values())
    assert factors[0] == pytest.approx(1 / 3, rel=1e-4)
    assert all(factor == pytest.approx(1.0, rel=1e-4) for factor in factors[1:])
    layers = list(zip(network.layers.values(), fresh.layers.values(), strict=True))
    for (layer, was), scale in zip(layers[:2], (3, 1 / 3), strict=True):
        torch.testing.assert_close(layer.weight, scale * was.weight)
    torch.testing.assert_close(network(images()), fresh(images()))


def test_rows_that_learn_count_alone_and_frozen_weights_stay() -> None:
    """Half of the second layer is frozen and ten times as large."""
    network, fresh = drawn(0, **MLP), drawn(0, **MLP)
    second = network.layers["fc2"]
    kept = second.plastic_index // second.shape[1] < 100
    with torch.no_grad():
        second.weight[kept] *= 10
    rows = torch.arange(200) < 100
    every = torch.ones(200, dtype=torch.bool)
    second.freeze(rows.unsqueeze(1) & every, rows)
    before, learning = second.frozen_weight.clone(), second.weight.clone()
    factors = level(network, fresh, images())
    assert 0.7 < factors["fc2"] < 1.4
    assert 0.1 < factors["head"] < 0.3  # it reads both halves
    assert torch.equal(second.frozen_weight, before)
    torch.testing.assert_close(second.weight, factors["fc2"] * learning)


def test_where_nothing_is_active_nothing_is_scaled() -> None:
    network = drawn(0, **MLP)
    before = [layer.weight.clone() for layer in network.layers.values()]
    assert level(network, drawn(1, **MLP), torch.zeros_like(images())) == {}
    assert all(map(torch.equal, before, (layer.weight for layer in network.layers.values())))


def test_sums_that_are_not_numbers_scale_nothing() -> None:
    network, fresh = drawn(0, **MLP), drawn(1, **MLP)
    before = [layer.weight.clone() for layer in network.layers.values()]
    assert level(network, fresh, torch.full((4, 1, 8, 8), torch.nan)) == {}
    after = [layer.weight for layer in network.layers.values()]
    assert all(map(torch.equal, before, after))
