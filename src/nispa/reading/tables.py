"""A run's record as tables for a terminal: complete at 80 columns, readable without colour.

Records may come from anyone: texts are cut to one line, lose their control characters and are never
read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nispa.errors import needs
from nispa.files import one_line
from nispa.runs.costs import cost_of, scaled, task_operations
from nispa.runs.metrics import METRICS, Matrix, as_matrix, percent
from nispa.runs.record import Cost, MetricValue, Record, TaskResult, kind_in_words

with needs("reports", "a table on the terminal"):
    from rich import box
    from rich.console import Group, RenderableType
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

LABELS = {
    "acc": "accuracy (acc)",
    "bwt": "backward transfer (bwt)",
    "fwt": "forward transfer (fwt)",
    "forgetting": "forgetting",
}
HINTS = {
    "acc": "mean of the last row",
    "bwt": "last row minus diagonal",
    "fwt": "before learning minus chance",
    "forgetting": "best earlier row minus last row",
}
MAX_NOTES = 20
MAX_NAMED = 50  # tasks, and classes of a task, that are named


def render(record: Record, width: int = 80) -> RenderableType:
    """What a run learned, kept and cost, for ``rich.console.Console.print``.

    Args:
        record: The run.
        width: Columns of the terminal; wider tables take a more compact form.
    """
    parts: list[RenderableType] = [_head(record), _data(record), *_classes(record)]
    told = _accuracy(record, "Accuracy on each task (%)", record.accuracy_matrix, width)
    untold: list[RenderableType] = []
    if record.accuracy_matrix_task_agnostic is not None:
        title = "Accuracy without knowing the task (%)"
        untold = _accuracy(record, title, record.accuracy_matrix_task_agnostic, width)
    parts += told + untold if record.incremental == "task" else untold + told
    parts += [Text(), _metrics(record)]
    if record.per_task:
        parts += [_title("Learning"), _learning(record), *_costs(record)]
    parts += [*_stable_units(record, width), *_connections(record)]
    parts += [_size(record), _environment(record)]
    parts += [Text("Note: " + one_line(note, 500)) for note in record.notes[:MAX_NOTES]]
    if len(record.notes) > MAX_NOTES:
        parts.append(Text(f"... and {len(record.notes) - MAX_NOTES} more notes in the record"))
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def new_table(
    first: str, *numbers: str | Text, gap: int = 2, width: int | None = None, fold: bool = False
) -> Table:
    """An empty table of a column of text and columns of numbers, ``gap`` blanks apart.

    A text too long for its column is cut, or goes on in the next line with ``fold``.
    """
    # One of the blanks belongs to the box.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
    if fold:
        table.add_column(first, overflow="fold")
    else:
        table.add_column(first, no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    return table


def _task(record: Record, index: int) -> str:
    digits = len(str(len(record.tasks)))
    return f"{index + 1:>{digits}} {one_line(record.title_of(index), 14)}"


# --- What was run --------------------------------------------------------------------------------


def _head(record: Record) -> Text:
    words = [one_line(record.scenario.name, 40), one_line(record.method, 30)]
    words.append(kind_in_words(record.incremental, record.told))
    if record.preset:
        words.append(f"preset {one_line(record.preset, 30)}")
    text = Text(", ".join([*words, f"seed {record.seed}"]), style="bold")
    if record.status == "complete":
        return text
    return text.append(f"\n{record.status.upper()} after {record.progress}", style="bold yellow")


def settings_table(record: Record) -> RenderableType:
    """Every setting of a run by the name that ``--set`` takes, those from the data by task."""
    table = new_table("setting", fold=True)
    table.add_column("value", overflow="fold")
    for part in ("method", "network"):
        values = record.config.get(part)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            by_task = [task[name] for task in record.derived if name in task]
            text = _setting(value)
            if by_task:
                distinct = list(dict.fromkeys(map(_setting, by_task)))
                each = distinct if len(distinct) == 1 else map(_setting, by_task)
                text = f"{', '.join(each)} (from the data)"
            if name != "derived":  # said beside each value
                table.add_row(one_line(str(name), 40), one_line(text, 500))
    return Group(_title("Settings"), table)


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(_setting, value))
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _data(record: Record) -> Text:
    lines = []
    for data in record.data:
        line = Text(f"Data: {one_line(data.name, 40)}")
        if data.canonical is False:
            line.append(" ").append("NOT THE CANONICAL DATA", style="bold reverse red")
        else:
            line.append(" (canonical)" if data.canonical else " (own data)")
        if data.note:
            line.append(f": {one_line(data.note, 300)}")
        lines.append(line.append(f" [sha256 {data.sha256[:12]}]", style="dim"))
    if record.samples:
        lines.append(Text(f"Samples: {record.samples}"))
    return Text("\n").join(lines)


def _classes(record: Record) -> list[RenderableType]:
    """The classes of each task, unless they have no names but numbers."""
    if all(name.isdigit() for name in record.class_names):
        return []
    lines = ["Classes:"]
    for index in range(min(len(record.tasks), MAX_NAMED)):
        names = [one_line(name, 40) for name in record.classes_of(index)]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        lines.append(f"  {index + 1} {', '.join(names[:MAX_NAMED])}{more}")
    if len(record.tasks) > MAX_NAMED:
        lines.append(f"  ... and {len(record.tasks) - MAX_NAMED} more tasks")
    return [Text("\n".join(lines))]


# --- Accuracy ------------------------------------------------------------------------------------


def _accuracy(
    record: Record, title: str, rows: tuple[tuple[float | None, ...], ...], width: int
) -> list[RenderableType]:
    """The accuracy matrix; if it is too wide, each task when learned and at the end."""
    if not rows:
        return [Text("\nNo task was measured yet.")]
    matrix = as_matrix(rows)
    tasks = len(matrix)
    if tasks <= width:
        label = max(len(_task(record, index)) for index in range(tasks))
        number = len(str(tasks))
        full = max([4, *(len(_cell(value, 1)) for value in matrix.flat)])
        short = max([number, *(len(_cell(value, 0)) for value in matrix.flat)])
        head = _title(f"{title} after each task")
        if label + tasks * (full + 2) <= width:
            return [head, _matrix_table(record, matrix, 1, full)]
        if max(number, len("after")) + tasks * (short + 1) <= width:
            return [head, _matrix_table(record, matrix, 0, short)]
    return [_title(f"{title}; the whole matrix is in record.json"), _end_table(record, matrix)]


def _cell(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _matrix_table(record: Record, matrix: Matrix, digits: int, width: int) -> Table:
    tasks = len(matrix)
    heads = (str(column + 1) for column in range(tasks))
    table = new_table("after", *heads, gap=2 if digits else 1, width=width)
    for row in range(tasks):
        cells = []
        for column, value in enumerate(matrix[row]):
            style = "bold" if row == column else "dim" if column > row else ""
            if column < row and value < matrix[column, column]:
                style = "red"
            cells.append(Text(_cell(value, digits), style=style))
        table.add_row(Text(_task(record, row) if digits else str(row + 1)), *cells)
    return table


def _end_table(record: Record, matrix: Matrix) -> Table:
    """A row per task, for more tasks than a matrix has room for."""
    table = new_table("task", "when learned", "at the end", "change")
    measured = [row for row in matrix if not all(map(math.isnan, row))]
    end = measured[-1] if measured else matrix[-1]
    for index in range(len(matrix)):
        change = end[index] - matrix[index, index]
        text = "" if math.isnan(change) else percent(change, signed=True)
        table.add_row(
            Text(_task(record, index)),
            _cell(matrix[index, index], 2),
            _cell(end[index], 2),
            Text(text, style="red" if change < 0 else ""),
        )
    return table


def _metrics(record: Record) -> Table:
    untold = record.metrics_task_agnostic
    table = new_table("metric (%)", *(("task known", "unknown") if untold else ("value",)))
    table.add_column("formula")
    for name, metric in record.metrics.items():
        known = name in HINTS and metric.formula == METRICS[name].formula
        formula = HINTS[name] if known else one_line(metric.formula, 100)
        table.add_row(
            Text(LABELS.get(name, one_line(name, 24))),
            _value(record.metrics, name),
            *([_value(untold, name)] if untold else []),
            Text(formula, style="dim"),
        )
    return table


def _value(metrics: Mapping[str, MetricValue], name: str) -> Text:
    value = metrics[name].value if name in metrics else None
    return Text(percent(value, signed=name in ("bwt", "fwt")), style="bold")


# --- Learning and costs --------------------------------------------------------------------------


def _learning(record: Record) -> Table:
    table = new_table("task", "phases", "tau", "samples", "train s")
    table.add_column("stopped because", overflow="fold")
    for index, task in enumerate(record.per_task):
        table.add_row(
            Text(_task(record, index)),
            str(task.phases),
            "-" if task.tau is None else f"{task.tau:.3f}",
            f"{task.samples_trained:,}",
            f"{task.train_s:,.1f}",
            Text(one_line(task.stop_reason or "-", 80)),
        )
    samples = sum(task.samples_trained for task in record.per_task)
    seconds = sum(task.train_s for task in record.per_task)
    table.add_row("all", "", "", f"{samples:,}", f"{seconds:,.1f}", "", style="bold")
    return table


COST_HEADS = ("train op.", "op./sample", "train CPU s", "eval CPU s", "model B", "peak B")


def _costs(record: Record) -> list[RenderableType]:
    """The cost of each task, and the purposes of operations; nothing if unknown."""
    total = cost_of(record)
    if total.model_bytes is None and total.train_cpu_s is None:
        return []
    table = new_table("task", *COST_HEADS, gap=1)
    for index, task in enumerate(record.per_task):
        table.add_row(Text(_task(record, index)), *_cost_texts(task_operations(task), task))
    table.add_row("all", *_cost_texts(total.train_operations, total), style="bold")
    parts: list[RenderableType] = [_title("Cost (op.: floating-point operations)"), table]
    if total.operations:
        purposes = ", ".join(
            f"{one_line(name, 30).replace('_', ' ')} {scaled(count).strip()}"
            for name, count in total.operations.items()
        )
        parts.append(Text(f"Training operations: {one_line(purposes, 500)}"))
    if total.eval_s is not None:
        parts.append(Text(f"Evaluation took {_brief(total.eval_s, 's')} s, all tasks together"))
    return parts


def _cost_texts(operations: int | None, cost: TaskResult | Cost) -> list[str]:
    """Cells in the order of ``COST_HEADS``."""
    times = (cost.train_cpu_s, cost.eval_cpu_s)
    values = (operations, cost.inference_operations, *times, cost.model_bytes, cost.peak_bytes)
    pairs = zip(COST_HEADS, values, strict=True)
    return ["-" if value is None else _brief(value, head) for head, value in pairs]


def _brief(value: float, head: str) -> str:
    if head.endswith("s"):
        return f"{value:,.1f}" if 10 <= value < 1e7 else f"{value:.3g}"
    return scaled(value).strip()


# --- The network ---------------------------------------------------------------------------------


def _stable_units(record: Record, width: int) -> list[RenderableType]:
    """Stable units per group after each task; with many groups, after the last one only."""
    sizes = {
        group: count.size for task in record.per_task for group, count in task.stable_units.items()
    }
    if not sizes:
        return []
    heads = [f"{one_line(group, 12)}/{size}" for group, size in sizes.items()]
    label = max(len(_task(record, index)) for index in range(len(record.per_task)))
    if label + sum(max(len(head), 9) + 2 for head in heads) > width:
        table = new_table("group", "stable", "of", "share")
        for group, size in sizes.items():
            counts = [task.stable_units.get(group) for task in record.per_task]
            stable = [count.stable for count in counts if count][-1]
            texts = (f"{stable:,}", f"{size:,}", _share(stable, size))
            table.add_row(Text(one_line(group, 30)), *texts)
        return [_title("Stable units after the last task"), table]
    table = new_table("after", *map(Text, heads))
    for index, task in enumerate(record.per_task):
        counts = [task.stable_units.get(group) for group in sizes]
        cells = [f"{c.stable} {_share(c.stable, c.size)}" if c else "-" for c in counts]
        table.add_row(Text(_task(record, index)), *cells)
    return [_title("Stable units after each task"), table]


def _connections(record: Record) -> list[RenderableType]:
    layers = record.per_task[-1].connections if record.per_task else {}
    if not layers:
        return []
    # Owed connections were dropped without a place to grow: live + owed is constant.
    owed = any(count.owed for count in layers.values())
    heads = ("live", "of", "density", "frozen", "of the live")
    table = new_table("layer", *heads, *(["without a place"] if owed else []))
    for layer, count in layers.items():
        table.add_row(
            Text(one_line(layer, 30)),
            f"{count.live:,}",
            f"{count.total:,}",
            _density(count.live, count.total),
            f"{count.frozen:,}",
            _share(count.frozen, count.live),
            *([f"{count.owed:,}"] if owed else []),
        )
    return [_title("Connections after the last task"), table]


def _share(part: int, whole: int) -> str:
    """A share in per cent, never rounded to 0 % or 100 %."""
    if not whole:
        return "-"
    rounded = round(100 * part / whole)
    least, most = (1 if part else 0), (99 if part < whole else 100)
    return f"{min(max(rounded, least), most)}%"


def _density(live: int, total: int) -> str:
    return f"{live / total:.3f}" if total else "-"


def _size(record: Record) -> Text:
    if record.parameters is None:
        return Text("\nParameters: not known")
    live, total = record.parameters.live, record.parameters.total
    density = _density(live, total)
    text = Text(f"\nParameters: {live:,} live of {total:,} positions (density {density})")
    kept = record.per_task[-1].storage if record.per_task else {}
    if kept:
        parts = (f"{one_line(name, 30)} {decimal(size)}" for name, size in kept.items())
        text.append(f"\nKept beside the network: {', '.join(parts)}")
    return text


def _environment(record: Record) -> Text:
    env = record.environment
    count = "unknown" if env.threads is None else str(env.threads)
    threads = f"{count} thread{'s' if env.threads != 1 else ''}"
    where = (
        f"{env.device} ({env.cpu}, {threads}), {env.kernels} kernels, "
        f"nispa {env.nispa}, torch {env.torch}, Python {env.python}"
    )
    when = f"Started: {record.started}, finished: {record.finished or 'no'}"
    if record.started is None:
        when = "When it ran is not known"
    return Text(f"Ran on: {one_line(where, 300)}\n{when}", style="dim")
