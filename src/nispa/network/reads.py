"""What units say, seen where layers read it: of networks built by hand and of any module.

In a network of any module a unit may be read at several places: a residual stream by each block, a
projection after a norm. Its activations are then those that the first layer reads that reads the
whole group. A unit with several columns there, as a channel behind a flatten, says each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nispa.graph.units import Layer
from nispa.network.sparse_network import SparseNetwork
from nispa.network.traced import TracedNetwork


@dataclass(frozen=True)
class Reads:
    """What the units of a network say about some samples.

    Attributes:
        units: Activations of each hidden group that is read as a whole, ``(samples * positions,
            units)`` float32.
        means: Mean of what each column of each layer reads, ``(columns,)``; None for networks built
            by hand, in which every reader of a group reads the same.
    """

    units: dict[str, Tensor]
    means: dict[str, Tensor] | None


@torch.no_grad()
def unit_reads(network: SparseNetwork, images: Tensor) -> Reads:
    """What units say about images; a network of any module is run as in evaluation."""
    if not isinstance(network, TracedNetwork):
        seen = network.observe(images, lambda said: said)
        flat = {name: said.float().transpose(0, 1).flatten(1).T for name, said in seen.items()}
        return Reads(flat, None)
    units: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    hidden = {group.name: group.size for group in network.topology.hidden}

    def read(layer: Layer, inputs: Tensor, dim: int) -> None:
        said = inputs.movedim(dim, -1).flatten(0, -2).float()
        for block, part in enumerate(said.mean(0).chunk(layer.blocks)):
            name = layer.name if layer.blocks == 1 else f"{layer.name}/{block + 1}"
            means[name] = part
        for group in layer.columns.groups:
            if group in hidden and group not in units:
                places = columns_of(layer, group, hidden[group])
                if places is not None:
                    units[group] = said[:, places.to(said.device)].transpose(0, 1).flatten(1).T

    training = network.training
    network.eval()
    network.watched(images, read)
    network.train(training)
    return Reads(units, means)


@torch.no_grad()
def head_reads(network: SparseNetwork, images: Tensor) -> Tensor:
    """What the layers into the outputs read, ``(samples, features)``, as in evaluation."""
    network.eval()
    if not isinstance(network, TracedNetwork):
        last = network.topology.hidden[-1].name
        return network.observe(images, lambda active: active.flatten(1))[last]
    parts = [part.flatten(1) for _, part in _into_outputs(network, images)]
    return torch.cat(parts, 1)


@torch.no_grad()
def unit_means(network: SparseNetwork, images: Tensor) -> dict[str, Tensor]:
    """What each unit of :func:`told_groups` says of each sample, ``(samples, units)``.

    Of a channel, the mean over its map; in a network of any module, over all that the layers into
    the outputs read of the unit.
    """
    network.eval()
    if not isinstance(network, TracedNetwork):
        return network.observe(
            images, lambda said: said.flatten(2).mean(2) if said.dim() > 2 else said
        )
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for layer, part in _into_outputs(network, images):
        said = part.flatten(1, -2).mean(1) if part.dim() > 2 else part
        for name in layer.columns.groups:
            size = network.topology.group(name).size
            units = _numbers(layer, name, size)
            here = (units >= 0).to(said.device)
            at = units.to(said.device)[here]
            sums.setdefault(name, said.new_zeros(len(said), size)).index_add_(1, at, said[:, here])
            counts.setdefault(name, said.new_zeros(size)).index_add_(0, at, said.new_ones(len(at)))
    return {name: total / counts[name].clamp(min=1) for name, total in sums.items()}


def told_groups(network: SparseNetwork) -> list[str]:
    """The hidden groups that :func:`unit_means` tells of: all, or those that outputs read."""
    hidden = [group.name for group in network.topology.hidden]
    if not isinstance(network, TracedNetwork):
        return hidden
    output = network.topology.output.name
    read = {name for layer in network.topology.feeders(output) for name in layer.sources}
    return [name for name in hidden if name in read]


def _into_outputs(network: TracedNetwork, images: Tensor) -> list[tuple[Layer, Tensor]]:
    """What layers into the outputs read, ``(samples, ..., columns)`` float32, in order."""
    parts: list[tuple[Layer, Tensor]] = []

    def read(layer: Layer, inputs: Tensor, dim: int) -> None:
        if network.graph.output.name in layer.rows.groups:
            parts.append((layer, inputs.movedim(dim, -1).float()))

    network.watched(images, read)
    if len(images) > 1 and any(len(part) != len(images) for _, part in parts):
        # Tokens and samples lie mixed: which is which cannot be told but one by one.
        each = [_into_outputs(network, image) for image in images.split(1)]
        return [
            (layer, torch.cat([parts[place][1] for parts in each]))
            for place, (layer, _) in enumerate(each[0])
        ]
    if len(images) == 1:
        return [(layer, part.reshape(1, -1, part.shape[-1])) for layer, part in parts]
    return parts


def columns_of(layer: Layer, group: str, size: int) -> Tensor | None:
    """The columns of each unit of a group, ``(units, each)``; None unless all have as many."""
    places = _numbers(layer, group, size)
    order = places.argsort(stable=True)[int((places < 0).sum()) :]
    counts = places[order].bincount(minlength=size)
    if not len(order) or bool((counts != counts[0]).any()):
        return None
    return order.view(size, -1)


def _numbers(layer: Layer, group: str, size: int) -> Tensor:
    """The unit of each column, ``(columns,)`` int64; -1 where it is another group's."""
    units = {
        span.group: torch.full((span.first + span.count,), -1)
        for span in sorted(layer.columns.spans, key=lambda span: span.first + span.count)
    }
    units[group] = torch.arange(size)
    return layer.columns.spread(units)
