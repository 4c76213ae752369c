"""All runs together: what was run, on what data, and methods side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from nispa.costs import KINDS
from nispa.files import one_line
from nispa.metrics import METRICS, as_matrix, percent
from nispa.results import DataEntry, MetricValue
from nispa.webpage import capacity
from nispa.webpage.charts import Across, Series, Spot, Words, intervals, lines, scatter
from nispa.webpage.markup import Node, add, cell, folded, table, tag
from nispa.webpage.runs import (
    Group,
    Problem,
    Run,
    accuracy,
    forgetting,
    other_accuracy,
    settings_of,
    summary,
)
from nispa.webpage.scales import rounded

MAX_SPOTS = 30  # more groups than that cannot be told apart in a picture
MAX_SETTINGS = 200
MAX_COLUMNS = 30
MAX_LINES = 12

Value = Callable[[Run], float | None]
COSTS = (
    "train_operations",
    "inference_operations",
    "train_cpu_s",
    "train_s",
    "live",
    "model_bytes",
    "kept_bytes",
    "peak_bytes",
)
"""The costs on the page, by their names in :data:`nispa.costs.KINDS`."""


def data_mark(data: DataEntry) -> Element:
    """Whether data are canonical, as a sign and in words."""
    if data.canonical:
        return tag("span", "✓ canonical", class_="mark yes")
    if data.canonical is None:
        return tag("span", "own data", class_="mark own")
    return tag("span", "⚠ not canonical", class_="mark no")


def alarms(runs: Sequence[Run]) -> list[Node]:
    """What a reader must know before the first number."""
    made: list[Node] = []
    other = {d.sha256: d for run in runs for d in run.record.data if d.canonical is False}
    if other:
        names = "; ".join(
            f"{one_line(data.name, 40)} ({one_line(data.note, 200) or 'no note'})"
            for data in list(other.values())[:MAX_LINES]
        )
        strong = tag("strong", "⚠ Not the canonical data: ")
        rest = " Compare these numbers with published ones only with that in mind."
        made.append(tag("p", strong, names, ".", rest, class_="warn"))
    cut = [(k, run) for k, run in enumerate(runs, 1) if run.record.status != "complete"]
    full = [(k, run) for k, run in enumerate(runs, 1) if capacity.warning(run.record)]
    made += _linked("Not complete, in no mean: ", cut, lambda run: run.record.status)
    made += _linked("Network full or nearly so: ", full, None)
    return made


def _linked(
    text: str, found: Sequence[tuple[int, Run]], what: Callable[[Run], str] | None
) -> list[Node]:
    if not found:
        return []
    line = tag("p", tag("strong", f"⚠ {text}"), class_="warn")
    for number, (place, run) in enumerate(found[:MAX_LINES]):
        says = f" ({what(run)})" if what else ""
        add(line, ", " if number else None, tag("a", run.name, href=f"#run-{place}"), says)
    more = len(found) - MAX_LINES
    return [add(line, f" and {more} more" if more > 0 else None, ".")]


def runs_table(runs: Sequence[Run], group_of: dict[int, int]) -> list[Node]:
    """A line per run, each with a box that the script uses to choose."""
    rows: list[list[Node]] = []
    for place, run in enumerate(runs, start=1):
        record = run.record
        named = f"show run {place}"
        box = tag("input", type="checkbox", checked="checked", value=place, aria_label=named)
        box.set("data-choose", str(group_of[place]))
        rows.append(
            [
                tag("td", box, class_="pick"),
                tag("th", tag("a", f"{place}. {run.name}", href=f"#run-{place}"), scope="row"),
                cell(one_line(record.scenario.name, 40)),
                cell(one_line(record.method, 30)),
                cell(one_line(record.preset or "", 30)),
                cell(record.incremental),
                str(record.seed),
                cell(record.status),
                percent(accuracy(run)),
            ]
        )
    heads = ["", "run", "scenario", "method", "preset", "incremental", "seed", "status"]
    made = table(
        "Runs and their accuracy after the last task",
        [*heads, "accuracy (%)"],
        rows,
        id_="runs-table",
        texts=range(1, 6),
    )
    buttons = [
        tag("button", text, type="button", data_all=value)
        for text, value in (("show all", "1"), ("show none", "0"))
    ]
    if len(runs) == 1:
        return [made]
    choice = tag("p", *buttons, "Means stay those of all runs.", class_="pick")
    return [choice, made if len(runs) <= MAX_LINES else folded(f"All {len(runs)} runs", made)]


def data_table(runs: Sequence[Run]) -> Element:
    """What data the runs learned from."""
    found: dict[tuple[str, str, bool | None], tuple[DataEntry, list[int]]] = {}
    for place, run in enumerate(runs, start=1):
        for data in run.record.data:
            key = (data.name, data.sha256, data.canonical)
            found.setdefault(key, (data, []))[1].append(place)
    rows: list[list[Node]] = [
        [
            one_line(data.name, 60),
            tag("td", data_mark(data), class_="t"),
            cell(one_line(data.source, 60)),
            cell(one_line(data.note, 300)),
            tag("td", tag("code", data.sha256[:16]), class_="t"),
            cell(_places(places, len(runs))),
        ]
        for data, places in found.values()
    ]
    heads = ["data set", "content", "read from", "note", "SHA-256 begins", "runs"]
    return table(
        "Data sets, and whether their content is the published one", heads, rows, texts=range(1, 6)
    )


def _places(places: Sequence[int], count: int) -> str:
    if len(set(places)) == count:
        return "all"
    shown = ", ".join(map(str, places[:12]))
    return shown if len(places) <= 12 else f"{shown} and {len(places) - 12} more"


# Methods side by side


def side_by_side(problem: Problem, number: int) -> list[Node]:
    """A table of a problem's groups, and pictures where there is something to compare."""
    groups = sorted(problem.groups, key=_rank)
    name = f"methods-{number}"
    rows = [_group_row(group) for group in groups]
    heads = ["method", "runs", "accuracy (%)", "std", "95 % interval", "forgetting (%)"]
    other = any(other_accuracy(run) is not None for group in groups for _, run in group.counted)
    kind = groups[0].members[0][1].record.incremental
    heads.append("not told the task (%)" if kind == "task" else "told the task (%)")
    if not other:
        heads.pop()
        rows = [row[:6] + row[7:] for row in rows]
    made = table(f"Methods on {problem.label}: means over runs", heads, rows, id_=name)
    for line, group in zip(list(made.iter("tr"))[1:], groups, strict=True):
        line.set("data-group", str(group.number))
    counted = [group for group in groups if group.counted][:MAX_SPOTS]
    if sum(len(group.counted) for group in counted) < 2:
        return [made, *_costs(problem, groups, number)]
    figures = [_intervals(counted, number, name), _so_far(problem, counted, number)]
    costs = f"costs-{number}"
    figures += [_against(counted, number, costs, cost) for cost in COSTS]
    return [
        made,
        *_costs(problem, groups, number),
        _more(len(counted), len([group for group in groups if group.counted])),
        tag("div", *[figure for figure in figures if figure is not None], class_="charts"),
    ]


