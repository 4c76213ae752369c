"""Units that begin anew while a network learns, for methods against the loss of plasticity.

Renewing a unit draws its live inputs again, as a network's first values are drawn, and sets its own
bias and its live outputs to 0. Which connections are live stays as it is. The moments that the
optimiser holds for these values become 0, or they would move the new unit where the old one went.

What the unit told its readers on average can be moved into their biases, so that their mean input
stays. In a reader behind a flatten one mean stands for all positions of a channel, and at the
border of a padded convolution fewer kernel weights count than are moved: there it is approximate.

Units that anything frozen belongs to, and those without a live input, cannot be renewed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.network.initialise import kaiming_values
from nispa.network.layers import SparseLayer
from nispa.network.models import NetworkConfig, SparseNetwork
from nispa.network.operations import purpose
from nispa.training.fit import Batch

Streams = Callable[[Batch, str], torch.Generator]
"""From a batch and a layer's name to the source of what is drawn there."""

PerUnit = Mapping[str, Tensor]
"""A value for each unit of the hidden groups, ``(units,)``."""

Draw = Callable[[SparseLayer], Tensor]
"""From a layer to new values for its plastic connections, ``(plastic, *kernel)``."""


def activations(network: SparseNetwork, batch: Batch) -> dict[str, Tensor]:
    """What each unit says, per hidden group: ``(samples * positions, units)``.

    Args:
        network: The network.
        batch: Images as they are, not of a prepared data set.
    """
    with purpose("activity"):
        seen = network.observe(batch.images, lambda said: said)
    return {name: said.float().transpose(0, 1).flatten(1).T for name, said in seen.items()}


def sizes(network: SparseNetwork) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean sizes of each unit's input and output weights, per hidden group, ``(units,)``.

    The mean is over all positions; a connection that is not live counts as 0.
    """
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for group in network.topology.hidden:
        near = network.topology.feeders(group.name), network.topology.readers(group.name)
        for side, specs in enumerate(near):
            layers = [network.layers[spec.name] for spec in specs]
            total = torch.stack([_summed(layer, 0 if side == 0 else 1, group.size)
                                 for layer in layers]).sum(0)  # fmt: skip
            places = sum(layer.position_count * layer.weights_each for layer in layers)
            found[side][group.name] = total * group.size / places
    return found


def _summed(layer: SparseLayer, end: int, units: int) -> Tensor:
    """The sum of sizes of all weights at each unit that a layer enters (0) or leaves (1)."""
    index = torch.cat([layer.plastic_index, layer.frozen_index])
    weights = torch.cat([layer.weight.detach(), layer.frozen_weight])
    each = weights.abs().reshape(len(weights), -1).sum(1)
    return each.new_zeros(units).index_add_(0, layer.ends(index)[end], each)


def renewable(network: SparseNetwork) -> dict[str, Tensor]:
    """The units that can be renewed, per hidden group, ``(units,)`` bool."""
    device = next(iter(network.layers.values())).weight.device
    hidden = {group.name: group.size for group in network.topology.hidden}
    fed = {
        name: torch.zeros(size, dtype=torch.bool, device=device) for name, size in hidden.items()
    }
    held = {name: each.clone() for name, each in fed.items()}
    for spec in network.topology.layers:
        layer = network.layers[spec.name]
        rows, columns = layer.ends(layer.frozen_index)
        if spec.target in hidden:
            fed[spec.target][layer.ends(layer.plastic_index)[0]] = True
            held[spec.target][rows] = True
            held[spec.target][layer.frozen_bias_index] = True
        if spec.source in hidden:
            held[spec.source][columns] = True
    return {name: fed[name] & ~held[name] for name in hidden}


def streams_of(seed: int, task: int) -> Streams:
    """A stream of its own for each layer and step of a task."""
    return lambda batch, layer: stream(seed, "renewal", task, batch.epoch, batch.number, layer)


def drawing(config: NetworkConfig, streams: Callable[[str], torch.Generator]) -> Draw:
    """Draws values as a network's first ones, from a stream for each layer by its name."""

    def draw(layer: SparseLayer) -> Tensor:
        spec, start = layer.spec, streams(layer.spec.name)
        values = kaiming_values(spec, layer.pattern, config.init, config.fan, start, config.gain)
        index = torch.cat([layer.plastic_index, layer.frozen_index]).cpu()
        return values[index.argsort().argsort()[: len(layer.plastic_index)]].to(layer.weight)

    return draw


@torch.no_grad()
def renew(
    network: SparseNetwork,
    chosen: PerUnit,
    draw: Draw,
    optimiser: torch.optim.Optimizer | None = None,
    means: PerUnit | None = None,
) -> None:
    """Renews units.

    Args:
        network: The network.
        chosen: Which, bool, all of them :func:`renewable`.
        draw: New values of their inputs.
        optimiser: Whose moments of these values become 0.
        means: What each unit says on average, to move it into its readers' biases.
    """
    for spec in network.topology.layers:
        layer = network.layers[spec.name]
        rows, columns = layer.ends(layer.plastic_index)
        outputs = chosen[spec.source][columns] if spec.source in chosen else rows < 0
        if means is not None and bool(outputs.any()):
            told = layer.weight[outputs].reshape(int(outputs.sum()), -1).sum(1)
            told = told * means[spec.source][columns[outputs]]
            moved = told.new_zeros(layer.shape[0]).index_add_(0, rows[outputs], told)
            layer.bias.add_(moved[layer.bias_index])
    for spec in network.topology.layers:  # a bias that was moved into a renewed unit goes, too
        layer = network.layers[spec.name]
        rows, columns = layer.ends(layer.plastic_index)
        inputs = chosen[spec.target][rows] if spec.target in chosen else rows < 0
        outputs = chosen[spec.source][columns] if spec.source in chosen else rows < 0
        if bool(inputs.any()):
            layer.weight[inputs] = draw(layer)[inputs]
            biases = chosen[spec.target][layer.bias_index]
            layer.bias[biases] = 0
            forget(optimiser, layer.bias, biases)
        layer.weight[outputs] = 0
        forget(optimiser, layer.weight, inputs | outputs)


def forget(
    optimiser: torch.optim.Optimizer | None, values: torch.nn.Parameter, which: Tensor
) -> None:
    """Makes an optimiser's moments of some of a parameter's values 0.

    Args:
        optimiser: The optimiser, if there is one.
        values: The parameter.
        which: Of its values, ``(n,)`` bool.
    """
    state = {} if optimiser is None else optimiser.state.get(values, {})
    for moment in state.values():
        if isinstance(moment, Tensor) and moment.shape == values.shape:
            moment[which] = 0
