"""One rule for each operator: what it does to the numbers of units."""

from __future__ import annotations

from nispa.graph.operators import attention, mixing, moves, norms, pointwise, refusals, weights
from nispa.graph.operators.registry import FAMILIES, Family
from nispa.graph.walk import Rule

_ALL = (weights, norms, pointwise, moves, mixing, attention, refusals)  # each enters its rules

RULES: dict[str, Rule] = {name: family.rule for family in FAMILIES for name in family.operators}
"""The rule of each operator."""


def supported() -> list[Family]:
    """The operators that a traced module may use, by family, with what is done with units."""
    return [family for family in FAMILIES if not family.refused]


def refused() -> list[Family]:
    """The operators that are known and refused by name, with the reason."""
    return [family for family in FAMILIES if family.refused]
