"""One run on the page: accuracy, units, phases, connections, costs, settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Run, as_text, flatten
from nispa.runs.costs import KINDS, cost_of, task_operations
from nispa.runs.metrics import Matrix, as_matrix, percent
from nispa.runs.record import Cost, Record, TaskResult, kind_in_words
from nispa.webpage import capacity
from nispa.webpage.charts import Across, Series, Words, lines
from nispa.webpage.markup import Node, add, cell, count, figure, folded, scroll, table, tag
from nispa.webpage.names import classes_of, task_label, task_name
from nispa.webpage.network import MAX_TASKS, connections, only, phases, spaced, units
from nispa.webpage.scales import percent_range

MAX_SETTINGS = 200
MAX_NOTES = 20
MAX_PURPOSES = 30
TASK_COSTS = ["train_operations", "inference_operations", "train_cpu_s", "eval_s", "eval_cpu_s"]
TASK_COSTS += ["live", "model_bytes", "peak_bytes"]


def details(run: Run, place: int, *, alone: bool) -> Element:
    """The section of one run.

    Args:
        run: The run.
        place: Its number on the page.
        alone: Whether it is the only one, and so not folded.
    """
    record = run.record
    if alone:
        section = tag("div", tag("h3", run.name), id=f"run-{place}")
    else:
        head = tag("summary", tag("h3", f"{place}. {run.name}"))
        section = tag("details", head, id=f"run-{place}", data_run=place)
    add(section, tag("p", title(record)))
    notes = [run.note] if run.note else []
    notes += [one_line(note, 500) for note in record.notes[:MAX_NOTES]]
    if len(record.notes) > MAX_NOTES:
        notes.append(f"and {len(record.notes) - MAX_NOTES} more notes in the record")
    add(section, *(tag("p", f"Note: {note}", class_="note") for note in notes))
    add(section, *accuracies(record, place))
    if record.per_task:
        add(section, *units(record, place), *capacity.section(record))
        add(section, *phases(run, place), *connections(record, place), *_learning(record))
    return add(section, _settings(record))


def title(record: Record) -> str:
    """What was run, in a line."""
    words = [one_line(record.scenario.name, 40), one_line(record.method, 30)]
    words.append(kind_in_words(record.incremental, record.told))
    words += [f"preset {one_line(record.preset, 30)}"] if record.preset else []
    words += [f"seed {record.seed}", record.status]
    if record.status != "complete":
        words[-1] += f" after {record.progress}"
    words += [f"started {record.started}"] if record.started else []
    return ", ".join(words)


# --- Accuracy ------------------------------------------------------------------------------------


def accuracies(record: Record, place: int) -> list[Node]:
    """The accuracy matrix, shaded, and accuracy over time."""
    head = tag("h4", "Accuracy")
    if not record.main_matrix:
        return [head, tag("p", "No task was measured yet.")]
    both = [
        ("told the task", record.accuracy_matrix),
        ("not told the task", record.accuracy_matrix_task_agnostic or ()),
    ]
    if not record.told:
        both.reverse()
    maps: list[Node] = []
    for number, (how, rows) in enumerate(both):
        if rows:
            counts = "For comparison." if number else "This is what counts."
            caption = f"Accuracy on each task (%) after each task, {how}. {counts}"
            maps.append(_heat_map(record, as_matrix(rows), caption, f"heat-{place}-{number}"))
    chart = _over_time(record, as_matrix(record.main_matrix), f"heat-{place}-0", place)
    tasks = len(record.tasks)
    note = only(min(tasks, MAX_TASKS), tasks, "tasks")
    return [head, tag("div", *maps, chart, class_="charts"), note]


def _heat_map(record: Record, matrix: Matrix, caption: str, name: str) -> Element:
    """A table with shaded cells: the number says the same as the shade."""
    shown = spaced(len(matrix), MAX_TASKS)
    digits = 1 if len(shown) <= 12 else 0
    names = [task_name(record, column) for column in shown]
    look = "n" if max(map(len, names)) <= 5 else "up"  # long names are turned upright
    heads = [tag("th", tag("span", text), scope="col", class_=look) for text in names]
    body = tag("tbody")
    for row in shown:
        line = tag("tr", tag("th", task_label(record, row), scope="row"))
        body.append(add(line, *(_shaded(matrix[row, k], digits, row == k) for k in shown)))
    head = tag("thead", tag("tr", tag("th", "after", scope="col"), *heads))
    made = tag("table", tag("caption", caption), head, body, id=name, class_="heat")
    return scroll(caption, made)


def _shaded(value: float, digits: int, own: bool) -> Element:
    if math.isnan(value):
        return tag("td")
    look = f"h{min(9, int(10 * value))}"
    return tag("td", f"{100 * value:.{digits}f}", class_=f"{look} own" if own else look)


def _over_time(record: Record, matrix: Matrix, heat: str, place: int) -> Element:
    shown = spaced(len(matrix), MAX_TASKS)
    series = []
    for look, j in enumerate(shown):
        column = [float(matrix[i, j]) if i >= j else math.nan for i in shown]
        points = [None if math.isnan(value) else 100 * value for value in column]
        series.append(Series(task_name(record, j), points, look))
    title = "Accuracy of each task over time (%)"
    desc = f"One line per task, from when it was learned, with its name at its end. {_loss(matrix)}"
    across = Across([line.name for line in series], "after task")
    ends = percent_range([v for line in series for v in line.values if v is not None])
    words = Words(f"time-{place}", title, desc, heat)
    return figure(title, lines(words, across, series, ends, "%"))


def _loss(matrix: Matrix) -> str:
    """The largest loss of a task, in a sentence."""
    rows = [row for row in range(len(matrix)) if not math.isnan(matrix[row, row])]
    if len(rows) < 2:
        return "One task was learned."
    changes = [float(matrix[rows[-1], j] - matrix[j, j]) for j in rows[:-1]]
    known = [change for change in changes if not math.isnan(change)]
    if not known:
        return "Earlier tasks were not measured again."
    if not any(known):
        return "No task changed after it was learned."
    return f"The most that a task lost is {percent(max(0.0, -min(known)))} points."


# --- Costs and settings --------------------------------------------------------------------------


def _learning(record: Record) -> list[Node]:
    shown = spaced(len(record.per_task), MAX_TASKS)
    rows = [_task_row(record, index, record.per_task[index]) for index in shown]
    heads = ["task", "classes", "training samples", "phases", "τ", "samples seen", "seconds"]
    heads += ["bytes kept", "stopped because"]
    made = table("What each task took", heads, rows, texts=(1, 8))
    return [tag("h4", "What each task took"), made, *_costs(record, shown)]


def _task_row(record: Record, index: int, task: TaskResult) -> list[Node]:
    return [
        task_label(record, index),
        cell(one_line(", ".join(classes_of(record, index)), 300)),
        count(record.tasks[index].train),
        count(task.phases),
        "" if task.tau is None else f"{task.tau:.3f}",
        count(task.samples_trained),
        f"{task.train_s:,.1f}",
        count(sum(task.storage.values())),
        cell(one_line((task.stop_reason or "").replace("_", " "), 60)),
    ]


def _costs(record: Record, shown: Sequence[int]) -> list[Node]:
    """The cost of each task and the purposes of operations; nothing if unknown."""
    total = cost_of(record)
    if total.model_bytes is None and total.train_cpu_s is None:
        return []
    rows: list[list[Node]] = []
    for index in shown:
        task = record.per_task[index]
        rows.append([task_label(record, index), *_texts(task_operations(task), task)])
    rows.append(["all", *_texts(total.train_operations, total)])
    heads = ["task", *(KINDS[name].label for name in TASK_COSTS)]
    made: list[Node] = [table("What each task cost", heads, rows)]
    if total.operations:
        parts: list[list[Node]] = [
            [one_line(name, 40).replace("_", " "), KINDS["train_operations"].text(number)]
            for name, number in list(total.operations.items())[:MAX_PURPOSES]
        ]
        caption = "What the training operations were for, all tasks"
        made.append(folded(caption, table(caption, ["for", "operations"], parts)))
    return made


def _texts(operations: int | None, cost: TaskResult | Cost) -> Iterable[str]:
    """The cells of ``TASK_COSTS``."""
    for name in TASK_COSTS:
        value = operations if name == "train_operations" else getattr(cost, name)
        yield "" if value is None else KINDS[name].text(value)


def _settings(record: Record) -> Element:
    settings = flatten(record.config)
    rows: list[list[Node]] = [
        [one_line(name, 80), one_line(as_text(value), 120)] for name, value in settings.items()
    ]
    caption = "Settings after presets and command line, defaults included"
    made = table(caption, ["setting", "value"], rows[:MAX_SETTINGS], texts=(1,))
    more = len(rows) - MAX_SETTINGS
    note = tag("p", f"and {more:,} more in the record", class_="note") if more > 0 else None
    return folded("All settings", made, note)
