"""Levels new weights: beside units that were trained, each layer starts as in a fresh network.

He's initialisation (He et al. 2015, arXiv 1502.01852) keeps the size of activations from layer to
layer. Units that an earlier task has trained answer with larger values. Weights drawn beside them
for a new task would start with larger sums and logits than those of a fresh network;
docs/defaults.md has what that costs. Mishkin and Matas 2016 (arXiv 1511.06422) scale every layer by
what it computes on data; here the size that counts is that of a network that nothing has trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nispa.network.sparse_network import SparseNetwork

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


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
    wanted: dict[str, float] = {}
    factors: dict[str, float] = {}

    def measured(name: str) -> Hook:
        def look(_: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            wanted[name] = _size(output)

        return look

    def scaled(name: str) -> Hook:
        layer = network.layers[name]
        rows = (layer.plastic_index // layer.shape[1]).unique()

        def scale(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            size = _size(output[:, rows]) if len(rows) else 0.0
            if size == 0.0:
                return output
            factors[name] = wanted[name] / size
            layer.weight.mul_(factors[name])
            again: Tensor = layer.forward(*inputs)
            return again  # what the next layers read

        return scale

    for net, hook in ((fresh, measured), (network, scaled)):
        handles = [
            net.layers[spec.name].register_forward_hook(hook(spec.name))
            for spec in network.topology.layers
            if not pixels & set(spec.sources)
        ]
        try:
            net.eval()(images)
        finally:
            for handle in handles:
                handle.remove()
    return factors


def _size(sums: Tensor) -> float:
    """Standard deviation of sums, over images, rows and pixels."""
    return float(sums.double().std(correction=0))
