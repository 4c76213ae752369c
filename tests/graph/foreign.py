"""Modules as users write them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """Keyword arguments, a shape check that raises, a dictionary, attention by hand, a mask."""

    def __init__(self, width: int = 8, heads: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = nn.Linear(5, width)
        self.places = nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(
        self, values: Tensor, mask: Tensor | None = None, with_attention: bool = False
    ) -> dict[str, Tensor]:
        if values.dim() != 3 or values.shape[-1] != 5:
            raise ValueError(f"expected (batch, steps, 5), got {tuple(values.shape)}")
        batch, steps, _ = values.shape
        if steps > 16:
            raise ValueError("too long")
        x = self.embed(values) + self.places(torch.arange(steps))

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, steps, self.heads, -1).transpose(1, 2)

        y = self.norm(x)
        scores = heads(self.q(y)) @ heads(self.k(y)).transpose(-1, -2)
        scores = scores / (self.width // self.heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -1e4)
        weights = scores.softmax(-1)
        read = (weights @ heads(self.v(y))).transpose(1, 2).reshape(batch, steps, -1)
        x = x + self.out(read)
        result = {"logits": self.classifier(x.mean(1))}
        if with_attention:
            result["attention"] = weights.mean(1)
        return result


class Functional(nn.Module):
    """Bare parameters, functional calls, a branch on the size of the batch, work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 1, 3, 3) * 0.3)
        self.b1 = nn.Parameter(torch.zeros(6))
        self.w2 = nn.Parameter(torch.randn(4, 6 * 16) * 0.1)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * 2
        x = F.conv2d(x, self.w1, self.b1, padding=1)
        x = F.relu(x, inplace=True)
        if x.shape[0] > 1:
            x = F.dropout(x, 0.1, self.training)
        x = F.max_pool2d(x, 2)
        return F.linear(x.view(x.size(0), -1), self.w2)


def sequential() -> nn.Module:
    """Names of one's own, a flatten between, batch norm on a vector."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(2, 4, 3, stride=2, dilation=2, padding=2, bias=False),
            act=nn.SiLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flat=nn.Flatten(),
            wide=nn.Linear(16, 6),
            bn=nn.BatchNorm1d(6),
            act2=nn.ReLU(inplace=True),
            out=nn.Linear(6, 3),
        )
    )


class Dense(nn.Module):
    """Concatenation, a shuffle, a grouped convolution, group norm, a split, two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 4, 3, padding=1)
        self.grow = nn.ModuleList([nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(8, 4, 1)])
        self.grouped = nn.Conv1d(12, 6, 1, groups=2)
        self.norm = nn.GroupNorm(2, 6)
        self.fc = nn.Linear(9, 2)
        self.helper = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = [self.first(x).relu()]
        for layer in self.grow:
            features.append(layer(torch.cat(features, 1)).relu())
        y = torch.cat(features, dim=1)
        y = y.view(len(y), 2, 6, -1).transpose(1, 2).flatten(1, 2)  # shuffle
        y = F.gelu(self.norm(self.grouped(y)))
        half, _ = y.split([3, 3], dim=1)
        pooled = torch.cat([y.amax(-1), half.mean(-1)], dim=1)
        return self.fc(pooled), self.helper(pooled)


class Standard(nn.Module):
    """``nn.TransformerEncoder`` on patches, with a class token and stochastic depth by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(
            8, 4, 12, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.randn(8))
        self.branch = nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 8), x], 1)
        x = self.encoder(x)
        y = self.branch(x) * self.gamma
        if self.training:
            y = y * x.new_empty(len(x), 1, 1).bernoulli_(0.9).div_(0.9)
        logits: Tensor = self.head((x + y)[:, 0])
        return logits


@dataclass(frozen=True)
class Foreign:
    """A module, what it is called with, and its groups: name, kind, size, writers, readers."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    groups: tuple[tuple[str, str, int, str, str], ...]


FOREIGN = {
    "encoder": Foreign(
        Encoder,
        lambda: {"values": torch.randn(4, 6, 5), "mask": torch.ones(4, 6, dtype=torch.bool)},
        (
            ("values", "input", 5, "", "embed"),
            ("mask", "input", 6, "", ""),
            ("embed", "stream", 8, "embed out", "q k v classifier"),
            ("q", "head", 2, "q k v", "out"),
            ("output", "output", 3, "classifier", ""),
        ),
    ),
    "functional": Foreign(
        Functional,
        lambda: torch.randn(4, 1, 8, 8),
        (
            ("input", "input", 1, "", "w1"),
            ("w1", "hidden", 6, "w1", "w2"),
            ("output", "output", 4, "w2", ""),
        ),
    ),
    "sequential": Foreign(
        sequential,
        lambda: torch.randn(4, 2, 9, 9),
        (
            ("input", "input", 2, "", "conv"),
            ("conv", "hidden", 4, "conv", "wide"),
            ("wide", "hidden", 6, "wide", "out"),
            ("output", "output", 3, "out", ""),
        ),
    ),
    "dense": Foreign(
        Dense,
        lambda: torch.randn(4, 3, 10),
        (
            ("input", "input", 3, "", "first"),
            ("first", "hidden", 4, "first", "grow.0 grow.1 grouped"),
            ("grow.0", "hidden", 4, "grow.0", "grow.1 grouped"),
            ("grow.1", "hidden", 4, "grow.1", "grouped"),
            ("grouped", "hidden", 6, "grouped", "fc helper"),
            ("helper", "hidden", 5, "helper", ""),
            ("output", "output", 2, "fc", ""),
        ),
    ),
    "standard": Foreign(
        Standard,
        lambda: torch.randn(4, 1, 8, 8),
        (
            ("input", "input", 1, "", "patches"),
            (
                "patches",
                "stream",
                8,
                "patches encoder.layers.0.self_attn.out_proj encoder.layers.0.linear2 "
                "encoder.layers.1.self_attn.out_proj encoder.layers.1.linear2 branch",
                "encoder.layers.0.self_attn.in_proj_weight encoder.layers.0.linear1 "
                "encoder.layers.1.self_attn.in_proj_weight encoder.layers.1.linear1 branch head",
            ),
            (
                "encoder.layers.0.self_attn.in_proj_weight",
                "head",
                4,
                "encoder.layers.0.self_attn.in_proj_weight",
                "encoder.layers.0.self_attn.out_proj",
            ),
            (
                "encoder.layers.0.linear1",
                "hidden",
                12,
                "encoder.layers.0.linear1",
                "encoder.layers.0.linear2",
            ),
            (
                "encoder.layers.1.self_attn.in_proj_weight",
                "head",
                4,
                "encoder.layers.1.self_attn.in_proj_weight",
                "encoder.layers.1.self_attn.out_proj",
            ),
            (
                "encoder.layers.1.linear1",
                "hidden",
                12,
                "encoder.layers.1.linear1",
                "encoder.layers.1.linear2",
            ),
            ("output", "output", 3, "head", ""),
        ),
    ),
}
