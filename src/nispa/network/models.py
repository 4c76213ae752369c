"""The networks there are: their settings, and how each is built and drawn.

The architectures are one file each; entered here, the command line, presets and saved files know
them. A method holds a :class:`NetworkSpec` and no class of networks: it asks for a network with
first values, or for an empty one to load values into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.base.seeding import derive, stream
from nispa.base.shapes import Shape
from nispa.errors import ConfigError, either
from nispa.network.architecture import (
    ARCHITECTURES,
    MAX_LAYERS,
    Architecture,
    ArchitectureSettings,
)
from nispa.network.backbone import Backbone, BackboneSettings, backbones
from nispa.network.convnet import UNPOOLED, ConvNet, ConvNetSettings
from nispa.network.initialise import (
    FanCount,
    FanMode,
    kaiming_values,
    layer_densities,
    random_pattern,
    uniform_bias,
)
from nispa.network.mlp import Mlp, MlpSettings
from nispa.network.own import OwnModel
from nispa.network.prepared import DataSet, Prepared, Ready
from nispa.network.sparse_network import SparseNetwork
from nispa.network.traced import TracedNetwork

__all__ = [
    "ARCHITECTURES",
    "MAX_LAYERS",
    "OWN",
    "UNPOOLED",
    "DataSet",
    "NetworkConfig",
    "NetworkSpec",
    "OwnModel",
    "Prepared",
    "Ready",
    "Shape",
    "SparseNetwork",
    "build_network",
    "empty_network",
    "restart_plastic",
]

OWN = "own"
"""The architecture of a user's module."""


class _Own(Backbone):
    """A user's module, which comes with the problem, not with the settings."""

    def build(self, *_: Any) -> NoReturn:
        """Refuses: there is no module."""
        raise ConfigError(
            f"architecture={OWN} is a module of your own: pass "
            + either("it as Learner(model=...)", "--model package.module:function")
        )


ARCHITECTURES.update({kind.name: kind for kind in (Mlp(), ConvNet())})
ARCHITECTURES.update(backbones())
ARCHITECTURES[OWN] = _Own(OWN, nn.Module)


