from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear
from nispa.network.topology import ConnectionLayer
from nispa.training.fit import Batch, OptimiserConfig, gradient_step, make_optimiser

OPTIMISERS = [
    OptimiserConfig(optimiser="adam", weight_decay=0.1, learning_rate=0.05),
    OptimiserConfig(optimiser="adamw", weight_decay=0.1, learning_rate=0.05),
    OptimiserConfig(optimiser="sgd", momentum=0.9, weight_decay=0.1, learning_rate=0.05),
    OptimiserConfig(optimiser="adadelta", weight_decay=0.1, learning_rate=1.0),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_layer(rows: int = 2, columns: int = 3) -> SparseLinear:
    return SparseLinear(ConnectionLayer("fc", "s", "t"), (rows, columns))


def conv_layer(rows: int = 2, columns: int = 3, stride: int = 1, padding: int = 1) -> SparseConv2d:
    spec = ConnectionLayer("conv", "s", "t", kernel=(3, 3))
    return SparseConv2d(spec, (rows, columns), stride=stride, padding=padding)


def by_hand() -> SparseLinear:
    """Rows ``x.x`` and ``.x.`` with values 1, 2 and 3; (0, 2) and the bias of unit 1 are frozen."""
    layer = linear_layer()
    layer.connect(
        torch.tensor([[True, False, True], [False, True, False]]), torch.tensor([1.0, 2.0, 3.0])
    )
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    frozen = torch.tensor([[False, False, True], [False, False, False]])
    layer.freeze(frozen, torch.tensor([False, True]))
    return layer


def random_layer(
    kind: str, density: float, frozen: float, seed: int = 0, dtype: torch.dtype = torch.float32
) -> SparseLayer:
    layer: SparseLayer = linear_layer(5, 7) if kind == "linear" else conv_layer(5, 3)
    layer = layer.to(dtype)
    generator = seeded(seed)
    pattern = torch.rand(layer.shape, generator=generator) < density
    live = int(pattern.sum())
    layer.connect(pattern, torch.randn(live, *layer.spec.kernel, generator=generator))
    with torch.no_grad():
        layer.bias.copy_(torch.randn(5, generator=generator))
    layer.freeze(
        torch.rand(layer.shape, generator=generator) < frozen,
        torch.rand(5, generator=generator) < frozen,
    )
    return layer


def images_for(layer: SparseLayer, batch: int = 4, seed: int = 1) -> Tensor:
    size = (7,) if isinstance(layer, SparseLinear) else (3, 5, 4)
    return torch.randn(batch, *size, generator=seeded(seed)).to(layer.weight.dtype)


def train(layer: SparseLayer, config: OptimiserConfig, steps: int = 5) -> None:
    x = images_for(layer)

    def loss(x: Tensor, _labels: Tensor) -> Tensor:
        output: Tensor = layer(x)
        return (output - 3.0).square().mean()

    step = gradient_step(loss, make_optimiser(config, layer.parameters()))
    for _ in range(steps):
        step(Batch(x, torch.zeros(1), torch.arange(len(x)), 1, 1))


KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])


# What a layer is.


def test_a_new_layer_is_empty() -> None:
    layer = linear_layer()
    assert (layer.live_count, layer.frozen_count, layer.position_count) == (0, 0, 6)
    assert not layer.pattern.any()
    assert layer(torch.ones(1, 3)).tolist() == [[0.0, 0.0]]


def test_a_layer_by_hand() -> None:
    layer = by_hand()
    assert layer.pattern.tolist() == [[True, False, True], [False, True, False]]
    assert layer.frozen.tolist() == [[False, False, True], [False, False, False]]
    assert (layer.live_count, layer.frozen_count, layer.weights_each) == (3, 1, 1)
    assert layer.dense_weight().tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    assert layer.dense_bias().tolist() == [0.5, -0.5]
    # [10, 20, 30]: 10 * 1 + 30 * 2 + 0.5 and 20 * 3 - 0.5
    assert layer(torch.tensor([[10.0, 20.0, 30.0]])).tolist() == [[70.5, 59.5]]


