"""Passes of traced networks on compiled kernels compute what full weights do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.kernels import dispatch
from nispa.kernels.native import Library
from nispa.kernels.slabs import Memory
from nispa.network.laid_out import LaidOut, Placed
from nispa.network.norms import UnitBatchNorm
from nispa.network.sparsify import sparsify
from nispa.network.traced import TracedNetwork
from tests.kernels.conftest import compiled as compiled
from tests.kernels.conftest import kernels as kernels
from tests.kernels.conftest import threads as threads


@pytest.fixture
def on_kernels(kernels: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """All that follows runs on one of the libraries."""
    monkeypatch.setattr(dispatch, "library", lambda: (kernels, "by a test"))
    return kernels


class Found(NamedTuple):
    """What a training step leaves behind."""

    logits: Tensor
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]


def step(network: TracedNetwork, x: Tensor, labels: Tensor) -> Found:
    network.zero_grad(set_to_none=True)
    logits = network(x)
    F.cross_entropy(logits, labels).backward()
    gradients = {
        name: value.grad.clone()
        for name, value in network.named_parameters()
        if value.grad is not None
    }
    statistics = {n: b.clone() for n, b in network.named_buffers() if "running" in n}
    return Found(logits.detach().clone(), gradients, statistics)


def close(found: Found, wanted: Found) -> None:
    torch.testing.assert_close(found.logits.double(), wanted.logits, rtol=1e-4, atol=1e-5)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        # Values that are all frozen have a gradient in neither, or an empty one in one.
        names = {name for name in (*one, *other) if (one | other)[name].numel()}
        assert names == {name for name in one if one[name].numel()}
        least = 0.01 * max(float(other[name].abs().max()) for name in names) if names else 1.0
        for name in names:  # a bias before a norm has no gradient but rounding
            largest = max(float(other[name].abs().max()), least)
            torch.testing.assert_close(
                one[name].double() / largest, other[name] / largest, rtol=0, atol=3e-5, msg=name
            )


def compare(module: nn.Module, x: Tensor, *, some_frozen: bool = False) -> TracedNetwork:
    """Two steps on kernels against two in double on full weights; the network after them."""
    torch.manual_seed(1)
    network = sparsify(module, x[:2].clone(), density=0.6).train()
    if some_frozen:
        freeze_some(network)
    exact = copy.deepcopy(network).double()
    labels = torch.arange(len(x)) % network.topology.output.size
    for _ in range(2):
        close(step(network, x, labels), step(exact, x.double(), labels))
    network.eval()
    exact.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x).double(), exact(x.double()), rtol=1e-4, atol=1e-5)
    return network


def freeze_some(network: TracedNetwork) -> None:
    """Half of all values, some rows in whole and some in part, and half of the statistics."""
    for layer in network.layers.values():
        chosen = torch.rand(layer.shape) < 0.3
        chosen[: len(chosen) // 3] = True
        layer.freeze(chosen, torch.rand(layer.shape[0])[: layer.biases] < 0.5)
    for norm in network.modules():
        if isinstance(norm, UnitBatchNorm):
            norm.running_mean.normal_()
            norm.hold(torch.rand(len(norm.stable)) < 0.5)


class Convolutions(nn.Module):
    """One convolution beside another, then one more."""

    def __init__(
        self, side: int, stride: int, padding: int, *, norm: bool, bias: bool, skip: bool
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(5, 7, side, stride, padding, bias=bias)
        self.beside = nn.Conv2d(5, 7, side, stride, padding, bias=not bias) if skip else None
        self.norms = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(7)]) if norm else None
        self.third = nn.Conv2d(7, 4, 1, bias=bias)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(self.norms[0](x) if self.norms else x)
        y = self.second(x)
        y = self.norms[1](y) if self.norms else y
        if self.beside is not None:
            y = y + self.beside(x)
        logits: Tensor = self.head(self.third(F.relu(y)).mean((2, 3)))
        return logits


SHAPES = [
    # side, stride, padding, height, width, batch
    (3, 1, 1, 8, 8, 16),
    (3, 2, 1, 9, 7, 5),
    (3, 2, 1, 8, 10, 17),
    (3, 2, 0, 7, 8, 3),
    (3, 3, 2, 11, 7, 9),
    (1, 1, 0, 5, 6, 33),
    (1, 2, 0, 9, 8, 7),
    (1, 3, 1, 7, 7, 2),
    (5, 1, 2, 6, 9, 4),
    (5, 2, 2, 12, 9, 20),
    (2, 2, 0, 7, 6, 8),
    (4, 3, 1, 9, 9, 1),
]


@pytest.mark.parametrize("some_frozen", [False, True], ids=["plastic", "some frozen"])
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_gradients_are_those_of_full_weights(
    number: int, some_frozen: bool, on_kernels: Library
) -> None:
    side, stride, padding, height, width, batch = SHAPES[number]
    torch.manual_seed(number)
    norm, bias, skip = batch > 1 and number % 4 != 3, number % 3 == 0, number % 2 == 0
    module = Convolutions(side, stride, padding, norm=norm, bias=bias, skip=skip)
    x = torch.randn(batch, 3, height, width)
    network = compare(module, x, some_frozen=some_frozen)
    assert network._passes.proven
    assert not network._passes.plain


def test_a_residual_network(on_kernels: Library) -> None:
    torch.manual_seed(0)
    module = BACKBONES["resnet18"].build((3, 12, 12), 4, width=5)
    compare(module, torch.randn(19, 3, 12, 12), some_frozen=True)


# What modules do between convolutions.


class Between(nn.Module):
    """Two convolutions, with something between."""

    def __init__(self, work: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)
        self.work = [work]  # in a list: no method

    def forward(self, x: Tensor) -> Tensor:
        y = self.work[0](self, self.one(x))
        logits: Tensor = self.head(F.relu(self.two(y)).mean((2, 3)))
        return logits


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.bn(x)
    F.relu(y, inplace=True)
    z = net.two(y)
    z += y
    z.add_(1.0)
    return F.relu_(z)


def twice(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.bn(x)
    return F.relu(y) + y


def changed_after_a_sum(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.two(F.relu(x))
    z: Tensor = net.bn(x) + y
    y.mul_(3)  # z has been added up before
    return z * torch.sigmoid(y)


def other_operators(net: Any, x: Tensor) -> Tensor:
    y = F.max_pool2d(F.gelu(net.bn(x)), 2)
    y = F.interpolate(y, scale_factor=2.0)
    return F.silu(torch.cat([y[:, :3], x[:, 3:]], 1)) + x.mean((2, 3), keepdim=True)


def in_place_by_position(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.bn(x)
    F.hardswish(y, True)  # as modules of PyTorch call it, without a name
    z: Tensor = y + net.two(y)
    return z


def pools(net: Any, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(F.relu(net.bn(x)), 1)
    return x * y + F.adaptive_avg_pool2d(x, (1, 1)).contiguous()


def norm_of_a_sum(net: Any, x: Tensor) -> Tensor:
    y = F.relu(x) + net.two(x)
    z: Tensor = net.bn(y + x)
    return z


WORKS = [
    in_place,
    in_place_by_position,
    twice,
    changed_after_a_sum,
    other_operators,
    pools,
    norm_of_a_sum,
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_whatever_a_module_does(work: Callable[[Any, Tensor], Tensor], compiled: Library) -> None:
    torch.manual_seed(2)
    network = compare(Between(work), torch.randn(6, 3, 8, 8))
    assert not network._passes.plain


class Wide(nn.Module):
    """A convolution, Linear layers large enough for kernels, and work on what they compute."""

    def __init__(self, work: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.one, self.two, self.head = nn.Linear(40, 48), nn.Linear(48, 40), nn.Linear(40, 3)
        self.positions = nn.Parameter(torch.randn(16, 40))
        self.work = [work]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.work[0](self, self.conv(x)))
        return logits


def of_pixels(net: Any, x: Tensor) -> Tensor:
    y: Tensor = F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.0, inplace=True)
    return F.hardswish(net.two(F.relu_(net.one(y))), inplace=True)


def of_tokens(net: Any, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    y += net.positions
    y = net.two(F.relu_(net.one(y)))
    y += 1
    mean: Tensor = y.mean(1)
    return mean


def of_heads(net: Any, x: Tensor) -> Tensor:
    y = net.one(x.flatten(2).mT).view(-1, 16, 4, 12)
    y *= 0.5
    y[..., :6] += 1
    return net.two(y.flatten(2)).mean(1)  # type: ignore[no-any-return]


def of_a_norm(net: Any, x: Tensor) -> Tensor:
    y = net.bn(x)
    y += x
    return F.max_pool2d(F.silu(y, inplace=True), 4).flatten(1).mul_(2).relu_()


@pytest.mark.parametrize("work", [of_pixels, of_tokens, of_heads, of_a_norm])
def test_changing_in_place_what_layers_compute(
    work: Callable[[Any, Tensor], Tensor], compiled: Library
) -> None:
    torch.manual_seed(9)
    compare(Wide(work), torch.randn(6, 3, 4, 4))


def test_hooks_see_and_change_activations(compiled: Library) -> None:
    torch.manual_seed(3)
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6).train()
    x, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % 3
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        result.register_hook(lambda gradient: seen.append(gradient.clone()))
        return result * 2

    network.body.get_submodule("one").register_forward_hook(watch)
    exact = copy.deepcopy(network).double()
    close(step(network, x, labels), step(exact, x.double(), labels))
    torch.testing.assert_close(seen[0].double(), seen[1], rtol=1e-4, atol=1e-6)


class Reversed(torch.autograd.Function):
    """The same, with the gradient turned around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reversed_gradient(net: Any, x: Tensor) -> Tensor:
    y: Tensor = Reversed.apply(F.relu(net.bn(x)))  # type: ignore[no-untyped-call]
    return y


