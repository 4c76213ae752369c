"""All runs on one page: methods side by side, every run, settings, data, environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading import cautions
from nispa.reading.groups import Group, Run, as_text, flatten
from nispa.reading.statistics import mean_of_all
from nispa.runs.costs import KINDS
from nispa.runs.metrics import METRICS, as_matrix, percent
from nispa.runs.record import DataEntry
from nispa.webpage import capacity
from nispa.webpage.charts import Across, Series, Spot, Words, intervals, lines, scatter
from nispa.webpage.markup import Node, add, cell, figure, folded, listed, table, tag, warn
from nispa.webpage.names import task_label, task_name
from nispa.webpage.problems import Problem, other_accuracy, told
from nispa.webpage.scales import percent_range

MAX_SPOTS = 30  # groups that a chart can tell apart
MAX_SETTINGS = 200
MAX_COLUMNS = 30
MAX_LINES = 12
MAX_NAMES = 6

COSTS = {
    "train_operations": "training operations",
    "inference_operations": "inference operations",
    "train_cpu_s": "CPU seconds",
    "train_s": "seconds",
    "live": "parameters",
    "model_bytes": "bytes",
    "kept_bytes": "bytes kept",
    "peak_bytes": "memory",
}
"""The costs on the page, named as in :data:`nispa.runs.costs.KINDS`, with a short word for each."""


def _cost(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.cost(name)


# --- Warnings ------------------------------------------------------------------------------------


def alarms(runs: Sequence[Run], left_out: Sequence[str]) -> list[Node]:
    """What a reader must know before the first number."""
    made: list[Node] = []
    if left_out:
        names = listed([one_line(fault, 300) for fault in left_out], MAX_LINES)
        made.append(warn(tag("strong", "⚠ Left out: "), names, "."))
    other = {d.sha256: d for run in runs for d in run.record.data if d.canonical is False}
    if other:
        names = listed(
            [
                f"{one_line(d.name, 40)} ({one_line(d.note, 200) or 'no note'})"
                for d in other.values()
            ],
            MAX_LINES,
        )
        rest = ". Compare these numbers with published ones only with that in mind."
        made.append(warn(tag("strong", "⚠ Not the canonical data: "), names, rest))
    if len(runs) == 1:
        record = runs[0].record
        texts = [capacity.warning(record)]
        if record.status != "complete":
            texts.append(f"Not complete: the run is {record.status}.")
        return made + [warn(f"⚠ {text}") for text in texts if text]
    cut = [(k, run) for k, run in enumerate(runs, 1) if run.record.status != "complete"]
    full = [(k, run) for k, run in enumerate(runs, 1) if capacity.warning(run.record)]
    made += _linked("Not complete, in no mean: ", cut)
    return made + _linked("Network full or nearly so: ", full)


def _linked(text: str, found: Sequence[tuple[int, Run]]) -> list[Node]:
    if not found:
        return []
    line = warn(tag("strong", f"⚠ {text}"))
    for number, (place, run) in enumerate(found[:MAX_LINES]):
        add(line, ", " if number else None, tag("a", run.name, href=f"#run-{place}"))
    more = len(found) - MAX_LINES
    return [add(line, f" and {more} more" if more > 0 else None, ".")]


# --- Tables of runs ------------------------------------------------------------------------------


def runs_table(runs: Sequence[Run], group_of: dict[int, int]) -> list[Node]:
    """A row per run, with a checkbox that the script uses to choose."""
    rows: list[list[Node]] = []
    for place, run in enumerate(runs, start=1):
        record = run.record
        named = f"show run {place}"
        box = tag("input", type="checkbox", checked="checked", value=place, aria_label=named)
        box.set("data-choose", str(group_of[place]))
        link = tag("a", f"{place}. {run.name}", href=f"#run-{place}")
        texts = [one_line(record.scenario.name, 40), one_line(record.method, 30)]
        texts += [one_line(record.preset or "", 30), record.incremental]
        rows.append(
            [
                tag("td", box, class_="pick"),
                tag("th", link, scope="row"),
                *map(cell, texts),
                str(record.seed),
                cell(record.status),
                percent(run.accuracy),
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
    choice = tag("p", *buttons, "Means stay those of all runs.", class_="pick")
    return [choice, made if len(runs) <= MAX_LINES else folded(f"All {len(runs)} runs", made)]


def data_table(runs: Sequence[Run]) -> Element:
    """The data sets that the runs learned from."""
    found: dict[tuple[str, str, bool | None], tuple[DataEntry, list[int]]] = {}
    for place, run in enumerate(runs, start=1):
        for data in run.record.data:
            key = (data.name, data.sha256, data.canonical)
            found.setdefault(key, (data, []))[1].append(place)
    marks = {
        True: ("✓ canonical", "yes"),
        None: ("own data", "own"),
        False: ("⚠ not canonical", "no"),
    }
    rows: list[list[Node]] = []
    for data, places in found.values():
        text, look = marks[data.canonical]
        rows.append(
            [
                one_line(data.name, 60),
                tag("td", tag("span", text, class_=f"mark {look}"), class_="t"),
                cell(one_line(data.source, 60)),
                cell(one_line(data.note, 300)),
                tag("td", tag("code", data.sha256[:16]), class_="t"),
                cell(_run_names(places, runs)),
            ]
        )
    heads = ["data set", "content", "read from", "note", "SHA-256 begins", "runs"]
    return table(
        "Data sets, and whether their content is the published one", heads, rows, texts=range(1, 6)
    )


def environments(runs: Sequence[Run]) -> Element:
    """The environments of the runs; times compare only within one of them."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, run in enumerate(runs, start=1):
        env = run.record.environment
        texts = (env.nispa, env.python, env.torch, env.numpy, env.kernels, env.device, env.cpu)
        found.setdefault((*texts, env.threads, env.platform), []).append(place)
    rows: list[list[Node]] = [
        [
            cell(_run_names(places, runs), head=True),
            *(cell(one_line(str(value), 80)) for value in values),
        ]
        for values, places in found.items()
    ]
    heads = ["runs", "nispa", "Python", "torch", "numpy", "kernels", "device", "processor"]
    heads += ["threads", "platform"]
    return table("What the runs ran with", heads, rows, texts=range(1, 10))


