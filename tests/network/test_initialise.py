from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nispa.network.initialise import (
    FanMode,
    kaiming_values,
    layer_densities,
    random_pattern,
    uniform_bias,
)
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from tests.mechanism.drawing import chain, drawn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LINEAR = ConnectionLayer("l", "s", "t")
CONV = ConnectionLayer("c", "s", "t", kernel=(3, 3))


# Densities.


def test_uniform_gives_each_sparse_layer_the_density() -> None:
    shares = layer_densities(chain(10, 5, 5, 2), 0.2, "uniform", frozenset({"to_a"}))
    assert shares == {"to_a": 1.0, "to_b": 0.2, "to_out": 0.2}


def test_erk_by_hand() -> None:
    # Layers 10x10 (100 weights) and 10x30 (300); raw weights 20 and 40; a budget of 60 weights.
    shares = layer_densities(chain(10, 10, 30), 0.15, "erk", frozenset())
    assert shares == pytest.approx({"to_a": 20 / 100, "to_out": 40 / 300})


def test_erk_counts_the_sides_of_kernels() -> None:
    topology = Topology(
        (UnitGroup("in", 10, "input"), UnitGroup("a", 10), UnitGroup("out", 26, "output")),
        (
            ConnectionLayer("conv", "in", "a", kernel=(3, 3)),  # 900 weights, raw 10 + 10 + 6
            ConnectionLayer("head", "a", "out"),  # 260 weights, raw 36
        ),
    )
    shares = layer_densities(topology, 62 / 1160, "erk", frozenset())
    assert shares == pytest.approx({"conv": 26 / 900, "head": 36 / 260})


def test_erk_fills_a_small_layer_and_gives_the_rest_to_the_others() -> None:
    # 100x100 with raw 200 and 100x2 with raw 102, of a budget of 5100: the small one would take
    # 5100 * 102 / 302 = 1722 of its 200 weights, so it is full and the other one gets 4900.
    shares = layer_densities(chain(100, 100, 2), 0.5, "erk", frozenset())
    assert shares == pytest.approx({"to_a": 0.49, "to_out": 1.0})


def test_erk_leaves_dense_layers_out_of_the_budget() -> None:
    shares = layer_densities(chain(7, 10, 10, 30), 0.15, "erk", frozenset({"to_a"}))
    assert shares == pytest.approx({"to_a": 1.0, "to_b": 0.2, "to_out": 40 / 300})


@examples(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=6),
    density=st.floats(0.01, 1.0),
)
def test_erk_spends_the_budget_of_uniform(sizes: list[int], density: float) -> None:
    topology = chain(*sizes)
    shares = layer_densities(topology, density, "erk", frozenset())
    weights = {layer.name: math.prod(topology.pattern_shape(layer)) for layer in topology.layers}
    assert all(0 < share <= 1 for share in shares.values())
    spent = sum(shares[name] * weights[name] for name in weights)
    assert spent == pytest.approx(density * sum(weights.values()))


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_where_all_layers_are_dense_all_are_full(distribution: str) -> None:
    topology = chain(3, 4, 2)
    full = layer_densities(topology, 0.1, distribution, frozenset({"to_a", "to_out"}))
    assert full == {"to_a": 1.0, "to_out": 1.0}
    assert layer_densities(topology, 1.0, distribution, frozenset()) == pytest.approx(full)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_no_layer_falls_below_the_inputs_asked_for(distribution: str) -> None:
    topology = chain(5, 60, 300, 40, 3)
    asked = layer_densities(topology, 0.1, distribution, frozenset(), min_inputs=9)
    usual = layer_densities(topology, 0.1, distribution, frozenset())
    columns = {layer.name: topology.pattern_shape(layer)[1] for layer in topology.layers}
    for name, share in asked.items():
        assert share * columns[name] == pytest.approx(
            max(usual[name] * columns[name], min(9, columns[name]))
        )


# Patterns.


@pytest.mark.parametrize(
    ("shape", "density", "live"),
    [
        ((10, 30), 0.1, 30),
        ((7, 3), 0.5, 10),  # 10.5 to the even one
        ((3, 3), 0.99, 9),
        ((4, 5), 1.0, 20),
        ((4, 5), 0.001, 1),  # never an empty layer
        ((1, 1), 0.01, 1),
    ],
)
def test_exact_patterns_have_the_exact_count(
    shape: tuple[int, int], density: float, live: int
) -> None:
    pattern = random_pattern(shape, density, "exact", seeded())
    assert pattern.shape == shape
    assert pattern.dtype == torch.bool
    assert int(pattern.sum()) == live


