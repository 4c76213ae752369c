"""The tables of ``docs/data.md`` say what the code says; ``test_docs.py`` runs its examples."""

from __future__ import annotations

from pathlib import Path

from nispa.base.config import describe
from nispa.data.catalog import CATALOG
from nispa.data.named import SCENARIOS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_data_set_is_on_the_page_with_its_sizes() -> None:
    for entry in CATALOG.values():
        shape = "×".join(str(side) for side in entry.shape)
        classes = len(entry.class_names)
        row = f"| `{entry.name}` | {classes} | {entry.train:,} + {entry.test:,} | {shape} |"
        assert row in PAGE


def test_every_scenario_and_option_is_on_the_page() -> None:
    for known in SCENARIOS.values():
        assert f"`{known.name}`" in PAGE
        for each in describe(known.options):
            assert f"| `--{each.name.replace('_', '-')}` |" in PAGE
