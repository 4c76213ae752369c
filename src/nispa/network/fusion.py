"""Finds the layers of a module that compiled kernels can run as one chain.

Only modules that are known to compute the same are fused: sparse layers, ReLU, the 2 x 2 max-pool,
a flatten, unit marks. Any other module, or one with a hook, runs by itself, between chains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nispa.kernels import dense
from nispa.kernels.blocks import run
from nispa.kernels.dense import FullTensor
from nispa.kernels.dispatch import (
    Chain,
    Compiled,
    ConvolutionLink,
    Images,
    LinearLink,
    Link,
    PoolLink,
    WeightedLink,
)
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units

_KNOWN = (SparseLinear, SparseConv2d, Units, nn.Flatten, nn.ReLU, nn.MaxPool2d)


LEAST_DENSE = 200_000
"""Weights from which on dense products are faster: below, PyTorch's calls take longer than they."""


@dataclass
class Segment:
    """Modules that follow each other, as one chain if ``links`` is not empty.

    Attributes:
        modules: The modules, in order.
        links: The layers of the chain.
        flat: Whether it ends in features rather than channels with pixels.
        marks: For each unit group marked in it, the place of its activations among the chain's
            buffers (0 is the input).
        positive: Whether the activations at the end cannot be negative.
        layers: The sparse layers with their numbers among the links.
        measured: Whether a chain has told the layers their places.
        whole: Whether all of its layers may run as dense products, have no dead connection, and are
            large enough.
    """

    modules: list[nn.Module] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    flat: bool = False
    marks: dict[str, int] = field(default_factory=dict)
    positive: bool = False
    layers: list[tuple[int, SparseLayer]] = field(default_factory=list)
    measured: bool = False
    whole: bool = False

    @property
    def ends_flat_without_linear(self) -> bool:
        """Whether its output must be flattened after the last link: no Linear layer does so."""
        return self.flat and bool(self.links) and not isinstance(self.links[-1], LinearLink)

    def take(self, module: nn.Module) -> bool:
        """Adds a module if the chain can hold it."""
        if hooked(module) or not self._link(module):
            return False
        self.modules.append(module)
        return True

    def _link(self, module: nn.Module) -> bool:
        if type(module) not in _KNOWN:  # a class derived from one may compute something else
            return False
        if isinstance(module, SparseLayer):
            return module not in self.modules and self._layer(module)
        if isinstance(module, Units):
            if not self.positive or module.group in self.marks:
                return False
            self.marks[module.group] = len(self.links)
            return True
        if isinstance(module, nn.Flatten):
            whole = module.start_dim == 1 and module.end_dim == -1
            self.flat = self.flat or whole
            return whole
        if not self.links:
            return False
        if isinstance(module, nn.ReLU):
            last = self.links[-1]
            if not self.positive and isinstance(last, WeightedLink):
                self.links[-1] = replace(last, relu=True)
                self.positive = True
            # After a pool of values that may be negative the ReLU runs by itself.
            return self.positive
        if isinstance(module, nn.MaxPool2d) and not self.flat and _halves(module):
            self.links.append(PoolLink())
            return True
        return False

    def _layer(self, layer: SparseLayer) -> bool:
        link: Link
        weight, bias = layer.live_weight(), layer.live_bias()
        if isinstance(layer, SparseConv2d) and not self.flat:
            link = ConvolutionLink(weight, bias, stride=layer.stride, padding=layer.padding)
        elif isinstance(layer, SparseLinear) and (self.flat or not self.links):
            link = LinearLink(weight, bias)
            self.flat = True
        else:
            return False
        self.layers.append((len(self.links), layer))
        self.links.append(link)
        self.positive = False
        return True

    def chain(
        self, x: Images, compiled: Compiled, outputs: tuple[int, ...] | None = None
    ) -> Chain | None:
        """The chain for an input, or None where its modules must run one by one.

        Args:
            x: The input.
            compiled: Where chains are kept.
            outputs: The outputs that are read; None for all.
        """
        if self._in_whole(x):
            return None
        if isinstance(x, Tensor) and self.links and isinstance(self.links[0], LinearLink):
            starts_flat = not isinstance(self.modules[0], nn.Flatten)
            if x.dim() != 2 and starts_flat:
                return None
        chain = compiled.chain(self.links, x, outputs)
        if chain is not None and not (self.measured and chain is compiled.latest):
            self.measured, compiled.latest = True, chain
            for number, layer in self.layers:
                layer.places = chain.buffers[number + 1].pixels
        return chain

    def blocks(self, x: Tensor) -> Tensor | None:
        """The output where full weights are kept, or None where modules must run one by one."""
        if not self.layers:
            return None
        if not self._in_whole(x) and not dense.keeps(self.layers[0][1].weight):
            return None
        fits: tuple[int, ...] = (4,)
        if isinstance(self.links[0], LinearLink):
            fits = (2, 3, 4) if isinstance(self.modules[0], nn.Flatten) else (2,)
        if x.dim() not in fits:
            return None
        full: list[tuple[FullTensor, FullTensor] | None] = [None] * len(self.links)
        for number, layer in self.layers:
            full[number] = layer.compiled.weight, layer.compiled.bias
        x, places = run(self.links, full, x)
        for number, layer in self.layers:
            if layer.places != places[number]:
                layer.places = places[number]
        return x.flatten(1) if self.flat else x

    def _in_whole(self, x: Images) -> bool:
        """Whether dense products run faster: no connection is dead, and the type is float32."""
        return self.whole and isinstance(x, Tensor) and not torch.is_autocast_enabled("cpu")


def segments(body: nn.Module, *, dense_if_full: bool = False) -> list[Segment]:
    """A sequence of modules cut into chains as long as possible.

    A module that no chain can hold is a segment by itself, and so is a body that is no sequence.

    Args:
        body: The modules.
        dense_if_full: See :class:`.SparseNetwork`.
    """
    modules: Iterable[nn.Module] = body if type(body) is nn.Sequential else (body,)
    cut = [Segment()]
    for module in modules:
        if cut[-1].take(module):
            continue
        following = Segment()
        if following.take(module):
            cut.append(following)
        else:
            cut += [Segment([module]), Segment()]
    for segment in cut:
        layers = [layer for _, layer in segment.layers]
        full = all(layer.live_count == layer.position_count for layer in layers)
        weights = sum(layer.position_count * layer.weights_each for layer in layers)
        segment.whole = dense_if_full and full and weights >= LEAST_DENSE
    return [segment for segment in cut if segment.modules]


def hooked(module: nn.Module) -> bool:
    """Whether a hook listens to a module's passes, which a chain would not call."""
    return bool(
        _has_any_global_hook()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _halves(pool: nn.MaxPool2d) -> bool:
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return (
        all(value in (one, (one, one)) for value, one in zip(settings, (2, 2, 0, 1), strict=True))
        and not pool.ceil_mode
        and not pool.return_indices
    )
