"""The multilayer perceptron of the paper: Linear layers with ReLU, and a head."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

from nispa.base.config import setting, settings
from nispa.base.shapes import Shape
from nispa.network.architecture import (
    Architecture,
    ArchitectureSettings,
    LayerStack,
    check_sizes,
    widened,
)
from nispa.network.sparse_network import SparseNetwork
from nispa.network.topology import UnitGroup


@settings
class MlpSettings(ArchitectureSettings):
    """Settings that only the MLP reads."""

    hidden: tuple[int, ...] = setting(
        (400, 400, 400), "units of each hidden Linear layer (of the MLP)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("hidden", self.hidden)
        if self.architecture == Mlp.name and not self.hidden:
            raise ValueError("hidden must name at least one layer, such as 400,400,400")


class Mlp(Architecture):
    """Flatten, then Linear and ReLU for each size in ``hidden``, then the head."""

    name = "mlp"
    config_class = MlpSettings
    sizes = ("hidden",)
    learning_rates = MappingProxyType({"adam": 0.01, "adamw": 0.01, "sgd": 0.1, "adadelta": 1.0})

    def build(self, config: MlpSettings, input_shape: Shape, outputs: int) -> SparseNetwork:
        """See :meth:`.Architecture.build`. Every value of a sample is an input unit."""
        stack = LayerStack(UnitGroup("input", math.prod(input_shape), "input"))
        stack.flatten()
        for number, units in enumerate(config.hidden, start=1):
            stack.linear(UnitGroup(f"fc{number}", units))
        stack.linear(UnitGroup("output", outputs, "output"), "head")
        return stack.network(input_shape, "a smaller hidden, or smaller images (resize)")

    def suggest(self, input_shape: Shape, width: float) -> dict[str, Any]:
        """Three layers of 400 units, as published, times ``width``."""
        del input_shape
        return {"hidden": (widened(400, width),) * 3, "density": 0.2}
