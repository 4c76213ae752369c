"""What reaches the outputs of a chain of sparse layers, as plain dense layers.

Forward, layer by layer: a unit without a live path from the input has one value whatever the image,
and that value times its weights is added to the biases of its readers. Backward: a unit that no
wanted output reads, over any path, is left out. Sums are made in double precision.

A constant that a padded convolution reads is not the same everywhere, since the border is padded
with zeros. Such a unit stays, unless its constant is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nispa.errors import ConfigError
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units
from nispa.network.sparse_network import SparseNetwork

_POINTWISE = (nn.ReLU, nn.MaxPool2d, nn.Flatten)


@dataclass
class _Stage:
    """A layer, and the modules up to the next one.

    Attributes:
        layer: The sparse layer.
        weight: Its weights, ``(target, columns, *kernel)`` float64, those of constants removed.
        bias: Its biases with the constants folded in, ``(target,)`` float64.
        after: ReLU, pools, flatten.
    """

    layer: SparseLayer
    weight: Tensor
    bias: Tensor
    after: list[nn.Module] = field(default_factory=list)

    @property
    def live(self) -> Tensor:
        """Connections that are not 0, ``(target, columns)`` bool."""
        return (self.weight != 0).view(*self.weight.shape[:2], -1).any(2)

    @property
    def padded(self) -> bool:
        """Whether it pads its input with zeros."""
        return isinstance(self.layer, SparseConv2d) and self.layer.padding > 0

    def columns(self, units: Tensor) -> Tensor:
        """Something about each source unit, ``(units,)``, for each column."""
        return units.repeat_interleave(self.layer.spec.block)

    def dense(self, rows: Tensor, sources: Tensor) -> nn.Module:
        """A plain layer of some rows and source units, both ``(n,)`` int64 and bool."""
        weight = self.weight[rows][:, self.columns(sources)].float()
        layer: nn.Module
        if isinstance(self.layer, SparseConv2d):
            layer = nn.utils.skip_init(
                nn.Conv2d,
                weight.shape[1],
                weight.shape[0],
                tuple(weight.shape[2:]),
                stride=self.layer.stride,
                padding=self.layer.padding,
            )
        else:
            layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": self.bias[rows].float()})
        return layer


@torch.no_grad()
def condense(network: SparseNetwork, outputs: Sequence[int]) -> list[nn.Module]:
    """Plain modules, one after another, that compute some outputs of a network.

    Args:
        network: An MLP, a ConvNet, or another chain of sparse layers, ReLU, max-pools and flatten.
        outputs: The logits to compute, in the order in which they are to come.

    Raises:
        ConfigError: The network is built of other modules.
    """
    leading, stages = _stages(network)
    _fold(stages, network.topology.group(stages[0].layer.spec.source).size)
    return leading + _cut(stages, torch.tensor(outputs))


def _stages(network: SparseNetwork) -> tuple[list[nn.Module], list[_Stage]]:
    """The modules before the first layer, and the layers."""
    body = network.body
    modules = list(body) if type(body) is nn.Sequential else [body]
    leading: list[nn.Module] = []
    stages: list[_Stage] = []
    for module in modules:
        if type(module) in (SparseLinear, SparseConv2d):
            assert isinstance(module, SparseLayer)
            weight, bias = module.dense_weight(), module.dense_bias()
            stages.append(_Stage(module, weight.cpu().double(), bias.cpu().double()))
        elif type(module) in _POINTWISE:
            (stages[-1].after if stages else leading).append(copy.deepcopy(module))
        elif type(module) is not Units:
            raise ConfigError(
                f"a network with a module {type(module).__name__} cannot be compacted; only an "
                "MLP, a ConvNet or another chain of sparse layers, ReLU, max-pools and flatten can"
            )
    return leading, stages


def _fold(stages: list[_Stage], inputs: int) -> None:
    """Forward: finds the units that never change and adds them to the biases of their readers."""
    moving = torch.ones(inputs, dtype=torch.bool)
    constant = torch.zeros(inputs, dtype=torch.float64)
    for stage in stages:
        if stage.padded:
            moving = moving | (constant != 0)
        constant = constant.masked_fill(moving, 0)
        weight = stage.weight
        each = weight.view(*weight.shape[:2], -1).sum(2)
        stage.bias = stage.bias + each @ stage.columns(constant)
        weight[:, ~stage.columns(moving)] = 0
        moving, constant = stage.live.any(1), stage.bias
        if any(isinstance(module, nn.ReLU) for module in stage.after):
            constant = constant.clamp(min=0)


def _cut(stages: list[_Stage], rows: Tensor) -> list[nn.Module]:
    """Backward: takes of each layer what the rows of the last one read."""
    found: list[nn.Module] = []
    for stage in reversed(stages):
        sources = stage.live[rows].any(0).view(-1, stage.layer.spec.block).any(1)
        if stage is stages[0]:
            sources = torch.ones_like(sources)  # the input stays as it is
        elif not sources.any():
            sources[0] = True  # a layer needs a column; the weights of this one are 0
        found = [stage.dense(rows, sources), *stage.after, *found]
        rows = sources.nonzero().squeeze(1)
    return found
