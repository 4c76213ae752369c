"""All runs together: what was run, on what data, and methods side by side."""

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
from nispa.runs.record import DataEntry, MetricValue
from nispa.webpage import capacity
from nispa.webpage.charts import Across, Series, Spot, Words, beside, intervals, lines, scatter
from nispa.webpage.markup import Node, add, cell, folded, table, tag
from nispa.webpage.names import task_label, task_name
from nispa.webpage.problems import Problem, other_accuracy, told
from nispa.webpage.scales import rounded

MAX_SPOTS = 30  # more groups than that cannot be told apart in a picture
MAX_SETTINGS = 200
MAX_COLUMNS = 30
MAX_LINES = 12
MAX_NAMES = 6

Value = Callable[[Run], float | None]
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
"""The costs on the page, named as in :data:`nispa.runs.costs.KINDS`, and a short word for each."""


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
    if len(runs) == 1:
        record = runs[0].record
        texts = [capacity.warning(record)]
        if record.status != "complete":
            texts.append(f"Not complete: the run is {record.status}.")
        return made + [tag("p", f"⚠ {text}", class_="warn") for text in texts if text]
    cut = [(k, run) for k, run in enumerate(runs, 1) if run.record.status != "complete"]
    full = [(k, run) for k, run in enumerate(runs, 1) if capacity.warning(run.record)]
    made += _linked("Not complete, in no mean: ", cut)
    return made + _linked("Network full or nearly so: ", full)


def unread(left_out: Sequence[str]) -> list[Node]:
    """Records that could not be read, and why."""
    if not left_out:
        return []
    shown = "; ".join(one_line(fault, 300) for fault in left_out[:MAX_LINES])
    more = f"; and {len(left_out) - MAX_LINES} more" if len(left_out) > MAX_LINES else ""
    return [tag("p", tag("strong", "⚠ Left out: "), shown, more, ".", class_="warn")]


def _linked(text: str, found: Sequence[tuple[int, Run]]) -> list[Node]:
    if not found:
        return []
    line = tag("p", tag("strong", f"⚠ {text}"), class_="warn")
    for number, (place, run) in enumerate(found[:MAX_LINES]):
        add(line, ", " if number else None, tag("a", run.name, href=f"#run-{place}"))
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
            cell(_named(places, runs)),
        ]
        for data, places in found.values()
    ]
    heads = ["data set", "content", "read from", "note", "SHA-256 begins", "runs"]
    return table(
        "Data sets, and whether their content is the published one", heads, rows, texts=range(1, 6)
    )


def _named(places: Sequence[int], runs: Sequence[Run]) -> str:
    if len(set(places)) == len(runs):
        return "all"
    shown = ", ".join(runs[place - 1].name for place in places[:MAX_NAMES])
    return shown + (f" and {len(places) - MAX_NAMES} more" if len(places) > MAX_NAMES else "")


# Methods side by side


def side_by_side(problem: Problem, number: int) -> list[Node]:
    """A table of a problem's groups, and pictures where there is something to compare."""
    counted = problem.ranked
    groups = counted + [group for group in problem.groups if group not in counted]
    name = f"methods-{number}"
    rows = [_group_row(group) for group in groups]
    heads = ["method", "runs", "accuracy (%)", "std", "95 % interval", "forgetting (%)"]
    other = "not told the task" if told(problem.record) == "told the task" else "told the task"
    if any(other_accuracy(run) is not None for group in counted for _, run in group.counted):
        heads.append(f"{other} (%)")
    caption = f"Accuracy, {told(problem.record)}: means over runs"
    made: list[Node] = [_of_groups(caption, heads, [r[: len(heads)] for r in rows], groups, name)]
    records = [run.record for group in counted for _, run in group.counted]
    made += [tag("p", f"⚠ {text}.", class_="warn") for text in cautions.of_tasks(records)]
    pictured = counted[:MAX_SPOTS]
    if sum(len(group.counted) for group in pictured) > 1:
        figures = [_intervals(pictured, number, name), _so_far(problem, pictured, number)]
        figures.append(_against(pictured, number))
        made.append(_best(len(pictured), len(counted)))
        made.append(tag("div", *figures, class_="charts"))
    return [*made, *_costs(groups, number)]


