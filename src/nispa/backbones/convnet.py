"""The convolutional network of the NISPA paper: convolutions with max-pools, then Linear layers.

Gurbuz and Dovrolis, NISPA: Neuro-Inspired Stability-Plasticity Adaptation for Continual Learning in
Sparse Networks, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nispa.backbones.shapes import image_shape


class ConvNet(nn.Module):
    """Convolutions with ReLU, a max-pool after some of them, Linear layers, then the head."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        channels: Sequence[int] = (64, 64, 128, 128),
        kernel_size: int = 3,
        pool_every: int = 2,
        pool_to: int = 8,
        fc: Sequence[int] = (1024,),
    ) -> None:
        """A ConvNet.

        Args:
            shape: Channels, height and width of an image.
            classes: Logits.
            channels: Of each convolution.
            kernel_size: Side of the kernels, odd.
            pool_every: A 2x2 max-pool follows every so many convolutions.
            pool_to: Largest side of the maps that Linear layers read; more max-pools shrink those
                of large images.
            fc: Units of each Linear layer.
        """
        super().__init__()
        before, height, width = image_shape("convnet", shape)
        self.pools = _pools(len(channels), pool_every, pool_to, height, width)
        for number, size in enumerate(channels, start=1):
            layer = nn.Conv2d(before, size, kernel_size, padding=kernel_size // 2)
            self.add_module(f"conv{number}", layer)
            before, height = size, height >> self.pools[number - 1]
            width >>= self.pools[number - 1]
        if height < 1 or width < 1:
            raise ValueError(
                f"images of shape {tuple(shape)} are too small for {sum(self.pools)} max-pools of "
                "2x2; pass fewer channels or a larger pool_every"
            )
        sizes = [before * height * width, *fc]
        self.fcs = len(fc)
        for number in range(1, len(sizes)):
            self.add_module(f"fc{number}", nn.Linear(sizes[number - 1], sizes[number]))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        for number, pools in enumerate(self.pools, start=1):
            x = self.get_submodule(f"conv{number}")(x).relu()
            for _ in range(pools):
                x = F.max_pool2d(x, 2)
        x = x.flatten(1)
        for number in range(1, self.fcs + 1):
            x = self.get_submodule(f"fc{number}")(x).relu()
        logits: Tensor = self.head(x)
        return logits


def _pools(count: int, every: int, largest: int, height: int, width: int) -> list[int]:
    """How many max-pools follow each convolution.

    One follows every so many. Where the last map would be too large, more come after the first
    convolutions that have none, which spares the most work, then after the last.
    """
    pools = [int(number % every == 0) for number in range(1, count + 1)]
    free = [place for place, pool in enumerate(pools) if not pool]
    halved = sum(pools)
    while max(height, width) >> halved > largest and min(height, width) >> halved > 1:
        pools[free.pop(0) if free else -1] += 1
        halved += 1
    return pools
