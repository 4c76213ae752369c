"""How much of a network is left for further tasks, and a warning before it is full."""

from __future__ import annotations

from collections.abc import Sequence

from nispa.files import one_line
from nispa.runs.record import Record
from nispa.webpage.markup import Node, table, tag

NEARLY = 0.1  # share of a layer's units below which the next task has little to learn with
MAX_ROWS = 40


def warning(record: Record) -> str:
    """What is full or nearly so, in a sentence; empty where nothing is or nothing is known."""
    full, nearly = [], []
    for group, free, size, _ in _left(record):
        if size and not free:
            full.append(one_line(group, 24))
        elif free <= NEARLY * size:
            nearly.append(f"{one_line(group, 24)} ({free} of {size} plastic)")
    if full:
        return f"Full, no plastic unit left: {_listed(full)}."
    if nearly:
        return f"Nearly full, at most {NEARLY:.0%} of the units plastic: {_listed(nearly)}."
    return _connections(record)


def _connections(record: Record) -> str:
    """For methods that freeze connections and no units."""
    if not record.per_task or record.per_task[-1].stable_units:
        return ""
    layers = record.per_task[-1].connections.values()
    live, frozen = sum(c.live for c in layers), sum(c.frozen for c in layers)
    if live and live - frozen <= NEARLY * live:
        return f"Nearly full: {live - frozen:,} of {live:,} live connections can still learn."
    return ""


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _left(record: Record) -> list[tuple[str, int, int, int | None]]:
    """Per group: its name, plastic units, all units, units that the last task took."""
    done = record.per_task
    if not done:
        return []
    rows = []
    for group, count in done[-1].stable_units.items():
        before = done[-2].stable_units.get(group) if len(done) > 1 else None
        taken = count.stable - before.stable if before is not None else None
        if len(done) == 1:
            taken = count.stable
        rows.append((group, count.size - count.stable, count.size, taken))
    return rows


def section(record: Record) -> list[Node]:
    """A table of what is left, headed by the warning where there is one."""
    left = _left(record)
    text = warning(record)
    alarm = tag("p", "Warning. ", text, class_="warn") if text else None
    if not left:
        return [alarm]
    rows: list[list[Node]] = []
    for group, free, size, taken in left[:MAX_ROWS]:
        share = f"{100 * free / size:.0f}" if size else ""
        more = "" if not taken or taken < 0 else f"{free / taken:.1f}"
        name = one_line(group, 24)
        rows.append([name, f"{free:,}", f"{size:,}", share, _count(taken), more])
    heads = ["layer", "plastic units left", "of", "%", "taken by the last task"]
    heads.append("tasks at that pace")
    return [alarm, table("Capacity left after the last task", heads, rows)]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
