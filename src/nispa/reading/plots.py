"""The picture of a run: the accuracy of each task over time, and the units it made stable.

Three panels: the accuracy matrix as a heat map; the share of stable units per hidden group after
each task (for methods that have them); each task right after it was learned and at the end. Drawn
from a record alone, without torch and without matplotlib's global state. One hue in steps of
lightness, and blue against orange (Okabe and Ito): distinct in any colour vision, and in grey.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np

from nispa.errors import needs
from nispa.files import one_line
from nispa.runs.metrics import Matrix, as_matrix, percent
from nispa.runs.record import Record

with needs("reports", "the picture of a run"):
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec, SubplotSpec
    from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#B03A00"
INK, GREY, PALE = "#222222", "#6B6B6B", "#E4E8EC"
SHADES = LinearSegmentedColormap.from_list("shades", ["#EDF3F8", "#85B8DA", "#1268A3", "#093E6B"])
MAX_NAMED_TASKS = 24  # more would leave neither names nor numbers readable
MAX_GROUP_PANELS = 6
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so pictures are the same everywhere
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def picture(record: Record) -> bytes:
    """The picture of a run as a PNG of 1,736 by 868 pixels.

    A record gives the same bytes whatever the user's matplotlib settings, with one version of it.
    """
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # Names in a script that the font lacks are drawn as boxes; nobody can act on a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw(record)
        out = io.BytesIO()
        canvas = FigureCanvasAgg(figure)
        canvas.print_figure(out, format="png", dpi=140, metadata={"Software": None})
    return out.getvalue()


def draw(record: Record) -> Figure:
    """The picture as a figure outside any window and global state."""
    with style.context(STYLE, after_reset=True):
        return _draw(record)


def _draw(record: Record) -> Figure:
    tasks = len(record.tasks)
    matrix = np.full((tasks, tasks), np.nan)
    if record.main_matrix:
        matrix = as_matrix(record.main_matrix)
    figure = Figure(figsize=(12.4, 6.2), facecolor="white")
    grid = GridSpec(
        2,
        2,
        figure=figure,
        width_ratios=(1.1, 1),
        left=0.04 + 0.0056 * max(map(len, _names(record)), default=0),
        right=0.985,
        top=0.775,
        bottom=0.095,
        hspace=0.55,
        wspace=0.12,
    )
    _heat_map(figure.add_subplot(grid[:, 0]), matrix, _names(record))
    shares = _stable_shares(record)
    if shares:
        _stable_units(figure, grid[0, 1], record, shares)
    _learned_and_kept(figure.add_subplot(grid[1, 1] if shares else grid[:, 1]), matrix)
    _title(figure, record)
    return figure


def _names(record: Record) -> list[str]:
    """A label per task: its number, from 1, and its name if there is room."""
    tasks = range(len(record.tasks))
    if len(tasks) > MAX_NAMED_TASKS:
        return [str(index + 1) for index in tasks]
    return [f"{index + 1} · {one_line(record.title_of(index), 16)}" for index in tasks]


def _title(figure: Figure, record: Record) -> None:
    preset = f"  ·  preset {one_line(record.preset, 30)}" if record.preset else ""
    head = f"{one_line(record.scenario.name, 40)}  ·  {one_line(record.method, 30)}{preset}"
    head += f"  ·  {record.incremental}-incremental  ·  seed {record.seed}"
    size = 15 if len(head) <= 85 else 11
    figure.text(0.015, 0.95, head, fontsize=size, fontweight="bold", va="center")
    numbers = []
    for name, label in (("acc", "mean accuracy"), ("forgetting", "forgetting")):
        metric = record.main_metrics.get(name)
        if metric is not None and metric.value is not None:
            numbers.append(f"{label} {percent(metric.value)} %")
    if record.status != "complete":
        numbers.append(f"{record.status} after {record.progress}")
    figure.text(0.015, 0.9, "  ·  ".join(numbers), fontsize=12, va="center")
    other = [data for data in record.data if data.canonical is False]
    if other:
        text = "Not the canonical data: " + "; ".join(
            f"{data.name} ({data.note})" if data.note else data.name for data in other
        )
    else:
        kinds = {True: "canonical", None: "own data"}
        named = [f"{data.name} ({kinds[data.canonical]})" for data in record.data]
        text = f"Data: {', '.join(named)}"
    figure.text(
        0.015, 0.86, one_line(text, 150), fontsize=9.5, color=RED if other else GREY, va="center"
    )


def _heat_map(axes: Axes, matrix: Matrix, names: list[str]) -> None:
    """Accuracy on each task (column) after each task (row); uncoloured before it was learned."""
    tasks = len(matrix)
    axes.set_title("Accuracy (%) on each task, after each task")
    learned = np.tril(np.ones_like(matrix, dtype=bool)) & ~np.isnan(matrix)
    lowest = min(0.5, math.floor(matrix[learned].min() * 10) / 10) if learned.any() else 0.0
    extent = (0.5, tasks + 0.5, tasks + 0.5, 0.5)
    _shades(axes, np.ma.masked_array(matrix, ~learned), lowest, extent)
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after task")
    if tasks > MAX_NAMED_TASKS:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        return
    axes.set_xticks(range(1, tasks + 1))
    axes.set_yticks(range(1, tasks + 1), names)
    axes.set_xticks(np.arange(1, tasks) + 0.5, minor=True)
    axes.set_yticks(np.arange(1, tasks) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2.0 if tasks <= 10 else 1.0)
    axes.tick_params(which="minor", length=0)
    digits, size = (1, 12.0 if tasks <= 6 else 9.5) if tasks <= 10 else (0, 8.0)
    axes.tick_params(labelsize=10 if tasks <= 10 else 8)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isnan(value):
            continue
        dark = (value - lowest) / (1 - lowest) > 0.45
        axes.text(
            column + 1,
            row + 1,
            f"{100 * value:.{digits}f}",
            ha="center",
            va="center",
            fontsize=size if learned[row, column] else size - 1.5,
            fontweight="bold" if row == column else "normal",
            color=("white" if dark else INK) if learned[row, column] else GREY,
        )


def _shades(
    axes: Axes, values: Any, lowest: float, extent: tuple[float, float, float, float]
) -> None:
    """A matrix as an image from ``lowest`` (pale) to 1 (dark)."""
    axes.imshow(
        values, cmap=SHADES, vmin=lowest, vmax=1, aspect="auto", interpolation="nearest",
        extent=extent,
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _stable_shares(record: Record) -> dict[str, list[float]]:
    """Share of stable units per group after each task; empty if the method has none."""
    shares: dict[str, list[float]] = {}
    for index, task in enumerate(record.per_task):
        for group, count in task.stable_units.items():
            values = shares.setdefault(group, [])
            values.extend([math.nan] * (index - len(values)))
            values.append(count.stable / count.size if count.size else 0.0)
    return shares


def _stable_units(
    figure: Figure, place: SubplotSpec, record: Record, shares: dict[str, list[float]]
) -> None:
    """A panel of bars per group: stable units from below, the pale rest is plastic."""
    tasks = len(record.tasks)
    if len(shares) > MAX_GROUP_PANELS:
        _many_groups(figure.add_subplot(place), shares, tasks)
        return
    row = place.subgridspec(1, len(shares), wspace=0.14)
    for number, (group, values) in enumerate(shares.items()):
        axes = figure.add_subplot(row[0, number])
        at = np.arange(1, len(values) + 1)
        width = 0.84 if tasks <= 10 else 1.0
        axes.bar(at, 100.0, width=width, color=PALE)
        axes.bar(at, 100 * np.asarray(values), width=width, color=BLUE)
        axes.set_xlim(0.4, tasks + 0.6)
        axes.set_ylim(0, 100)
        if tasks <= 6:
            axes.set_xticks(range(1, tasks + 1))
        else:  # labels at the ends stay inside, clear of the next panel
            axes.set_xticks([1, (tasks + 1) // 2, tasks])
            first, _, last = axes.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([0, 50, 100], ["0", "50", "100"] if number == 0 else ["", "", ""])
        size = _size_of(record, group)
        axes.set_xlabel(f"{one_line(group, 12)} ({size:,})", labelpad=2)
        if number == 0:
            axes.set_title("Stable units after each task (%); the pale rest is plastic")


def _size_of(record: Record, group: str) -> int:
    counts = [task.stable_units[group] for task in record.per_task if group in task.stable_units]
    return counts[-1].size


def _many_groups(axes: Axes, shares: dict[str, list[float]], tasks: int) -> None:
    """A row per group, when panels would be too small to read."""
    table = np.full((len(shares), tasks), np.nan)
    for row, values in zip(table, shares.values(), strict=True):
        row[: len(values)] = values
    axes.set_title("Stable units per group, after each task (dark: all)")
    _shades(axes, table, 0, (0.5, tasks + 0.5, len(shares) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    if len(shares) <= 16:
        axes.set_yticks(range(len(shares)), [one_line(group, 12) for group in shares], fontsize=7)
    else:
        axes.set_yticks([])
    axes.set_xlabel("task")


def _learned_and_kept(axes: Axes, matrix: Matrix) -> None:
    """Each task right after it was learned (ring) and after the last one measured (dot)."""
    tasks = len(matrix)
    axes.set_title("Learned and kept (%)")
    at = np.arange(1, tasks + 1)
    learned = 100 * matrix.diagonal()
    rows = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    end = np.full(tasks, np.nan)
    if rows.size:  # a run that was cut short ends with the last task it learned
        last = int(rows[-1])
        end[: last + 1] = 100 * matrix[last, : last + 1]
    axes.vlines(at, end, learned, color=GREY, linewidth=1.2, zorder=1)
    room = 9.5 if tasks <= 10 else 7.5 if tasks <= MAX_NAMED_TASKS else 3.5
    axes.plot(
        at, learned, "o", markersize=1.4 * room, markerfacecolor="white", markeredgecolor=ORANGE,
        markeredgewidth=room / 5, clip_on=False, label="right after learning",
    )  # fmt: skip
    axes.plot(at, end, "o", markersize=0.65 * room, color=BLUE, clip_on=False, label="at the end")
    measured = np.concatenate([learned, end])
    measured = measured[~np.isnan(measured)]
    low = max(0, math.floor((measured.min() - 4) / 10) * 10) if measured.size else 0
    axes.set_ylim(low - 0.04 * (100 - low), 100 + 0.06 * (100 - low))
    axes.set_xlim(0.4, tasks + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(MAX_NAMED_TASKS, integer=True, min_n_ticks=1))
    axes.set_yticks(np.arange(100, low - 1, -10 if low >= 50 else -20)[::-1])
    axes.grid(axis="y", color=PALE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("task")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 0.99), ncols=2, handletextpad=0.1, columnspacing=1
    )