def test_only_plastic_values_are_parameters() -> None:
    layer = by_hand()
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert layer.weight.tolist() == [1.0, 3.0]
    assert layer.plastic_index.tolist() == [0, 4]
    assert layer.frozen_weight.tolist() == [2.0]
    assert layer.frozen_index.tolist() == [2]
    assert layer.bias.tolist() == [0.5]
    assert layer.bias_index.tolist() == [0]
    assert layer.frozen_bias.tolist() == [-0.5]
    assert layer.frozen_bias_index.tolist() == [1]


def test_gradients_reach_plastic_values_alone() -> None:
    layer = by_hand()
    layer(torch.tensor([[10.0, 20.0, 30.0]])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [10.0, 20.0]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [1.0]
    assert layer.frozen_weight.grad is None


def test_a_kernel_counts_once_as_a_connection_and_nine_times_as_weights() -> None:
    layer = conv_layer()
    layer.connect(torch.tensor([[True, False, False], [False, False, True]]), torch.ones(2, 3, 3))
    assert (layer.live_count, layer.position_count, layer.weights_each) == (2, 6, 9)
    # An image of ones, channel 0 into unit 0: the middle of 3x3 sees nine ones, a corner four.
    image = torch.zeros(1, 3, 3, 3)
    image[0, 0] = 1.0
    found = layer(image)
    assert found[0, 0].tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    assert not found[0, 1].any()


@examples(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["linear", "conv"]),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    frozen=st.sampled_from([0.0, 0.5, 1.0]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_forward_and_backward_agree_with_a_dense_layer(
    kind: str, density: float, frozen: float, batch: int, seed: int
) -> None:
    layer = random_layer(kind, density, frozen, seed, torch.float64)
    weight = layer.dense_weight().requires_grad_()
    bias = layer.dense_bias().requires_grad_()
    x = images_for(layer, batch, seed).requires_grad_()
    dense_x = x.detach().clone().requires_grad_()
    if kind == "linear":
        expected = functional.linear(dense_x, weight, bias)
    else:
        expected = functional.conv2d(dense_x, weight, bias, 1, 1)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, dense_x.grad)
    plastic = layer.pattern & ~layer.frozen
    assert weight.grad is not None
    assert bias.grad is not None
    if plastic.any():
        torch.testing.assert_close(layer.weight.grad, weight.grad[plastic])
    if len(layer.bias_index):
        torch.testing.assert_close(layer.bias.grad, bias.grad[layer.bias_index])


@pytest.mark.parametrize(("stride", "padding", "shape"), [(2, 0, (2, 1)), (1, 2, (7, 6))])
def test_stride_and_padding_reach_the_convolution(
    stride: int, padding: int, shape: tuple[int, int]
) -> None:
    layer = conv_layer(stride=stride, padding=padding)
    layer.connect(torch.ones(2, 3, dtype=torch.bool), torch.randn(6, 3, 3, generator=seeded()))
    x = torch.randn(1, 3, 5, 4, generator=seeded(1))
    expected = functional.conv2d(x, layer.dense_weight(), layer.dense_bias(), stride, padding)
    found = layer(x)
    assert found.shape == (1, 2, *shape)
    torch.testing.assert_close(found, expected)


# Freezing.


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_freezing_keeps_every_value_and_every_output_bit(kind: str, dtype: torch.dtype) -> None:
    layer = random_layer(kind, 0.6, 0.0, dtype=dtype)
    x = images_for(layer)
    weight, bias, output = layer.dense_weight(), layer.dense_bias(), layer(x)
    for share, seed in ((0.4, 1), (0.5, 2), (1.1, 3)):  # the last freezes all that is left
        generator = seeded(seed)
        layer.freeze(
            torch.rand(layer.shape, generator=generator) < share,
            torch.rand(5, generator=generator) < share,
        )
        assert torch.equal(layer.dense_weight(), weight)
        assert torch.equal(layer.dense_bias(), bias)
        assert torch.equal(layer(x), output)
        assert layer.frozen_index.tolist() == sorted(layer.frozen_index.tolist())
        assert layer.plastic_index.tolist() == sorted(layer.plastic_index.tolist())
    assert layer.weight.numel() == layer.bias.numel() == 0
    assert not layer(x).requires_grad


@KINDS
def test_thawing_takes_back_what_was_frozen_and_keeps_every_bit(kind: str) -> None:
    layer = random_layer(kind, 0.6, 0.0)
    x = images_for(layer)
    weight, bias, output = layer.dense_weight(), layer.dense_bias(), layer(x)
    layer.freeze(torch.ones(layer.shape, dtype=torch.bool), torch.ones(5, dtype=torch.bool))
    rows = torch.tensor([True, False, True, False, True])
    before = layer.changes
    layer.thaw(rows[:, None].expand(layer.shape), rows)
    assert layer.changes > before
    assert torch.equal(layer.dense_weight(), weight)
    assert torch.equal(layer.dense_bias(), bias)
    assert torch.equal(layer(x), output)
    assert torch.equal(layer.frozen, layer.pattern & ~rows[:, None])
    assert layer.frozen_bias_index.tolist() == [1, 3]
    assert layer.bias_index.tolist() == [0, 2, 4]
    assert layer.plastic_index.tolist() == sorted(layer.plastic_index.tolist())
    layer.thaw(rows[:, None].expand(layer.shape), rows)  # plastic ones are ignored
    assert layer.frozen_bias_index.tolist() == [1, 3]
    train(layer, OPTIMISERS[0])
    moved = layer.pattern & rows[:, None]
    assert (layer.dense_weight()[moved] != weight[moved]).all()
    assert torch.equal(layer.dense_weight()[~moved], weight[~moved])


def test_freezing_ignores_dead_and_frozen_connections() -> None:
    layer = by_hand()
    layer.freeze(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool))
    assert layer.frozen.tolist() == layer.pattern.tolist()
    assert layer.frozen_weight.tolist() == [1.0, 2.0, 3.0]
    assert layer.frozen_bias.tolist() == [-0.5]


