from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels import native, reference
from nispa.kernels.dispatch import Compiled, conv2d, linear
from nispa.kernels.native import Library
from nispa.kernels.reference import LiveValues
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear
from nispa.network.topology import ConnectionLayer
from tests.kernels.links import instruction_sets, seeded

WHICH = "from nispa.kernels.dispatch import in_use; k = in_use(); print(k.name); print(k.reason)"


def layer(kind: str = "linear", dtype: torch.dtype = torch.float32) -> SparseLayer:
    """Half of 4 x 6 connections are live, a third of those frozen; whole numbers."""
    made: SparseLayer
    if kind == "linear":
        made = SparseLinear(ConnectionLayer("fc", "s", "t"), (4, 6))
    else:
        made = SparseConv2d(ConnectionLayer("conv", "s", "t", kernel=(3, 3)), (4, 6), padding=1)
    generator = seeded()
    pattern = torch.rand(4, 6, generator=generator) < 0.5
    size = (int(pattern.sum()), *made.spec.kernel)
    made.connect(pattern, torch.randint(-2, 3, size, generator=generator).float())
    with torch.no_grad():
        made.bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0]))
    made.freeze(torch.rand(4, 6, generator=generator) < 0.3, torch.tensor([True] + [False] * 3))
    return made.to(dtype)


def images(kind: str = "linear", batch: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    size = (6,) if kind == "linear" else (6, 5, 4)
    return torch.randint(-2, 3, (batch, *size), generator=seeded(1)).to(dtype)


def weights_of(made: SparseLayer) -> tuple[Tensor, Tensor]:
    return made.dense_weight(), made.dense_bias()


def plain(made: SparseLayer, x: Tensor) -> Tensor:
    """What plain PyTorch makes of a layer, through dense weights."""
    weight, bias = weights_of(made)
    if isinstance(made, SparseConv2d):
        return functional.conv2d(x, weight, bias, made.stride, made.padding)
    return functional.linear(x, weight, bias)


KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])


