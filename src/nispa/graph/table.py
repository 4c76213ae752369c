"""Units as text: who writes and reads each group, and what a traced module may use."""

from __future__ import annotations

from collections.abc import Sequence

from nispa.graph.operators import FAMILIES
from nispa.graph.units import Group, UnitGraph

SHOWN = 3  # names in a cell


def groups_table(graph: UnitGraph) -> str:
    """One line a group: kind, number of units, layers that write and that read it.

    What all units share comes last.
    """
    rows: list[tuple[str, ...]] = [("group", "kind", "units", "written by", "read by")]
    rows += [_row(graph, group) for group in graph.groups]
    table = _aligned(rows)
    return f"{table}\nshared by all units: {', '.join(graph.shared)}" if graph.shared else table


def _row(graph: UnitGraph, group: Group) -> tuple[str, ...]:
    writers = []
    for name in group.writers:
        units = graph.layer(name).rows.units()
        each = sum(unit == (group.name, 0) for unit in units)
        writers.append(f"{name} ({each} rows each)" if each > 1 else name)
    if not writers and group.kind != "input":
        writers = [values.name for values in graph.values_of(group.name)]
    return (group.name, group.kind, f"{group.size:,}", _some(writers), _some(group.readers))


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def operators_table(*, refused: bool = False) -> list[tuple[str, str]]:
    """Operators that a traced module may use, or those that are known and refused.

    Returns:
        Names and what is done with units, a row a family; names that begin with ``_`` are PyTorch's
        own for others.
    """
    return [
        (", ".join(name for name in family.operators if not name.startswith("_")), family.does)
        for family in FAMILIES
        if family.refused == refused
    ]


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
