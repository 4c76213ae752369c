"""Norms that a user's module writes out are taken for what they are, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nispa
from nispa.errors import GraphError
from nispa.network.written_norms import ChannelsFirst, ResponseNorm, recognise_norms


class Written(nn.Module):
    """What such norms have in common."""

    def __init__(self, size: int, eps: float = 1e-6, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.bias = nn.Parameter(torch.rand(size)) if bias else None
        self.eps = eps


class OfLanguageModels(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class RootMeanSquare(Written):
    def __init__(self, size: int) -> None:
        super().__init__(size, 1e-6, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps))


class First(Written):
    def forward(self, x: Tensor) -> Tensor:
        away = x - x.mean(1, keepdim=True)
        x = away / torch.sqrt(away.pow(2).mean(1, keepdim=True) + self.eps)
        assert self.bias is not None
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permuting(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ByDeviation(Written):
    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (deviation + self.eps) + self.bias


class OnePlus(RootMeanSquare):
    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, None, self.eps) * (1 + self.weight)


class OnePlusLayer(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Response(nn.Module):
    """Global response normalisation as ConvNeXt v2 writes it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, 1, 1, size))
        self.beta = nn.Parameter(torch.rand(1, 1, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = length / (length.mean(-1, keepdim=True) + 1e-6)
        y: Tensor = self.gamma * (x * share) + self.beta + x
        return y


class Otherwise(OfLanguageModels):
    """In training another one than in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


PIXELS, ROWS = (2, 6, 4, 4), (2, 5, 6)


@pytest.mark.parametrize(
    ("norm", "shape", "kind", "eps"),
    [
        (OfLanguageModels(6), ROWS, nn.LayerNorm, 1e-5),
        (OfLanguageModels(6, bias=False), (2, 6), nn.LayerNorm, 1e-5),
        (RootMeanSquare(6), ROWS, nn.RMSNorm, 1e-6),
        (First(6, 3e-4), PIXELS, ChannelsFirst, 3e-4),
        (First(4, 3e-4), (2, 4, 4, 4), ChannelsFirst, 3e-4),
        (Permuting(6), PIXELS, ChannelsFirst, 1e-5),
    ],
)
def test_a_written_norm_computes_the_same_by_its_name(
    norm: nn.Module, shape: tuple[int, ...], kind: type[nn.Module], eps: float
) -> None:
    model, x = nn.Sequential(norm), 0.01 * torch.randn(shape)
    before, parameters = model(x), dict(norm.named_parameters())
    recognise_norms(model, (x,), {})
    assert type(norm) is kind
    torch.testing.assert_close(model(x), before)
    named = norm.norm if isinstance(norm, ChannelsFirst) else norm
    assert isinstance(named, (nn.LayerNorm, nn.RMSNorm))
    assert named.eps == eps
    assert dict(named.named_parameters()) == parameters


class Length(nn.Module):
    """By the length of each vector, with a name of its own for the weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain, self.root = nn.Parameter(torch.rand(size)), size**0.5

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = F.normalize(x, dim=-1) * self.root * self.gain
        return scaled


class Backwards(nn.Module):
    """The shift comes first, and as long as it is 0 it is a buffer."""

    def __init__(self, size: int, shifted: bool = True) -> None:
        super().__init__()
        if shifted:
            self.beta = nn.Parameter(torch.rand(size))
        else:
            self.register_buffer("beta", torch.zeros(size))
        self.gamma = nn.Parameter(torch.rand(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.gamma + self.beta


class Lying(nn.Module):
    """Parameters that have the dimensions of images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(1, size, 1, 1))
        self.b = nn.Parameter(torch.rand(1, size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.g + self.b


class Counting(Backwards):
    """What it has seen changes it."""

    def __init__(self, size: int) -> None:
        super().__init__(size, shifted=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.beta.add_(1)
        return y


@pytest.mark.parametrize(
    ("norm", "shape", "kind", "parameters"),
    [
        (OnePlus(6), ROWS, nn.RMSNorm, 1),
        (OnePlusLayer(6), ROWS, nn.LayerNorm, 2),
        (Length(6), ROWS, nn.RMSNorm, 1),
        (Backwards(6), ROWS, nn.LayerNorm, 2),
        (Backwards(6, shifted=False), ROWS, nn.LayerNorm, 1),
        (Lying(6), PIXELS, ChannelsFirst, 2),
        (Response(6), (2, 4, 4, 6), ResponseNorm, 2),
    ],
)
def test_parameters_of_other_names_and_forms(
    norm: nn.Module, shape: tuple[int, ...], kind: type[nn.Module], parameters: int
) -> None:
    model, x = nn.Sequential(norm), torch.randn(shape)
    before = model(x)
    recognise_norms(model, (x,), {})
    assert type(norm) is kind
    torch.testing.assert_close(model(x), before)
    assert len(list(norm.parameters())) == parameters
    assert all(each.requires_grad and each.dim() == 1 for each in norm.parameters())


def test_the_response_of_a_channel_without_any_has_a_slope() -> None:
    slopes = []
    for turned in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(Response(6)), torch.randn(2, 4, 4, 6)
        x[0, ..., 2] = 0.0
        if turned:
            recognise_norms(model, (x,), {})
        model(x.requires_grad_()).pow(2).sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


def test_norms_that_share_a_parameter_stay() -> None:
    model = nn.Sequential(OnePlus(6), OnePlus(6))
    model[1].weight = model[0].weight
    recognise_norms(model, (torch.randn(ROWS),), {})
    assert [type(norm) for norm in model] == [OnePlus, OnePlus]


@pytest.mark.parametrize("norm", [ByDeviation(6), Counting(6), Otherwise(6)])
def test_what_only_looks_like_a_norm_stays_and_is_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 6), norm, nn.Linear(6, 4)).eval()
    recognise_norms(model, (torch.randn(2, 3),), {})
    assert type(model[1]) in (ByDeviation, Counting, Otherwise)
    assert not model[1].training
    with pytest.raises(GraphError, match="units cannot be told apart"):
        nispa.sparsify(model, torch.randn(2, 3), classes=4)


def test_a_norm_that_is_called_by_keyword_stays() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = RootMeanSquare(6)

        def forward(self, x: Tensor) -> Any:
            return self.norm(hidden=x)

    model = Calls()
    recognise_norms(model, (torch.randn(2, 6),), {})
    assert type(model.norm) is RootMeanSquare


class Blocks(nn.Module):
    """As in ConvNeXt v2: depthwise kernels, norms of both layouts, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 12, 2, 2), First(12)
        self.mix, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), OfLanguageModels(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.response = Response(24)
        self.scale = nn.Parameter(torch.ones(12))
        self.last, self.head = RootMeanSquare(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.first(self.stem(x))
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(self.response(F.gelu(self.up(y))))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((2, 3))))


@pytest.mark.parametrize("method", ["nispa", "packnet"])
def test_nothing_is_forgotten_behind_written_norms(method: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs_per_phase": 1, "settle_epochs": 2, "max_phases": 4}
    if method == "packnet":
        settings = {"epochs": 2, "retrain_epochs": 1}
    model, images = Blocks(), torch.rand(40, 1, 8, 8)
    kinds = {type(module) for module in model.modules()}
    learner = nispa.Learner(
        method, model=model, example_input=images[:2], classes=4, density=0.6, **settings
    )
    assert kinds == {type(module) for module in model.modules()}  # the user's own stays
    labels = torch.arange(40) % 2
    learner.learn(images, labels)
    before = learner.predict_proba(images, task=0)
    learner.learn(images.flip(3), labels + 2)
    assert torch.equal(torch.as_tensor(before), torch.as_tensor(learner.predict_proba(images, 0)))
    learner.save(tmp_path / "a")
    again = nispa.Learner.load(tmp_path / "a", model=Blocks())
    assert torch.equal(torch.as_tensor(before), torch.as_tensor(again.predict_proba(images, 0)))


def test_a_model_that_fails_is_refused_as_before() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("no")

    model = nn.Sequential(nn.Linear(3, 6), RootMeanSquare(6), nn.Linear(6, 4))
    call: Callable[[Tensor], Tensor] = fails
    model[2].forward = call
    with pytest.raises(GraphError, match="does not run"):
        nispa.sparsify(model, torch.randn(2, 3), classes=4)
