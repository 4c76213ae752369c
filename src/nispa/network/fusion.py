"""Finds the layers of a module that compiled kernels can run as one chain.

Only what is known to compute the same is fused: sparse layers, ReLU, the 2 x 2 max-pool, a flatten,
unit marks. Any other module, or one with a hook, runs by itself, with chains before and after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nispa.kernels import dense
from nispa.kernels.blocks import run
from nispa.kernels.dense import Full
from nispa.kernels.dispatch import CONVOLUTION, LINEAR, POOL, Chain, Compiled, Given, Link
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units

_KNOWN = (SparseLinear, SparseConv2d, Units, nn.Flatten, nn.ReLU, nn.MaxPool2d)


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
    """

    modules: list[nn.Module] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    flat: bool = False
    marks: dict[str, int] = field(default_factory=dict)
    positive: bool = False
    layers: list[tuple[int, SparseLayer]] = field(default_factory=list)
    measured: bool = False

    @property
    def ends_flat_without_linear(self) -> bool:
        """Whether its output must be flattened after the last link: no Linear layer does so."""
        return self.flat and bool(self.links) and self.links[-1].kind != LINEAR

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
            if not self.positive and self.links[-1].kind != POOL:
                self.links[-1] = self.links[-1]._replace(relu=True)
                self.positive = True
            return self.positive
        if isinstance(module, nn.MaxPool2d) and not self.flat and _halves(module):
            self.links.append(Link(POOL))
            return True
        return False

    def _layer(self, layer: SparseLayer) -> bool:
        if isinstance(layer, SparseConv2d) and not self.flat:
            link = Link(
                CONVOLUTION,
                layer.live_weight(),
                layer.live_bias(),
                stride=layer.stride,
                padding=layer.padding,
            )
        elif isinstance(layer, SparseLinear) and (self.flat or not self.links):
            link = Link(LINEAR, layer.live_weight(), layer.live_bias())
            self.flat = True
        else:
            return False
        self.layers.append((len(self.links), layer))
        self.links.append(link)
        self.positive = False
        return True

    def chain(self, x: Tensor | Given, compiled: Compiled) -> Chain | None:
        """The chain for an input, or None where its modules must run one by one."""
        if isinstance(x, Tensor) and self.links and self.links[0].kind == LINEAR:
            starts_flat = not isinstance(self.modules[0], nn.Flatten)
            if x.dim() != 2 and starts_flat:
                return None
        chain = compiled.chain(self.links, x)
        if chain is not None and not (self.measured and chain is compiled.latest):
            self.measured, compiled.latest = True, chain
            for number, layer in self.layers:
                layer.places = chain.buffers[number + 1].pixels
        return chain

    def blocks(self, x: Tensor) -> Tensor | None:
        """What comes out where full weights are kept, or None where modules run one by one."""
        if not self.layers or not dense.keeps(self.layers[0][1].weight):
            return None
        flat = self.links[0].kind == LINEAR and not isinstance(self.modules[0], nn.Flatten)
        if x.dim() != (2 if flat else 4):
            return None
        full: list[tuple[Full, Full] | None] = [None] * len(self.links)
        for number, layer in self.layers:
            full[number] = layer.compiled.weight, layer.compiled.bias
        x, places = run(self.links, full, x)
        for number, layer in self.layers:
            if layer.places != places[number]:
                layer.places = places[number]
        return x.flatten(1) if self.flat else x


def segments(body: nn.Module) -> list[Segment]:
    """The modules of a sequence in chains as long as possible; any other module is one segment."""
    modules: Iterable[nn.Module] = body if type(body) is nn.Sequential else (body,)
    found = [Segment()]
    for module in modules:
        if found[-1].take(module):
            continue
        fresh = Segment()
        if fresh.take(module):
            found.append(fresh)
        else:
            found += [Segment([module]), Segment()]
    return [segment for segment in found if segment.modules]


def hooked(module: nn.Module) -> bool:
    """Whether something listens to a module's passes."""
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
