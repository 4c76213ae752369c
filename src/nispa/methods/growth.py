"""Dynamic sparse training within the plastic part: what is dropped, and what the loss asks for.

Mocanu et al. 2018 (SET, Nature Communications 9:2383) drop the smallest weights and grow as many at
random; Evci et al. 2020 (RigL, arXiv 1911.11134) grow them where the gradient by an absent weight
is largest. Here both happen when NISPA rewires, and reach connections into plastic units alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Samples
from nispa.mechanism.grow import smallest
from nispa.network.models import SparseNetwork
from nispa.network.position_gradients import position_gradients
from nispa.network.topology import UnitSets
from nispa.training.fit import EVALUATION_BATCH, Loss


@settings
class DynamicConfig:
    """Settings of what moves within the plastic part; off unless set."""

    drop_share: float = setting(
        0.0,
        "share of the connections into plastic units, the smallest ones, that each rewiring moves "
        "as well; SET: 0.3",
        ge=0,
        lt=1,
    )
    gradient_images: int = setting(
        1024, "training images whose gradient growth=gradient takes", ge=1, le=10_000_000
    )


def gradient_sizes(
    network: SparseNetwork, samples: Samples, loss: Loss, most: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The gradient by every possible connection on random samples; see ``position_gradients``.

    Args:
        network: The network.
        samples: Training images, on its device.
        loss: Mean loss of some samples.
        most: How many images at most.
        generator: Source of randomness.
    """
    index = torch.randperm(len(samples), generator=generator)[:most].to(samples.labels.device)
    return position_gradients(network, samples.subset(index).batches(EVALUATION_BATCH), loss)


@torch.no_grad()
def drop_smallest(network: SparseNetwork, kept: UnitSets, share: float) -> dict[str, int]:
    """Drops a share of each layer's connections into units that are not kept: the smallest ones.

    The size of a whole kernel is the sum of its absolute weights.

    Args:
        network: The network.
        kept: Units per group, ``(units,)`` bool; what they read stays.
        share: In [0, 1], rounded down to whole connections.

    Returns:
        How many connections each layer lost.
    """
    lost = dict.fromkeys(network.layers, 0)
    for name, layer in network.layers.items() if share else ():
        pattern = layer.pattern
        weights = layer.dense_weight().abs().cpu()
        sizes = weights.flatten(2).sum(2) if weights.dim() > 2 else weights
        dropped = smallest(sizes, pattern & ~layer.spec.rows_in(kept).unsqueeze(1), share)
        pattern.view(-1)[dropped] = False
        layer.rewire(pattern, dropped[:0], layer.weight[:0])
        lost[name] = len(dropped)
    return lost
