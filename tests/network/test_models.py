from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.errors import ConfigError
from nispa.network.activity import unit_activity
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units
from nispa.network.models import (
    MAX_LAYERS,
    NetworkConfig,
    SparseNetwork,
    build_network,
    empty_network,
    restart_plastic,
)
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup

MLP = NetworkConfig(architecture="mlp", hidden=(400, 400, 400), density=0.2)
CONVNET = NetworkConfig(architecture="convnet", density=0.1)
TINY_CONVNET = NetworkConfig(
    architecture="convnet", channels=(4, 5, 6, 3), fc=(7,), density=0.5, kernel_size=3
)


def mlp(**changes: Any) -> NetworkConfig:
    values: dict[str, Any] = {"hidden": (30, 20), "density": 0.4}
    return NetworkConfig(**(values | changes))


def shapes(network: SparseNetwork) -> dict[str, tuple[int, int]]:
    return {name: layer.shape for name, layer in network.layers.items()}


# Structure.


def test_the_mlp_of_the_paper() -> None:
    network = build_network(MLP, (1, 28, 28), 57, seed=0)
    assert shapes(network) == {
        "fc1": (400, 784),
        "fc2": (400, 400),
        "fc3": (400, 400),
        "head": (57, 400),
    }
    live = {name: layer.live_count for name, layer in network.layers.items()}
    assert live == {"fc1": 62_720, "fc2": 32_000, "fc3": 32_000, "head": 4_560}
    assert network.live_count() == 131_280 + 1_257
    assert network.position_count() == 784 * 400 + 400 * 400 * 2 + 400 * 57 + 1_257
    assert [group.name for group in network.topology.hidden] == ["fc1", "fc2", "fc3"]
    assert all(layer.block == 1 for layer in network.topology.layers)
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 57)


def test_the_convnet_of_the_paper() -> None:
    network = build_network(CONVNET, (3, 32, 32), 10, seed=0)
    assert shapes(network) == {
        "conv1": (64, 3),
        "conv2": (64, 64),
        "conv3": (128, 64),
        "conv4": (128, 128),
        "fc1": (1024, 8192),
        "head": (10, 1024),
    }
    live = {name: layer.live_count for name, layer in network.layers.items()}
    assert live == {
        "conv1": 192,  # the first convolution stays dense
        "conv2": 410,
        "conv3": 819,
        "conv4": 1638,
        "fc1": 838_861,
        "head": 1024,
    }
    flat = network.topology.layer("fc1")
    assert (flat.source, flat.target, flat.block, flat.kernel) == ("conv4", "fc1", 64, ())
    assert network.topology.layer("conv3").kernel == (3, 3)
    assert network.topology.layer("head").block == 1
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    biases = 64 + 64 + 128 + 128 + 1024 + 10
    assert network.live_count() == (192 + 410 + 819 + 1638) * 9 + 838_861 + 1024 + biases


@pytest.mark.parametrize("name", ["hidden", "channels", "fc"])
def test_a_network_has_a_most_of_layers(name: str) -> None:
    NetworkConfig(**{name: (1,) * MAX_LAYERS})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"{name} names 100,000 layers, more than 1,000; name"):
        NetworkConfig(**{name: (1,) * 100_000})  # type: ignore[arg-type]


def test_a_network_has_a_most_of_positions() -> None:
    with pytest.raises(ConfigError, match=r"more than 1,073,741,824; pass fewer or smaller layers"):
        empty_network(mlp(hidden=(16_000,) * 6), (1, 4, 4), 5)


def test_density_is_exact_per_layer_for_the_smallest_share() -> None:
    network = build_network(mlp(density=1e-6), (1, 4, 4), 5, seed=0)
    assert {name: layer.live_count for name, layer in network.layers.items()} == {
        "fc1": 1,
        "fc2": 1,
        "head": 1,
    }
    assert torch.isfinite(network(torch.ones(2, 1, 4, 4))).all()


def test_a_dense_network_is_full() -> None:
    network = build_network(mlp(density=1), (1, 4, 4), 5, seed=0)
    assert network.live_count() == network.position_count()


