"""Units that begin anew while a network learns, for methods against the loss of plasticity.

Renewing a unit draws its live inputs again, as a network's first values are drawn, and sets its own
bias and its live outputs to 0. Which connections are live stays as it is. The moments that the
optimiser holds for these values become 0, or they would move the new unit where the old one went.

What the unit told its readers on average can be moved into their biases, so that their mean input
stays. In a reader behind a flatten one mean stands for all positions of a channel, and at the
border of a padded convolution fewer kernel weights count than are moved: there it is approximate.

Units that anything frozen belongs to, and those without a live input, cannot be renewed.

In a network of any module a unit is renewed with all that write and read it: a channel of a
residual stream in each block, a head of attention as a whole. Its entries of norms and its other
values get their first values again. Units that no layer reads as a whole group stay as they are.
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
from nispa.network.reads import Reads, unit_reads
from nispa.network.topology import Topology, UnitGroup
from nispa.training.fit import Batch

Streams = Callable[[Batch, str], torch.Generator]
"""From a batch and a layer's name to the source of what is drawn there."""

PerUnit = Mapping[str, Tensor]
"""A value for each unit of the hidden groups, ``(units,)``."""

Draw = Callable[[SparseLayer], Tensor]
"""From a layer to new values for its plastic connections, ``(plastic, *kernel)``."""


def activations(network: SparseNetwork, batch: Batch) -> Reads:
    """What each unit says of a batch.

    Args:
        network: The network.
        batch: Images as they are, not of a prepared data set.
    """
    with purpose("activity"):
        return unit_reads(network, batch.images)


def sizes(network: SparseNetwork) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean sizes of each unit's input and output weights, per hidden group, ``(units,)``.

    The mean is over all positions; a connection that is not live counts as 0.
    """
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    topology = network.topology
    for group in topology.hidden:
        near = topology.feeders(group.name), topology.readers(group.name)
        for side, specs in enumerate(near):
            parts = [_summed(network.layers[spec.name], side, group, topology) for spec in specs]
            total = torch.stack([sums for sums, _ in parts]).sum(0)
            found[side][group.name] = total * group.size / sum(places for _, places in parts)
    return found


def _summed(
    layer: SparseLayer, end: int, group: UnitGroup, topology: Topology
) -> tuple[Tensor, int]:
    """The sum of sizes of the weights at each unit of a group, which a layer enters (0) or leaves.

    Returns:
        The sums, ``(units,)``, and how many weights there could be.
    """
    index = torch.cat([layer.plastic_index, layer.frozen_index])
    weights = torch.cat([layer.weight.detach(), layer.frozen_weight])
    each = weights.abs().reshape(len(weights), -1).sum(1)
    numbers = {other.name: torch.full((other.size,), -1) for other in topology.groups}
    numbers[group.name] = torch.arange(group.size)
    spec, columns = layer.spec, layer.shape[1]
    units = (spec.rows_in(numbers) if end == 0 else spec.columns_in(numbers)).to(index.device)
    places = int((units >= 0).sum()) * layer.shape[1 - end] * layer.weights_each
    at = units[index // columns if end == 0 else index % columns]
    return each.new_zeros(group.size).index_add_(0, at[at >= 0], each[at >= 0]), places


def renewable(network: SparseNetwork) -> dict[str, Tensor]:
    """The units that can be renewed, per hidden group, ``(units,)`` bool."""
    device = next(iter(network.layers.values())).weight.device
    fed, held = network.topology.no_units(), network.topology.no_units()
    for spec in network.topology.layers:
        layer = network.layers[spec.name]
        live = layer.pattern & ~layer.frozen
        biases = torch.zeros(layer.shape[0], dtype=torch.bool)
        biases[layer.frozen_bias_index.cpu()] = True
        for units, found in (
            (fed, spec.units_fed(live.any(1))),
            (held, spec.units_fed(layer.frozen.any(1) | biases)),
            (held, spec.units_heard(layer.frozen.any(0))),
        ):
            for name, each in found.items():
                units[name] = units[name] | each
    hidden = [group.name for group in network.topology.hidden]
    return {name: (fed[name] & ~held[name]).to(device) for name in hidden}


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
    means: Mapping[str, Tensor] | None = None,
) -> None:
    """Renews units.

    Args:
        network: The network.
        chosen: Which, bool, all of them :func:`renewable`.
        draw: New values of their inputs.
        optimiser: Whose moments of these values become 0.
        means: What each column of each layer reads on average, ``(columns,)``, to move it into the
            layer's biases.
    """
    none = {name: torch.zeros_like(units) for name, units in network.topology.no_units().items()}
    units = {**none, **{name: each.cpu() for name, each in chosen.items()}}
    for spec in network.topology.layers:
        layer = network.layers[spec.name]
        rows, columns = _places(layer)
        outputs = spec.columns_in(units).to(rows.device)[columns]
        if means is not None and bool(outputs.any()):
            told = layer.weight[outputs].reshape(int(outputs.sum()), -1).sum(1)
            told = told * means[spec.name].to(told)[columns[outputs]]
            moved = told.new_zeros(layer.shape[0]).index_add_(0, rows[outputs], told)
            layer.bias.add_(moved[layer.bias_index])
    for spec in network.topology.layers:  # a bias that was moved into a renewed unit goes, too
        layer = network.layers[spec.name]
        rows, columns = _places(layer)
        entered = spec.rows_in(units).to(rows.device)
        inputs = entered[rows]
        outputs = spec.columns_in(units).to(rows.device)[columns]
        if bool(inputs.any()):
            layer.weight[inputs] = draw(layer)[inputs]
        biases = entered[layer.bias_index]
        if bool(biases.any()):
            layer.bias[biases] = 0
            forget(optimiser, layer.bias, biases)
        layer.weight[outputs] = 0
        forget(optimiser, layer.weight, inputs | outputs)
    for value, places in network.renew(units):
        forget(optimiser, value, places)


def per_column(network: SparseNetwork, means: PerUnit) -> dict[str, Tensor]:
    """What each column of each layer reads, if every reader of a group reads the same."""
    known = {group.name: torch.zeros(group.size) for group in network.topology.groups}
    known |= {name: each.cpu() for name, each in means.items()}
    return {spec.name: spec.columns_in(known) for spec in network.topology.layers}


def _places(layer: SparseLayer) -> tuple[Tensor, Tensor]:
    """Row and column of each plastic connection."""
    return layer.plastic_index // layer.shape[1], layer.plastic_index % layer.shape[1]


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
