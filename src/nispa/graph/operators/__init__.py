"""One rule for each operator: what it does to the numbers of units."""

from __future__ import annotations

import torch

from nispa.graph.found import Call
from nispa.graph.operators import (
    attention,
    mixing,
    moves,
    norms,
    pointwise,
    refusals,
    registry,
    weights,
)
from nispa.graph.operators.registry import Family
from nispa.graph.walk import Rule

_ORDER = [
    module.__name__
    for module in (weights, norms, pointwise, moves, mixing, attention, refusals)  # for readers
]

FAMILIES: list[Family] = sorted(
    registry.FAMILIES, key=lambda family: _ORDER.index(family.rule.__module__)
)
"""The operators by family, with what is done with units."""

RULES: dict[str, Rule] = {name: family.rule for family in FAMILIES for name in family.operators}
"""The rule of each operator that has one by name."""


def rule_of(call: Call) -> Rule | None:
    """The rule of an operator: by its name, or because PyTorch says that it goes by elements."""
    rule = RULES.get(call.name)
    by_element = torch.Tag.pointwise in getattr(call.target, "tags", ())
    if rule is None and by_element and len(call.shapes) == 1:
        return pointwise.together
    return rule