@pytest.mark.parametrize("mask", ["exact", "bernoulli"])
def test_patterns_are_uniform_over_positions(mask: str) -> None:
    counts = torch.zeros(4, 5)
    for seed in range(2000):
        counts += random_pattern((4, 5), 0.3, mask, seeded(seed))
    # 600 expected at each position, deviation 20
    assert float((counts - 600).abs().max()) < 100


def test_bernoulli_counts_vary_around_the_density() -> None:
    counts = [int(random_pattern((50, 40), 0.2, "bernoulli", seeded(s)).sum()) for s in range(50)]
    assert len(set(counts)) > 10
    assert abs(sum(counts) / 50 - 400) < 4 * 18 / math.sqrt(50)  # deviation of one count: 18


def test_a_dense_bernoulli_pattern_is_full() -> None:
    assert bool(random_pattern((3, 4), 1.0, "bernoulli", seeded()).all())


def test_patterns_depend_on_the_generator_alone() -> None:
    first = random_pattern((9, 9), 0.4, "exact", seeded(3))
    assert torch.equal(first, random_pattern((9, 9), 0.4, "exact", seeded(3)))
    assert not torch.equal(first, random_pattern((9, 9), 0.4, "exact", seeded(4)))


# Values.


def uneven() -> torch.Tensor:
    """400 targets of which the first half reads 10 sources and the second half 40 others."""
    pattern = torch.zeros(400, 50, dtype=torch.bool)
    pattern[:200, :10] = True
    pattern[200:, 10:] = True
    return pattern


@pytest.mark.parametrize(
    ("layer", "mode", "first", "second"),
    [
        (LINEAR, "fan_in", 2 / 10, 2 / 40),  # live connections of a target
        (LINEAR, "fan_out", 2 / 200, 2 / 200),  # live connections of a source
        (CONV, "fan_in", 2 / 90, 2 / 360),  # nine weights each
    ],
)
def test_variance_by_live_connections(
    layer: ConnectionLayer, mode: FanMode, first: float, second: float
) -> None:
    pattern = uneven()
    values = kaiming_values(layer, pattern, mode, "live", seeded())
    assert values.shape == (200 * 50, *layer.kernel)
    assert values.dtype == torch.float32
    # In order of position: the first 2,000 belong to the first 200 targets.
    assert float(values[:2000].var()) == pytest.approx(first, rel=0.12)
    assert float(values[2000:].var()) == pytest.approx(second, rel=0.06)
    assert abs(float(values.mean())) < 0.02


@pytest.mark.parametrize(
    ("layer", "mode", "variance"),
    [
        (LINEAR, "fan_in", 2 / 50),
        (LINEAR, "fan_out", 2 / 400),
        (CONV, "fan_in", 2 / 450),
        (CONV, "fan_out", 2 / 3600),
    ],
)
def test_variance_by_all_positions(layer: ConnectionLayer, mode: FanMode, variance: float) -> None:
    values = kaiming_values(layer, uneven(), mode, "positions", seeded())
    assert float(values[:2000].var()) == pytest.approx(variance, rel=0.12)
    assert float(values[2000:].var()) == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("fan", ["live", "positions"])
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_a_layer_without_live_connections_has_no_values(layer: ConnectionLayer, fan: str) -> None:
    none = torch.zeros(3, 4, dtype=torch.bool)
    values = kaiming_values(layer, none, "fan_in", fan, seeded())  # type: ignore[arg-type]
    assert values.shape == (0, *layer.kernel)


def test_one_live_connection_has_a_fan_of_one() -> None:
    drawn_values = torch.cat(
        [
            kaiming_values(LINEAR, drawn("...", ".x."), "fan_in", "live", seeded(seed))
            for seed in range(2000)
        ]
    )
    assert float(drawn_values.var()) == pytest.approx(2.0, rel=0.12)


# Biases.


def test_biases_lie_within_the_bound_of_their_own_unit() -> None:
    pattern = uneven()
    pattern[7] = False  # a unit without inputs counts as having one
    bias = uniform_bias(pattern, 1, "live", seeded())
    assert bias.shape == (400,)
    bound = 1 / math.sqrt(10)
    others = torch.cat([bias[:7], bias[8:200]])
    assert 0.9 * bound < float(others.abs().max()) <= bound
    assert float(bias[200:].abs().max()) <= 1 / math.sqrt(40)
    assert abs(float(bias[7])) <= 1.0
    assert float(bias.min()) < 0 < float(bias.max())


def test_published_biases_count_all_positions_and_weights() -> None:
    bias = uniform_bias(uneven(), 9, "positions", seeded())
    bound = 1 / math.sqrt(450)
    assert 0.9 * bound < float(bias.abs().max()) <= bound
