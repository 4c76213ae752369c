"""Dynamic sparse training within the plastic part: what is dropped, and what the loss asks for.

Mocanu et al. 2018 (SET, Nature Communications 9:2383) drop the smallest weights and grow as many at
random; Evci et al. 2020 (RigL, arXiv 1911.11134) grow them where the gradient by an absent weight
is largest. Here both may happen when NISPA rewires, into plastic units alone, and in the last fit
of a task, into the units that the task will keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Samples
from nispa.mechanism.grow import largest, smallest
from nispa.network.layers import SparseLayer
from nispa.network.models import SparseNetwork
from nispa.network.position_gradients import position_gradients
from nispa.network.topology import Patterns, UnitSets
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
        1024,
        "training images whose gradient growth=gradient and settle_moves take",
        ge=1,
        le=10_000_000,
    )
    settle_moves: int = setting(
        0,
        "how often the last fit moves connections into the task's units, the smallest ones, to "
        "where the gradient is largest",
        ge=0,
        le=1000,
    )
    settle_move_share: float = setting(
        0.3, "share of them that moves; it falls to 0 with the epochs", gt=0, lt=1
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
        dropped = smallest(_sizes(layer), pattern & ~layer.spec.rows_in(kept).unsqueeze(1), share)
        pattern.view(-1)[dropped] = False
        layer.rewire(pattern, dropped[:0], layer.weight[:0])
        lost[name] = len(dropped)
    return lost


@torch.no_grad()
def move_smallest(
    network: SparseNetwork, kept: UnitSets, own: UnitSets, share: float, gradients: Patterns
) -> None:
    """Moves a share of each layer's connections to where the loss asks for them, as RigL does.

    Each layer drops its smallest connections into units of ``own`` and grows as many from ``kept``
    units into ``own`` ones, with the value 0, where the gradient is largest.

    Args:
        network: The network.
        kept: The units that connections may come from, per group, ``(units,)`` bool.
        own: Those of them that are still plastic, likewise.
        share: In [0, 1], rounded down to whole connections.
        gradients: See :func:`gradient_sizes`.
    """
    for name, layer in network.layers.items():
        pattern, rows = layer.pattern, layer.spec.rows_in(own).unsqueeze(1)
        absent = rows & layer.spec.columns_in(kept).unsqueeze(0) & ~pattern
        dropped = smallest(_sizes(layer), pattern & rows, share)
        grown = largest(absent, len(dropped), gradients[name])
        pattern.view(-1)[dropped[: len(grown)]] = False
        pattern.view(-1)[grown] = True
        layer.rewire(pattern, grown, layer.weight.new_zeros(len(grown), *layer.spec.kernel))


def part_ends(epochs: int, moves: int) -> list[int]:
    """The last epochs of a fit's parts: connections move after each but the last, evenly spaced.

    No connection moves in the last quarter, so that what has grown has time to learn (RigL).
    """
    between = {round(0.75 * epochs * number / moves) for number in range(1, moves + 1)}
    return [*sorted(between - {0, epochs}), epochs]


def _sizes(layer: SparseLayer) -> Tensor:
    weights = layer.dense_weight().abs().cpu()
    return weights.flatten(2).sum(2) if weights.dim() > 2 else weights
