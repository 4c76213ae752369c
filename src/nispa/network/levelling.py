"""Levels new weights: beside units that were trained, each layer starts as in a fresh network.

He's initialisation (He et al. 2015, arXiv 1502.01852) keeps the size of activations from layer to
layer. Units that an earlier task has trained answer with larger values. Weights drawn beside them
for a new task would start with larger sums and logits than those of a fresh network;
docs/defaults.md has what that costs. Mishkin and Matas 2016 (arXiv 1511.06422) scale every layer by
what it computes on data; here the size that counts is that of a network that nothing has trained.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nispa.network.operations import current
from nispa.network.sparse_network import SparseNetwork


@torch.no_grad()
def level(network: SparseNetwork, fresh: SparseNetwork, images: Tensor) -> dict[str, float]:
    """Scales the plastic weights of each layer, so that their sums are as large as fresh ones.

    In one pass, layer by layer: each is scaled before the next ones read what it computes.
    Layers that read the images themselves keep their weights.

    Args:
        network: A network of sparse layers, without norms.
        fresh: Another of the same shape as it was drawn.
        images: Some images that it will learn from, ``(n, *input_shape)``.

    Returns:
        The factor of each layer.
    """
    pixels = {group.name for group in network.topology.groups if group.role == "input"}
    rows = {
        spec.name: (layer.plastic_index // layer.shape[1]).unique()
        for spec in network.topology.layers
        if not pixels & set(spec.sources) and len((layer := network.layers[spec.name]).weight)
    }
    wanted: dict[str, float] = {}
    factors: dict[str, float] = {}

    def measure(name: str, _: nn.Module, _inputs: tuple[Any, ...], sums: Tensor) -> None:
        wanted[name] = _size(sums)

    def scale(name: str, layer: nn.Module, inputs: tuple[Any, ...], sums: Tensor) -> Tensor:
        size = _size(sums[:, rows[name]])
        if not size > 0:  # not a number, too
            return sums
        factors[name] = wanted[name] / size
        network.layers[name].weight.mul_(factors[name])
        again: Tensor = layer.forward(*inputs)
        return again  # what the next layers read

    for net, look in ((fresh, measure), (network, scale)):
        handles = [net.layers[name].register_forward_hook(partial(look, name)) for name in rows]
        try:
            net.eval()(images)
        finally:
            for handle in handles:
                handle.remove()
    if factors and (ledger := current()):  # scaled layers have computed twice
        ledger.forward(len(images), network.per_sample(), learning=False)
    return factors


def _size(sums: Tensor) -> float:
    """Standard deviation of sums, over images, rows and pixels."""
    return float(sums.double().std(correction=0))