@pytest.fixture
def reference_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that reach the reference."""
    calls: list[str] = []
    for name in ("linear", "conv2d"):
        function = getattr(reference, name)

        def counted(*given: Any, function: Any = function, name: str = name) -> Tensor:
            calls.append(name)
            result: Tensor = function(*given)
            return result

        monkeypatch.setattr(reference, name, counted)
    return calls


# What NISPA_KERNELS asks for.


@pytest.mark.parametrize("wanted", ["reference", "plain", "avx2", "nonsense"])
def test_the_environment_chooses(wanted: str) -> None:
    here = instruction_sets()
    done = subprocess.run(
        [sys.executable, "-c", WHICH],
        env={**os.environ, native.CHOICE: wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    name, reason = done.stdout.splitlines()
    if wanted in here:
        assert name == wanted
        assert reason.startswith(f"compiled for {name}, over live connections, on ")
    else:
        assert name == "reference"
        assert reason.startswith("plain PyTorch through dense weights; ")
        assert wanted in reason
    assert done.stderr == ""


# What runs where.


@KINDS
def test_float32_on_the_cpu_is_compiled(
    compiled: Library, reference_calls: list[str], kind: str
) -> None:
    made, x = layer(kind), images(kind)
    assert torch.equal(made(x), plain(made, x))
    made(x.requires_grad_()).sum().backward()
    with torch.no_grad():
        made(x)
    with torch.inference_mode():
        made(x)
    assert reference_calls == []


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_run_on_the_reference(
    compiled: Library, reference_calls: list[str], kind: str, dtype: torch.dtype
) -> None:
    made, x = layer(kind, dtype), images(kind, dtype=dtype)
    found = made(x)
    assert found.dtype == dtype
    assert torch.equal(found, plain(made, x))
    assert len(reference_calls) == 1


@KINDS
def test_a_layer_turned_to_another_type_and_back(
    compiled: Library, reference_calls: list[str], kind: str
) -> None:
    made, x = layer(kind), images(kind)
    before = made(x)
    assert torch.equal(made.double()(x.double()), before.double())
    assert len(reference_calls) == 1
    assert torch.equal(made.float()(x), before)
    assert len(reference_calls) == 1


@KINDS
def test_other_devices_run_on_the_reference(
    compiled: Library, reference_calls: list[str], kind: str
) -> None:
    made = layer(kind).to("meta")
    assert made(images(kind).to("meta")).device.type == "meta"
    assert len(reference_calls) == 1


@KINDS
def test_autocast_runs_on_the_reference(
    compiled: Library, reference_calls: list[str], kind: str
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(kind)(images(kind)).dtype == torch.bfloat16
    assert len(reference_calls) == 1


@KINDS
def test_an_empty_batch_runs_on_the_reference(
    compiled: Library, reference_calls: list[str], kind: str
) -> None:
    made, x = layer(kind), images(kind, batch=0)
    found = made(x)
    assert found.shape == plain(made, x).shape
    found.sum().backward()
    assert made.weight.grad is not None
    assert not made.weight.grad.any()
    assert len(reference_calls) == 1


def test_features_may_have_more_dimensions(compiled: Library, reference_calls: list[str]) -> None:
    made = layer()
    x = images(batch=12).view(2, 3, 2, 6)
    assert torch.equal(made(x), plain(made, x))
    assert reference_calls == []
    assert torch.equal(made(x[0, 0, 0]), plain(made, x[0, 0, 0]))
    assert torch.equal(made(x[:, :0]), plain(made, x[:, :0]))
    assert len(reference_calls) == 2


def test_one_image_without_a_batch(compiled: Library, reference_calls: list[str]) -> None:
    made, x = layer("conv"), images("conv")[0]
    torch.testing.assert_close(made(x), plain(made, x))
    assert len(reference_calls) == 1


WRONG: list[tuple[str, tuple[int, ...], torch.dtype]] = [
    ("linear", (5, 7), torch.float32),
    ("linear", (5, 5), torch.float32),
    ("linear", (5, 0), torch.float32),
    ("linear", (5,), torch.float32),
    ("linear", (), torch.float32),
    ("linear", (5, 6), torch.float64),
    ("linear", (5, 6), torch.int64),
    ("conv", (5, 7, 5, 4), torch.float32),
    ("conv", (5, 6, 0, 4), torch.float32),
    ("conv", (6, 5, 5, 4), torch.float32),
    ("conv", (5, 6), torch.float32),
    ("conv", (2, 5, 6, 5, 4), torch.float32),
    ("conv", (5, 6, 5, 4), torch.float64),
]


def outcome(made: torch.nn.Module, x: Tensor) -> Tensor | type[Exception]:
    """The output, or the kind of error."""
    try:
        output: Tensor = made(x)
    except Exception as error:  # noqa: BLE001  # which one is what is compared
        return type(error)
    return output


@pytest.mark.parametrize(("kind", "shape", "dtype"), WRONG, ids=str)
def test_wrong_input_meets_the_error_of_pytorch(
    compiled: Library, kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    made = layer(kind)
    weight, bias = weights_of(made)
    dense = torch.nn.Linear(6, 4) if kind == "linear" else torch.nn.Conv2d(6, 4, 3, padding=1)
    dense.load_state_dict({"weight": weight, "bias": bias})
    expected = outcome(dense, torch.ones(shape).to(dtype))
    found = outcome(made, torch.ones(shape).to(dtype))
    assert isinstance(expected, type)
    assert found == expected


def test_a_kernel_larger_than_the_image(compiled: Library) -> None:
    made = SparseConv2d(ConnectionLayer("conv", "s", "t", kernel=(3, 3)), (2, 1))
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        made(torch.ones(1, 1, 2, 5))


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0)])
def test_a_layer_without_units(compiled: Library, rows: int, columns: int) -> None:
    made = SparseLinear(ConnectionLayer("fc", "s", "t"), (rows, columns))
    x = torch.ones(2, columns, requires_grad=True)
    output = made(x)
    assert output.tolist() == [[0.0] * rows] * 2
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0] * columns] * 2


# What is changed, copied and saved.


@KINDS
def test_every_change_of_a_layer_is_seen(compiled: Library, kind: str) -> None:
    """Patterns, values, and what is frozen, after calls that laid the layer out otherwise."""
    made, x = layer(kind), images(kind)
    assert torch.equal(made(x), plain(made, x))
    with torch.no_grad():
        made.weight.add_(1)
    assert torch.equal(made(x), plain(made, x))
    made.freeze(torch.eye(4, 6, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(made(x), plain(made, x))
    dead = ~made.pattern
    grown = dead.flatten().nonzero().flatten()[:3]
    pattern = made.pattern.flatten().index_fill(0, grown, True).view(4, 6)
    made.rewire(pattern, grown, torch.full((3, *made.spec.kernel), 2.0))
    assert torch.equal(made(x), plain(made, x))
    made.restart_plastic(
        torch.full((made.live_count, *made.spec.kernel), -1.0), torch.full((4,), 3.0)
    )
    assert torch.equal(made(x), plain(made, x))
    made.frozen_weight = made.frozen_weight + 1
    assert torch.equal(made(x), plain(made, x))


def test_another_padding_or_stride_is_seen(compiled: Library) -> None:
    made, x = layer("conv"), images("conv")
    assert isinstance(made, SparseConv2d)
    for made.padding, made.stride in ((1, 1), (0, 1), (2, 1), (2, 2), (1, 1)):
        assert torch.equal(made(x), plain(made, x))


@KINDS
def test_a_state_loaded_in_place_is_seen(compiled: Library, kind: str) -> None:
    """Of equal size: the pattern's tensors stay the same ones, what is in them does not."""
    made, x = layer(kind), images(kind)
    other = copy.deepcopy(made)
    flipped = {name: value.clone() for name, value in made.state_dict().items()}
    everything = made.pattern.flatten()
    dead = (~everything).nonzero().flatten()
    flipped["plastic_index"] = dead[: len(made.plastic_index)]
    before = made(x)
    other(x)
    other.load_state_dict(flipped)
    assert torch.equal(other(x), plain(other, x))
    assert not torch.equal(other(x), before)
    assert torch.equal(made(x), before)


