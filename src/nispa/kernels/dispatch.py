"""Chooses the kernels that layers run on, and can say which and why.

Compiled kernels run float32 on the CPU, where a library for this processor was installed. All else
(other types, an empty batch, autocast) runs on the reference, which is plain PyTorch. A GPU runs
plain PyTorch, too, over full weights that are kept from pass to pass (:mod:`nispa.kernels.dense`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels import dense, reference
from nispa.kernels.cached import CachedBatch, CachedData, Images
from nispa.kernels.chain import Chain
from nispa.kernels.dense import FullTensor
from nispa.kernels.links import ConvolutionLink, LinearLink, Link, PoolLink, Shape, WeightedLink
from nispa.kernels.native import library
from nispa.kernels.reference import LiveValues, to_dense

__all__ = [
    "CachedBatch",
    "CachedData",
    "Chain",
    "Compiled",
    "ConvolutionLink",
    "Images",
    "KernelChoice",
    "LinearLink",
    "Link",
    "LiveValues",
    "PoolLink",
    "WeightedLink",
    "conv2d",
    "in_use",
    "linear",
    "to_dense",
]


@dataclass(frozen=True)
class KernelChoice:
    """The name of the kernels in use and the reason for that choice."""

    name: str
    reason: str


def in_use() -> KernelChoice:
    """The kernels that sparse layers run on in this process, on the CPU."""
    compiled, reason = library()
    if compiled is None:
        return KernelChoice("reference", f"plain PyTorch through dense weights; {reason}")
    return KernelChoice(compiled.isa, f"{reason}, over live connections, on {compiled.threads}")


MOST_CHAINS = 8
"""Chains that a module keeps. Those beyond, oldest first, are laid out anew when they return."""


class Compiled:
    """Memory that a module's passes use again from call to call. A copy of a module starts without.

    Attributes:
        weight: The full weight of a layer on a GPU.
        bias: Its full biases.
        latest: The chain of the last pass, for whoever asks whether it is another one now.
    """

    def __init__(self) -> None:
        self.weight, self.bias = FullTensor(), FullTensor()
        self._chains: dict[tuple[Any, ...], Chain] = {}
        self.latest: Chain | None = None

    # Chains hold addresses and libraries, which must be neither copied nor saved.
    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled()

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()

    def chain(
        self, links: Sequence[Link], x: Images, outputs: tuple[int, ...] | None = None
    ) -> Chain | None:
        """A chain for these links and this input, or None where the reference must run.

        Args:
            links: Layers that follow each other.
            x: ``(batch, features)``, ``(batch, channels, length)`` or
                ``(batch, channels, height, width)``, or rows of cached data.
            outputs: The outputs that are read; None for all.
        """
        kernels, _ = library()
        if kernels is None or not links:
            return None
        fits = (2, 3, 4) if isinstance(links[0], LinearLink) else (2, 4)
        if isinstance(x, Tensor) and x.dim() not in fits:
            return None
        if len(x) == 0:
            return None
        if isinstance(x, CachedBatch):
            shape, gradient = x.data.shape, False
        else:
            # A feature is a channel of one pixel.
            shape = (*x.shape[1:], 1, 1)[:3]
            gradient = x.requires_grad and torch.is_grad_enabled()
        if not _runs_here(links, x) or not _fits(links, shape):
            return None
        if gradient:  # into every pixel
            outputs = None
        # Not the values: links of one form take turns in a chain, and it notices new patterns.
        key = (shape, gradient, outputs, *(link.form for link in links))
        chain = self._chains.get(key)
        if chain is None:
            if len(self._chains) == MOST_CHAINS:  # each task reads other outputs
                del self._chains[next(iter(self._chains))]
            chain = self._chains[key] = Chain(kernels, links, shape, gradient, outputs)
        else:
            chain.update(links)
        # Live values made by hand may be in any order, which the reference does not mind.
        return chain if chain.sorted else None


def _runs_here(links: Sequence[Link], x: Images) -> bool:
    """Whether the kernels can read all values: float32, contiguous, on the CPU, no autocast."""
    if torch.is_autocast_enabled("cpu") or (isinstance(x, Tensor) and not _readable(x)):
        return False
    for link in links:
        for live in link.live:
            for values in (live.plastic, live.frozen):
                if not (_readable(values) and values.is_contiguous()):
                    return False
    return True


def _readable(values: Tensor) -> bool:
    return values.dtype == torch.float32 and values.is_cpu


def _fits(links: Sequence[Link], shape: Shape) -> bool:
    """Whether every layer gets the channels, and a window the pixels, that it needs."""
    for link in links:
        if not link.accepts(shape):
            return False
        shape = link.output_shape(shape)
    return True


def linear(x: Tensor, weight: LiveValues, bias: LiveValues, compiled: Compiled) -> Tensor:
    """Linear layer, ``(..., in_features)`` to ``(..., out_features)``."""
    if x.dim() > 1:
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        chain = compiled.chain([LinearLink(weight, bias)], flat)
        if chain is not None:
            return chain(flat, (*x.shape[:-1], weight.shape[0]))
    if dense.keeps(weight.plastic):
        return functional.linear(x, compiled.weight(weight), compiled.bias(bias))
    return reference.linear(x, weight, bias)


def conv2d(
    x: Tensor,
    weight: LiveValues,
    bias: LiveValues,
    stride: int,
    padding: int,
    compiled: Compiled,
) -> Tensor:
    """Convolution, ``(batch, in, height, width)`` to ``(batch, out, height', width')``."""
    if x.dim() == 4:
        link = ConvolutionLink(weight, bias, stride=stride, padding=padding)
        chain = compiled.chain([link], x)
        if chain is not None:
            return chain(x)
    if dense.keeps(weight.plastic):
        full = compiled.weight(weight), compiled.bias(bias)
        return functional.conv2d(x, *full, stride, padding)
    return reference.conv2d(x, weight, bias, stride, padding)
