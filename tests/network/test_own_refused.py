"""Arguments and modules of a user's that are refused by name, with a way out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from nispa import sparsify
from nispa.errors import ConfigError, GraphError, NispaError

from .own_nets import EXAMPLE, SHAPE, Net


@pytest.mark.parametrize(
    "wrong", [{"example": np.zeros((2, *SHAPE))}, {"seed": "a"}, {"dense": None}, {"dense": "head"}]
)
def test_arguments_of_another_type(wrong: dict[str, Any]) -> None:
    example = wrong.pop("example", EXAMPLE)
    with pytest.raises((ConfigError, GraphError), match=r"example|seed|dense"):
        sparsify(Net(), example, **wrong)


def test_names_may_be_in_a_list() -> None:
    network = sparsify(Net(), EXAMPLE, density=0.2, dense=["head"], seed=np.int64(1))  # type: ignore[arg-type]
    assert bool(network.patterns()["head"].all())


def with_b(change: Callable[[Any], Any]) -> nn.Module:
    model = Net()
    model.b = change(model.b)
    return model


def patched(layer: Any) -> Any:
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) * 2
    return layer


def cached(layer: Any) -> Any:
    layer.kept = layer.weight * 2
    return layer


class OnlyListed(Net):
    def more(self) -> None:
        self.hidden = [nn.Conv2d(8, 8, 1)]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden[0](self.norm(self.a(x))).mean((2, 3)))
        return logits


class Fixed(Net):
    kernel: Tensor

    def more(self) -> None:
        self.register_buffer("kernel", torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.conv2d(self.norm(self.a(x)), self.kernel).mean((2, 3)))
        return logits


NAMED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight norm, as it was": (
        lambda: with_b(nn.utils.weight_norm),
        "'b'.*remove_weight_norm",
    ),
    "spectral norm": (lambda: with_b(nn.utils.spectral_norm), "'b'.*remove_spectral_norm"),
    "weight norm": (
        lambda: with_b(nn.utils.parametrizations.weight_norm),
        "'b'.*remove_parametrizations",
    ),
    "pruned": (
        lambda: with_b(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        "'b'.*prune.remove",
    ),
    "lazy": (lambda: Net(nn.LazyBatchNorm2d()), "'norm'.*run the model once"),
    "TorchScript": (lambda: torch.jit.trace(Net(), EXAMPLE), "TorchScript"),
    "TorchScript within": (lambda: nn.Sequential(torch.jit.trace(Net(), EXAMPLE)), "'0'.*TorchSc"),
    "DataParallel": (lambda: nn.DataParallel(Net()), "DataParallel.*'module'"),
    "a forward in place of another": (lambda: with_b(patched), "'b.weight' by another way"),
    "a computed tensor": (lambda: with_b(cached), "'b.kept'"),
    "a layer in a plain list": (OnlyListed, "list"),
    "a fixed kernel": (Fixed, "buffer 'kernel'"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_refused_names_the_place_and_a_way_out(name: str) -> None:
    build, wrong = NAMED[name]
    with warnings.catch_warnings(action="ignore"):  # some are deprecated
        model = build()
    with pytest.raises(NispaError, match=wrong):
        sparsify(model, EXAMPLE)
