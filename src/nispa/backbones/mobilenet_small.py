"""A small MobileNetV3 for small images: depthwise convolutions with squeeze-and-excitation.

Howard et al., Searching for MobileNetV3, ICCV 2019. Its large strides are left out, and so are the
last blocks, which are made for images of 224 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nispa.backbones.shapes import image_shape

# kernel, expanded channels, channels, stride; both times width
BLOCKS = ((3, 4, 1, 1), (3, 4, 1.5, 2), (3, 6, 1.5, 1), (5, 6, 2.5, 2), (5, 10, 2.5, 1))


class Gate(nn.Module):
    """Squeeze-and-excitation: each channel times a number that all channels' means decide."""

    def __init__(self, channels: int) -> None:
        """A gate with a quarter of the channels inside."""
        super().__init__()
        inside = max(8, channels // 4)
        self.squeeze = nn.Conv2d(channels, inside, 1)
        self.excite = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.excite(self.squeeze(means).relu()))


class Block(nn.Module):
    """Expand, a depthwise convolution with a gate, project; a sum where the shape stays."""

    def __init__(self, before: int, inside: int, after: int, kernel: int, stride: int) -> None:
        """From ``before`` to ``after`` channels."""
        super().__init__()
        self.expand = nn.Conv2d(before, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.depthwise = nn.Conv2d(
            inside, inside, kernel, stride, kernel // 2, groups=inside, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inside)
        self.gate = Gate(inside)
        self.project = nn.Conv2d(inside, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.sums = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, height, width)`` to ``(batch, after, height / stride, ...)``."""
        y: Tensor = nn.functional.hardswish(self.bn1(self.expand(x)))
        y = self.gate(nn.functional.hardswish(self.bn2(self.depthwise(y))))
        y = self.bn3(self.project(y))
        return x + y if self.sums else y


class MobileNetSmall(nn.Module):
    """A convolution, five blocks, one more convolution, then the head."""

    def __init__(self, shape: Sequence[int], classes: int, *, width: int = 16) -> None:
        """For images of ``shape``, with ``width`` channels after the first convolution."""
        super().__init__()
        channels, _, _ = image_shape("mobilenet-small", shape)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, before = [], width
        for kernel, inside, after, stride in BLOCKS:
            size = int(after * width)
            blocks.append(Block(before, inside * width, size, kernel, stride))
            before = size
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(before, 10 * width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(10 * width)
        self.head = nn.Linear(10 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = nn.functional.hardswish(self.bn1(self.stem(x)))
        x = nn.functional.hardswish(self.bn2(self.last(self.blocks(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
