"""The contract of an architecture, and the parts that architectures are built from.

Each architecture is one short file (``mlp.py``, ``convnet.py``) and one entry in ``models.py``. It
has three jobs: to name its settings, to build its layers, and to suggest sizes for data that no
benchmark covers. Patterns and values are drawn elsewhere, the same way for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from nispa.base.config import describe, setting, settings
from nispa.base.shapes import Shape as Shape
from nispa.errors import ConfigError, either, unknown_name
from nispa.network.layers import SparseConv2d, SparseLinear, Units
from nispa.network.sparse_network import SparseNetwork
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup

MAX_UNITS = 1_000_000
MAX_LAYERS = 1_000  # that one setting lists
MAX_POSITIONS = 2**28  # of one layer: drawing its first pattern takes 8 bytes for each
MAX_ALL_POSITIONS = 2**30


class Architecture(ABC):
    """One kind of network.

    Attributes:
        name: Its value of the setting ``architecture``.
        config_class: The settings that only it reads.
        sizes: Those of its settings that list the units of hidden layers.
        dense: Names of layers that stay full at any density.
        learning_rates: By optimiser, for data that no benchmark covers.
    """

    name: str
    config_class: ClassVar[type[ArchitectureSettings]]
    sizes: ClassVar[tuple[str, ...]]
    dense: ClassVar[frozenset[str]] = frozenset()
    learning_rates: ClassVar[Mapping[str, float]] = MappingProxyType(
        {"adam": 0.003, "adamw": 0.003, "sgd": 0.05, "adadelta": 1.0}
    )

    @abstractmethod
    def build(self, config: Any, input_shape: Shape, outputs: int) -> SparseNetwork:
        """The network without any live connection.

        Args:
            config: All settings of the network, this architecture's among them.
            input_shape: The shape of one sample.
            outputs: Number of logits.

        Raises:
            ConfigError: The sizes do not suit the images, or are more than a machine can hold.
        """

    @abstractmethod
    def suggest(self, input_shape: Shape, width: float) -> dict[str, Any]:
        """Settings for images of a shape that no benchmark covers.

        Args:
            input_shape: The shape of one sample.
            width: Factor on the units of every layer, at least 1.
        """

    def own_settings(self) -> tuple[str, ...]:
        """The names of the settings that only this architecture reads."""
        shared = {field.name for field in describe(ArchitectureSettings)}
        return tuple(
            field.name for field in describe(self.config_class) if field.name not in shared
        )


ARCHITECTURES: dict[str, Architecture] = {}
"""The architectures by name; one of your own is known everywhere once it is entered."""


@settings
class ArchitectureSettings:
    """The choice of the architecture, with which the settings of every network begin."""

    architecture: str = setting(
        "mlp", "the network; see nispa list models", choices=lambda: ARCHITECTURES
    )

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES and ":" in self.architecture:
            raise ConfigError(
                f"architecture={self.architecture} is a function of your own, which nothing "
                "imports unasked; pass "
                + either(f"model='{self.architecture}'", f"--model {self.architecture}")
            )
        if self.architecture not in ARCHITECTURES:
            raise unknown_name("architecture", self.architecture, ARCHITECTURES)


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Refuses a list of layers that is too long or has layers of an impossible size.

    Raises:
        ValueError: Named by the setting, ``name``.
    """
    if len(sizes) > MAX_LAYERS:
        raise ValueError(
            f"{name} names {len(sizes):,} layers, more than {MAX_LAYERS:,}; name fewer"
        )
    if any(not 1 <= size <= MAX_UNITS for size in sizes):
        shown = ",".join(map(str, sizes))
        raise ValueError(f"{name}={shown} must all be whole numbers in [1, {MAX_UNITS}]")


def widened(units: int, width: float) -> int:
    """``units`` times ``width``, as a multiple of 8."""
    return 8 * round(units * width / 8)


class LayerStack:
    """Builds a network layer by layer: its modules, unit groups and connection layers."""

    def __init__(self, first: UnitGroup) -> None:
        """A stack of no layers yet, over the input group."""
        self.modules: list[nn.Module] = []
        self.groups = [first]
        self.layers: list[ConnectionLayer] = []
        self.block = 1

    def linear(self, target: UnitGroup, name: str | None = None) -> None:
        """Adds a Linear layer, called as its target group unless named; hidden ones get a ReLU."""
        columns = self.groups[-1].size * self.block
        layer = self._join(name or target.name, target, ())
        self.block = 1
        self.modules.append(SparseLinear(layer, (target.size, columns)))
        if target.role == "hidden":
            self.modules += [nn.ReLU(), Units(target.name)]

    def conv(self, target: UnitGroup, side: int, pools: int) -> None:
        """Adds a convolution with a square kernel, a ReLU, and so many 2x2 max-pools."""
        shape = (target.size, self.groups[-1].size)
        layer = self._join(target.name, target, (side, side))
        self.modules += [SparseConv2d(layer, shape, padding=side // 2), nn.ReLU()]
        self.modules += [nn.MaxPool2d(2) for _ in range(pools)]
        self.modules.append(Units(target.name))

    def flatten(self, pixels: int = 1) -> None:
        """Adds a flatten, after which every unit so far stands for ``pixels`` features."""
        self.modules.append(nn.Flatten())
        self.block = pixels

    def network(self, input_shape: Shape, smaller: str) -> SparseNetwork:
        """The network of everything added.

        Args:
            input_shape: The shape of one sample.
            smaller: Advice for the message where a layer is too large.

        Raises:
            ConfigError: A layer, or all of them, would have too many positions.
        """
        topology = Topology(tuple(self.groups), tuple(self.layers))
        total = 0
        for layer in self.layers:
            rows, columns = topology.pattern_shape(layer)
            total += rows * columns
            if rows * columns > MAX_POSITIONS:
                raise ConfigError(
                    f"layer {layer.name} would join {columns:,} features to {rows:,} units, more "
                    f"than {MAX_POSITIONS:,} positions; pass {smaller}"
                )
        if total > MAX_ALL_POSITIONS:
            raise ConfigError(
                f"the network would have {total:,} positions for connections, more than "
                f"{MAX_ALL_POSITIONS:,}; pass fewer or smaller layers"
            )
        return SparseNetwork(nn.Sequential(*self.modules), topology, input_shape)

    def _join(self, name: str, target: UnitGroup, kernel: tuple[int, ...]) -> ConnectionLayer:
        layer = ConnectionLayer(name, self.groups[-1].name, target.name, self.block, kernel)
        self.groups.append(target)
        self.layers.append(layer)
        return layer