@KINDS
@pytest.mark.parametrize("which", ["plastic", "frozen"])
def test_a_state_whose_positions_do_not_rise_is_refused(
    compiled: Library, kind: str, which: str
) -> None:
    made = layer(kind)
    shuffled = made.state_dict()
    values = "weight" if which == "plastic" else "frozen_weight"
    for name in (values, f"{which}_index"):
        shuffled[name] = shuffled[name].flip(0)
    with pytest.raises(RuntimeError, match=f"{which}_index must rise"):
        copy.deepcopy(made).load_state_dict(shuffled)


@KINDS
@pytest.mark.parametrize("names", [("plastic",), ("frozen",), ("plastic", "frozen")], ids=str)
def test_positions_in_any_order_give_the_same(
    compiled: Library, kind: str, names: tuple[str, ...]
) -> None:
    """As the reference allows, for layers that are put together by hand."""
    made, x = layer(kind), images(kind).requires_grad_()
    expected = made(x)
    expected.square().sum().backward()
    assert x.grad is not None
    assert made.weight.grad is not None
    weight, bias = made.live_weight(), made.live_bias()
    flipped = {name: getattr(weight, name).detach().flip(0) for name in names}
    flipped |= {f"{name}_index": getattr(weight, f"{name}_index").flip(0) for name in names}
    weight = weight._replace(**flipped)
    weight = weight._replace(plastic=weight.plastic.detach().requires_grad_())
    again = x.detach().clone().requires_grad_()
    if kind == "linear":
        found = linear(again, weight, bias, Compiled())
    else:
        found = conv2d(again, weight, bias, 1, 1, Compiled())
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert again.grad is not None
    assert weight.plastic.grad is not None
    assert torch.equal(again.grad, x.grad)
    order = -1 if "plastic" in names else 1
    assert weight.plastic.grad.tolist() == made.weight.grad.tolist()[::order]


@KINDS
def test_values_of_any_layout(compiled: Library, kind: str) -> None:
    """Every other number of a tensor, as a view has them."""
    made, x = layer(kind), images(kind)
    expected = made(x)

    def strided(live: LiveValues) -> LiveValues:
        tensors = (live.plastic, live.plastic_index, live.frozen, live.frozen_index)
        views = [torch.stack([each, each + 1], dim=-1)[..., 0] for each in tensors]
        return LiveValues(views[0], views[1], views[2], views[3], live.shape)

    weight, bias = strided(made.live_weight()), strided(made.live_bias())
    if kind == "linear":
        found = linear(x, weight, bias, Compiled())
    else:
        found = conv2d(x, weight, bias, 1, 1, Compiled())
    assert torch.equal(found, expected)