def _run_names(places: Sequence[int], runs: Sequence[Run]) -> str:
    if len(set(places)) == len(runs):
        return "all"
    return listed([runs[place - 1].name for place in places], MAX_NAMES)


# --- Methods side by side ------------------------------------------------------------------------


def side_by_side(problem: Problem, number: int) -> list[Node]:
    """A table of a problem's groups, and charts if there is something to compare."""
    ranked = problem.ranked
    groups = ranked + [group for group in problem.groups if group.estimate is None]
    counted = [run for group in ranked for _, run in group.counted]
    heads = ["method", "runs", "accuracy (%)", "std", "95 % interval", "forgetting (%)"]
    if any(other_accuracy(run) is not None for run in counted):
        is_told = problem.record.told
        heads.append(f"{'not told the task' if is_told else 'told the task'} (%)")
    rows = [_group_row(group)[: len(heads)] for group in groups]
    caption = f"Accuracy, {told(problem.record)}: means over runs"
    made: list[Node] = [_of_groups(caption, heads, rows, groups, f"methods-{number}")]
    made += [warn(f"⚠ {text}.") for text in cautions.of_tasks(run.record for run in counted)]
    drawn = ranked[:MAX_SPOTS]
    if len(counted) > 1:
        charts = [_intervals(drawn, number), _so_far(problem, drawn, number)]
        made.append(_best(len(drawn), len(ranked)))
        made.append(tag("div", *charts, _against_costs(drawn, number), class_="charts"))
    return [*made, *_costs(groups, number)]


