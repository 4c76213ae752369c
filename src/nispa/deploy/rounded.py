"""Layers whose weights are 8-bit whole numbers, each row with a factor of its own.

A weight w of row i is ``s_i q``, with q in [-127, 127] and ``s_i = max |w_ij| / 127``; it differs
from the weight it stands for by at most ``s_i / 2``. Biases and all sums stay in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

WINDOW = ("stride", "padding", "dilation", "groups")
"""How a convolution goes over its input."""


class Rounded(nn.Module):
    """A linear layer or a convolution with rounded weights.

    Attributes:
        values: ``(target, columns, *kernel)`` int8.
        scale: The factor of each row, ``(target,)`` float32.
        bias: ``(target,)`` float32.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias
        assert bias is not None
        scale = weight.flatten(1).abs().amax(1) / LARGEST
        scale = torch.where(scale == 0, 1.0, scale)
        self.register_buffer("values", (weight / _along(scale, weight)).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias.detach().clone())
        self.window: dict[str, Any] = {}  # of a convolution
        if isinstance(layer, _CONVOLUTIONS):
            self.window = {name: getattr(layer, name) for name in WINDOW}

    @property
    def weight(self) -> Tensor:
        """The weights that the rounded ones stand for, float32."""
        if torch.onnx.is_in_onnx_export():  # the exporter would store a product as its result
            weight = torch.onnx.ops.symbolic(
                "DequantizeLinear",
                [self.values, self.scale],
                {"axis": 0},
                dtype=torch.float32,
                shape=self.values.shape,
            )
            assert isinstance(weight, Tensor)
            return weight
        return self.values.float() * _along(self.scale, self.values)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes, with rounded weights."""
        if not self.window:
            return functional.linear(x, self.weight, self.bias)
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[self.values.dim() - 3]
        return convolve(x, self.weight, self.bias, **self.window)


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def rounded(module: nn.Sequential) -> nn.Sequential:
    """A copy of a compacted module in which every weight is rounded."""
    made = copy.deepcopy(module)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.Linear, *_CONVOLUTIONS)):
                setattr(parent, name, Rounded(child))
    return made.eval()