@settings
class SparsityConfig(ArchitectureSettings):
    """Settings that every architecture has: how sparse the network is, and how it starts."""

    density: float = setting(
        0.2, "share of live connections", gt=0, le=1, hint="for 90 % sparsity pass 0.1"
    )
    distribution: Literal["uniform", "erk"] = setting(
        "uniform", "the same density in every layer, or Erdos-Renyi-Kernel"
    )
    min_inputs: int = setting(
        0,
        "fewest live connections into a unit, on average over a layer, at any density",
        ge=0,
        le=1_000_000,
    )
    mask: Literal["exact", "bernoulli"] = setting(
        "exact", "exactly the density's count of connections, or each by chance (published)"
    )
    fan: Literal["live", "positions"] = setting(
        "live", "Kaiming fan over live connections, or over all positions (published)"
    )
    gain: float = setting(1.0, "factor on the Kaiming deviation of first values", gt=0, le=100)
    init: Literal["fan_in", "fan_out"] = setting(
        "fan_in", "Kaiming-normal mode of the first values"
    )
    bias: Literal["zero", "uniform"] = setting(
        "zero", "first biases: zero, or as PyTorch makes them"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = setting(
        "float32", "type of products, for GPUs; values and their updates stay float32"
    )


# Fields stand in a record in the reverse order of these classes. An architecture with settings of
# its own adds its class in front of the others' (after SparsityConfig).
@settings
class NetworkConfig(BackboneSettings, SparsityConfig, ConvNetSettings, MlpSettings):
    """The network: its shape, how sparse it is, and how it starts."""

    @property
    def kind(self) -> Architecture:
        """The architecture."""
        return ARCHITECTURES[self.architecture]


@dataclass(frozen=True)
class NetworkSpec:
    """A network that can be made any number of times.

    Attributes:
        config: Its settings.
        input_shape: The shape of one sample.
        outputs: Number of logits, one per class of all tasks.
        model: The user's module that it is made of, if it is.
        dense_if_full: See :class:`.SparseNetwork`.
    """

    config: NetworkConfig
    input_shape: Shape
    outputs: int
    model: OwnModel | None = None
    dense_if_full: bool = False

    def empty(self, seed: int = 0) -> SparseNetwork:
        """The network without any live connection, to load values into.

        Args:
            seed: Of first values that are no connections.

        Raises:
            ConfigError: Its sizes do not suit the images, or are more than a machine can hold.
        """
        kind = self.config.kind
        network: SparseNetwork
        if self.model is not None:
            network = self.model.network(self.input_shape)
        elif isinstance(kind, Backbone):
            network = kind.build(self.config, self.input_shape, self.outputs, seed)
        else:
            network = kind.build(self.config, self.input_shape, self.outputs)
        network.precision = self.config.precision
        network.dense_if_full = self.dense_if_full
        return network

    def draw(self, seed: int) -> SparseNetwork:
        """The network with its first pattern and values; see :func:`draw_first`.

        Raises:
            ConfigError: As :meth:`empty`.
        """
        network = self.empty(derive(seed, "model"))
        own = None if self.model is None else self.model.first_values
        draw_first(network, self.config, self.config.kind.dense, seed, own)
        return network

    def describe(self) -> dict[str, Any]:
        """The settings that say most about it: architecture, sizes, density."""
        names = ["architecture", *self.config.kind.sizes, "density"]
        names += ["min_inputs"] if self.config.min_inputs else []
        return {name: getattr(self.config, name) for name in names}

    @property
    def units(self) -> int:
        """Units of hidden layers and outputs, known before anything is built; or fewer.

        Raises:
            ConfigError: They are more than a machine can hold.
        """
        kind = self.config.kind
        if isinstance(kind, Backbone):
            if self.model is not None:
                return self.outputs
            return kind.values(self.config, self.input_shape, self.outputs)
        sizes = (getattr(self.config, name) for name in self.config.kind.sizes)
        return sum(map(sum, sizes)) + self.outputs

    def at_density(self, density: float) -> NetworkSpec:
        """The same network at another density."""
        return replace(self, config=replace(self.config, density=density))


def draw_first(
    network: SparseNetwork,
    config: SparsityConfig,
    dense: frozenset[str],
    seed: int,
    own: Mapping[str, Tensor] | None = None,
) -> None:
    """Draws the first pattern and values of a network.

    Each layer draws from streams of its own, "pattern" and "initialisation", so that changing one
    layer leaves the others as they were.

    Args:
        network: Without any live connection.
        config: Density and so on.
        dense: Layers that stay full, beside those that the network itself names.
        seed: Of all that is drawn.
        own: First values of connections and biases, by the names of the module's parameters; the
            largest connections of each layer are live. None draws pattern and values.
    """
    shares = layer_densities(
        network.topology,
        config.density,
        config.distribution,
        dense | network.dense,
        config.min_inputs,
    )
    if isinstance(network, TracedNetwork):
        network.seed = derive(seed, "passes")
    if own is not None:
        assert isinstance(network, TracedNetwork)
        _take_largest(network, own, shares)
        return
    for name, layer in network.layers.items():
        start = stream(seed, "pattern", name)
        pattern = random_pattern(layer.shape, shares[name], config.mask, start)
        start = stream(seed, "initialisation", name)
        values = kaiming_values(layer.spec, pattern, config.init, config.fan, start, config.gain)
        layer.connect(pattern, values)
        if config.bias == "uniform" and layer.biases:
            start = stream(seed, "initialisation", name, "bias")
            with torch.no_grad():
                layer.bias.copy_(uniform_bias(pattern, layer.weights_each, config.fan, start))


def _take_largest(
    network: TracedNetwork, own: Mapping[str, Tensor], shares: Mapping[str, float]
) -> None:
    """Takes a module's values, the largest ones of each layer; a kernel counts by its sum."""
    nothing = torch.zeros(0, dtype=torch.int64)
    for layer in network.layers.values():
        full = torch.zeros(layer.position_count, *layer.spec.kernel)
        layer.connect(torch.ones(layer.shape, dtype=torch.bool), full)
    network.take(own)
    for name, layer in network.layers.items():
        sizes = layer.weight.detach().abs().view(layer.position_count, -1).sum(1)
        live = max(1, round(shares[name] * layer.position_count))
        pattern = torch.zeros(layer.position_count, dtype=torch.bool)
        pattern[sizes.argsort(descending=True, stable=True)[:live]] = True
        layer.rewire(pattern.view(layer.shape), nothing, torch.zeros(0, *layer.spec.kernel))


def empty_network(config: NetworkConfig, input_shape: Shape, outputs: int) -> SparseNetwork:
    """A network without any live connection; see :meth:`NetworkSpec.empty`."""
    return NetworkSpec(config, input_shape, outputs).empty()


def build_network(
    config: NetworkConfig, input_shape: Shape, outputs: int, *, seed: int
) -> SparseNetwork:
    """A network with its first pattern and values; see :meth:`NetworkSpec.draw`."""
    return NetworkSpec(config, input_shape, outputs).draw(seed)


def restart_plastic(
    network: SparseNetwork,
    mode: FanMode,
    fan: FanCount,
    *,
    seed: int,
    task: int,
    gain: float = 1.0,
) -> None:
    """Redraws every plastic weight (Kaiming-normal) and sets every plastic bias to zero.

    All else that is plastic gets its first values.

    Args:
        network: The network.
        mode: Fan of the deviation; see :func:`.kaiming_values`.
        fan: Live connections, or all positions.
        seed: Of the stream "restart", one a task and layer.
        task: Number of the task that has just been learned.
        gain: Factor on every deviation.
    """
    for name, layer in network.layers.items():
        start = stream(seed, "restart", task, name)
        values = kaiming_values(layer.spec, layer.pattern, mode, fan, start, gain)
        layer.restart_plastic(values, torch.zeros(layer.biases))
    network.restart()