def _of_groups(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Node]],
    groups: Sequence[Group],
    name: str,
) -> Element:
    """A table with a row per group, hidden with the last of its runs."""
    made = table(caption, heads, rows, id_=name)
    for line, group in zip(list(made.iter("tr"))[1:], groups, strict=True):
        line.set("data-group", str(group.number))
    return made


def _best(shown: int, total: int) -> Node:
    if shown == total:
        return None
    return tag("p", f"In the picture: the {shown} best of {total} methods.", class_="note")


def _group_row(group: Group) -> list[Node]:
    found, counted, given = group.estimate, len(group.counted), len(group.members)
    within = found.interval if found else None
    return [
        cell(group.label, head=True),
        str(counted) if counted == given else f"{counted} of {given}",
        percent(found.mean if found else None),
        percent(found.sd if found else None),
        " to ".join(map(percent, within)) if within else "-",
        percent(group.mean(lambda run: run.forgetting)),
        percent(group.mean(other_accuracy)),
    ]


def _costs(groups: Sequence[Group], number: int) -> list[Node]:
    """A table of the mean costs that are known of any group."""
    means = {name: [group.mean(_cost(name)) for group in groups] for name in COSTS}
    known = [name for name in COSTS if any(value is not None for value in means[name])]
    if not known:
        return []
    rows: list[list[Node]] = [
        [
            cell(group.label, head=True),
            percent(group.mean(lambda run: run.accuracy)),
            *(KINDS[name].text(means[name][k]) for name in known),
        ]
        for k, group in enumerate(groups)
    ]
    heads = ["method", "accuracy (%)", *(KINDS[name].label for name in known)]
    return [_of_groups("Cost: means over runs", heads, rows, groups, f"costs-{number}")]


def _short(group: Group) -> str:
    """A label for charts: the beginning and, since settings differ there, the end."""
    label = group.label
    return label if len(label) <= 24 else f"{label[:8]}…{label[-15:]}"


def _spots(groups: Sequence[Group], cost: str | None) -> list[Spot]:
    """The groups as points, in per cent, over a cost if it is known of all their runs."""
    spots = []
    for group in groups:
        x = group.mean(_cost(cost)) if cost else 0.0
        if x is None or group.estimate is None:
            continue
        runs = [
            (place, (run.cost(cost) or 0.0) if cost else 0.0, 100 * (run.accuracy or 0.0))
            for place, run in group.counted
        ]
        ends = group.estimate.interval
        within = ends and (100 * ends[0], 100 * ends[1])
        label = _short(group) if cost else one_line(group.label, 54)
        spots.append(Spot(group.number, label, 100 * group.estimate.mean, within, x, runs))
    return spots


def _intervals(groups: Sequence[Group], number: int) -> Element:
    spots = _spots(groups, None)
    desc = "; ".join(f"{spot.label} {spot.mean:.2f}" for spot in spots)
    title = "Mean accuracy of each method (%)"
    words = Words(f"acc-{number}", title, desc, f"methods-{number}")
    caption = "Mean accuracy (diamond), 95 % interval of the mean (line), runs (dots)"
    return figure(caption, intervals(words, spots, "accuracy (%)"))


def _against_costs(groups: Sequence[Group], number: int) -> Node:
    """Accuracy against a cost chosen with radio buttons; the style sheet shows its chart."""
    chooser = tag("fieldset", tag("legend", "Accuracy against"), class_="axes")
    charts: list[Element] = []
    for name, word in COSTS.items():
        spots, kind = _spots(groups, name), KINDS[name]
        if len(spots) < 2 or max(spot.x for spot in spots) <= 0:
            continue
        # With a method missing, points and rows of the table would not agree.
        rows = f"costs-{number}" if len(spots) == len(groups) else None
        desc = "; ".join(f"{spot.label} {spot.mean:.2f} % at {kind.text(spot.x)}" for spot in spots)
        words = Words(f"{name}-{number}", f"Accuracy against {kind.label}", desc, rows)
        id_ = f"axis-{name}-{number}"
        button = tag("input", type="radio", name=f"axis-{number}", id=id_)
        if not charts:
            button.set("checked", "checked")
        charts.append(scatter(words, spots, kind.title))
        add(chooser, button, tag("label", word, for_=id_))
    return figure(None, add(chooser, *charts)) if charts else None


