"""The capacity left in a network, and a warning before it is full."""

from __future__ import annotations

from nispa.files import one_line
from nispa.runs.record import Record
from nispa.webpage.markup import Node, count, listed, table, tag

NEARLY = 0.1  # share of plastic units below which the next task has little to learn with
MAX_ROWS = 40


def warning(record: Record) -> str:
    """Which layers are full or nearly full, in a sentence; empty if none is or it is unknown."""
    full, nearly = [], []
    for group, plastic, size, _ in _left(record):
        if size and not plastic:
            full.append(one_line(group, 24))
        elif plastic <= NEARLY * size:
            nearly.append(f"{one_line(group, 24)} ({plastic} of {size} plastic)")
    if full:
        return f"Full, no plastic unit left: {listed(full)}."
    if nearly:
        return f"Nearly full, at most {NEARLY:.0%} of the units plastic: {listed(nearly)}."
    return _of_connections(record)


def _of_connections(record: Record) -> str:
    """The warning for methods that freeze connections but no units."""
    if not record.per_task or record.per_task[-1].stable_units:
        return ""
    layers = record.per_task[-1].connections.values()
    live, frozen = sum(c.live for c in layers), sum(c.frozen for c in layers)
    if live and live - frozen <= NEARLY * live:
        return f"Nearly full: {live - frozen:,} of {live:,} live connections can still learn."
    return ""


def _left(record: Record) -> list[tuple[str, int, int, int | None]]:
    """Per layer: its name, plastic units, all units, units that the last task made stable."""
    rows = []
    earlier = record.per_task[:-1]
    for group, units in (record.per_task[-1].stable_units if record.per_task else {}).items():
        before = earlier[-1].stable_units.get(group) if earlier else None
        taken = units.stable - before.stable if before else None if earlier else units.stable
        rows.append((group, units.size - units.stable, units.size, taken))
    return rows


def section(record: Record) -> list[Node]:
    """The warning, if there is one, and a table of the plastic units left in each layer."""
    text = warning(record)
    alarm = tag("p", "Warning. ", text, class_="warn") if text else None
    rows: list[list[Node]] = []
    for group, plastic, size, taken in _left(record)[:MAX_ROWS]:
        share = f"{100 * plastic / size:.0f}" if size else ""
        more = f"{plastic / taken:.1f}" if taken and taken > 0 else ""
        rows.append([one_line(group, 24), count(plastic), count(size), share, count(taken), more])
    if not rows:
        return [alarm]
    heads = ["layer", "plastic units left", "of", "%", "taken by the last task"]
    return [alarm, table("Capacity left after the last task", [*heads, "tasks at that pace"], rows)]
