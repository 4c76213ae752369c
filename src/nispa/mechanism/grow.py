"""Where new connections come from, and their initial values.

A growth rule decides which source units a layer's new connections should leave, in which shares,
and whether chance or the loss chooses among them. Connections that a rule cannot place leave any
unit, at random. New connections only enter plastic units.

================  ========================  =======================================
rule              published name            sources
================  ========================  =======================================
``full``          ``full_random``           any unit
``from_stable``   ``forwardT_random``       stable and candidate units, then any
``from_plastic``  ``flow_random``           plastic units, then any
``progressive``   ``progressive_rewiring``  stable: 1 falling to 1/2 with depth;
                                            rest plastic
``gradient``      --                        any unit, where the loss's gradient by the
                                            absent connection is largest
================  ========================  =======================================

The last one is the growth of Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners"
(RigL, arXiv 1911.11134). With it belongs :func:`smallest`, what Mocanu et al. 2018 (SET, Nature
Communications 9:2383) and RigL drop to make room.

To add a rule, write a function from depth to wishes and add it to ``GROWTH_RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nispa.errors import unknown_name
from nispa.network.topology import ConnectionLayer, source_columns


@dataclass(frozen=True)
class Wish:
    """A share of a layer's new connections, and the kind of source unit they should leave.

    Attributes:
        share: The share, in [0, 1].
        sources: The kind of source unit.
        by: What chooses among the absent connections from these: chance, or the size of the
            gradient by each, the largest first.
    """

    share: float
    sources: Literal["any", "stable", "plastic"]
    by: Literal["chance", "gradient"] = "chance"


GrowthRule = Callable[[float], tuple[Wish, ...]]
"""From a layer's depth (0 for the first layer, 1 for the last) to wishes, served in order."""


def _full(depth: float) -> tuple[Wish, ...]:
    del depth
    return (Wish(1.0, "any"),)


def _from_stable(depth: float) -> tuple[Wish, ...]:
    del depth
    return (Wish(1.0, "stable"),)


def _from_plastic(depth: float) -> tuple[Wish, ...]:
    del depth
    return (Wish(1.0, "plastic"),)


def _progressive(depth: float) -> tuple[Wish, ...]:
    stable = 1.0 - 0.5 * depth
    return (Wish(stable, "stable"), Wish(1.0 - stable, "plastic"))


def _gradient(depth: float) -> tuple[Wish, ...]:
    del depth
    return (Wish(1.0, "any", "gradient"),)


GROWTH_RULES: dict[str, GrowthRule] = {
    "full": _full,
    "from_stable": _from_stable,
    "from_plastic": _from_plastic,
    "progressive": _progressive,
    "gradient": _gradient,
}
"""The rules by name; a rule of your own is a value of ``growth`` once it is added."""

PUBLISHED_NAMES = {
    "full_random": "full",
    "forwardT_random": "from_stable",
    "flow_random": "from_plastic",
    "progressive_rewiring": "progressive",
}


def growth_rule(name: str) -> GrowthRule:
    """The rule called ``name``, or by its published name."""
    name = PUBLISHED_NAMES.get(name, name)
    if name not in GROWTH_RULES:
        raise unknown_name("growth rule", name, [*GROWTH_RULES, *PUBLISHED_NAMES])
    return GROWTH_RULES[name]


def needs_gradients(rule: GrowthRule) -> bool:
    """Whether a rule asks for the gradient by absent connections."""
    return any(wish.by == "gradient" for depth in (0.0, 0.5, 1.0) for wish in rule(depth))


def largest(allowed: Tensor, count: int, sizes: Tensor) -> Tensor:
    """At most ``count`` True positions of ``allowed``, those with the largest ``sizes`` first.

    Returns:
        Flat positions, ``(min(count, allowed.sum()),)`` int64; of equal sizes the first.
    """
    positions = allowed.flatten().nonzero().squeeze(1)
    order = sizes.flatten()[positions].argsort(descending=True, stable=True)
    return positions[order[:count]]


def smallest(sizes: Tensor, allowed: Tensor, share: float) -> Tensor:
    """The given share of the True positions of ``allowed``, rounded down: those of least size.

    Args:
        sizes: Of every position, ``(target, source * block)``.
        allowed: Positions to choose from, likewise, bool.
        share: In [0, 1].

    Returns:
        Flat positions, int64; of equal sizes the first.
    """
    return largest(allowed, int(share * int(allowed.sum())), -sizes)


def choose(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` True positions of ``allowed``, uniformly at random, none twice.

    Returns:
        Flat positions, ``(min(count, allowed.sum()),)`` int64, in random order.
    """
    positions = allowed.flatten().nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), generator=generator)[:count]]


def grow(
    layer: ConnectionLayer,
    pattern: Tensor,
    kept_sources: Tensor,
    kept_targets: Tensor,
    count: int,
    wishes: tuple[Wish, ...],
    generator: torch.Generator,
    sizes: Tensor | None = None,
) -> Tensor:
    """Chooses ``count`` absent connections into plastic units to become live.

    Args:
        layer: The layer to grow in.
        pattern: Its live connections, ``(target, source * block)`` bool.
        kept_sources: Stable and candidate units of the source group, ``(source,)`` bool.
        kept_targets: Likewise of the target group, ``(target,)`` bool.
        count: How many to grow.
        wishes: Served in order; the remainder leaves any unit.
        generator: Source of randomness.
        sizes: Size of the gradient by each connection, ``(target, source * block)``; None lets
            chance choose.

    Returns:
        Flat positions, ``(grown,)`` int64; fewer than ``count`` if fewer are absent.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    absent = ~pattern & ~kept_targets.unsqueeze(1)
    leaving = source_columns(layer, kept_sources)
    columns = {"any": torch.ones_like(leaving), "stable": leaving, "plastic": ~leaving}
    grown: list[Tensor] = []
    left = count
    for wish in (*wishes, Wish(1.0, "any")):
        wanted = min(left, round(wish.share * count))
        if wanted == 0:
            continue
        allowed = absent & columns[wish.sources].unsqueeze(0)
        if sizes is not None and wish.by == "gradient":
            picked = largest(allowed, wanted, sizes)
        else:
            picked = choose(allowed, wanted, generator)
        absent.view(-1)[picked] = False
        grown.append(picked)
        left -= len(picked)
    return torch.cat(grown)


def growth_values(init: str, live_values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Initial values of ``count`` new connections.

    Args:
        init: ``normal`` (mean and deviation of the layer's live weights), ``uniform`` (between the
            smallest and the largest of them) or ``zero``.
        live_values: The layer's live weights, ``(live, *kernel)``; zeros are ignored.
        count: Number of new connections.
        generator: Source of randomness.

    Returns:
        ``(count, *kernel)`` float32.
    """
    shape = (count, *live_values.shape[1:])
    weights = live_values[live_values != 0]
    if init == "zero" or len(weights) == 0:
        return torch.zeros(shape)
    if init == "normal":
        mean, std = weights.mean(), weights.std(correction=0)
        return mean + std * torch.randn(shape, generator=generator)
    if init == "uniform":
        low, high = weights.min(), weights.max()
        return low + (high - low) * torch.rand(shape, generator=generator)
    raise unknown_name("growth init", init, ["normal", "uniform", "zero"])