def _so_far(problem: Problem, groups: Sequence[Group], number: int) -> Node:
    """Mean accuracy over the tasks learned so far, averaged over the runs of each group."""
    record = problem.record
    tasks = range(len(record.tasks))
    if not 2 <= len(tasks) <= 100:
        return None
    shown = groups[:MAX_LINES]
    series = []
    for group in shown:
        curves = [_curve(run) for _, run in group.counted]
        points = [mean_of_all(curve[task] for curve in curves) for task in tasks]
        series.append(Series(_short(group), points, group.number - 1, group.number))
    rows: list[list[Node]] = []
    for task in tasks:
        values = [line.values[task] for line in series]
        texts = ["" if value is None else f"{value:.2f}" for value in values]
        rows.append([task_label(record, task), *texts])
    name = f"sofar-table-{number}"
    title = "Mean accuracy over the tasks learned so far (%)"
    words = Words(f"sofar-{number}", title, "One line per method, with its name at its end.", name)
    made = table(title, ["after task", *(group.label for group in shown)], rows, id_=name)
    for row in made.iter("tr"):
        for group, column in zip(shown, list(row)[1:], strict=True):
            column.set("data-group", str(group.number))
    names = [task_name(record, task) for task in tasks]
    across = Across(names, "after task")
    ends = percent_range([v for line in series for v in line.values if v is not None])
    chart = lines(words, across, series, ends, "%")
    return figure(title, chart, folded("As a table", made), _best(len(series), len(groups)))


def _curve(run: Run) -> list[float | None]:
    matrix = as_matrix(run.record.main_matrix)
    means = [float(matrix[task, : task + 1].mean()) for task in range(len(matrix))]
    return [None if math.isnan(value) else 100 * value for value in means]


# --- Settings and formulas -----------------------------------------------------------------------


def differing(problem: Problem) -> Node:
    """A table of the settings in which a problem's groups differ."""
    groups = problem.groups[:MAX_COLUMNS]
    settings = [
        {name: one_line(as_text(value), 120) for name, value in flatten(g.record.config).items()}
        for g in groups
    ]
    names = list(dict.fromkeys(name for each in settings for name in each))
    names = [name for name in names if len({each.get(name) for each in settings}) > 1]
    if not names:
        return None
    # First the settings that all methods have, then those of some.
    names.sort(key=lambda name: sum(name not in each for each in settings))
    rows: list[list[Node]] = [
        [name, *(cell(each.get(name, "–")) for each in settings)] for name in names[:MAX_SETTINGS]
    ]
    heads = ["setting", *(group.label for group in groups)]
    caption = f"Settings that differ on {problem.label} (–: the method has no such setting)"
    return table(caption, heads, rows, texts=range(1, len(heads)))


def formulas(runs: Sequence[Run]) -> list[Node]:
    """Formulas and sources, and a warning if a record states another accuracy than its matrix."""
    rows: list[list[Node]] = [
        [label, cell(METRICS[name].formula), cell(METRICS[name].source)]
        for name, label in (("acc", "accuracy"), ("forgetting", "forgetting"))
    ]
    made = table("Numbers and their formulas", ["number", "formula", "source"], rows, texts=(1, 2))
    off = [run.name for run in runs if _disagrees(run)]
    if not off:
        return [made]
    names = listed(off, MAX_LINES)
    text = f"⚠ In these records the accuracy is not that of the matrix: {names}."
    return [made, warn(text, " The page shows that of the matrix.")]


def _disagrees(run: Run) -> bool:
    stated, found = run.record.main_metrics.get("acc"), run.accuracy
    if stated is None or stated.value is None or found is None:
        return False
    return stated.formula == METRICS["acc"].formula and abs(stated.value - found) > 1e-6
