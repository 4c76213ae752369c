"""First patterns of layers, and the values of connections at a start or restart.

Densities: ``uniform`` gives each layer the same share of live connections; ``erk`` (Erdos-Renyi
with kernels; Mocanu et al. 2018, Evci et al. 2020, arXiv 1911.11134) gives a layer a share
proportional to (source + target + kernel sizes) / (source * target * kernel sizes), so that small
layers are denser, at the same number of live weights in all.

Values: Kaiming-normal (He et al. 2015, arXiv 1502.01852), deviation sqrt(2 / fan). Published, the
fan counts all positions, live or not; the correct fan counts the live connections of each unit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nispa.network.topology import ConnectionLayer, Topology

FanMode = Literal["fan_in", "fan_out"]
FanCount = Literal["live", "positions"]


def layer_densities(
    topology: Topology,
    density: float,
    distribution: str,
    dense: frozenset[str],
    min_inputs: int = 0,
) -> dict[str, float]:
    """The share of live connections of each layer.

    Args:
        topology: The network's structure.
        density: Share of live weights over the layers that are not in ``dense``.
        distribution: ``uniform`` or ``erk``.
        dense: Layers that stay full.
        min_inputs: Fewest live connections of a row, on average over a layer, dense or not.
    """
    shares = _shares(topology, density, distribution, dense)
    for layer in topology.layers:
        _, columns = topology.pattern_shape(layer)
        shares[layer.name] = max(shares[layer.name], min(1.0, min_inputs / max(1, columns)))
    return shares


def _shares(
    topology: Topology, density: float, distribution: str, dense: frozenset[str]
) -> dict[str, float]:
    shares = dict.fromkeys((layer.name for layer in topology.layers), 1.0)
    sparse = [layer for layer in topology.layers if layer.name not in dense]
    if distribution == "uniform":
        return shares | dict.fromkeys((layer.name for layer in sparse), density)
    weights, raw = {}, {}
    for layer in sparse:
        rows, columns = topology.pattern_shape(layer)
        weights[layer.name] = rows * columns * math.prod(layer.kernel)
        raw[layer.name] = (rows + columns + sum(layer.kernel)) / weights[layer.name]
    budget = density * sum(weights.values())
    free = set(weights)
    # A layer whose share would exceed 1 is filled, and the others share what is left of the budget;
    # that may push another one over 1, hence the loop.
    while free:
        spent = sum(weights[name] for name in weights if name not in free)
        scale = (budget - spent) / sum(raw[name] * weights[name] for name in free)
        full = {name for name in free if raw[name] * scale > 1.0}
        if not full:
            return shares | {name: raw[name] * scale for name in free}
        free -= full
    return shares


def random_pattern(
    shape: tuple[int, int], density: float, mask: str, generator: torch.Generator
) -> Tensor:
    """A random pattern of ``shape``, bool.

    ``exact`` makes round(density * positions) connections live, and at least one; ``bernoulli``
    (published) makes each live on its own, so that the count varies a little.
    """
    if density >= 1.0:
        return torch.ones(shape, dtype=torch.bool)
    positions = shape[0] * shape[1]
    if mask == "bernoulli":
        return torch.rand(shape, generator=generator) < density
    pattern = torch.zeros(positions, dtype=torch.bool)
    live = max(1, round(density * positions))
    pattern[torch.randperm(positions, generator=generator)[:live]] = True
    return pattern.view(shape)


def kaiming_values(
    layer: ConnectionLayer,
    pattern: Tensor,
    mode: FanMode,
    fan: FanCount,
    generator: torch.Generator,
    gain: float = 1.0,
) -> Tensor:
    """Kaiming-normal values for the live connections of a layer, in order of flat position.

    Args:
        layer: The layer.
        pattern: Its live connections, ``(target, source * block)`` bool.
        mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients.
        fan: ``live`` counts the live connections of the connection's own target (``fan_in``) or
            source feature (``fan_out``); ``positions`` counts all of them, live or not.
        generator: Source of randomness.
        gain: Factor on every deviation.

    Returns:
        ``(live, *kernel)`` float32.
    """
    std = kaiming_deviations(layer, pattern, mode, fan)
    values = torch.randn((len(std), *layer.kernel), generator=generator)
    return values * (gain * std).view(-1, *[1] * len(layer.kernel))


def kaiming_deviations(
    layer: ConnectionLayer, pattern: Tensor, mode: FanMode, fan: FanCount
) -> Tensor:
    """The deviation of each live connection's values, ``(live,)``; see :func:`kaiming_values`."""
    rows, columns = pattern.nonzero(as_tuple=True)
    weights_each = math.prod(layer.kernel)
    if fan == "positions":
        count = pattern.shape[1] if mode == "fan_in" else pattern.shape[0]
        return torch.full((len(rows),), math.sqrt(2.0 / (count * weights_each)))
    lives = pattern.sum(1)[rows] if mode == "fan_in" else pattern.sum(0)[columns]
    return (2.0 / (lives * weights_each)).sqrt()


def uniform_bias(
    pattern: Tensor, weights_each: int, fan: FanCount, generator: torch.Generator
) -> Tensor:
    """Biases as PyTorch makes them, uniform within 1 / sqrt(fan_in); ``(target,)`` float32."""
    if fan == "positions":
        fan_in = torch.full((pattern.shape[0],), float(pattern.shape[1]))
    else:
        fan_in = pattern.sum(1).clamp(min=1).float()
    bound = (fan_in * weights_each).rsqrt()
    return (2.0 * torch.rand(pattern.shape[0], generator=generator) - 1.0) * bound