def _more(shown: int, count: int) -> Node:
    if shown == count:
        return None
    return tag("p", f"The pictures show the {shown} best of {count} methods.", class_="note")


def _rank(group: Group) -> tuple[float, int]:
    found = summary(accuracy(run) for _, run in group.counted)
    return (-found.mean if found else math.inf, group.number)


def _costs(problem: Problem, groups: Sequence[Group], number: int) -> list[Node]:
    """A table of what the groups of a problem cost, with what is known of any of them."""
    means = {name: [_mean(group, _cost(name)) for group in groups] for name in COSTS}
    known = [name for name in COSTS if any(value is not None for value in means[name])]
    if not known:
        return []
    rows: list[list[Node]] = [
        [
            cell(f"{group.number} {group.label}", head=True),
            percent(_mean(group, accuracy)),
            *(KINDS[name].text(means[name][place]) for name in known),
        ]
        for place, group in enumerate(groups)
    ]
    heads = ["method", "accuracy (%)", *(KINDS[name].label for name in known)]
    caption = f"What methods cost on {problem.label}: means over runs"
    made = table(caption, heads, rows, id_=f"costs-{number}")
    for line, group in zip(list(made.iter("tr"))[1:], groups, strict=True):
        line.set("data-group", str(group.number))
    return [made]


