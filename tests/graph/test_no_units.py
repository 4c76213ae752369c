"""What is computed from constants and inputs alone may be computed in any way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nispa import Learner, sparsify
from nispa.errors import GraphError
from tests.compacted import assert_compact_tells

SHAPE = (1, 8, 8)


def angles() -> Tensor:
    """Rotary angles of 8 places and 4 frequencies."""
    return torch.outer(torch.arange(8.0), 100 ** -torch.linspace(0, 1, 4))


class Reads(nn.Module):
    """A network of what a function makes of images, with four channels."""

    def __init__(self, made: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made
        self.register_buffer("blur", torch.ones(1, 1, 3, 3) / 9)
        self.conv, self.next = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.conv(self.made(self, x)).relu()
        x = F.conv2d(x, self.blur.expand(12, -1, -1, -1), padding=1, groups=12)  # type: ignore[operator]
        logits: Tensor = self.head(self.next(x).relu().mean((2, 3)))
        return logits


def moved(model: nn.Module, x: Tensor) -> Tensor:
    """A grid of places that constants make, at which images are read."""
    turn = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def without_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """A block that looks up nothing but constants."""
    with torch.no_grad():
        table = torch.cat([angles().cos(), angles().sin()], 1)
    return x * table


MADE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "constants": lambda _, x: x + torch.cat([angles().cos(), angles().sin()], 1),
    "a block": without_gradient,
    "spectrum": lambda _, x: torch.fft.fft2(x).abs(),
    "by rank": lambda _, x: x.flatten(1).sort(1).values.view(x.shape),
    "a filter": lambda m, x: F.conv2d(x, m.blur, padding=1),  # type: ignore[arg-type]
    "a grid": moved,
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings("ignore:the network is")
def test_tasks_stay_whatever_is_made_of_the_input(name: str) -> None:
    images = np.random.default_rng(0).normal(size=(80, *SHAPE)).astype("float32")
    labels = np.arange(80) % 4
    learner = Learner(
        model=Reads(MADE[name]), input_shape=SHAPE, classes=4, density=0.5, max_phases=3,
        settle_epochs=2,
    )  # fmt: skip
    learner.learn(images[labels < 2], labels[labels < 2])
    told = learner.scores(images, 0)
    learner.learn(images[labels > 1], labels[labels > 1])
    assert (learner.scores(images, 0) == told).all()
    assert_compact_tells(learner, images, told)


def test_operations_of_a_filter_are_counted() -> None:
    images = torch.zeros(2, *SHAPE)
    counted = [
        sparsify(Reads(made), images, classes=4).graph.operations
        for made in (MADE["by rank"], MADE["a filter"])
    ]
    assert counted == [2 * 9 * 64 * 12, 2 * 9 * 64 * 13]


class Writes(Reads):
    """A block that keeps a mean of what it has seen, or writes units into what may be a view."""

    def __init__(self, kind: str) -> None:
        super().__init__(MADE["a grid"])
        self.kind = kind
        self.register_buffer("seen", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        y = self.head(self.next(self.conv(x)[:, :12].relu()).mean((2, 3)))
        if self.kind == "block":
            with torch.no_grad():
                seen = self.seen.mul_(0.9).add_(x.mean((0, 1))[:4])  # type: ignore[operator]
            logits: Tensor = y + seen.sum()
            return logits
        table = torch.zeros(len(x), 4)
        torch.as_strided(table, (len(x), 4), (4, 1)).copy_(y)
        return table + table.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("block", r"is not looked into"), ("view", r"copy .* may or may not share its memory")],
)
def test_writing_behind_the_walks_back_is_refused(kind: str, wrong: str) -> None:
    with pytest.raises(GraphError, match=wrong):
        sparsify(Writes(kind), torch.zeros(2, *SHAPE), classes=4)


def test_a_filter_that_mixes_units_is_refused() -> None:
    class Mixes(Reads):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(self.conv(x), self.blur.expand(10, 12, -1, -1))  # type: ignore[operator]
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    with pytest.raises(GraphError, match=r"weight of conv2d .* is computed"):
        sparsify(Mixes(MADE["a grid"]), torch.zeros(2, *SHAPE), classes=4)
