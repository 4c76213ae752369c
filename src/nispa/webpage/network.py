"""The network of one run on the page: its units, phases and connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Run
from nispa.reading.phases import Phase
from nispa.runs.record import Record
from nispa.webpage.charts import Across, Series, Strip, Words, lines, strips
from nispa.webpage.markup import Node, add, count, figure, folded, table, tag
from nispa.webpage.names import task_label, task_name

MAX_TASKS = 40  # more would be unreadable
MAX_GROUPS = 12
MAX_PHASES = 160

STABLE, CANDIDATES, PLASTIC = ("full", "stable"), ("half", "candidates"), ("pale", "plastic")
CONNECTIONS = (("full", "frozen"), ("half", "plastic"), ("pale", "owed (no place found)"))


def spaced(total: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``total``, evenly spaced, with the first and last."""
    if total <= most:
        return list(range(total))
    return [round(k * (total - 1) / (most - 1)) for k in range(most)]


def only(shown: int, total: int, what: str) -> Node:
    """A note if not everything is shown."""
    if shown >= total:
        return None
    return tag("p", f"{shown:,} of {total:,} {what} are shown, evenly spaced.", class_="note")


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """The keys of several mappings, in order of appearance."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _short(name: str) -> str:
    return one_line(name, 24)


def legend(parts: Sequence[tuple[str, str]]) -> Element:
    """What each look stands for."""
    made = tag("p", class_="legend")
    for look, text in parts:
        box = tag("rect", x=1, y=1, width=14, height=10, class_=look)
        picture = tag("svg", box, viewBox="0 0 16 12", class_="key", aria_hidden="true")
        add(made, tag("span", picture, f" {text}"))
    return made


# --- After each task -----------------------------------------------------------------------------


def units(record: Record, place: int) -> list[Node]:
    """Stable and plastic units per layer after each task."""
    tasks = spaced(len(record.per_task), MAX_TASKS)
    counts = [record.per_task[task].stable_units for task in tasks]
    names = _names(counts)
    bands, columns, last = [], [], []
    for name in names[:MAX_GROUPS]:
        known = [after.get(name) for after in counts]
        whole = max(unit.size for unit in known if unit)
        parts = [[unit.stable] if unit else None for unit in known]
        bands.append(Strip(f"{_short(name)} ({whole:,} units)", parts, whole))
        columns.append([f"{unit.stable:,} of {unit.size:,}" if unit else "" for unit in known])
        last += [f"{_short(name)} {known[-1].stable} of {known[-1].size}"] if known[-1] else []
    words = Words(
        f"units-{place}",
        "Stable and plastic units per layer after each task (%)",
        f"After the last task stable: {', '.join(last)}.",
        f"units-table-{place}",
    )
    heads = [_short(name) for name in names[:MAX_GROUPS]]
    caption = "Stable units of all, after each task"
    looks = (STABLE, PLASTIC)
    return _after_tasks(record, tasks, "Units", words, bands, looks, caption, heads, columns, names)


def connections(record: Record, place: int) -> list[Node]:
    """Frozen, plastic and owed connections per layer after each task."""
    tasks = spaced(len(record.per_task), MAX_TASKS)
    counts = [record.per_task[task].connections for task in tasks]
    names = _names(counts)
    bands, columns, last = [], [], []
    for name in names[:MAX_GROUPS]:
        known = [after.get(name) for after in counts]
        there = [layer for layer in known if layer]
        whole = max(layer.live + layer.owed for layer in there)
        parts = [(layer.frozen, layer.live - layer.frozen) if layer else None for layer in known]
        live = f"{there[-1].live:,} live of {there[-1].total:,} positions"
        bands.append(Strip(f"{_short(name)} ({live})", parts, whole))
        columns.append([f"{c.live:,} / {c.frozen:,} / {c.owed:,}" if c else "" for c in known])
        last += [f"{_short(name)} {known[-1].frozen:,} of {known[-1].live:,}"] if known[-1] else []
    words = Words(
        f"connections-{place}",
        "Connections per layer after each task (% of live and owed)",
        f"After the last task frozen, of those live: {', '.join(last)}.",
        f"connections-table-{place}",
    )
    heads = [f"{_short(name)}: live / frozen / owed" for name in names[:MAX_GROUPS]]
    caption = "Connections after each task"
    return _after_tasks(
        record, tasks, "Connections", words, bands, CONNECTIONS, caption, heads, columns, names
    )


def _after_tasks(
    record: Record,
    tasks: Sequence[int],
    head: str,
    words: Words,
    bands: Sequence[Strip],
    looks: Sequence[tuple[str, str]],
    caption: str,
    heads: Sequence[str],
    columns: Sequence[Sequence[str]],
    names: Sequence[str],
) -> list[Node]:
    """A chart of bands over tasks with its legend and its table; nothing without bands."""
    if not bands:
        return []
    across = Across([task_name(record, task) for task in tasks], "after task")
    *filled, (rest, _) = looks
    chart = strips(words, across, bands, [look for look, _ in filled], rest)
    cells = zip(*columns, strict=True)
    rows = [[task_label(record, task), *row] for task, row in zip(tasks, cells, strict=True)]
    values = table(caption, ["after task", *heads], rows, id_=words.table)
    made = figure(words.title, chart, legend(looks), folded("As a table", values))
    return [tag("h4", head), made, only(len(bands), len(names), "layers")]


# --- Phases --------------------------------------------------------------------------------------


def phases(run: Run, place: int) -> list[Node]:
    """τ, units and rewiring over the phases of a run, if its events tell of them."""
    if len(run.phases) < 2 or all(phase.tau is None for phase in run.phases):
        return []
    shown = [run.phases[k] for k in spaced(len(run.phases), MAX_PHASES)]
    starts = [
        (k, task_label(run.record, phase.task))
        for k, phase in enumerate(shown)
        if not k or shown[k - 1].task != phase.task
    ]
    across = Across([""] * len(shown), "phases, by task", starts)
    groups = _names(phase.units for phase in shown)[:MAX_GROUPS]
    name = f"phases-table-{place}"
    charts: list[Node] = [_tau(shown, across, place, name)]
    if groups:
        charts.append(_units_over_phases(shown, across, groups, place, name))
    charts.append(_rewired(shown, across, place, name))
    heads = ["task.phase", "τ", "validation (%)", "dropped", "grown", "owed"]
    heads += [f"{_short(group)}: stable + candidates" for group in groups]
    rows = [_phase_row(phase, groups) for phase in shown]
    return [
        tag("h4", "Phases"),
        tag("div", *charts, class_="charts"),
        only(len(shown), len(run.phases), "phases"),
        folded("Phases as a table", table("The end of each phase", heads, rows, id_=name)),
    ]


def _phase_row(phase: Phase, groups: Sequence[str]) -> list[Node]:
    row: list[Node] = [
        f"{phase.task + 1}.{phase.number}",
        "" if phase.tau is None else f"{phase.tau:.3f}",
        "" if phase.accuracy is None else f"{100 * phase.accuracy:.2f}",
        *(count(value) for value in (phase.dropped, phase.grown, phase.owed)),
    ]
    for group in groups:
        of = phase.units.get(group)
        row.append("" if of is None else f"{of[0]:,} + {of[1]:,}")
    return row


def _tau(shown: Sequence[Phase], across: Across, place: int, name: str) -> Element:
    words = Words(
        f"tau-{place}",
        "τ and validation accuracy at the end of each phase",
        "τ (solid) falls from phase to phase and starts again with each task; validation accuracy "
        "is dashed.",
        name,
    )
    series = [
        Series("τ", [phase.tau for phase in shown], 0),
        Series("validation", [phase.accuracy for phase in shown], 1),
    ]
    return figure(words.title, lines(words, across, series, (0, 1), "share"))


def _units_over_phases(
    shown: Sequence[Phase], across: Across, groups: Sequence[str], place: int, name: str
) -> Element:
    bands = []
    for group in groups:
        parts = [phase.units[group][:2] if group in phase.units else None for phase in shown]
        whole = max(phase.units[group][2] for phase in shown if group in phase.units)
        bands.append(Strip(_short(group), parts, whole))
    words = Words(
        f"candidates-{place}",
        "Stable, candidate and plastic units over phases (%)",
        "Each phase picks candidates again; a task's last phase makes them stable.",
        name,
    )
    chart = strips(words, across, bands, ["full", "half"], "pale")
    return figure(words.title, chart, legend((STABLE, CANDIDATES, PLASTIC)))


def _rewired(shown: Sequence[Phase], across: Across, place: int, name: str) -> Node:
    kinds = ("dropped", "grown", "owed")
    counts = [[getattr(phase, kind) for phase in shown] for kind in kinds]
    most = max((value for values in counts for value in values if value is not None), default=0)
    if not most:
        return None
    scale, unit = (1000, "thousands") if most >= 10_000 else (1, "count")
    series = [
        Series(kind, [None if v is None else v / scale for v in values], look)
        for look, (kind, values) in enumerate(zip(kinds, counts, strict=True))
        if look < 2 or any(values)
    ]
    words = Words(
        f"rewired-{place}",
        "Connections dropped, grown and owed after each phase",
        "Over all layers. As many grow as were dropped, except those without a place (owed).",
        name,
    )
    return figure(words.title, lines(words, across, series, (0, 1.05 * most / scale), unit))