def _cost(name: str) -> Value:
    return lambda run: run.cost(name)


def _mean(group: Group, value: Value) -> float | None:
    found = summary(value(run) for _, run in group.counted)
    return found.mean if found else None


def _group_row(group: Group) -> list[Node]:
    counted = group.counted
    label = cell(f"{group.number} {group.label}", head=True)
    found = summary(accuracy(run) for _, run in counted)
    row: list[Node] = [label, _how_many(group), percent(found.mean if found else None)]
    if found and found.deviation is not None and found.half is not None:
        low, high = found.mean - found.half, found.mean + found.half
        row += [percent(found.deviation), f"{100 * low:.2f} to {100 * high:.2f}"]
    else:
        row += ["-", "-"]
    row.append(percent(_mean(group, forgetting)))
    row.append(percent(_mean(group, other_accuracy)))
    return row


def _how_many(group: Group) -> str:
    counted, given = len(group.counted), len(group.members)
    return str(counted) if counted == given else f"{counted} of {given}"


def _spots(groups: Iterable[Group], cost: Value) -> list[Spot]:
    spots = []
    for group in groups:
        runs = [(k, cost(run), 100 * (accuracy(run) or 0.0)) for k, run in group.counted]
        known = [(k, x, value) for k, x, value in runs if x is not None]
        found = summary(value for _, _, value in known)
        mean_x = summary(x for _, x, _ in known)
        if found and mean_x:
            label = one_line(group.label, 44)
            made = Spot(group.number, label, found.mean, found.half, mean_x.mean, known)
            spots.append(made)
    return spots


def _intervals(groups: Sequence[Group], number: int, name: str) -> Element:
    spots = _spots(groups, lambda run: 0.0)
    desc = "; ".join(f"{spot.number} {spot.label} {spot.mean:.2f}" for spot in spots)
    words = Words(f"acc-{number}", "Mean accuracy of each method (%)", desc, name)
    caption = "Mean accuracy (diamond), 95 % interval of the mean (line), runs (dots)"
    return tag("figure", tag("figcaption", caption), intervals(words, spots, "accuracy (%)"))


def _against(groups: Sequence[Group], number: int, name: str, key: str) -> Element | None:
    spots, kind = _spots(groups, _cost(key)), KINDS[key]
    if len(spots) < 2 or max(spot.x for spot in spots) <= 0:
        return None
    by_number = {group.number: place for place, group in enumerate(groups)}
    if [by_number[spot.number] for spot in spots] != list(range(len(groups))):
        name = ""  # a row is missing here, so rows and points would not agree
    desc = "; ".join(f"{s.number} {s.label} {s.mean:.2f} % at {kind.text(s.x)}" for s in spots)
    words = Words(f"{key}-{number}", f"Accuracy against {kind.label}", desc, name or None)
    caption = f"Accuracy against {kind.label}; numbers as in the table"
    return tag("figure", tag("figcaption", caption), scatter(words, spots, kind.title))


def _so_far(problem: Problem, groups: Sequence[Group], number: int) -> Element | None:
    """Mean accuracy over the tasks learned so far, averaged over the runs of each group."""
    tasks = problem.tasks
    if tasks < 2 or tasks > 100:
        return None
    series, values = [], []
    for group in groups[:MAX_LINES]:
        curves = [_curve(run) for _, run in group.counted]
        means = [summary(curve[task] for curve in curves) for task in range(tasks)]
        points = [None if mean is None else mean.mean for mean in means]
        values += [point for point in points if point is not None]
        series.append(
            Series(group.label, points, group.number - 1, str(group.number), group.number)
        )
    rows: list[list[Node]] = []
    for task in range(tasks):
        points = [each.values[task] for each in series]
        rows.append([str(task + 1), *("" if p is None else f"{p:.2f}" for p in points)])
    low, high = rounded(values)
    words = Words(
        f"sofar-{number}",
        "Mean accuracy over the tasks learned so far (%)",
        "One line per method, marked with its number where it ends.",
        f"sofar-table-{number}",
    )
    heads = ["tasks learned", *(f"{each.sign} {one_line(each.name, 40)}" for each in series)]
    values_table = table(words.title, heads, rows, id_=words.table)
    for line in values_table.iter("tr"):
        for each, cell_ in zip(series, list(line)[1:], strict=True):
            cell_.set("data-group", str(each.group))
    across = Across([str(task + 1) for task in range(tasks)], "tasks learned", right=26)
    return tag(
        "figure",
        tag("figcaption", f"{words.title}; lines end at their method's number"),
        lines(words, across, series, low=low, high=high, unit="%", height=230, ends=True),
        folded("As a table", values_table),
        _first(len(series), len(groups)),
    )