def _of_groups(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Node]],
    groups: Sequence[Group],
    name: str,
) -> Element:
    """A table with a row per group, for the choice of runs."""
    made = table(caption, heads, rows, id_=name)
    for line, group in zip(list(made.iter("tr"))[1:], groups, strict=True):
        line.set("data-group", str(group.number))
    return made


def _best(shown: int, count: int) -> Node:
    if shown == count:
        return None
    return tag("p", f"In the picture: the {shown} best of {count} methods.", class_="note")


def _costs(groups: Sequence[Group], number: int) -> list[Node]:
    """A table of what the groups of a problem cost, with what is known of any of them."""
    means = {name: [group.mean(_cost(name)) for group in groups] for name in COSTS}
    known = [name for name in COSTS if any(value is not None for value in means[name])]
    if not known:
        return []
    rows: list[list[Node]] = [
        [
            cell(group.label, head=True),
            percent(group.mean(lambda run: run.accuracy)),
            *(KINDS[name].text(means[name][place]) for name in known),
        ]
        for place, group in enumerate(groups)
    ]
    heads = ["method", "accuracy (%)", *(KINDS[name].label for name in known)]
    return [_of_groups("Cost: means over runs", heads, rows, groups, f"costs-{number}")]


def _cost(name: str) -> Value:
    return lambda run: run.cost(name)


def _group_row(group: Group) -> list[Node]:
    found = group.estimate
    row: list[Node] = [cell(group.label, head=True), _how_many(group)]
    row.append(percent(found.mean if found else None))
    row.append(percent(found.sd if found else None))
    within = found.interval if found else None
    row.append(" to ".join(map(percent, within)) if within else "-")
    return [
        *row,
        percent(group.mean(lambda run: run.forgetting)),
        percent(group.mean(other_accuracy)),
    ]


def _how_many(group: Group) -> str:
    counted, given = len(group.counted), len(group.members)
    return str(counted) if counted == given else f"{counted} of {given}"


def _short(group: Group) -> str:
    """A label for pictures: of a long one the beginning and the end, where settings differ."""
    label = group.label
    return label if len(label) <= 24 else f"{label[:8]}…{label[-15:]}"


def _intervals(groups: Sequence[Group], number: int, name: str) -> Element:
    spots = []
    for group in groups:
        runs = [(place, 0.0, 100 * (run.accuracy or 0.0)) for place, run in group.counted]
        found = group.estimate
        if found:
            within = found.interval and (100 * found.interval[0], 100 * found.interval[1])
            label = one_line(group.label, 54)
            spots.append(Spot(group.number, label, 100 * found.mean, within, runs=runs))
    desc = "; ".join(f"{spot.label} {spot.mean:.2f}" for spot in spots)
    words = Words(f"acc-{number}", "Mean accuracy of each method (%)", desc, name)
    caption = "Mean accuracy (diamond), 95 % interval of the mean (line), runs (dots)"
    return tag("figure", tag("figcaption", caption), intervals(words, spots, "accuracy (%)"))


def _against(groups: Sequence[Group], number: int) -> Node:
    """Accuracy against a cost, which radio buttons choose; the page's style shows one picture."""
    drawn = [(name, _scatter(groups, number, name)) for name in COSTS]
    there = [(name, picture) for name, picture in drawn if picture is not None]
    if not there:
        return None
    chooser = tag("fieldset", tag("legend", "Accuracy against"), class_="axes")
    for place, (name, _) in enumerate(there):
        id_ = f"axis-{name}-{number}"
        button = tag("input", type="radio", name=f"axis-{number}", id=id_)
        if not place:
            button.set("checked", "checked")
        add(chooser, button, tag("label", COSTS[name], for_=id_))
    return tag("figure", add(chooser, *(picture for _, picture in there)))


