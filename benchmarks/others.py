"""What else a user could pick to train a sparse network on a CPU.

PyTorch itself: its CSR product, for Linear layers; ``torch.compile`` of the masked network; and, to
know what masks cost, the same network dense. Packages are timed where they are installed; nothing
here installs them:

- sparseprop (Nikdan et al. 2023, arXiv 2302.04852): Linear and Conv2d, a source distribution that
  a C++ compiler with AVX2 builds. Of its two ways to compute a convolution its own choice is taken.
- sparselab: Linear only, wheels.

Both compute the gradient of every live value and of every input, whatever is frozen.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.contestants import (
    Contestant,
    Dense,
    Loss,
    Masked,
    channels_last,
    plain,
    swapped,
)
from nispa.data.tasks import Samples
from nispa.network.layers import SparseConv2d, SparseLayer
from nispa.network.models import SparseNetwork

PACKAGES = ("sparseprop", "sparselab")


def others(
    network: SparseNetwork, samples: Samples, batch: int, loss: Loss, *, compiling: bool = True
) -> dict[str, Contestant]:
    """The other contestants that run here, each with the values of ``network``."""
    convolutional = any(isinstance(layer, SparseConv2d) for layer in network.layers.values())
    found = {}
    makers: dict[str, Callable[[], nn.Module]] = {
        "dense, no masks": lambda: swapped(network, Dense)
    }
    if compiling:
        makers["masked, torch.compile"] = lambda: compiled(swapped(network, Masked))
    for name, make in makers.items():
        found[name] = plain(make(), samples, batch, loss)
        if convolutional:
            found[f"{name}, channels-last"] = channels_last(make(), samples, batch, loss)
    if not convolutional:
        found["torch CSR"] = plain(csr_network(network), samples, batch, loss)
    if installed("sparseprop"):
        images, _ = samples.batch(slice(batch))
        module = swapped(network, sparseprop_layers(network, images))
        found["sparseprop"] = plain(module, samples, batch, loss)
    if installed("sparselab") and not convolutional:
        found["sparselab"] = plain(swapped(network, SparselabLayer), samples, batch, loss)
    return found


def compiled(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` makes of a module."""
    made: nn.Module = torch.compile(module)  # type: ignore[assignment]
    return made


def installed(package: str) -> str:
    """The version of a package, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# PyTorch's CSR.


class Turn(nn.Module):
    """Transposes ``(batch, features)`` and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.t()


def csr_network(network: SparseNetwork) -> nn.Module:
    """A network of Linear layers as CSR products, over ``(features, batch)`` throughout."""
    first, *parts = swapped(network, Csr)
    assert isinstance(first, nn.Flatten)
    return nn.Sequential(first, Turn(), *parts, Turn())