def _first(shown: int, count: int) -> Node:
    if shown == count:
        return None
    return tag("p", f"The {shown} best of {count} methods.", class_="note")


def _curve(run: Run) -> list[float | None]:
    matrix = as_matrix(run.record.main_matrix)
    means = [float(matrix[task, : task + 1].mean()) for task in range(len(matrix))]
    return [None if math.isnan(mean) else 100 * mean for mean in means]


# What differs, and where it ran


def differing(problem: Problem) -> Node:
    """Settings that are not the same in all groups of a problem."""
    groups = problem.groups[:MAX_COLUMNS]
    held = [dict(settings_of(group.members[0][1])) for group in groups]
    names = list(dict.fromkeys(name for settings in held for name in settings))
    found = [name for name in names if len({settings.get(name) for settings in held}) > 1]
    if not found:
        return None
    # Settings that all share come first, then those that only some methods have.
    found.sort(key=lambda name: sum(name not in settings for settings in held))
    rows: list[list[Node]] = [
        [name, *(cell(settings.get(name, "–")) for settings in held)]
        for name in found[:MAX_SETTINGS]
    ]
    heads = ["setting", *(f"{group.number} {group.label}" for group in groups)]
    caption = f"Settings that differ on {problem.label} (–: the method has no such setting)"
    return table(caption, heads, rows, texts=range(1, len(heads)))


def environments(runs: Sequence[Run]) -> Element:
    """Where the runs ran; times of different rows cannot be compared."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, run in enumerate(runs, start=1):
        env = run.record.environment
        texts = (env.nispa, env.python, env.torch, env.numpy, env.kernels, env.device, env.cpu)
        found.setdefault((*texts, env.threads, env.platform), []).append(place)
    rows: list[list[Node]] = []
    for values, places in found.items():
        cells: list[Node] = [cell(one_line(str(value), 80)) for value in values]
        rows.append([cell(_places(places, len(runs)), head=True), *cells])
    heads = ["runs", "nispa", "Python", "torch", "numpy", "kernels", "device", "processor"]
    heads += ["threads", "platform"]
    return table("What the runs ran with", heads, rows, texts=range(1, 10))


def formulas(runs: Sequence[Run]) -> list[Node]:
    """What the numbers are, with their sources, and whether the records say the same."""
    rows: list[list[Node]] = []
    for name, label in (("acc", "accuracy"), ("forgetting", "forgetting")):
        rows.append([label, cell(METRICS[name].formula), cell(METRICS[name].source)])
    made = table("Numbers and their formulas", ["number", "formula", "source"], rows, texts=(1, 2))
    off = [
        str(place)
        for place, run in enumerate(runs, start=1)
        if _disagrees(run.record.main_metrics.get("acc"), accuracy(run))
    ]
    if not off:
        return [made]
    shown = ", ".join(off[:MAX_LINES])
    text = f"⚠ In these records the accuracy is not that of the matrix: runs {shown}."
    return [made, tag("p", text, " The page shows that of the matrix.", class_="warn")]


def _disagrees(stated: MetricValue | None, found: float | None) -> bool:
    if stated is None or stated.value is None or found is None:
        return False
    return stated.formula == METRICS["acc"].formula and abs(stated.value - found) > 1e-6