@KINDS
@pytest.mark.parametrize("config", OPTIMISERS, ids=lambda config: str(config.optimiser))
def test_no_optimiser_moves_a_frozen_value(kind: str, config: OptimiserConfig) -> None:
    layer = random_layer(kind, 0.6, 0.0)
    train(layer, config)  # momentum and second moments exist when values freeze
    frozen = torch.rand(layer.shape, generator=seeded(3)) < 0.5
    units = torch.tensor([True, False, True, False, True])
    layer.freeze(frozen, units)
    weight, bias = layer.dense_weight(), layer.dense_bias()
    train(layer, config)
    plastic = layer.pattern & ~frozen
    assert torch.equal(layer.dense_weight()[~plastic], weight[~plastic])
    assert torch.equal(layer.dense_bias()[units], bias[units])
    assert (layer.dense_weight()[plastic] != weight[plastic]).all()
    assert (layer.dense_bias()[~units] != bias[~units]).all()


@pytest.mark.parametrize("config", OPTIMISERS, ids=lambda config: str(config.optimiser))
def test_an_optimiser_from_before_the_freeze_moves_nothing_frozen(config: OptimiserConfig) -> None:
    layer = random_layer("linear", 0.6, 0.0)
    optimiser = make_optimiser(config, layer.parameters())
    layer(images_for(layer)).square().mean().backward()
    optimiser.step()
    layer.freeze(torch.ones(layer.shape, dtype=torch.bool), torch.ones(5, dtype=torch.bool))
    weight, bias = layer.dense_weight(), layer.dense_bias()
    optimiser.step()  # its parameters are no longer the layer's
    assert torch.equal(layer.dense_weight(), weight)
    assert torch.equal(layer.dense_bias(), bias)


