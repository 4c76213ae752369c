"""Norms: numbers pass, and who shares statistics is noted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nispa.graph.found import Call, NormFound, Refused
from nispa.graph.operators.registry import operators
from nispa.graph.units import NormKind
from nispa.graph.walk import Walk


@operators("batch_norm", does="values per unit: scale, shift and running statistics")
def batch_norm(walk: Walk, call: Call) -> Tensor:
    """Each channel belongs to its unit, with its statistics."""
    x = walk.numbers(call["input"])
    _note(walk, call, nn.modules.batchnorm._BatchNorm)
    means, squares = walk.buffer(call["running_mean"]), walk.buffer(call["running_var"])
    if means is None or squares is None:
        raise Refused(
            f"{call.by} has no running statistics, so what it predicts depends on the batch; pass "
            "track_running_stats=True"
        )
    pixels = [dim for dim in range(x.dim()) if dim != 1]
    channels = walk.ids.along(x, pixels, call.by).flatten()
    parts = [channels]
    for argument in ("weight", "bias"):
        if call[argument] is not None:
            parts.append(walk.values(walk.weight(call, argument), "norm"))
    for name in (means, squares):
        parts.append(walk.values_along(name, "statistic", len(channels), 0))
    units = walk.ids.join(parts, call.by)
    walk.found.norms[call.path] = NormFound(call.path, "batch", units[None])
    return units.view(-1, *[1] * (x.dim() - 2)).expand(call.shape).clone()


@operators("layer_norm", "rms_norm", does="values per unit; statistics over units are noted")
def layer_norm(walk: Walk, call: Call) -> Tensor:
    """Scales and shifts belong to their units; which share statistics is noted."""
    x = walk.numbers(call["input"])
    _note(walk, call, nn.LayerNorm if call.name == "layer_norm" else nn.RMSNorm)
    parts = [x]
    for argument in ("weight", "bias"):
        if call[argument] is not None:
            parts.append(walk.values(walk.weight(call, argument), "norm"))
    result = walk.ids.join(parts, call.by)
    over = len(call["normalized_shape"])
    sets = torch.unique(result.flatten(-over).flatten(0, -2), dim=0)
    _add(walk, call, "layer" if call.name == "layer_norm" else "rms", sets)
    return result


@operators("group_norm", does="values per unit; statistics over each group's units are noted")
def group_norm(walk: Walk, call: Call) -> Tensor:
    """Each channel belongs to its unit; the channels of a group share statistics."""
    x = walk.numbers(call["input"])
    _note(walk, call, nn.GroupNorm)
    pixels = [dim for dim in range(x.dim()) if dim != 1]
    channels = walk.ids.along(x, pixels, call.by).flatten()
    parts = [channels]
    for argument in ("weight", "bias"):
        if call[argument] is not None:
            parts.append(walk.values(walk.weight(call, argument), "norm"))
    units = walk.ids.join(parts, call.by)
    _add(walk, call, "group", units.view(int(call["num_groups"]), -1))
    return units.view(-1, *[1] * (x.dim() - 2)).expand(call.shape).clone()


@operators("instance_norm", does="values per unit; statistics are those of a unit and a sample")
def instance_norm(walk: Walk, call: Call) -> Tensor:
    """Each channel belongs to its unit, and no statistics outlive the sample."""
    x = walk.numbers(call["input"])
    if call["running_mean"] is not None:
        raise Refused(
            f"{call.by} keeps running statistics, which would change for units that are kept; pass "
            "track_running_stats=False"
        )
    walk.found.operations += PER_ELEMENT * math.prod(call.shape)
    pixels = [dim for dim in range(x.dim()) if dim != 1]
    parts = [walk.ids.along(x, pixels, call.by).flatten()]
    for argument in ("weight", "bias"):
        if call[argument] is not None:
            parts.append(walk.values(walk.weight(call, argument), "norm"))
    units = walk.ids.join(parts, call.by)
    return units.view(-1, *[1] * (x.dim() - 2)).expand(call.shape).clone()


PER_ELEMENT = 8
"""Operations of a norm: mean, variance (three), normalise (two), scale and shift."""


def _note(walk: Walk, call: Call, kind: type[nn.Module]) -> None:
    """Counts a norm; refuses one that another module cannot take the place of."""
    walk.found.operations += PER_ELEMENT * math.prod(call.shape)
    if not isinstance(call.owner, kind):
        raise Refused(
            f"{call.by} is called as a function; its statistics must be held still for units that "
            f"are kept, so make it a module, such as nn.{kind.__name__.lstrip('_')}"
        )
    if call["eps"] != call.owner.eps:
        walk.beside(call.path, "another eps")
    for argument in ("weight", "bias"):
        learned = walk.learned(call[argument])
        mine = getattr(call.owner, argument, None) is not None
        if (learned.name if learned else None) != (call.within(argument) if mine else None):
            walk.beside(call.path, f"another {argument}")


def _add(walk: Walk, call: Call, kind: NormKind, sets: Tensor) -> None:
    before = walk.found.norms.get(call.path)
    if before is not None and before.sets.shape == sets.shape:
        walk.ids.join([before.sets, sets], f"'{call.path}', used twice")
    elif before is not None:
        raise Refused(f"'{call.path}' is used twice, over different units; use two norms")
    walk.found.norms[call.path] = NormFound(call.path, kind, sets)