def test_a_unit_without_a_bias_has_none(compiled: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: biases 5 and 7 of units 0 and 2; what new memory holds is no bias."""
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 99, dtype))
    none, nowhere = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    weight = LiveValues(none, nowhere, none, nowhere, (3, 1))
    bias = LiveValues(
        torch.tensor([5.0]), torch.tensor([0]), torch.tensor([7.0]), torch.tensor([2]), (3,)
    )
    assert linear(torch.ones(1, 1), weight, bias, Compiled()).tolist() == [[5.0, 0.0, 7.0]]


@KINDS
def test_a_layer_made_in_inference_mode_predicts(compiled: Library, kind: str) -> None:
    """As a server does that never learns."""
    made, x = layer(kind), images(kind)
    expected = made(x)
    with torch.inference_mode():
        other = layer(kind)
        for _ in range(2):
            assert torch.equal(other(x), expected)
    with torch.no_grad():
        assert torch.equal(other(x), expected)


@KINDS
def test_a_state_loaded_in_inference_mode_is_seen(compiled: Library, kind: str) -> None:
    """Where PyTorch does not count changes in place."""
    with torch.inference_mode():
        made, x = layer(kind), images(kind)
        made(x)
        state = {name: value.clone() for name, value in made.state_dict().items()}
        dead = (~made.pattern.flatten()).nonzero().flatten()
        state["plastic_index"] = dead[: len(made.plastic_index)]
        made.load_state_dict(state)
        assert torch.equal(made(x), plain(made, x))


@KINDS
def test_values_passed_in_for_one_call(compiled: Library, kind: str) -> None:
    made, x = layer(kind), images(kind)
    before = made(x)
    factor = torch.tensor(3.0, requires_grad=True)
    others = {name: values * factor for name, values in made.named_parameters()}
    found = torch.func.functional_call(made, others, (x,))
    other = copy.deepcopy(made)
    with torch.no_grad():
        for values in other.parameters():
            values.mul_(3)
    assert torch.equal(found, other(x))
    found.sum().backward()
    other(x).sum().backward()
    by_hand = sum(
        float((values.detach() / 3 * values.grad).sum())
        for values in other.parameters()
        if values.grad is not None
    )
    assert factor.grad is not None
    assert factor.grad.item() == pytest.approx(by_hand)
    assert torch.equal(made(x), before)


@KINDS
def test_copies_go_their_own_ways(compiled: Library, kind: str) -> None:
    made, x = layer(kind), images(kind)
    before = made(x).detach()
    made(x).sum().backward()
    other = copy.deepcopy(made)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(made(x), before)
    assert torch.equal(other(x), plain(other, x))


def test_what_is_compiled_is_not_copied_or_saved(compiled: Library) -> None:
    made = layer()
    made(images())
    assert made.compiled._chains
    assert not copy.deepcopy(made).compiled._chains
    assert not pickle.loads(pickle.dumps(made.compiled))._chains  # noqa: S301  # our own bytes
    assert set(made.state_dict()) == set(layer().state_dict())


def test_one_layer_at_several_places(compiled: Library) -> None:
    """The gradients of both uses add up, as by hand: d/dw of w * (w * x) is 2 w x."""
    made = SparseLinear(ConnectionLayer("fc", "s", "t"), (1, 1))
    made.connect(torch.ones(1, 1, dtype=torch.bool), torch.tensor([3.0]))
    x = torch.tensor([[5.0]], requires_grad=True)
    output = made(made(x))
    assert output.item() == 45
    output.backward()
    assert made.weight.grad is not None
    assert x.grad is not None
    assert (made.weight.grad.item(), x.grad.item()) == (30.0, 9.0)


def test_a_penalty_on_the_input_gradient_needs_the_reference(compiled: Library) -> None:
    """There is no gradient of a gradient; what says so is PyTorch's own error."""
    made, x = layer(), images().requires_grad_()
    (slope,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        slope.square().sum().backward()


def test_gradients_of_layers_are_those_of_dense_ones(compiled: Library) -> None:
    for kind in ("linear", "conv"):
        made, x = layer(kind), images(kind).requires_grad_()
        made(x).square().sum().backward()
        weight, bias = (each.clone().requires_grad_() for each in weights_of(made))
        again = x.detach().clone().requires_grad_()
        if kind == "linear":
            dense = functional.linear(again, weight, bias)
        else:
            dense = functional.conv2d(again, weight, bias, padding=1)
        dense.square().sum().backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert x.grad is not None
        assert again.grad is not None
        assert made.weight.grad is not None
        assert made.bias.grad is not None
        assert torch.equal(x.grad, again.grad)
        assert torch.equal(made.weight.grad, weight.grad.flatten(0, 1)[made.plastic_index])
        assert torch.equal(made.bias.grad, bias.grad[made.bias_index])


def test_values_that_do_not_require_a_gradient_get_none(compiled: Library) -> None:
    made, x = layer(), images()
    made.weight.requires_grad_(False)
    made(x).sum().backward()
    assert made.weight.grad is None
    assert made.bias.grad is not None
    assert made.bias.grad.tolist() == [5.0, 5.0, 5.0]