@pytest.mark.parametrize("config", OPTIMISERS, ids=lambda config: str(config.optimiser))
def test_a_layer_without_plastic_values_trains_to_no_effect(config: OptimiserConfig) -> None:
    layer = random_layer("linear", 0.6, 1.1)
    before = layer.dense_weight()
    train(layer, config)
    assert torch.equal(layer.dense_weight(), before)


# Rewiring and restarting.


def test_rewiring_by_hand() -> None:
    layer = by_hand()
    # (0, 0) falls; (1, 2) and (0, 1) grow; (1, 1) is plastic and stays; (0, 2) is frozen.
    pattern = torch.tensor([[False, True, True], [False, True, True]])
    layer.rewire(pattern, torch.tensor([5, 1]), torch.tensor([50.0, 10.0]))
    assert layer.dense_weight().tolist() == [[0.0, 10.0, 2.0], [0.0, 3.0, 50.0]]
    assert layer.plastic_index.tolist() == [1, 4, 5]
    assert layer.frozen_index.tolist() == [2]
    assert layer.dense_bias().tolist() == [0.5, -0.5]


@KINDS
def test_rewiring_keeps_survivors_bit_for_bit(kind: str) -> None:
    layer = random_layer(kind, 0.5, 0.4)
    old, weight, bias = layer.pattern, layer.dense_weight(), layer.dense_bias()
    new = layer.frozen | (torch.rand(layer.shape, generator=seeded(5)) < 0.5)
    grown = (new & ~old).flatten().nonzero().flatten()
    values = torch.randn(len(grown), *layer.spec.kernel, generator=seeded(6))
    frozen = layer.frozen
    layer.rewire(new, grown, values)
    assert torch.equal(layer.pattern, new)
    assert torch.equal(layer.frozen, frozen)
    assert torch.equal(layer.dense_weight()[old & new], weight[old & new])
    assert torch.equal(layer.dense_weight()[new & ~old], values)
    assert torch.equal(layer.dense_bias(), bias)


def test_rewiring_to_nothing_and_back() -> None:
    layer = linear_layer()
    layer.connect(torch.ones(2, 3, dtype=torch.bool), torch.ones(6))
    nowhere = torch.zeros(0, dtype=torch.int64)
    layer.rewire(torch.zeros(2, 3, dtype=torch.bool), nowhere, torch.zeros(0))
    assert layer.live_count == 0
    pattern = torch.zeros(2, 3, dtype=torch.bool)
    pattern[1, 0] = True
    layer.rewire(pattern, torch.tensor([3]), torch.tensor([4.0]))
    assert layer.dense_weight().tolist() == [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]


def test_rewiring_never_drops_a_frozen_connection() -> None:
    layer = by_hand()
    nowhere = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(AssertionError, match="frozen connection is dropped"):
        layer.rewire(torch.zeros(2, 3, dtype=torch.bool), nowhere, torch.zeros(0))


def test_growth_must_match_the_pattern() -> None:
    layer = by_hand()
    with pytest.raises(AssertionError, match="grown does not match"):
        layer.rewire(torch.ones(2, 3, dtype=torch.bool), torch.tensor([1]), torch.zeros(1))


def test_connecting_must_not_replace_frozen_connections() -> None:
    with pytest.raises(AssertionError, match="frozen connections cannot be replaced"):
        by_hand().connect(torch.ones(2, 3, dtype=torch.bool), torch.zeros(6))


def test_a_rewired_layer_does_not_share_memory_with_what_it_was_given() -> None:
    layer = linear_layer()
    values = torch.ones(6)
    layer.connect(torch.ones(2, 3, dtype=torch.bool), values)
    values.zero_()
    assert layer.dense_weight().tolist() == [[1.0] * 3] * 2


def test_values_at_a_mask() -> None:
    layer = by_hand()
    mask = torch.tensor([[True, True, True], [False, False, True]])
    assert sorted(layer.values_at(mask).tolist()) == [1.0, 2.0]
    assert layer.values_at(torch.zeros(2, 3, dtype=torch.bool)).shape == (0,)
    assert sorted(layer.values_at(layer.pattern).tolist()) == [1.0, 2.0, 3.0]


