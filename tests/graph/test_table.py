"""Units and operators as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from nispa.backbones import BACKBONES
from nispa.graph.operators import FAMILIES, RULES
from nispa.graph.table import groups_table, operators_table
from nispa.graph.trace import find_units

from .foreign import FOREIGN

PAGE = Path(__file__).parents[2] / "docs" / "api" / "graph.md"


def test_groups_as_a_table() -> None:
    model = BACKBONES["vit-tiny"].build((3, 8, 8), 4, width=12, heads=3, blocks=1)
    lines = groups_table(find_units(model, torch.zeros(2, 3, 8, 8))).splitlines()
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["group", "kind", "units", "written by", "read by"],
        ["input", "input", "3", "patches"],
        ["patches", "stream", "12", "patches, blocks.0.attention.proj, blocks.0.fc2",
         "blocks.0.attention.qkv, blocks.0.fc1, head"],
        ["blocks.0.attention.qkv", "head", "3", "blocks.0.attention.qkv (12 rows each)",
         "blocks.0.attention.proj"],
        ["blocks.0.fc1", "hidden", "48", "blocks.0.fc1", "blocks.0.fc2"],
        ["output", "output", "4", "head"],
    ]  # fmt: skip


def test_long_lists_are_cut() -> None:
    case = FOREIGN["standard"]
    assert " and 3 more" in groups_table(find_units(case.build(), case.example()))


def test_no_operator_has_two_rules() -> None:
    assert sum(len(family.operators) for family in FAMILIES) == len(RULES)


def rows(table: Sequence[tuple[str, str]]) -> str:
    lines = ["| operators | units |", "|---|---|"]
    lines += [f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {does} |"
              for names, does in table]  # fmt: skip
    return "\n".join(lines)


def tables() -> tuple[str, str]:
    return rows(operators_table()), rows(operators_table(refused=True))


def test_the_page_lists_the_operators() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for table in tables():
        assert table in text, "write the tables with: python -m tests.graph.test_table"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for heading, table in zip(("What a module may", "Known, and refused"), tables(), strict=True):
        text = re.sub(
            rf"({heading}[^\n]*\n\n)(?:OPERATORS|REFUSED|(?:\|[^\n]*\n)*\|[^\n]*)",
            lambda found, table=table: found[1] + table,  # type: ignore[misc]
            text,
        )
    PAGE.write_text(text, encoding="utf-8")
