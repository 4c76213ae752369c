"""Levels new weights: beside units that were trained, each layer starts as in a fresh network.

He's initialisation (He et al. 2015, arXiv 1502.01852) keeps the size of activations from layer to
layer. Units that an earlier task has trained answer with larger values. Weights drawn beside them
for a new task would start with larger sums and logits than those of a fresh network;
docs/defaults.md has what that costs. Mishkin and Matas 2016 (arXiv 1511.06422) scale every layer by
what it computes on data; here the size that counts is that of a network that nothing has trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nispa.network.layers import SparseLayer
from nispa.network.sparse_network import SparseNetwork


@torch.no_grad()
def level(network: SparseNetwork, fresh: SparseNetwork, images: Tensor) -> dict[str, float]:
    """Scales the plastic weights of each layer, so that their sums are as large as fresh ones.

    Layer by layer, from the input on, since what a layer reads follows from the weights before it.
    Layers that read the images themselves keep their weights.

    Args:
        network: A network of sparse layers, without norms.
        fresh: Another of the same shape as it was drawn.
        images: Some images that it will learn from, ``(n, *input_shape)``.

    Returns:
        The factor of each layer.
    """
    pixels = {group.name for group in network.topology.groups if group.role == "input"}
    factors = {}
    for spec in network.topology.layers:
        layer = network.layers[spec.name]
        rows = (layer.plastic_index // layer.shape[1]).unique()
        if pixels & set(spec.sources) or not len(rows):
            continue
        size = _size_of_sums(network, layer, rows, images)
        if size > 0:
            wanted = _size_of_sums(fresh, fresh.layers[spec.name], None, images)
            factors[spec.name] = wanted / size
            layer.weight.mul_(wanted / size)
    return factors


def _size_of_sums(
    network: SparseNetwork, layer: SparseLayer, rows: Tensor | None, images: Tensor
) -> float:
    """Standard deviation of what some rows of a layer compute, over images, pixels and rows."""
    found: list[Tensor] = []

    def look(_: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        chosen = output if rows is None else output[:, rows]
        found.append(chosen.double().std(correction=0))

    handle = layer.register_forward_hook(look)
    try:
        network.eval()(images)
    finally:
        handle.remove()
    return float(found[0])