def test_sizes_are_parameters() -> None:
    config = NetworkConfig(
        architecture="convnet", channels=(2, 3, 4), kernel_size=5, pool_every=1, fc=(), density=1
    )
    network = build_network(config, (1, 9, 8), 3, seed=0)
    # 9x8 -> 4x4 -> 2x2 -> 1x1
    assert shapes(network) == {"conv1": (2, 1), "conv2": (3, 2), "conv3": (4, 3), "head": (3, 4)}
    assert network.topology.layer("conv1").kernel == (5, 5)
    assert network(torch.zeros(1, 1, 9, 8)).shape == (1, 3)


def test_a_head_straight_after_the_convolutions_reads_blocks() -> None:
    config = NetworkConfig(architecture="convnet", channels=(2, 3), fc=(), density=1)
    network = build_network(config, (1, 6, 4), 5, seed=0)
    head = network.topology.layer("head")
    assert (head.source, head.block) == ("conv2", 6)  # 3x2 pixels after one pool
    assert shapes(network)["head"] == (5, 18)


def test_a_block_of_columns_reads_its_own_channel() -> None:
    config = NetworkConfig(architecture="convnet", channels=(3,), fc=(), pool_every=9, density=1)
    network = build_network(config, (1, 2, 2), 1, seed=0)
    conv, head = network.layers["conv1"], network.layers["head"]
    pattern = torch.zeros(1, 12, dtype=torch.bool)
    pattern[0, 4:8] = True  # the block of channel 1
    head.rewire(pattern, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    image = torch.rand(1, 1, 2, 2) + 0.5
    with torch.no_grad():
        conv.bias.fill_(1.0)
        before = network(image)
        conv.bias[0] += 5.0
        conv.bias[2] += 5.0
        assert torch.equal(network(image), before)
        conv.bias[1] += 5.0
        assert not torch.equal(network(image), before)


@pytest.mark.parametrize(
    ("shape", "changes", "number"),
    [((1, 3, 3), {}, 4), ((3, 1, 8), {}, 2), ((1, 8, 7), {"pool_every": 1}, 3)],
)
def test_images_too_small_for_the_pools(
    shape: tuple[int, int, int], changes: dict[str, Any], number: int
) -> None:
    config = NetworkConfig(architecture="convnet", **changes)
    with pytest.raises(ConfigError) as refused:
        empty_network(config, shape, 10)
    assert str(refused.value) == (
        f"images of {shape[1]}x{shape[2]} pixels are too small for a max-pool after convolution "
        f"{number}; pass fewer channels or a larger pool_every"
    )


def pooled(network: SparseNetwork) -> list[int]:
    """How many max-pools follow each convolution."""
    found: list[int] = []
    for module in network.body.modules():
        if isinstance(module, SparseConv2d):
            found.append(0)
        if isinstance(module, nn.MaxPool2d):
            found[-1] += 1
    return found


@pytest.mark.parametrize(
    ("shape", "changes", "pools", "block"),
    [
        ((3, 32, 32), {}, [0, 1, 0, 1], 64),  # up to here as ever
        ((1, 28, 28), {}, [0, 1, 0, 1], 49),
        ((1, 8, 8), {}, [0, 1, 0, 1], 4),
        ((3, 64, 64), {}, [1, 1, 0, 1], 64),
        ((3, 224, 224), {}, [1, 1, 1, 2], 49),
        ((3, 480, 640), {}, [1, 1, 1, 4], 15),
        ((1, 4, 400), {}, [0, 1, 0, 1], 100),  # no side falls below one pixel
        ((3, 64, 64), {"pool_to": 64}, [0, 1, 0, 1], 256),
        ((3, 32, 32), {"pool_to": 2}, [1, 1, 1, 1], 4),
    ],
)
def test_maps_of_large_images_are_pooled_to_a_fixed_size(
    shape: tuple[int, int, int], changes: dict[str, Any], pools: list[int], block: int
) -> None:
    sizes: dict[str, Any] = {"channels": (4, 4, 4, 4), "fc": (8,)} | changes
    network = build_network(NetworkConfig(architecture="convnet", **sizes), shape, 3, seed=0)
    assert pooled(network) == pools
    assert network.topology.layer("fc1").block == block
    images = torch.rand(2, *shape)
    assert network(images).shape == (2, 3)
    watched = network.observe(images, unit_activity)
    for name, found in network.activity([images]).items():
        assert torch.allclose(found, watched[name].double(), rtol=1e-5)
    assert network.per_sample().forward > 0


def test_a_layer_that_is_too_large_says_which_setting_helps() -> None:
    with pytest.raises(ConfigError, match=r"fc1 would join 401,408 .* smaller fc, .* pool_to"):
        empty_network(NetworkConfig(architecture="convnet", pool_to=100_000), (3, 224, 224), 10)
    with pytest.raises(ConfigError, match=r"fc1 would join .* pass a smaller hidden, or smaller"):
        empty_network(NetworkConfig(), (3, 2000, 2000), 10)
    empty_network(NetworkConfig(architecture="convnet"), (3, 224, 224), 10)


# The forward pass against plain PyTorch.


def test_the_mlp_computes_what_dense_layers_compute() -> None:
    network = build_network(mlp(), (2, 3, 3), 4, seed=3).double()
    x = torch.rand(5, 2, 3, 3, dtype=torch.float64)
    hidden = x.flatten(1)
    for name in ("fc1", "fc2"):
        layer = network.layers[name]
        hidden = torch.relu(functional.linear(hidden, layer.dense_weight(), layer.dense_bias()))
    head = network.layers["head"]
    expected = functional.linear(hidden, head.dense_weight(), head.dense_bias())
    torch.testing.assert_close(network(x), expected)


def convnet_activations(network: SparseNetwork, x: Tensor) -> dict[str, Tensor]:
    """The activations of a ConvNet's groups, with plain PyTorch."""
    weights = {name: (layer.dense_weight(), layer.dense_bias()) for name, layer in
               network.layers.items()}  # fmt: skip
    seen = {}
    for number in (1, 2, 3, 4):
        x = torch.relu(functional.conv2d(x, *weights[f"conv{number}"], padding=1))
        if number in (2, 4):
            x = functional.max_pool2d(x, 2)
        seen[f"conv{number}"] = x
    x = torch.relu(functional.linear(x.flatten(1), *weights["fc1"]))
    seen["fc1"] = x
    seen["head"] = functional.linear(x, *weights["head"])
    return seen


def test_the_convnet_computes_what_dense_layers_compute() -> None:
    network = build_network(TINY_CONVNET, (3, 9, 8), 4, seed=3).double()
    x = torch.rand(3, 3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(network(x), convnet_activations(network, x)["head"])


def test_activity_is_read_after_the_pool() -> None:
    network = build_network(TINY_CONVNET, (3, 9, 8), 4, seed=3).double()
    x = torch.rand(3, 3, 9, 8, dtype=torch.float64)
    expected = convnet_activations(network, x)
    found = network.observe(x, unit_activity)
    assert list(found) == ["conv1", "conv2", "conv3", "conv4", "fc1"]
    for name, activity in found.items():
        dims = (0, 2, 3) if name.startswith("conv") else (0,)
        torch.testing.assert_close(activity, expected[name].sum(dims))
        assert not activity.requires_grad


def test_watching_leaves_no_hook_behind() -> None:
    network = build_network(mlp(), (1, 4, 4), 3, seed=0)
    x = torch.rand(2, 1, 4, 4)
    before = network(x)
    network.observe(x, unit_activity)
    assert torch.equal(network(x), before)

    def fails(_activations: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        network.observe(x, fails)
    assert torch.equal(network(x), before)
    assert all(not module._forward_hooks for module in network.modules())


class Residual(nn.Module):
    """A stream of two units: after the stem, and again after the sum with a block's output."""

    def __init__(self, layers: dict[str, SparseLinear]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(layers)
        self.first, self.middle, self.last = Units("s"), Units("m"), Units("s")

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(torch.relu(self.parts["stem"](x.flatten(1))))
        middle = self.middle(torch.relu(self.parts["up"](stream)))
        stream = self.last(stream + torch.relu(self.parts["down"](middle)))
        logits: Tensor = self.parts["head"](stream)
        return logits


def test_a_group_marked_at_several_places_sums_them() -> None:
    groups = (
        UnitGroup("in", 2, "input"),
        UnitGroup("s", 2),
        UnitGroup("m", 1),
        UnitGroup("out", 1, "output"),
    )
    specs = (
        ConnectionLayer("stem", "in", "s"),
        ConnectionLayer("up", "s", "m"),
        ConnectionLayer("down", "m", "s"),
        ConnectionLayer("head", "s", "out"),
    )
    topology = Topology(groups, specs)
    layers = {spec.name: SparseLinear(spec, topology.pattern_shape(spec)) for spec in specs}
    values = {"stem": [1.0, 0, 0, 1.0], "up": [1.0, 1.0], "down": [2.0, 3.0], "head": [1.0, 1.0]}
    for name, layer in layers.items():
        layer.connect(torch.ones(layer.shape, dtype=torch.bool), torch.tensor(values[name]))
    network = SparseNetwork(Residual(layers), topology, (1, 1, 2))
    # x = (1, 2): the stream is (1, 2), m is 3, and the stream becomes (1 + 6, 2 + 9).
    found = network.observe(torch.tensor([[[[1.0, 2.0]]]]), unit_activity)
    assert found["m"].tolist() == [3.0]
    assert found["s"].tolist() == [1.0 + 7.0, 2.0 + 11.0]
    assert network(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[18.0]]


def test_a_topology_that_does_not_match_its_modules_is_an_error() -> None:
    network = empty_network(mlp(), (1, 4, 4), 3)
    other = empty_network(mlp(hidden=(30, 20, 10)), (1, 4, 4), 3)
    with pytest.raises(AssertionError):
        SparseNetwork(network.body, other.topology, (1, 4, 4))


# Patterns and values.


def test_erk_has_the_weights_of_uniform() -> None:
    uniform = build_network(mlp(density=0.3), (1, 8, 8), 10, seed=0)
    erk = build_network(mlp(density=0.3, distribution="erk"), (1, 8, 8), 10, seed=0)
    assert abs(erk.live_count() - uniform.live_count()) <= len(erk.layers)
    share = {name: layer.live_count / layer.position_count for name, layer in erk.layers.items()}
    assert share["head"] > share["fc2"] > share["fc1"]


def test_erk_keeps_the_first_convolution_dense() -> None:
    config = NetworkConfig(
        architecture="convnet", channels=(8, 12, 16, 8), fc=(40,), density=0.3, distribution="erk"
    )
    network = build_network(config, (3, 16, 16), 10, seed=0)
    first = network.layers.pop("conv1")
    assert first.live_count == first.position_count
    total = sum(layer.position_count * layer.weights_each for layer in network.layers.values())
    live = sum(layer.live_count * layer.weights_each for layer in network.layers.values())
    assert live == pytest.approx(0.3 * total, abs=9 * len(network.layers))


def test_kaiming_deviation_over_live_connections() -> None:
    network = build_network(mlp(hidden=(400, 400), density=0.1), (1, 20, 20), 10, seed=1)
    layer = network.layers["fc2"]
    scaled = layer.dense_weight() * layer.pattern.sum(1, keepdim=True).sqrt()
    assert float(scaled[layer.pattern].std()) == pytest.approx(math.sqrt(2), rel=0.03)
    assert not layer.dense_bias().any()


def test_published_deviations_count_all_positions() -> None:
    config = mlp(hidden=(400, 100), density=0.2, fan="positions", init="fan_out", bias="uniform")
    network = build_network(config, (1, 30, 30), 10, seed=1)
    for name, fan_out, fan_in in (("fc1", 400, 900), ("fc2", 100, 400)):
        layer = network.layers[name]
        deviation = float(layer.dense_weight()[layer.pattern].std())
        assert deviation == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
        bound = 1 / math.sqrt(fan_in)
        assert 0.8 * bound < float(layer.dense_bias().abs().max()) <= bound


def test_bernoulli_counts_vary_from_the_exact_one() -> None:
    counts = {
        build_network(mlp(mask="bernoulli"), (1, 4, 4), 3, seed=seed).layers["fc1"].live_count
        for seed in range(10)
    }
    assert len(counts) > 3
    assert all(abs(count - 192) < 60 for count in counts)


# Seeds.


def dense_state(network: SparseNetwork) -> dict[str, Tensor]:
    return {name: layer.dense_weight() for name, layer in network.layers.items()}


@pytest.mark.parametrize("config", [mlp(bias="uniform", mask="bernoulli"), TINY_CONVNET])
def test_a_seed_is_a_network(config: NetworkConfig) -> None:
    torch.manual_seed(1)
    first = build_network(config, (3, 8, 8), 4, seed=5).state_dict()
    torch.manual_seed(2)
    second = build_network(config, (3, 8, 8), 4, seed=5).state_dict()
    other = build_network(config, (3, 8, 8), 4, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    network = build_network(mlp(bias="uniform"), (1, 4, 4), 3, seed=5)
    restart_plastic(network, "fan_in", "live", seed=5, task=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pattern_does_not_depend_on_how_values_start() -> None:
    first = build_network(mlp(), (1, 4, 4), 3, seed=5).patterns()
    other = mlp(init="fan_out", fan="positions", bias="uniform")
    second = build_network(other, (1, 4, 4), 3, seed=5).patterns()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_of_one_shape_have_patterns_and_values_of_their_own() -> None:
    network = build_network(mlp(hidden=(20, 20, 20)), (1, 4, 5), 20, seed=0)
    first, second = network.layers["fc2"], network.layers["fc3"]
    assert not torch.equal(first.pattern, second.pattern)
    network = build_network(mlp(hidden=(20, 20, 20), density=1), (1, 4, 5), 20, seed=0)
    weights = [network.layers[name].weight for name in ("fc2", "fc3", "head")]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    network = build_network(mlp(hidden=(20, 20), density=1, bias="uniform"), (1, 4, 5), 20, seed=0)
    assert not torch.equal(network.layers["fc1"].bias, network.layers["fc2"].bias)


# Restarting.


def test_restarting_draws_plastic_weights_anew_and_clears_plastic_biases() -> None:
    network = build_network(mlp(bias="uniform"), (1, 4, 4), 3, seed=5)
    layer = network.layers["fc2"]
    frozen = torch.rand(layer.shape) < 0.5
    units = torch.arange(20) < 10
    layer.freeze(frozen, units)
    before = copy.deepcopy(network)
    old = before.layers["fc2"]
    restart_plastic(network, "fan_in", "live", seed=5, task=2)
    plastic = layer.pattern & ~frozen
    assert torch.equal(layer.pattern, old.pattern)
    assert torch.equal(layer.dense_weight()[~plastic], old.dense_weight()[~plastic])
    assert (layer.dense_weight()[plastic] != old.dense_weight()[plastic]).all()
    assert torch.equal(layer.dense_bias()[units], old.dense_bias()[units])
    assert not layer.dense_bias()[~units].any()
    assert not network.layers["head"].dense_bias().any()

    again = copy.deepcopy(before)
    restart_plastic(again, "fan_in", "live", seed=5, task=2)
    assert torch.equal(again.layers["fc2"].dense_weight(), layer.dense_weight())
    restart_plastic(again, "fan_in", "live", seed=5, task=3)
    assert not torch.equal(again.layers["fc2"].dense_weight(), layer.dense_weight())


def test_restarting_uses_the_deviation_asked_for() -> None:
    network = build_network(mlp(hidden=(400, 100), density=0.2), (1, 30, 30), 10, seed=1)
    restart_plastic(network, "fan_out", "positions", seed=1, task=0)
    for name, fan_out in (("fc1", 400), ("fc2", 100)):
        layer = network.layers[name]
        deviation = float(layer.dense_weight()[layer.pattern].std())
        assert deviation == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


# Loading.


@pytest.mark.parametrize(
    "config", [mlp(mask="bernoulli"), mlp(density=1e-9), mlp(density=1.0), TINY_CONVNET]
)
def test_an_empty_network_takes_over_any_state(config: NetworkConfig) -> None:
    network = build_network(config, (3, 8, 8), 4, seed=0)
    for layer in network.layers.values():
        layer.freeze(torch.rand(layer.shape) < 0.3, torch.rand(layer.shape[0]) < 0.3)
    empty = empty_network(config, (3, 8, 8), 4)
    assert all(layer.live_count == 0 for layer in empty.layers.values())
    empty.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(empty(x), network(x))
    assert all(
        torch.equal(empty.layers[name].frozen, layer.frozen)
        for name, layer in network.layers.items()
    )


def test_the_state_of_another_architecture_is_refused() -> None:
    network = build_network(mlp(), (1, 4, 4), 3, seed=0)
    for other in (mlp(hidden=(30,)), mlp(hidden=(8, 20)), TINY_CONVNET):
        with pytest.raises(RuntimeError):
            empty_network(other, (1, 4, 4), 3).load_state_dict(network.state_dict())


def test_layers_are_the_modules_of_the_body() -> None:
    network = build_network(TINY_CONVNET, (3, 8, 8), 4, seed=0)
    kinds = {name: type(layer) for name, layer in network.layers.items()}
    assert kinds == {f"conv{number}": SparseConv2d for number in (1, 2, 3, 4)} | {
        "fc1": SparseLinear,
        "head": SparseLinear,
    }
    assert all(isinstance(layer, SparseLayer) for layer in network.layers.values())
    copied = copy.deepcopy(network)
    assert set(map(id, copied.layers.values())) <= set(map(id, copied.body.modules()))


@pytest.mark.parametrize("asked", ["tf32", "bfloat16"])
def test_smaller_types_of_products_leave_values_and_logits_in_float32(
    asked: Literal["tf32", "bfloat16"],
) -> None:
    before = torch.get_float32_matmul_precision()
    image = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    found = {}
    for precision in ("float32", asked):
        network = build_network(replace(MLP, precision=precision), (1, 28, 28), 10, seed=0)
        network.gradients(image, labels, functional.cross_entropy)
        logits = network(image)
        assert logits.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in network.parameters())
        found[precision] = [logits.detach(), *(value.grad for value in network.parameters())]
    if asked == "bfloat16":  # few CPUs have TF32
        assert not torch.equal(found["float32"][0], found[asked][0])
    assert torch.get_float32_matmul_precision() == before
    for one, other in zip(*found.values(), strict=True):
        assert float((one - other).norm()) < 0.3 * float(one.norm())  # some ReLUs flip


def test_outputs_without_a_path_are_found() -> None:
    """By hand: input 1 reaches fc1's unit 0, which reaches output 2; unit 1 has no input."""
    network = empty_network(NetworkConfig(hidden=(2,)), (1, 1, 3), 4)
    into, head = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.bool)
    into[0, 1] = head[2, 0] = head[0, 1] = True
    for name, pattern in (("fc1", into), ("head", head)):
        layer = network.layers[name]
        layer.connect(pattern, torch.ones(int(pattern.sum())))
    assert network.unreached() == (0, 1, 3)
    assert build_network(NetworkConfig(density=1.0), (1, 2, 2), 3, seed=0).unreached() == ()


@pytest.mark.parametrize("architecture", ["mlp", "convnet"])
def test_paths_go_as_values_do(architecture: Literal["mlp", "convnet"]) -> None:
    """An output without a path does not move with the image, another one does."""
    small: dict[str, Any] = {"hidden": (20, 20), "channels": (6, 6, 5, 6), "fc": (20,)}
    config = NetworkConfig(architecture=architecture, density=0.05, kernel_size=3, **small)
    met = 0
    for seed in range(5):
        network = build_network(config, (1, 16, 16), 12, seed=seed)
        images = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            moves = network(images * 9).std(dim=0) > 0
        lost = network.unreached()
        met += len(lost)
        assert not moves[list(lost)].any()
    assert met > 0


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 1, 12)])
def test_a_sample_of_any_shape_reads_as_its_values_in_order(shape: tuple[int, ...]) -> None:
    """In passes, gradients, cached data and activity, with whatever kernels run here."""
    from nispa.data.tasks import Samples

    flat = torch.randn(20, 12)
    labels = torch.arange(20) % 3
    found = []
    for given in ((3, 2, 2), shape):
        network = build_network(NetworkConfig(hidden=(6, 5), density=0.6), given, 3, seed=0)
        samples = Samples(flat.view(-1, *given), labels)
        prepared = network.prepare(samples, 2**20)
        images, _ = prepared.batch(torch.arange(20))
        loss = network.gradients(images, labels, functional.cross_entropy)
        grads = [value.grad.clone() for value in network.parameters() if value.grad is not None]
        units = network.activity([samples.batch(slice(None))[0]])
        logits = network(samples.batch(slice(None))[0])
        found.append([logits, loss, *grads, *units.values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
