"""A run's network on the page: its units, phases and connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Run
from nispa.reading.phases import Phase
from nispa.runs.record import Record
from nispa.webpage.charts import Across, Series, Strip, Words, beside, lines, strips
from nispa.webpage.markup import Node, add, folded, table, tag
from nispa.webpage.names import task_label, task_name

MAX_TASKS = 40  # more than that cannot be read; the record holds them all
MAX_GROUPS = 12
MAX_PHASES = 160


def chosen(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers from 0, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def only(shown: int, count: int, what: str) -> Node:
    """A line that says where not everything is shown."""
    if shown >= count:
        return None
    return tag("p", f"{shown:,} of {count:,} {what} are shown, evenly spaced.", class_="note")


# Units


def _names(parts: Sequence[Mapping[str, object]]) -> list[str]:
    """The names in several mappings, in order of appearance."""
    return list(dict.fromkeys(name for each in parts for name in each))


def _tasks_done(record: Record) -> tuple[list[int], Across]:
    shown = chosen(len(record.per_task), MAX_TASKS)
    return shown, Across([task_name(record, index) for index in shown], "after task")


LEGEND_UNITS = (("full", "stable"), ("half", "candidates"), ("pale", "plastic"))
LEGEND_CONNECTIONS = (("full", "frozen"), ("half", "plastic"), ("pale", "owed (no place found)"))


def legend(parts: Sequence[tuple[str, str]]) -> Element:
    """Looks and what they stand for."""
    made = tag("p", class_="legend")
    for look, text in parts:
        box = tag("rect", x=1, y=1, width=14, height=10, class_=look)
        picture = tag("svg", box, viewBox="0 0 16 12", class_="key", aria_hidden="true")
        add(made, tag("span", picture, f" {text}"))
    return made


def _figure(caption: str, chart: Element, *others: Node) -> Element:
    return tag("figure", tag("figcaption", caption), chart, *others)


def units(record: Record, place: int) -> list[Node]:
    """Stable and plastic units per layer after each task."""
    shown, across = _tasks_done(record)
    counts = [record.per_task[index].stable_units for index in shown]
    groups = _names(counts)[:MAX_GROUPS]
    if not groups:
        return []
    bands, rows = [], []
    for group in groups:
        whole = max(units[group].size for units in counts if group in units)
        parts = [[units[group].stable] if group in units else None for units in counts]
        bands.append(Strip(f"{one_line(group, 24)} ({whole:,} units)", parts, whole))
    for index, units in zip(shown, counts, strict=True):
        row: list[Node] = [task_label(record, index)]
        for group in groups:
            unit = units.get(group)
            row.append("" if unit is None else f"{unit.stable:,} of {unit.size:,}")
        rows.append(row)
    words = Words(
        f"units-{place}",
        "Stable and plastic units per layer after each task (%)",
        _last_units(record, groups),
        f"units-table-{place}",
    )
    heads = ["after task", *(one_line(group, 24) for group in groups)]
    made = table("Stable units of all, after each task", heads, rows, id_=words.table)
    chart = strips(words, across, bands, ["full"], "pale")
    return [
        tag("h4", "Units"),
        _figure(words.title, chart, legend(LEGEND_UNITS[::2]), folded("As a table", made)),
        only(len(groups), len(_names(counts)), "layers"),
    ]


def _last_units(record: Record, groups: Sequence[str]) -> str:
    last = record.per_task[-1].stable_units
    parts = [f"{one_line(g, 24)} {last[g].stable} of {last[g].size}" for g in groups if g in last]
    return "After the last task stable: " + ", ".join(parts) + "."


# Phases


def phases(run: Run, place: int) -> list[Node]:
    """τ, units and rewiring over the phases of a run, where its events tell of them."""
    if len(run.phases) < 2 or all(phase.tau is None for phase in run.phases):
        return []
    shown = [run.phases[k] for k in chosen(len(run.phases), MAX_PHASES)]
    starts, before = [], -1
    for at, phase in enumerate(shown):
        if phase.task != before:
            starts.append((at, task_label(run.record, phase.task)))
            before = phase.task
    across = Across([""] * len(shown), "phases, by task", starts)
    groups = _names([phase.units for phase in shown])[:MAX_GROUPS]
    name = f"phases-table-{place}"
    figures: list[Node] = [_tau(shown, across, place, name)]
    if groups:
        figures.append(_units_over_phases(shown, across, groups, place, name))
    figures.append(_rewired(shown, across, place, name))
    rows = [_phase_row(phase, groups) for phase in shown]
    heads = ["task.phase", "τ", "validation (%)", "dropped", "grown", "owed"]
    heads += [f"{one_line(group, 24)}: stable + candidates" for group in groups]
    made = table("Phases: what each ended with", heads, rows, id_=name)
    return [
        tag("h4", "Phases"),
        tag("div", *figures, class_="charts"),
        only(len(shown), len(run.phases), "phases"),
        folded("Phases as a table", made),
    ]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _phase_row(phase: Phase, groups: Sequence[str]) -> list[Node]:
    row: list[Node] = [f"{phase.task + 1}.{phase.number}"]
    row.append("" if phase.tau is None else f"{phase.tau:.3f}")
    row.append("" if phase.accuracy is None else f"{100 * phase.accuracy:.2f}")
    row += [_count(phase.dropped), _count(phase.grown), _count(phase.owed)]
    for group in groups:
        units = phase.units.get(group)
        row.append("" if units is None else f"{units[0]:,} + {units[1]:,}")
    return row


def _tau(shown: Sequence[Phase], across: Across, place: int, name: str) -> Element:
    words = Words(
        f"tau-{place}",
        "τ and validation accuracy over phases",
        "τ (solid) falls from phase to phase within a task and starts anew with the "
        "next; validation accuracy is dashed.",
        name,
    )
    series = [
        Series("τ", [phase.tau for phase in shown], 0),
        Series("validation", [phase.accuracy for phase in shown], 1),
    ]
    across = replace(across, right=beside(each.name for each in series))
    caption = "τ and validation accuracy at the end of each phase"
    return _figure(caption, lines(words, across, series, low=0, high=1, unit="share"))


def _units_over_phases(
    shown: Sequence[Phase], across: Across, groups: Sequence[str], place: int, name: str
) -> Element:
    bands = []
    for group in groups:
        parts = [phase.units[group][:2] if group in phase.units else None for phase in shown]
        whole = max(phase.units[group][2] for phase in shown if group in phase.units)
        bands.append(Strip(one_line(group, 24), parts, whole))
    words = Words(
        f"candidates-{place}",
        "Stable, candidate and plastic units over phases (%)",
        "Candidates are picked anew after each phase; with a task's last phase they become stable.",
        name,
    )
    chart = strips(words, across, bands, ["full", "half"], "pale")
    return _figure(words.title, chart, legend(LEGEND_UNITS))


def _rewired(shown: Sequence[Phase], across: Across, place: int, name: str) -> Element | None:
    kinds = ("dropped", "grown", "owed")
    counts = [[getattr(phase, kind) for phase in shown] for kind in kinds]
    most = max((value for values in counts for value in values if value is not None), default=0)
    if not most:
        return None
    thousands = most >= 10_000
    scale = 1000 if thousands else 1
    series = [
        Series(kind, [None if v is None else v / scale for v in values], look)
        for look, (kind, values) in enumerate(zip(kinds, counts, strict=True))
        if look < 2 or any(values)
    ]
    words = Words(
        f"rewired-{place}",
        "Connections dropped, grown and owed after each phase",
        "Over all layers. As many are grown as dropped, except those that find no place (owed).",
        name,
    )
    unit = "thousands" if thousands else "count"
    across = replace(across, right=beside(each.name for each in series))
    chart = lines(words, across, series, low=0, high=1.05 * most / scale, unit=unit)
    return _figure(words.title, chart)


# Connections


def connections(record: Record, place: int) -> list[Node]:
    """Frozen, plastic and owed connections per layer after each task."""
    shown, across = _tasks_done(record)
    counts = [record.per_task[index].connections for index in shown]
    layers = _names(counts)[:MAX_GROUPS]
    if not layers:
        return []
    bands, rows = [], []
    for layer in layers:
        there = [each[layer] for each in counts if layer in each]
        whole = max(count.live + count.owed for count in there)
        parts: list[Sequence[int] | None] = []
        for each in counts:
            count = each.get(layer)
            parts.append(None if count is None else (count.frozen, count.live - count.frozen))
        name = f"{one_line(layer, 24)} ({there[-1].live:,} live of {there[-1].total:,} positions)"
        bands.append(Strip(name, parts, whole))
    for index, each in zip(shown, counts, strict=True):
        row: list[Node] = [task_label(record, index)]
        for layer in layers:
            count = each.get(layer)
            texts = count and (f"{count.live:,}", f"{count.frozen:,}", f"{count.owed:,}")
            row.append(" / ".join(texts) if texts else "")
        rows.append(row)
    words = Words(
        f"connections-{place}",
        "Connections per layer after each task (% of live and owed)",
        _last_connections(record, layers),
        f"connections-table-{place}",
    )
    heads = ["after task", *(f"{one_line(layer, 24)}: live / frozen / owed" for layer in layers)]
    made = table("Connections after each task", heads, rows, id_=words.table)
    chart = strips(words, across, bands, ["full", "half"], "pale")
    return [
        tag("h4", "Connections"),
        _figure(words.title, chart, legend(LEGEND_CONNECTIONS), folded("As a table", made)),
        only(len(layers), len(_names(counts)), "layers"),
    ]


def _last_connections(record: Record, layers: Sequence[str]) -> str:
    last = record.per_task[-1].connections
    parts = [
        f"{one_line(name, 24)} {last[name].frozen:,} of {last[name].live:,}"
        for name in layers
        if name in last
    ]
    return "After the last task frozen, of those live: " + ", ".join(parts) + "."