def test_values_of_kernels_at_a_mask() -> None:
    layer = random_layer("conv", 0.6, 0.5)
    mask = torch.rand(layer.shape, generator=seeded(8)) < 0.5
    found = layer.values_at(mask)
    expected = layer.dense_weight()[mask & layer.pattern]
    assert found.shape == expected.shape
    assert sorted(found.flatten().tolist()) == sorted(expected.flatten().tolist())
    assert not found.requires_grad


def test_restarting_by_hand() -> None:
    layer = by_hand()
    # Live in order of position: (0, 0), (0, 2) frozen, (1, 1).
    layer.restart_plastic(torch.tensor([7.0, 8.0, 9.0]), torch.tensor([0.25, 0.75]))
    assert layer.dense_weight().tolist() == [[7.0, 0.0, 2.0], [0.0, 9.0, 0.0]]
    assert layer.dense_bias().tolist() == [0.25, -0.5]


def test_restarting_gives_plastic_biases_the_values_of_their_units() -> None:
    layer = linear_layer(3, 1)
    layer.freeze(layer.pattern, torch.tensor([True, False, False]))
    layer.restart_plastic(torch.zeros(0), torch.tensor([1.0, 2.0, 3.0]))
    assert layer.dense_bias().tolist() == [0.0, 2.0, 3.0]


@KINDS
def test_restarting_gives_plastic_connections_the_values_of_their_positions(kind: str) -> None:
    layer = random_layer(kind, 0.6, 0.5)
    weight, pattern, frozen = layer.dense_weight(), layer.pattern, layer.frozen
    values = torch.randn(layer.live_count, *layer.spec.kernel, generator=seeded(9))
    expected = torch.zeros_like(weight)
    expected[pattern] = values
    expected[frozen] = weight[frozen]
    layer.restart_plastic(values, torch.zeros(5))
    assert torch.equal(layer.dense_weight(), expected)


# Memory.