class Csr(nn.Module):
    """A Linear layer as a product with a CSR matrix, ``(in, batch)`` to ``(out, batch)``."""

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        weight, pattern = layer.dense_weight(), layer.pattern
        self.shape = pattern.shape
        self.positions = pattern.flatten().nonzero().squeeze(1)
        row, column = self.positions // self.shape[1], self.positions % self.shape[1]
        self.order = (column * self.shape[0] + row).argsort()  # by column instead of by row
        self.values = nn.Parameter(weight.flatten()[self.positions])
        self.bias = nn.Parameter(layer.dense_bias().unsqueeze(1))
        self.start, self.column = _rows(pattern)
        self.turned_start, self.turned_column = _rows(pattern.t())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.matrix(self.values.detach())  # PyTorch warns at the first one only

    def matrix(self, values: Tensor) -> Tensor:
        """The weight."""
        return torch.sparse_csr_tensor(
            self.start, self.column, values, self.shape, check_invariants=False
        )

    def turned(self, values: Tensor) -> Tensor:
        """The weight's transpose."""
        size = (self.shape[1], self.shape[0])
        return torch.sparse_csr_tensor(
            self.turned_start, self.turned_column, values[self.order], size, check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _CsrProduct.apply(self.values, x, self)  # type: ignore[no-untyped-call]
        return product + self.bias

    def dense_gradient(self) -> Tensor:
        """Gradient of the weight, zero where dead."""
        assert self.values.grad is not None
        full = torch.zeros(self.shape)
        full.view(-1)[self.positions] = self.values.grad
        return full


def _rows(pattern: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row starts, and the columns: 32-bit, which the library underneath takes as is."""
    start = torch.cat([torch.zeros(1, dtype=torch.int64), pattern.sum(1).cumsum(0)])
    return start.int(), pattern.nonzero()[:, 1].int()


class _CsrProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, layer: Csr) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.layer = layer
        return layer.matrix(values) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        values, x = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        into = ctx.layer.turned(values) @ gradient if ctx.needs_input_grad[1] else None
        matrix = ctx.layer.matrix(values)
        of_values = torch.sparse.sampled_addmm(matrix, gradient, x.t(), beta=0.0).values()
        return of_values, into, None


# Packages.


def sparseprop_layers(network: SparseNetwork, images: Tensor) -> Callable[[SparseLayer], nn.Module]:
    """Makes a layer of sparseprop; which of its convolutions, it finds out on these images."""
    package: Any = importlib.import_module("sparseprop.modules")
    assert isinstance(network.body, nn.Sequential)
    shapes, x = {}, images
    for part, dense in zip(network.body, swapped(network, Dense), strict=True):
        if isinstance(part, SparseLayer):
            shapes[part.spec.name] = tuple(x.shape)
        x = dense(x)

    def make(layer: SparseLayer) -> nn.Module:
        if isinstance(layer, SparseConv2d):
            target, source = layer.shape
            side, _ = layer.spec.kernel  # square, as all of sparseprop's
            dense: Any = nn.Conv2d(source, target, side, padding=layer.padding)
        else:
            dense = nn.Linear(layer.shape[1], layer.shape[0])
        dense.weight = nn.Parameter(layer.dense_weight())
        dense.bias = nn.Parameter(layer.dense_bias())
        shape = shapes[layer.spec.name]
        made: nn.Module = package.sparsify_if_faster(dense, shape, include_dense=False)
        return made

    return make


class SparselabLayer(nn.Module):
    """A Linear layer of sparselab with the pattern and values of one of ours."""

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        package: Any = importlib.import_module("sparselab")
        target, source = layer.shape
        self.inner = package.SparseLinear(source, target)
        # It draws its pattern itself; what it computes with is exchanged.
        self.inner._csr = package.PaddedCSR.from_dense(layer.dense_weight())
        self.inner._values = nn.Parameter(torch.from_numpy(np.asarray(self.inner._csr.values)))
        self.inner.bias = nn.Parameter(layer.dense_bias())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


# What does not run.


def probes() -> dict[str, str]:
    """Parts of PyTorch that could be thought of, and what they answer on a CPU."""
    pattern = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.2
    weight = pattern.float()
    blocks = weight.to_sparse_bsr((4, 4))
    tried: dict[str, Callable[[], object]] = {
        "block-sparse (BSR) forward": lambda: blocks @ weight,
        "block-sparse (BSR) weight gradient, `sampled_addmm`": lambda: torch.sparse.sampled_addmm(
            blocks, weight, weight, beta=0.0
        ),
        "2:4 (`to_sparse_semi_structured`)": lambda: torch.sparse.to_sparse_semi_structured(
            weight.half()
        ),
        "convolution, `conv2d` with a sparse weight": lambda: nn.functional.conv2d(
            torch.rand(1, 64, 4, 4), weight.view(64, 64, 1, 1).to_sparse()
        ),
    }
    found = {name: _answer(call) for name, call in tried.items()}
    share = blocks.values().numel() / math.prod(weight.shape)
    found["share of 4 x 4 blocks that are not empty at density 0.2"] = f"{share:.0%}"
    return found


def _answer(call: Callable[[], object]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"does not run: {str(error).splitlines()[0]}"
    return "runs"
