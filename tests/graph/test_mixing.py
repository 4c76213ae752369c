"""Operators that mix units: a few of them become one unit, all of a layer are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nispa import Learner, sparsify
from nispa.errors import GraphError
from nispa.network.traced import TracedNetwork
from tests.compacted import assert_compact_tells

TOKENS = 9


class Maxout(nn.Module):
    """The larger of each two units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(TOKENS, 24), nn.Linear(12, 16)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        x = self.first(x).view(-1, 12, 2).amax(2)
        logits: Tensor = self.last(self.second(x).view(-1, 2, 8).max(1).values)
        return logits


class Capsules(nn.Module):
    """Vectors of four units, shortened by their length, and a soft-max over each two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = (
            nn.Linear(TOKENS, 24), nn.Linear(24, 24), nn.Linear(24, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        x = self.first(x).view(-1, 6, 4)
        length = x.norm(dim=2, keepdim=True)
        x = (length / (1 + length**2) * x).flatten(1)
        logits: Tensor = self.last(self.gate(x).view(-1, 12, 2).softmax(2).flatten(1) * x)
        return logits


class Cosines(nn.Module):
    """Attention by the angle between queries and keys, with a learned temperature for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pack, self.last = nn.Linear(1, 12), nn.Linear(12, 36), nn.Linear(12, 4)
        self.out = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        x = self.first(x[..., None])
        bias = self.pack.bias.clone()
        bias[12:24].zero_()  # keys have none
        packed = F.linear(x, self.pack.weight, bias)
        queries, keys, values = packed.view(len(x), -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
        near = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT * self.scale
        mixed = (near.softmax(-1) @ values).transpose(1, 2).flatten(2)
        logits: Tensor = self.last((x + self.out(mixed)).mean(1))
        return logits


class Normed(Cosines):
    """Attention whose heads share the scales of a norm of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(4), nn.LayerNorm(4)])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        x = self.first(x[..., None])
        queries, keys, values = self.pack(x).view(len(x), -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
        queries, keys = self.norms[0](queries), self.norms[1](keys)
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        logits: Tensor = self.last((x + self.out(mixed)).mean(1))
        return logits


class Resized(nn.Module):
    """Positions learned for fewer tokens and interpolated, constants that code makes, a last token.

    Which token is the last one the input tells: the first that is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next, self.last = nn.Linear(1, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.positions = nn.Parameter(torch.randn(1, 12, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        least = torch.tensor(-1.0)  # a trace detaches it in place
        where = (x.round() == 0).int().argmax(1)
        x = self.first(x[..., None]) + F.interpolate(self.positions, TOKENS, mode="linear").mT
        x = torch.maximum(self.next(x), least)
        logits: Tensor = self.last(x[torch.arange(len(x)), where])
        return logits


class Patches(nn.Module):
    """Patches cut out and put together by hand, and rarer operators of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next, self.last = nn.Linear(4, 12), nn.Linear(24, 16), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        x = F.unfold(x.view(-1, 1, 3, 3), 2).mT  # four patches of four pixels
        x = torch.multiply(self.first(x).mT.expm1(), 0.5).unflatten(2, (2, 2))
        x = F.unfold(x, (1, 2), padding=(0, 1), stride=2).mT
        x = F.fold(self.next(x).logit(0.1).mT, (3, 2), 2)
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


UNITS = {
    Maxout: (12, 8),
    Capsules: (6,),
    Cosines: (12, 3),
    Normed: (12, 3),
    Resized: (12, 12),
    Patches: (12, 4),
}


def series() -> tuple[np.ndarray, np.ndarray]:
    """Series of four classes."""
    labels = np.arange(160) % 4
    noise = np.random.default_rng(0).normal(size=(160, TOKENS))
    return (noise + labels[:, None] - 1.5).astype("float32"), labels


@pytest.mark.parametrize(
    ("kind", "method"), [*((kind, "nispa") for kind in UNITS), (Capsules, "packnet")]
)
@pytest.mark.filterwarnings("ignore:the network is")
def test_a_few_units_that_are_mixed_become_one(kind: type[nn.Module], method: str) -> None:
    inputs, labels = series()
    more: dict[str, Any] = (
        {"max_phases": 3, "settle_epochs": 2} if method == "nispa" else {"epochs": 3}
    )
    learner = Learner(method, model=kind(), input_shape=(TOKENS,), classes=4, density=0.5, **more)
    network = learner.method.network
    assert isinstance(network, TracedNetwork)
    graph = network.graph
    hidden = [group.size for group in graph.groups if group.kind not in ("input", "output")]
    assert tuple(hidden) == UNITS[kind]
    learner.learn(inputs[labels < 2], labels[labels < 2])
    told = learner.scores(inputs, 0)
    learner.learn(inputs[labels > 1], labels[labels > 1])
    assert (learner.scores(inputs, 0) == told).all()
    if method == "nispa":
        assert_compact_tells(learner, inputs, told)


class Mixes(Resized):
    """Looks at all units of a layer before or behind something else that ties its units."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """Logits of series."""
        y = self.next(self.first(x[..., None]))
        if self.way == "in two steps":
            return self.last((y.view(*y.shape[:2], 3, 4).amax(3).sum(2, keepdim=True) * y).mean(1))  # type: ignore[no-any-return]
        if self.way == "by its units":
            return self.last(y[torch.arange(len(y)), y.sum(2).argmax(1)])  # type: ignore[no-any-return]
        rest = self.positions.mean((1, 2), keepdim=True) * self.positions  # units of no layer yet
        return self.last((rest.mT.mean(1, keepdim=True) + y).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("way", "wrong"),
    [
        ("in two steps", r"sum in .* takes the sum over units of 'next'"),
        ("by its units", r"sum in .* takes the sum over units of 'next'"),
        ("with values first", r"mean in .* takes the mean over units of 'positions'"),
    ],
)
def test_mixing_all_units_of_a_layer_is_refused(way: str, wrong: str) -> None:
    with pytest.raises(GraphError, match=wrong):
        sparsify(Mixes(way), torch.zeros(2, TOKENS), classes=4)


def test_what_the_logits_do_not_need_ties_no_layer() -> None:
    class Reports(Maxout):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), self.first(x).mean()

    graph = sparsify(Reports(), torch.zeros(2, TOKENS), classes=4).graph
    assert [group.size for group in graph.groups] == [TOKENS, 12, 8, 4]