def _scatter(groups: Sequence[Group], number: int, key: str) -> Element | None:
    spots, kind = [], KINDS[key]
    for group in groups:
        runs = [(place, run.cost(key), run) for place, run in group.counted]
        known = [(k, x, 100 * (run.accuracy or 0.0)) for k, x, run in runs if x is not None]
        x, value = mean_of_all(x for _, x, _ in known), mean_of_all(y for _, _, y in known)
        if x is not None and value is not None:
            spots.append(Spot(group.number, _short(group), value, x=x, runs=known))
    if len(spots) < 2 or max(spot.x for spot in spots) <= 0:
        return None
    # Where a method is missing, rows of the table and points would not agree.
    rows = f"costs-{number}" if len(spots) == len(groups) else None
    desc = "; ".join(f"{spot.label} {spot.mean:.2f} % at {kind.text(spot.x)}" for spot in spots)
    words = Words(f"{key}-{number}", f"Accuracy against {kind.label}", desc, rows)
    return scatter(words, spots, kind.title)


def _so_far(problem: Problem, groups: Sequence[Group], number: int) -> Node:
    """Mean accuracy over the tasks learned so far, averaged over the runs of each group."""
    tasks = len(problem.record.tasks)
    if tasks < 2 or tasks > 100:
        return None
    series, values = [], []
    for group in groups[:MAX_LINES]:
        curves = [_curve(run) for _, run in group.counted]
        points = [mean_of_all(curve[task] for curve in curves) for task in range(tasks)]
        values += [point for point in points if point is not None]
        series.append(Series(_short(group), points, group.number - 1, group.number))
    rows: list[list[Node]] = []
    for task in range(tasks):
        points = [each.values[task] for each in series]
        label = task_label(problem.record, task)
        rows.append([label, *("" if p is None else f"{p:.2f}" for p in points)])
    low, high = rounded(values)
    words = Words(
        f"sofar-{number}",
        "Mean accuracy over the tasks learned so far (%)",
        "One line per method, with its name at its end.",
        f"sofar-table-{number}",
    )
    heads = ["after task", *(group.label for group in groups[:MAX_LINES])]
    values_table = table(words.title, heads, rows, id_=words.table)
    for line in values_table.iter("tr"):
        for each, cell_ in zip(series, list(line)[1:], strict=True):
            cell_.set("data-group", str(each.group))
    names = [task_name(problem.record, task) for task in range(tasks)]
    across = Across(names, "after task", right=beside(each.name for each in series))
    return tag(
        "figure",
        tag("figcaption", words.title),
        lines(words, across, series, low=low, high=high, unit="%", tall=250),
        folded("As a table", values_table),
        _best(len(series), len(groups)),
    )


def _curve(run: Run) -> list[float | None]:
    matrix = as_matrix(run.record.main_matrix)
    means = [float(matrix[task, : task + 1].mean()) for task in range(len(matrix))]
    return [None if math.isnan(value) else 100 * value for value in means]


# What differs, and where it ran


def differing(problem: Problem) -> Node:
    """Settings that are not the same in all groups of a problem."""
    groups = problem.groups[:MAX_COLUMNS]
    held = [
        {name: one_line(as_text(value), 120) for name, value in flatten(g.record.config).items()}
        for g in groups
    ]
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
    heads = ["setting", *(group.label for group in groups)]
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
        rows.append([cell(_named(places, runs), head=True), *cells])
    heads = ["runs", "nispa", "Python", "torch", "numpy", "kernels", "device", "processor"]
    heads += ["threads", "platform"]
    return table("What the runs ran with", heads, rows, texts=range(1, 10))


def formulas(runs: Sequence[Run]) -> list[Node]:
    """What the numbers are, with their sources, and whether the records say the same."""
    rows: list[list[Node]] = []
    for name, label in (("acc", "accuracy"), ("forgetting", "forgetting")):
        rows.append([label, cell(METRICS[name].formula), cell(METRICS[name].source)])
    made = table("Numbers and their formulas", ["number", "formula", "source"], rows, texts=(1, 2))
    off = [run.name for run in runs if _disagrees(run.record.main_metrics.get("acc"), run.accuracy)]
    if not off:
        return [made]
    shown = ", ".join(off[:MAX_LINES])
    text = f"⚠ In these records the accuracy is not that of the matrix: {shown}."
    return [made, tag("p", text, " The page shows that of the matrix.", class_="warn")]


def _disagrees(stated: MetricValue | None, found: float | None) -> bool:
    if stated is None or stated.value is None or found is None:
        return False
    return stated.formula == METRICS["acc"].formula and abs(stated.value - found) > 1e-6
