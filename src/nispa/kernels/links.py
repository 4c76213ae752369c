"""The layers that compiled kernels know, as links of a chain.

A link says what a layer is: the values it holds, the shapes it takes and gives. Which of its rows
are computed follows in ``structure.py``; how is the business of ``cpp/``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nispa.kernels.reference import LiveValues

CONVOLUTION, LINEAR, POOL = range(3)
"""Kinds of links; ``cpp/chain.cpp`` has the same numbers."""

Shape = tuple[int, int, int]
"""Channels, height and width of the activations of one image."""


class Link(ABC):
    """One layer of a chain.

    Attributes:
        kind: ``CONVOLUTION``, ``LINEAR`` or ``POOL``.
        relu: Whether a ReLU follows, which the layer then computes itself.
    """

    kind: ClassVar[int]
    relu: bool = False

    @property
    def live(self) -> tuple[LiveValues, ...]:
        """Its weights and biases; empty where a layer has none."""
        return ()

    @property
    def form(self) -> tuple[Any, ...]:
        """Everything but the values and their positions.

        Links of equal forms need the same buffers, so they can take over each other's chain.
        """
        return (self.kind,)

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of what it computes from activations of ``shape``."""

    def accepts(self, shape: Shape) -> bool:
        """Whether it can read activations of ``shape`` and leaves at least one pixel."""
        return min(self.output_shape(shape)[1:]) >= 1


@dataclass(frozen=True, eq=False)
class WeightedLink(Link):
    """A layer with live weights, ``(targets, sources)``, and biases, ``(targets,)``."""

    weight: LiveValues
    bias: LiveValues
    relu: bool = False

    @property
    def live(self) -> tuple[LiveValues, ...]:
        """Weights, then biases."""
        return self.weight, self.bias

    @property
    def form(self) -> tuple[Any, ...]:
        """See :class:`Link`."""
        return self.kind, self.relu, self.weight.shape, self.kernel

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width of a convolution's kernel; empty for a Linear layer."""
        return tuple(self.weight.plastic.shape[1:])

    @property
    def weights_each(self) -> int:
        """Weights of one connection: 1, or the size of a kernel."""
        return math.prod(self.kernel)


class LinearLink(WeightedLink):
    """A Linear layer. It reads single features, in the order of a flatten."""

    kind = LINEAR

    def output_shape(self, shape: Shape) -> Shape:
        """One pixel for each target."""
        del shape
        return self.weight.shape[0], 1, 1

    def accepts(self, shape: Shape) -> bool:
        """Whether there are as many features as it reads."""
        return math.prod(shape) == self.weight.shape[1]


@dataclass(frozen=True, eq=False)
class ConvolutionLink(WeightedLink):
    """A convolution. Its stride and padding are the same in both directions."""

    kind = CONVOLUTION
    stride: int = 1
    padding: int = 0

    @property
    def form(self) -> tuple[Any, ...]:
        """See :class:`Link`."""
        return *super().form, self.stride, self.padding

    def output_shape(self, shape: Shape) -> Shape:
        """A channel for each target, of the pixels that the kernel can stand on."""
        _, height, width = shape
        rows, columns = self.kernel
        return (
            self.weight.shape[0],
            (height + 2 * self.padding - rows) // self.stride + 1,
            (width + 2 * self.padding - columns) // self.stride + 1,
        )

    def accepts(self, shape: Shape) -> bool:
        """Whether there are as many channels as it reads, and room for its kernel."""
        return shape[0] == self.weight.shape[1] and super().accepts(shape)


@dataclass(frozen=True, eq=False)
class PoolLink(Link):
    """A max-pool of 2 x 2 with stride 2. A last odd row or column of pixels is left out."""

    kind = POOL

    def output_shape(self, shape: Shape) -> Shape:
        """Half the height and width, rounded down."""
        channels, height, width = shape
        return channels, height // 2, width // 2


def shapes_through(links: Sequence[Link], input_shape: Shape) -> list[Shape]:
    """The shapes before, between and after links."""
    shapes = [input_shape]
    for link in links:
        shapes.append(link.output_shape(shapes[-1]))
    return shapes
