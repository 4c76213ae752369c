"""nispa's step times over live weights: the straight line through them, and the picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.step import best_masked
from benchmarks.timing import medians
from nispa.reading.plots import BLUE, GREY, ORANGE, STYLE

NAMES = {"convnet": "ConvNet", "mlp": "MLP"}
Result = dict[str, Any]
"""What ``performance.measure`` returns, or one case of it."""


class Line(NamedTuple):
    """A straight line through step times over live weights: seconds each, seconds, R²."""

    slope: float
    constant: float
    r2: float


def thread_count(count: int) -> str:
    """So many threads, in words."""
    return f"{count} thread" + ("" if count == 1 else "s")


def plastic(result: Result) -> list[tuple[str, int, list[Result]]]:
    """The cases without stable units by network and threads, with two points at least."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for case in result["steps"]:
        if not case["stable"]:
            groups.setdefault((case["net"], case["threads"]), []).append(case)
    return [(*key, group) for key, group in groups.items() if len(group) > 1]


def fit(chosen: Sequence[Result]) -> Line:
    """Least squares through nispa's step times over live weights."""
    live = np.array([case["live"] for case in chosen], dtype=float)
    seconds = np.array([medians(case["seconds"])["nispa"] for case in chosen])
    slope, constant = np.polyfit(live, seconds, 1)
    missed = seconds - (slope * live + constant)
    r2 = 1 - float((missed**2).sum()) / float(((seconds - seconds.mean()) ** 2).sum())
    return Line(float(slope), float(constant), r2)


def picture(result: Result) -> bytes:
    """Step times with their lines, and speed-ups, as a PNG."""
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(12.4, 4.0), facecolor="white", layout="constrained")
        axes = figure.subplots(1, 3)
        groups = {net: (threads, chosen) for net, threads, chosen in reversed(plastic(result))}
        groups = {net: groups[net] for net in NAMES if net in groups}
        colours = dict(zip(NAMES, (BLUE, ORANGE), strict=True))
        for ax, (net, (threads, chosen)) in zip(axes, groups.items(), strict=False):
            _draw_line(ax, net, threads, chosen, colours[net])
            _draw_ratio(axes[2], net, chosen, colours[net])
        axes[2].set(title="Times as fast as masked", xlabel="density", xscale="log")
        axes[2].set_ylim(bottom=0)
        densities = sorted({case["density"] for _, chosen in groups.values() for case in chosen})
        axes[2].set_xticks(densities, [f"{density:g}" for density in densities], minor=False)
        axes[2].minorticks_off()
        axes[2].axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        axes[2].legend()
        out = io.BytesIO()
        FigureCanvasAgg(figure).print_figure(
            out, format="png", dpi=140, metadata={"Software": None}
        )
    return out.getvalue()


def _draw_line(ax: Axes, net: str, threads: int, chosen: Sequence[Result], colour: str) -> None:
    live = np.array([case["live"] for case in chosen]) / 1e3
    times = [medians(case["seconds"])["nispa"] * 1e3 for case in chosen]
    slope, constant, r2 = fit(chosen)
    ends = np.array([0.0, live.max()])
    ax.plot(ends, slope * 1e6 * ends + constant * 1e3, color=GREY, linewidth=1)
    ax.plot(live, times, "o", color=colour)
    ax.set(
        title=f"{NAMES[net]}, {thread_count(threads)}: ms a step",
        xlabel=f"thousand live weights; line through {constant * 1e3:.3g} ms, R² {r2:.4f}",
    )
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)


def _draw_ratio(ax: Axes, net: str, chosen: Sequence[Result], colour: str) -> None:
    times = [medians(case["seconds"]) for case in chosen]
    ratios = [taken[best_masked(taken)] / taken["nispa"] for taken in times]
    densities = [case["density"] for case in chosen]
    ax.plot(densities, ratios, "o-", color=colour, label=NAMES[net])
