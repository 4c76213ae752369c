"""Rules by the names of operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nispa.graph.walk import Rule

R = TypeVar("R", bound=Rule)


@dataclass(frozen=True)
class Family:
    """Operators with one rule.

    Attributes:
        operators: Names of ATen operators.
        does: What the rule does with units, for readers.
        rule: The rule.
        refused: Whether the rule always refuses.
    """

    operators: tuple[str, ...]
    does: str
    rule: Rule
    refused: bool = False


FAMILIES: list[Family] = []
"""All rules, in the order in which they were entered."""


def operators(*names: str, does: str, refused: bool = False) -> Callable[[R], R]:
    """Enters a rule for some operators."""

    def enter(rule: R) -> R:
        FAMILIES.append(Family(names, does, rule, refused))
        return rule

    return enter
