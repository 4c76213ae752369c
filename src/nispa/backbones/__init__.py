"""Networks as plain PyTorch modules, by name. They know nothing of sparsity or tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from nispa.backbones.conv1d import Conv1dNet
from nispa.backbones.convnet import ConvNet
from nispa.backbones.mlp import Mlp
from nispa.backbones.mobilenet_small import MobileNetSmall
from nispa.backbones.resnet18 import ResNet18
from nispa.backbones.vgg11_bn import Vgg11Bn
from nispa.backbones.vit_tiny import VitTiny


@dataclass(frozen=True)
class Backbone:
    """A network by name.

    Attributes:
        build: Makes it from the shape of a sample (without the batch), the number of logits, and
            settings by keyword, such as ``width=20``.
        description: What it is, in a line.
        example: The shape of a sample that it is made for.
    """

    build: Callable[..., nn.Module]
    description: str
    example: tuple[int, ...] = (3, 32, 32)


BACKBONES: dict[str, Backbone] = {
    "mlp": Backbone(Mlp, "fully connected layers, for samples of any shape", (1, 28, 28)),
    "convnet": Backbone(ConvNet, "the paper's: convolutions, max-pools, Linear layers"),
    "resnet18": Backbone(ResNet18, "ResNet-18 with batch norm, for small images"),
    "vgg11-bn": Backbone(Vgg11Bn, "eight convolutions with batch norm, for 32x32 pixels or more"),
    "mobilenet-small": Backbone(
        MobileNetSmall, "depthwise convolutions with gates, small and fast"
    ),
    "vit-tiny": Backbone(VitTiny, "a vision transformer with twelve small heads"),
    "conv1d": Backbone(Conv1dNet, "convolutions over time, for series", (9, 128)),
}
"""The networks by name; one of your own is known everywhere once it is entered."""