def test_a_function_of_autograds_gets_plain_tensors(compiled: Library) -> None:
    torch.manual_seed(4)
    # The trace looks through the function, which computes nothing.
    network = sparsify(Between(lambda net, x: net.bn(x) * 1), torch.randn(2, 3, 8, 8), density=0.6)
    network.train()
    assert isinstance(network.body, Between)
    network.body.work = [reversed_gradient]
    exact = copy.deepcopy(network).double()
    x, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    network._passes.proven.clear()
    for _ in range(2):
        close(step(network, x, labels), step(exact, x.double(), labels))
    assert network._passes.plain
    # A copy has not been trained; neither has a network that was loaded. It predicts the same bits.
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x), copy.deepcopy(network)(x))


def test_activations_and_weights_look_like_tensors(compiled: Library) -> None:
    seen: dict[str, Any] = {}

    def look(net: Any, x: Tensor) -> Tensor:
        if isinstance(x, LaidOut):
            seen.update(
                shape=x.shape, size=x.size(1), dim=x.dim(), dtype=x.dtype, device=x.device,
                needs=x.requires_grad, weight=net.one.weight.shape, kind=type(net.one.weight),
                norm=float(net.one.weight.detach().norm()), count=len(x),
            )  # fmt: skip
        return x

    network = sparsify(Between(look), torch.randn(2, 3, 8, 8), density=1.0).train()
    network(torch.randn(4, 3, 8, 8)).sum().backward()
    assert seen["shape"] == (4, 6, 8, 8)
    assert (seen["size"], seen["dim"], seen["count"]) == (6, 4, 4)
    assert (seen["dtype"], seen["device"].type) == (torch.float32, "cpu")
    assert seen["needs"]
    assert (seen["weight"], seen["kind"]) == ((6, 3, 3, 3), Placed)
    assert seen["norm"] == pytest.approx(float(network.layers["one"].dense_weight().norm()))