@KINDS
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("frozen", [0.0, 0.5, 1.1])
def test_what_is_stored_follows_the_live_connections(
    kind: str, density: float, frozen: float
) -> None:
    layer = random_layer(kind, density, frozen)
    stored = sum(value.numel() for value in layer.state_dict().values())
    live, units = layer.live_count, layer.shape[0]
    assert stored == live * (layer.weights_each + 1) + units * 2
    optimiser = make_optimiser(OPTIMISERS[0], layer.parameters())
    output = layer(images_for(layer))
    if output.requires_grad:
        output.sum().backward()
    optimiser.step()
    moments = sum(
        value.numel()
        for state in optimiser.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert moments <= 2 * (live * layer.weights_each + units)


# Saving and loading.


@KINDS
@pytest.mark.parametrize("density", [0.0, 0.5])
def test_a_state_fits_an_empty_layer(kind: str, density: float) -> None:
    layer = random_layer(kind, density, 0.5)
    other: SparseLayer = linear_layer(5, 7) if kind == "linear" else conv_layer(5, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dense_weight(), layer.dense_weight())
    assert torch.equal(other.frozen, layer.frozen)
    assert torch.equal(other(images_for(layer)), layer(images_for(layer)))
    assert isinstance(other.weight, nn.Parameter)
    with torch.no_grad():
        other.weight.add_(1.0)  # a copy, not the same memory
    if density:
        assert not torch.equal(other.dense_weight(), layer.dense_weight())


def test_a_state_of_other_counts_replaces_the_layers_own() -> None:
    layer, other = random_layer("linear", 0.3, 0.8, seed=1), random_layer("linear", 0.9, 0.2, 2)
    other.load_state_dict(layer.state_dict())
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_an_optimiser_goes_on_after_a_state_of_the_same_sizes_was_loaded() -> None:
    layer = random_layer("linear", 0.6, 0.3)
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    optimiser = make_optimiser(OPTIMISERS[2], layer.parameters())
    layer.load_state_dict(kept)
    layer(images_for(layer)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(layer.weight, kept["weight"])


Damage = Callable[[dict[str, Tensor]], None]


def set_to(name: str, *values: float, dtype: torch.dtype | None = None) -> Damage:
    def damage(state: dict[str, Tensor]) -> None:
        state[name] = torch.tensor(values, dtype=dtype or state[name].dtype)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_to("plastic_index", 0, 6), "position outside the layer's 6"),
        (set_to("plastic_index", -1, 4), "position outside the layer's 6"),
        (set_to("frozen_index", 99), "position outside the layer's 6"),
        (set_to("plastic_index", 4, 4), "names a position twice"),
        (set_to("frozen_index", 4), "names a position twice"),  # plastic and frozen at once
        (set_to("plastic_index", 4, 0), "plastic_index must rise"),
        (set_to("plastic_index", 0, 4, dtype=torch.int16), "must be a vector of int32 or"),
        (set_to("frozen_index", 2, dtype=torch.float32), "must be a vector of int32 or"),
        (set_to("plastic_index", 0), "weight and plastic_index do not fit"),
        (set_to("frozen_weight", 1, 2), "frozen_weight and frozen_index do not fit"),
        (set_to("weight", 1, 3, dtype=torch.float64), "weight must be torch.float32"),
        (set_to("weight", 1, 3, dtype=torch.int64), "weight must be torch.float32"),
        (set_to("bias_index", 2), "position outside the layer's 2"),
        (set_to("bias_index", 1), "names a position twice"),
        (lambda state: (set_to("bias")(state), set_to("bias_index")(state)), "1 biases for 2"),
        (lambda state: state.pop("frozen_bias"), "frozen_bias is missing"),
        (lambda state: state.update(plastic_index=torch.tensor([[0, 4]])), "vector of int32"),
        (lambda state: state.update(weight=torch.ones(2, 3, 3)), "do not fit each other"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: Damage, message: str) -> None:
    layer = by_hand()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = {name: value.clone() for name, value in before.items()}
    state["weight"] += 100.0
    damage(state)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("same_sizes", [True, False])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_positions_are_saved_in_four_bytes_and_read_in_four_or_eight(
    kind: torch.dtype, same_sizes: bool
) -> None:
    """States from before positions were int32 hold int64."""
    layer = by_hand()
    state = layer.state_dict()
    names = [name for name in state if name.endswith("_index")]
    assert len(names) == 4
    assert {state[name].dtype for name in names} == {torch.int32}
    other = by_hand() if same_sizes else linear_layer(*layer.shape)
    other.load_state_dict(state | {name: state[name].to(kind) for name in names})
    for name in names:
        assert getattr(other, name).dtype == torch.int64  # as PyTorch indexes with
        assert torch.equal(getattr(other, name), getattr(layer, name))
    assert torch.equal(other.dense_weight(), layer.dense_weight())


def test_the_state_of_a_wider_layer_is_refused() -> None:
    wide = linear_layer(2, 9)
    wide.connect(torch.ones(2, 9, dtype=torch.bool), torch.ones(18))
    with pytest.raises(RuntimeError, match="layer fc: plastic_index has a position outside"):
        linear_layer(2, 3).load_state_dict(wide.state_dict())
    with pytest.raises(RuntimeError, match="do not fit each other"):
        conv_layer(2, 9).load_state_dict(wide.state_dict())


def test_whatever_changes_what_is_live_is_noticed() -> None:
    """Costs and index arrays kept from before are made anew by this number."""
    layer, none = linear_layer(), torch.zeros(2, 3, dtype=torch.bool)
    state = by_hand().state_dict()
    seen = [layer.changes]
    layer.connect(torch.ones(2, 3, dtype=torch.bool), torch.ones(6))
    seen.append(layer.changes)
    layer.rewire(layer.pattern, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    seen.append(layer.changes)
    layer.freeze(none, torch.tensor([True, False]))  # a bias alone
    seen.append(layer.changes)
    layer.load_state_dict(state)
    seen.append(layer.changes)
    assert len(set(seen)) == 5
