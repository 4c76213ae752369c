"""The ConvNet of the paper: convolutions with ReLU and max-pools, Linear layers, and a head."""

from __future__ import annotations

from typing import Any

from nispa.base.config import setting, settings
from nispa.base.shapes import Shape, in_words, is_image
from nispa.errors import ConfigError
from nispa.network.architecture import (
    Architecture,
    ArchitectureSettings,
    LayerStack,
    check_sizes,
    widened,
)
from nispa.network.sparse_network import SparseNetwork
from nispa.network.topology import UnitGroup

UNPOOLED = 100_000
"""``pool_to`` of networks from before there was such a setting: no map is larger."""

SMALL_MAP = 12
"""Pixels of a side that suggested convolutions and pools reduce an image to, or below."""


@settings
class ConvNetSettings(ArchitectureSettings):
    """Settings that only the ConvNet reads."""

    channels: tuple[int, ...] = setting(
        (64, 64, 128, 128), "channels of each convolution (of the ConvNet)"
    )
    kernel_size: int = setting(3, "side of a convolution's kernel, in pixels", ge=1, le=15)
    pool_every: int = setting(2, "a 2x2 max-pool follows every so many convolutions", ge=1)
    pool_to: int = setting(
        8,
        "largest side of the maps that Linear layers read; more max-pools shrink those of large "
        "images",
        ge=1,
        le=UNPOOLED,
    )
    fc: tuple[int, ...] = setting((1024,), "units of each Linear layer after the convolutions")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("channels", self.channels)
        check_sizes("fc", self.fc)
        if self.architecture == ConvNet.name and not self.channels:
            raise ValueError("channels must name at least one layer, such as 64,64,128,128")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd, so that sizes are kept")


class ConvNet(Architecture):
    """Convolutions with 2x2 max-pools, Linear layers, then the head.

    The first convolution stays dense, as published: it reads one to three channels.
    """

    name = "convnet"
    config_class = ConvNetSettings
    sizes = ("channels", "fc")
    dense = frozenset({"conv1"})

    def build(self, config: ConvNetSettings, input_shape: Shape, outputs: int) -> SparseNetwork:
        """See :meth:`.Architecture.build`. Every channel is a unit, the image's own included."""
        if not is_image(input_shape):
            raise ConfigError(
                f"a ConvNet reads images, not {in_words(input_shape)}; pass architecture=mlp"
            )
        channels, height, width = input_shape
        stack = LayerStack(UnitGroup("input", channels, "input"))
        pools = pools_after(config, height, width)
        for number, size in enumerate(config.channels, start=1):
            height, width = height >> pools[number - 1], width >> pools[number - 1]
            if height < 1 or width < 1:
                raise ConfigError(
                    f"images of {input_shape[1]}x{input_shape[2]} pixels are too small for a "
                    f"max-pool after convolution {number}; pass fewer channels or a larger "
                    "pool_every"
                )
            stack.conv(UnitGroup(f"conv{number}", size), config.kernel_size, pools[number - 1])
        stack.flatten(height * width)
        for number, units in enumerate(config.fc, start=1):
            stack.linear(UnitGroup(f"fc{number}", units))
        stack.linear(UnitGroup("output", outputs, "output"), "head")
        return stack.network(
            input_shape, "a smaller fc, channels or pool_to, or smaller images (resize)"
        )

    def suggest(self, input_shape: Shape, width: float) -> dict[str, Any]:
        """The published sizes times ``width``, with more convolutions for larger images."""
        channels, side = [64, 64, 128, 128], max(input_shape[1:], default=1) // 4
        while side > SMALL_MAP and len(channels) < 10:
            channels, side = [*channels, 128, 128], side // 2
        return {
            "channels": tuple(widened(each, width) for each in channels),
            "fc": (widened(1024, width),),
            "density": round(0.1 / width, 3),  # a unit reads as many others whatever the width
        }


def pools_after(config: ConvNetSettings, height: int, width: int) -> list[int]:
    """How many max-pools follow each convolution.

    One follows every ``pool_every``. Where the last map would be larger than ``pool_to``, more come
    after the first convolutions that have none, which spares the most work, then after the last.
    """
    count = len(config.channels)
    pools = [int(number % config.pool_every == 0) for number in range(1, count + 1)]
    unpooled = [number for number, pool in enumerate(pools) if not pool]
    halvings = sum(pools)
    while max(height, width) >> halvings > config.pool_to and min(height, width) >> halvings > 1:
        pools[unpooled.pop(0) if unpooled else -1] += 1
        halvings += 1
    return pools
