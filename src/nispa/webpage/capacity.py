"""The capacity left in a network, and a warning before it is full."""

from __future__ import annotations

from nispa.files import one_line
from nispa.runs.capacity import NEARLY, state, units_after
from nispa.runs.record import Record
from nispa.webpage.markup import Node, count, table, tag

MAX_ROWS = 40


def warning(record: Record) -> str:
    """Which layers are full or nearly full, in a sentence; empty if none is or it is unknown."""
    if not record.per_task:
        return ""
    last = record.per_task[-1]
    if last.stable_units:
        named = {one_line(name, 24): count for name, count in units_after(last).items()}
        text = one_line(state(named), 500)
        return text and f"{text[0].upper()}{text[1:]}."
    # Methods that freeze connections but no units.
    live = sum(layer.live for layer in last.connections.values())
    free = live - sum(layer.frozen for layer in last.connections.values())
    if live and free <= NEARLY * live:
        return f"Nearly full: {free:,} of {live:,} live connections can still learn."
    return ""


def section(record: Record) -> list[Node]:
    """The warning, if there is one, and a table of the plastic units left in each layer."""
    text = warning(record)
    alarm = tag("p", "Warning. ", text, class_="warn") if text else None
    rows: list[list[Node]] = []
    earlier = record.per_task[-2].stable_units if len(record.per_task) > 1 else {}
    for name, units in list(record.per_task[-1].stable_units.items())[:MAX_ROWS]:
        plastic = units.size - units.stable
        taken = units.stable - earlier[name].stable if name in earlier else units.stable
        share = f"{100 * plastic / units.size:.0f}" if units.size else ""
        pace = f"{plastic / taken:.1f}" if taken > 0 else ""
        counts = (count(plastic), count(units.size), share, count(taken), pace)
        rows.append([one_line(name, 24), *counts])
    if not rows:
        return [alarm]
    heads = ["layer", "plastic units left", "of", "%", "taken by the last task"]
    return [alarm, table("Capacity left after the last task", [*heads, "tasks at that pace"], rows)]
