"""Classes that extend a norm of PyTorch's: what they do behind it must not be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nispa import Learner, sparsify
from nispa.errors import GraphError

from .own_nets import EXAMPLE, IMAGES, Net, assert_same, learned


class BatchThen(nn.BatchNorm2d):
    """A batch norm and an activation, as in timm."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Any:
        return self.act(self.drop(super().forward(x)))


class GroupThen(nn.GroupNorm):
    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels // 4, channels)
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class LayerThen(nn.LayerNorm):
    """Over channels that stand first."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(super().forward(x.movedim(1, -1)).movedim(-1, 1))


class RootThen(nn.Module):
    """Without a norm of PyTorch's."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.scale, self.act = nn.Parameter(torch.ones(channels)), act

    def forward(self, x: Tensor) -> Any:
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return self.act(x * self.scale[:, None, None])


class Twice(BatchThen):
    def forward(self, x: Tensor) -> Any:
        return self.act(super().forward(x))


class Doubled(BatchThen):
    def forward(self, x: Tensor) -> Any:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [BatchThen, GroupThen, LayerThen, RootThen])
def test_an_activation_within_a_norm(kind: Callable[..., nn.Module], tmp_path: Path) -> None:
    assert_same(Net(kind(8, nn.SiLU(inplace=True))))
    learner = learned("nispa", Net(kind(8, nn.SiLU())), tasks=2)
    before = learner.scores(IMAGES, 0)
    learner.save(tmp_path / "a")
    again = Learner.load(tmp_path / "a", model=Net(kind(8, nn.SiLU())))
    assert np.array_equal(again.scores(IMAGES, 0), before)


@pytest.mark.parametrize("kind", [Twice, Doubled])
def test_other_extensions_are_refused(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(GraphError, match=r"'norm' is a \w+, whose forward is not the norm alone"):
        sparsify(Net(kind(8, nn.SiLU())), EXAMPLE)


def test_what_the_trace_does_not_see_is_refused_by_its_logits() -> None:
    net: Any = Net()
    act = nn.Softplus()
    net.a = nn.Sequential(net.a, act)  # its first name, by which the trace calls it everywhere
    net.norm = Twice(8, act)
    with pytest.raises(GraphError, match=r"other logits.*first.*'norm' \(Twice\)"):
        sparsify(net, EXAMPLE)
