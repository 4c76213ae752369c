"""One run on the page: accuracy, units, phases, connections, what each task took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Run, as_text, flatten
from nispa.runs.costs import KINDS, cost_of, task_operations
from nispa.runs.metrics import Matrix, as_matrix, percent
from nispa.runs.record import Record, TaskResult
from nispa.webpage import capacity
from nispa.webpage.charts import Across, Series, Words, beside, lines
from nispa.webpage.markup import Node, add, cell, folded, scroll, table, tag
from nispa.webpage.names import classes_of, task_label, task_name
from nispa.webpage.network import MAX_TASKS, chosen, connections, only, phases, units
from nispa.webpage.problems import told
from nispa.webpage.scales import rounded

MAX_SETTINGS = 200
MAX_NOTES = 20
MAX_PURPOSES = 30
TASK_COSTS = (
    "inference_operations",
    "train_cpu_s",
    "eval_s",
    "eval_cpu_s",
    "live",
    "model_bytes",
    "peak_bytes",
)


def details(run: Run, place: int, *, alone: bool) -> Element:
    """The section of one run; ``place`` is its number on the page, where it may stand alone."""
    record = run.record
    if alone:
        section = tag("div", tag("h3", run.name), id=f"run-{place}")
    else:
        head = tag("summary", tag("h3", f"{place}. {run.name}"))
        section = tag("details", head, id=f"run-{place}", data_run=place)
    add(section, tag("p", _line(record)))
    notes = [run.note] if run.note else []
    notes += [one_line(note, 500) for note in record.notes[:MAX_NOTES]]
    if len(record.notes) > MAX_NOTES:
        notes.append(f"and {len(record.notes) - MAX_NOTES} more notes in the record")
    for note in notes:
        add(section, tag("p", f"Note: {note}", class_="note"))
    add(section, *_accuracies(run, place))
    if record.per_task:
        add(section, *units(record, place), *capacity.section(record))
        add(section, *phases(run, place), *connections(record, place), *_learning(record))
    add(section, _settings(run))
    return section


def _line(record: Record) -> str:
    words = [one_line(record.scenario.name, 40), one_line(record.method, 30)]
    words.append(f"{record.incremental}-incremental ({told(record)})")
    words += [f"preset {one_line(record.preset, 30)}"] if record.preset else []
    words += [f"seed {record.seed}", record.status]
    if record.status != "complete":
        words[-1] += f" after {len(record.accuracy_matrix)} of {len(record.tasks)} tasks"
    words += [f"started {record.started}"] if record.started else []
    return ", ".join(words)


# Accuracy


def _accuracies(run: Run, place: int) -> list[Node]:
    record = run.record
    if not record.main_matrix:
        return [tag("h4", "Accuracy"), tag("p", "No task was measured yet.")]
    told = ("told the task", record.accuracy_matrix)
    untold = ("not told the task", record.accuracy_matrix_task_agnostic or ())
    both = [untold, told] if record.main_matrix is not record.accuracy_matrix else [told, untold]
    maps = [tag("h4", "Accuracy")]
    for number, (how, rows) in enumerate(both):
        if rows:
            counts = " This is what counts." if number == 0 else " For comparison."
            caption = f"Accuracy on each task (%) after each task, {how}.{counts}"
            maps.append(_heat_map(record, as_matrix(rows), caption, f"heat-{place}-{number}"))
    shown = chosen(len(record.tasks), MAX_TASKS)
    chart = _over_time(record, as_matrix(record.main_matrix), f"heat-{place}-0", place)
    note = only(len(shown), len(record.tasks), "tasks")
    return [maps[0], tag("div", *maps[1:], tag("figure", chart), class_="charts"), note]


def _heat_map(record: Record, matrix: Matrix, caption: str, name: str) -> Element:
    """A table whose cells carry shades: the number says the same as the shade."""
    shown = chosen(len(matrix), MAX_TASKS)
    digits = 1 if len(shown) <= 12 else 0
    head = tag("tr", tag("th", "after", scope="col"))
    names = [task_name(record, column) for column in shown]
    look = "n" if max(map(len, names)) <= 5 else "up"  # long names run upwards
    for name_ in names:
        add(head, tag("th", tag("span", name_), scope="col", class_=look))
    body = tag("tbody")
    for row in shown:
        line = tag("tr", tag("th", task_label(record, row), scope="row"))
        for column in shown:
            line.append(_shaded(matrix[row, column], digits, own=row == column))
        body.append(line)
    made = tag("table", tag("caption", caption), tag("thead", head), body, id=name, class_="heat")
    return scroll(caption, made)


def _shaded(value: float, digits: int, *, own: bool) -> Element:
    if math.isnan(value):
        return tag("td")
    look = f"h{min(9, int(10 * value))}"
    return tag("td", f"{100 * value:.{digits}f}", class_=f"{look} own" if own else look)


def _over_time(record: Record, matrix: Matrix, heat: str, place: int) -> Element:
    shown = chosen(len(matrix), MAX_TASKS)
    values = [100 * float(matrix[i, j]) for i in shown for j in shown if i >= j]
    low, high = rounded([value for value in values if not math.isnan(value)])
    series = []
    for look, j in enumerate(shown):
        column = [float(matrix[i, j]) if i >= j else math.nan for i in shown]
        points = [None if math.isnan(value) else 100 * value for value in column]
        series.append(Series(task_name(record, j), points, look))
    words = Words(
        f"time-{place}",
        "Accuracy of each task over time (%)",
        f"One line per task, from when it was learned, with its name at its end. {_kept(matrix)}",
        heat,
    )
    names = [each.name for each in series]
    across = Across(names, "after task", right=beside(names))
    return tag(
        "div",
        tag("figcaption", words.title),
        lines(words, across, series, low=low, high=high, unit="%"),
    )


def _kept(matrix: Matrix) -> str:
    """What became of the tasks, in a sentence."""
    rows = [row for row in range(len(matrix)) if not math.isnan(matrix[row, row])]
    if len(rows) < 2:
        return "One task was learned."
    changes = [float(matrix[rows[-1], j] - matrix[j, j]) for j in rows[:-1]]
    known = [change for change in changes if not math.isnan(change)]
    if not known:
        return "Earlier tasks were not measured again."
    worst = min(known)
    if worst == max(known) == 0:
        return "No task changed after it was learned."
    return f"The most that a task lost is {percent(max(0.0, -worst))} points."


# What it took


def _learning(record: Record) -> list[Node]:
    shown = chosen(len(record.per_task), MAX_TASKS)
    rows = [_task_row(record, index, record.per_task[index]) for index in shown]
    heads = ["task", "classes", "training samples", "phases", "τ", "samples seen", "seconds"]
    heads += ["bytes kept", "stopped because"]
    made = table("What each task took", heads, rows, texts=(1, 8))
    return [tag("h4", "What each task took"), made, *_costs(record, shown)]


def _costs(record: Record, shown: Sequence[int]) -> list[Node]:
    """What each task cost, and what operations were for; nothing where none of it is known."""
    total = cost_of(record)
    if total.model_bytes is None and total.train_cpu_s is None:
        return []
    rows: list[list[Node]] = []
    for index in shown:
        task = record.per_task[index]
        values = (task_operations(task), *(getattr(task, name) for name in TASK_COSTS))
        rows.append([task_label(record, index), *_texts(values)])
    values = (total.train_operations, *(getattr(total, name) for name in TASK_COSTS))
    rows.append(["all", *_texts(values)])
    heads = ["task", *(KINDS[name].label for name in ("train_operations", *TASK_COSTS))]
    made: list[Node] = [table("What each task cost", heads, rows)]
    if total.operations:
        kind = KINDS["train_operations"]
        parts: list[list[Node]] = [
            [one_line(name, 40).replace("_", " "), kind.text(count)]
            for name, count in list(total.operations.items())[:MAX_PURPOSES]
        ]
        caption = "What the training operations were for, all tasks"
        made.append(folded(caption, table(caption, ["for", "operations"], parts)))
    return made


def _texts(values: Iterable[float | None]) -> list[str]:
    kinds = (KINDS[name] for name in ("train_operations", *TASK_COSTS))
    return [
        "" if value is None or value > 1e25 else kind.text(value)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _task_row(record: Record, index: int, task: TaskResult) -> list[Node]:
    return [
        task_label(record, index),
        cell(one_line(", ".join(classes_of(record, index)), 300)),
        _count(record.tasks[index].train),
        f"{task.phases:,}",
        "" if task.tau is None else f"{task.tau:.3f}",
        f"{task.samples_trained:,}",
        f"{task.train_s:,.1f}" if task.train_s < 1e12 else "",
        f"{sum(task.storage.values()):,}",
        cell(one_line((task.stop_reason or "").replace("_", " "), 60)),
    ]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _settings(run: Run) -> Element:
    pairs = [(name, as_text(value)) for name, value in flatten(run.record.config).items()]
    rows: list[list[Node]] = [[name, value] for name, value in pairs[:MAX_SETTINGS]]
    made = table(
        "Settings after presets and command line, defaults included",
        ["setting", "value"],
        rows,
        texts=(1,),
    )
    more = len(pairs) - len(rows)
    note = tag("p", f"and {more:,} more in the record", class_="note") if more > 0 else None
    return folded("All settings", made, note)
