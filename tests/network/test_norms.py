"""Norms of this package are PyTorch's where nothing is stable, and hold still where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nispa import sparsify
from nispa.network.norms import GenerationNorm, UnitBatchNorm


def filled(norm: nn.Module) -> nn.Module:
    """With scales and shifts that are not 1 and 0."""
    for value in norm.parameters():
        nn.init.normal_(value)
    return norm


def gradients(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """Result, and gradients of a sum with random factors."""
    x = x.clone().requires_grad_()
    y = norm(x)
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    leaves = [x, *norm.parameters()]
    return [y, *torch.autograd.grad((y * factors).sum(), leaves)]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(7, 4), (5, 4, 6), (3, 4, 5, 2)])
def test_a_plastic_batch_norm_is_pytorchs(shape: tuple[int, ...], momentum: float | None) -> None:
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    plain = kind(4, momentum=momentum)
    filled(plain)
    mine = UnitBatchNorm(plain)
    for _ in range(3):
        x = torch.randn(shape) * 2 + 1
        for one, other in zip(gradients(plain, x), gradients(mine, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    if momentum is None:
        torch.testing.assert_close(plain.running_mean, mine.running_mean)
        torch.testing.assert_close(plain.running_var, mine.running_var)
        plain.eval()
        mine.eval()
        torch.testing.assert_close(plain(x), mine(x))


def test_statistics_are_plain_means_at_first() -> None:
    torch.manual_seed(0)
    norm, means = UnitBatchNorm(nn.BatchNorm1d(2, momentum=0.25)), []
    for count in range(1, 7):
        x = torch.randn(8, 2)
        means.append(x.mean(0))
        norm(x)
        if count <= 4:
            torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    wanted = torch.stack(means[:4]).mean(0)
    for mean in means[4:]:
        wanted = 0.75 * wanted + 0.25 * mean
    torch.testing.assert_close(norm.running_mean, wanted)
    norm.restart()
    assert norm.running_mean.tolist() == [0.0, 0.0]
    norm(x)
    torch.testing.assert_close(norm.running_mean, x.mean(0))


def test_a_stable_channel_is_the_same_in_training_and_after() -> None:
    torch.manual_seed(0)
    norm = UnitBatchNorm(nn.BatchNorm1d(3))
    norm(torch.randn(8, 3))
    norm.stable[1] = True
    mean, square = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(8, 3) * 3 + 2
    trained = norm(x)
    assert norm.running_mean[1] == mean[1]
    assert norm.running_var[1] == square[1]
    assert (norm.running_mean != mean).tolist() == [True, False, True]
    norm.eval()
    assert torch.equal(trained[:, 1], norm(x)[:, 1])


MIXING: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(6), (4, 5, 6)),
    "layer of a vector": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer over maps": (lambda: nn.LayerNorm((3, 2, 2)), (4, 3, 2, 2)),
    "layer without scale": (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "rms": (lambda: nn.RMSNorm(6), (4, 5, 6)),
    "rms with eps": (lambda: nn.RMSNorm(6, eps=0.1), (4, 6)),
    "group": (lambda: nn.GroupNorm(2, 6), (4, 6, 3, 2)),
    "group of a vector": (lambda: nn.GroupNorm(3, 6), (4, 6)),
    "group of a series": (lambda: nn.GroupNorm(1, 6, affine=False), (4, 6, 5)),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_plastic_norm_over_units_is_pytorchs(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MIXING[name]
    plain = filled(build())
    assert isinstance(plain, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
    mine, x = GenerationNorm(plain), torch.randn(shape) * 2 + 1
    for one, other in zip(gradients(plain, x), gradients(mine, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MIXING)
def test_the_last_generation_is_normalised_over_all(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MIXING[name]
    plain = filled(build())
    assert isinstance(plain, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
    mine, x = GenerationNorm(plain), torch.randn(shape) * 2 + 1
    mine.generation[:, 0] = 1
    entries = mine.generation.shape[1]
    if entries > 2:
        mine.generation[:, 1] = 2
    last = (mine.generation == 0).flatten()
    got, wanted = mine(x), plain(x)
    if isinstance(plain, nn.GroupNorm):
        torch.testing.assert_close(got[:, last], wanted[:, last], rtol=1e-4, atol=1e-5)
    else:
        dims = len(plain.normalized_shape)
        one, other = got.flatten(-dims)[..., last], wanted.flatten(-dims)[..., last]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_generation_by_hand() -> None:
    norm = GenerationNorm(nn.LayerNorm(4, eps=0.0, elementwise_affine=False))
    norm.generation[0] = torch.tensor([1, 0, 1, 2])
    y = norm(torch.tensor([[1.0, 9.0, 3.0, 5.0]]))
    # The first two over {1, 3}: mean 2, deviation 1. The third over {1, 3, 5}: mean 3.
    torch.testing.assert_close(y[0, [0, 2]], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(y[0, 3], torch.tensor(2 / (8 / 3) ** 0.5))
    # The last over all: mean 4.5, variance (12.25 + 20.25 + 2.25 + 0.25) / 4.
    torch.testing.assert_close(y[0, 1], torch.tensor(4.5 / (35 / 4) ** 0.5))


def test_an_early_generation_never_reads_a_later_one() -> None:
    torch.manual_seed(0)
    norm = GenerationNorm(nn.GroupNorm(2, 6))
    norm.generation[0, :2], norm.generation[1, 1] = 1, 2
    x = torch.randn(3, 6, 4)
    before = norm(x)
    x[:, [2, 3, 5]] = torch.randn(3, 3, 4) * 100
    after = norm(x)
    assert torch.equal(before[:, [0, 1, 4]], after[:, [0, 1, 4]])


class Named(nn.Module):
    """Calls its norm by keyword, with the names of PyTorch's norms."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 8), norm, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x = self.norm(x=x) if isinstance(self.norm, nn.RMSNorm) else self.norm(input=x)
        logits: Tensor = self.head(x.relu())
        return logits


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8), nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)]
)
def test_a_norm_may_be_called_by_keyword(norm: nn.Module) -> None:
    x = torch.randn(5, 6)
    model = Named(norm).eval()
    network = sparsify(model, x, density=1.0, values="model").eval()
    torch.testing.assert_close(network(x), model(x))