# Where full weights are put in place after all.


def test_without_kernels_passes_are_those_of_full_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "library", lambda: (None, "by a test"))
    network = compare(Between(twice), torch.randn(4, 3, 8, 8))
    assert network._passes.session(network) is None


def test_other_types_run_on_full_weights(compiled: Library) -> None:
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6)
    assert network._passes.session(network) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert network._passes.session(network) is None
        assert network(torch.randn(2, 3, 8, 8)).isfinite().all()
    assert network.double()._passes.session(network) is None


# Bits, memory, order.


def test_pytorchs_default_type_does_not_matter(compiled: Library) -> None:
    torch.manual_seed(8)
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6).train()
    x, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % 3
    first = step(copy.deepcopy(network), x, labels)
    torch.set_default_dtype(torch.float64)
    try:
        other = step(network, x, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first.logits, other.logits)
    assert all(torch.equal(first.gradients[n], other.gradients[n]) for n in first.gradients)


def test_bits_do_not_depend_on_threads(on_kernels: Library, threads: None) -> None:
    torch.manual_seed(5)
    module = BACKBONES["resnet18"].build((3, 16, 16), 4, width=6)
    first = sparsify(module, torch.randn(2, 3, 16, 16), density=0.3).train()
    x, labels, found = torch.randn(70, 3, 16, 16), torch.arange(70) % 4, []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        found.append(step(copy.deepcopy(first), x, labels))
    for other in found[1:]:
        for mine, theirs in zip(found[0][1:], other[1:], strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_freezing_changes_no_bit(on_kernels: Library) -> None:
    torch.manual_seed(6)
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6).eval()
    x = torch.randn(9, 3, 8, 8)
    with torch.no_grad():
        before = network(x)
        for layer in network.layers.values():
            layer.freeze(torch.rand(layer.shape) < 0.5, torch.rand(layer.biases) < 0.5)
        assert torch.equal(network(x), before)


def test_backward_can_be_called_twice(compiled: Library) -> None:
    torch.manual_seed(7)
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6).train()
    loss = network(torch.randn(4, 3, 8, 8)).square().sum()
    values = [value for value in network.parameters() if value.numel()]
    first = torch.autograd.grad(loss, values, retain_graph=True)
    second = torch.autograd.grad(loss, values)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_change_between_forward_and_backward_is_found(compiled: Library) -> None:
    network = sparsify(Between(twice), torch.randn(2, 3, 8, 8), density=0.6).train()
    loss = network(torch.randn(4, 3, 8, 8)).sum()
    with torch.no_grad():
        network.layers["two"].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()


def test_memory_is_used_again() -> None:
    memory = Memory()
    first = memory.take((1, 2, 4, 4, 8), 1)
    place = first.data_ptr()
    first[:, :, 1:3, 1:3] = 1
    view = first[0]
    del first
    assert memory.take((1, 2, 4, 4, 8), 1).data_ptr() != place  # a view still reads it
    del view
    assert not memory.take((1, 2, 4, 4, 8), 0).any()  # another border: other memory
    again = memory.take((1, 2, 4, 4, 8), 1)
    assert again.data_ptr() == place
    assert not again[:, :, 0].any()


def test_memory_of_old_shapes_is_given_up() -> None:
    memory = Memory()
    for size in range(1, 50):
        memory.take((1, 2, size, size, 8), 0)
    assert memory._idle <= memory.SLACK * 2 * 49 * 49 * 8
