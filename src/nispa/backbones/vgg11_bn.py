"""VGG-11 with batch norm for small images: eight convolutions, one Linear layer.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
ICLR 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nispa.backbones.shapes import image_shape

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # of widths; a max-pool ends each


class Vgg11Bn(nn.Module):
    """Convolution, batch norm and ReLU, a max-pool after each of five stages, then the head."""

    def __init__(self, shape: Sequence[int], classes: int, *, width: int = 64) -> None:
        """A VGG-11 for images of ``shape``, with ``width`` channels in its first convolution."""
        super().__init__()
        before, height, side = image_shape("vgg11-bn", shape)
        if min(height, side) < 2 ** len(STAGES):
            raise ValueError(
                f"vgg11-bn takes images of at least 32x32 pixels, not {height}x{side}; resize them"
            )
        layers: list[nn.Module] = []
        for stage in STAGES:
            for widths in stage:
                layers.append(nn.Conv2d(before, widths * width, 3, padding=1, bias=False))
                before = widths * width
                layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        logits: Tensor = self.head(self.features(x))
        return logits
