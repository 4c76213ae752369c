"""Layers as a GPU runs them: the same numbers as module by module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nispa.kernels import blocks, dense, dispatch
from nispa.network.fusion import segments
from nispa.network.layers import SparseConv2d, SparseLinear
from nispa.network.topology import ConnectionLayer


@pytest.fixture(autouse=True)
def full_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "keeps", lambda values: True)
    monkeypatch.setattr(dispatch, "library", lambda: (None, "asked for"))


def pattern(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.rand(rows, columns, generator=generator) < 0.6


def conv(sources: int, targets: int, side: int = 3, stride: int = 1, pad: int = 0) -> SparseConv2d:
    spec = ConnectionLayer(f"conv{targets}", "a", "b", 1, (side, side))
    layer = SparseConv2d(spec, (targets, sources), stride=stride, padding=pad)
    live = pattern(targets, sources)
    layer.connect(live, torch.randn(int(live.sum()), side, side))
    return layer


def linear(sources: int, targets: int) -> SparseLinear:
    layer = SparseLinear(ConnectionLayer(f"fc{targets}", "a", "b", 1, ()), (targets, sources))
    live = pattern(targets, sources)
    layer.connect(live, torch.randn(int(live.sum())))
    return layer


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 5, stride=2, pad=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(5, 4, side=1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        conv(4, 6, pad=1),
        nn.ReLU(),
        nn.Flatten(),
        linear(6 * 2 * 2, 7),
        nn.ReLU(),
        linear(7, 3),
    ).double()


def in_blocks(module: nn.Sequential) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for segment in segments(module):
            found = segment.blocks(x)
            assert found is not None
            x = found
        return x

    return run


@pytest.mark.parametrize("frozen", ["nothing", "some", "a layer"])
@pytest.mark.parametrize("many", [blocks.MANY, 4])
def test_blocks_are_their_modules(frozen: str, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MANY", many)
    module = body()
    first, last = module[3], module[9]
    assert isinstance(first, SparseConv2d)
    assert isinstance(last, SparseLinear)
    if frozen != "nothing":
        first.freeze(pattern(4, 5), torch.arange(4) < 2)
        last.freeze(pattern(7, 24).flip(1), torch.arange(7) < 3)
    if frozen == "a layer":
        first.freeze(first.pattern, torch.ones(4, dtype=torch.bool))
    x = torch.randn(4, 3, 34, 34, dtype=torch.double, requires_grad=True)
    slope = torch.randn(4, 3, dtype=torch.double)
    ends: list[list[Tensor | None]] = []
    for run in (module, in_blocks(module)):
        x.grad = None
        module.zero_grad()
        y = run(x)
        (y * slope).sum().backward()
        ends.append([y.detach(), x.grad, *(values.grad for values in module.parameters())])
        places = [part.places for part in module if isinstance(part, (SparseConv2d, SparseLinear))]
        assert places == [17 * 17, 8 * 8, 2 * 2, 1, 1]
    for one, other in zip(*ends, strict=True):
        if one is None or not one.numel():
            assert other is None or not other.numel()
        else:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_where_nothing_learns_nothing_has_a_gradient() -> None:
    module = nn.Sequential(conv(2, 3), nn.ReLU(), nn.Flatten(), linear(3 * 4, 2))
    for part in (module[0], module[3]):
        assert isinstance(part, (SparseConv2d, SparseLinear))
        part.freeze(part.pattern, torch.ones(part.shape[0], dtype=torch.bool))
    assert not in_blocks(module)(torch.randn(2, 2, 4, 4)).requires_grad


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 8, 8)])
def test_what_is_no_image_runs_module_by_module(shape: tuple[int, ...]) -> None:
    (segment,) = segments(nn.Sequential(conv(3, 5), nn.ReLU()))
    assert segment.blocks(torch.randn(shape)) is None


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2)])
def test_a_flatten_takes_samples_of_every_shape(shape: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Flatten(), linear(12, 5), nn.ReLU(), linear(5, 3)).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    expected = module(x)
    assert torch.allclose(in_blocks(module)(x), expected)
