"""The tables of docs/performance.md, from what ``performance.py`` measured.

Every table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; all else on the page
is written by hand and left as it is.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.kernels import PASSES, reached
from benchmarks.lines import NAMES, Result, fit, picture, plastic, thread_count
from benchmarks.step import best_masked
from benchmarks.timing import gflops, medians

PICTURE = "performance-steps.png"


def write_page(page: Path, text: str, results: Sequence[Result]) -> None:
    """Writes a page with its tables, and its picture into ``assets`` beside it.

    Args:
        page: Where to.
        text: The page as it was, with all its markers.
        results: The main one, then those on other instruction sets.
    """
    page.write_text(fill(text, sections(results)))
    assets = page.parent / "assets"
    assets.mkdir(exist_ok=True)
    (assets / PICTURE).write_bytes(picture(results[0]))


def fill(text: str, tables: dict[str, str]) -> str:
    """A page with each table between its markers.

    Raises:
        ValueError: A table has no markers, or markers have no table.
    """
    marked = re.findall(r"^<!-- begin (.+?) -->$", text, re.MULTILINE)
    if set(marked) != set(tables):
        raise ValueError(f"the page marks {sorted(marked)}, the tables are {sorted(tables)}")
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page does not end {name}")
        text = f"{before}{begin}{table.strip()}\n{end}{after}"
    return text


def sections(results: Sequence[Result]) -> dict[str, str]:
    """Every generated part of the page by name."""
    first = results[0]
    parts: dict[str, Callable[[Result], str]] = {
        "machine": machine,
        "convnet": lambda result: steps(result, "convnet"),
        "mlp": lambda result: steps(result, "mlp"),
        "lines": lines,
        "kernels": kernels,
        "alternatives": alternatives,
        "probes": probes,
        "memory": memory,
        "startup": startup,
    }
    made = {name: make(first) for name, make in parts.items()}
    made["instruction sets"] = "\n\n".join(map(instruction_set, results[1:])) or "Not measured."
    return made


# Tables.


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits, as many as are measured: 0.123, 1.23, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    digits = 2 - int(np.floor(np.log10(abs(value))))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return number(seconds * 1e3)


def megabytes(size: float) -> str:
    """Bytes as megabytes (10^6)."""
    return number(size / 1e6)


def machine(result: Result) -> str:
    """What was measured on."""
    variables = " ".join(f"{key}={value}" for key, value in result["variables"].items())
    rows = [
        ("processor", result["cpu"]),
        ("instruction set that PyTorch sees", result["capability"]),
        ("kernels", f"{result['kernels']['name']}: {result['kernels']['reason']}"),
        ("environment variables", f"`{variables}`" if variables else "none of those named below"),
        (
            "versions",
            f"torch {result['torch']}, Python {result['python']}, numpy {result['numpy']}",
        ),
        ("times", f"medians of {result['rounds']} rounds; {_spread(result)}"),
    ]
    warning = (
        "**A quick run on a machine that did other things as well: it shows what is measured, and "
        "is not to be quoted.**\n\n"
    )
    return (warning if result["quick"] else "") + table(("", ""), rows)


def _spread(result: Result) -> str:
    """How far single times lie from their medians."""
    spreads = []
    for case in result["steps"]:
        for name in ("nispa", best_masked(medians(case["seconds"]))):
            times = case["seconds"][name]
            quarters = statistics.quantiles(times, n=4)
            spreads.append((quarters[2] - quarters[0]) / statistics.median(times))
    return (
        f"the middle half of them spans {statistics.median(spreads):.1%} of the median in the "
        f"typical case, {max(spreads):.1%} in the worst"
    )


def steps(result: Result, net: str) -> str:
    """Step times of one network: a table for each thread count."""
    made = []
    for threads in dict.fromkeys(case["threads"] for case in result["steps"]):
        chosen = [
            case for case in result["steps"] if (case["net"], case["threads"]) == (net, threads)
        ]
        if not chosen:
            continue
        peaks = [gflops(medians(case["seconds"])["peak"]) for case in chosen]
        head = (
            f"Batch {chosen[0]['batch']}, {thread_count(threads)}; "
            f"the dense product reached {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s beside it."
        )
        heads = (
            "density",
            "stable units",
            "activations kept",
            "live weights",
            "masked, ms",
            "nispa, reference, ms",
            "nispa, ms",
            "masked / nispa",
        )
        made.append(f"{head}\n\n{table(heads, map(_step, chosen))}")
    return "\n\n".join(made)


def _step(case: Result) -> list[str]:
    seconds = medians(case["seconds"])
    best = best_masked(seconds)
    kept = f"{megabytes(case['kept_bytes'])} MB with the pixels" if case["cache"] else "no"
    return [
        f"{case['density']:g}",
        f"{case['stable']:.0%}",
        kept if case["stable"] else "–",
        f"{case['live']:,}",
        milliseconds(seconds[best]) + (" (channels-last)" if "channels" in best else ""),
        milliseconds(seconds["nispa, reference"]),
        milliseconds(seconds["nispa"]),
        f"**{number(seconds[best] / seconds['nispa'])}**",
    ]


def lines(result: Result) -> str:
    """The fitted lines in words."""
    said = []
    for net, threads, chosen in plastic(result):
        slope, constant, r2 = fit(chosen)
        said.append(
            f"- {NAMES[net]}, {thread_count(threads)}: {number(slope * 1e8)} ms for each "
            f"100,000 live weights and {milliseconds(constant)} ms besides; R² = {r2:.4f}."
        )
    return "\n".join(said) + f"\n\n![Step time over live weights](assets/{PICTURE})"


def kernels(result: Result) -> str:
    """GFLOP/s of the convolution kernels alone."""
    made = []
    for one in result["kernels_alone"]:
        if not one["layers"]:
            made.append("No compiled kernels were in use.")
            continue
        rows = [
            [name, *(_rate(passes.get(which)) for which in PASSES)]
            for name, passes in one["layers"].items()
        ]
        rows.append(["all", *(f"{reached(one, which):.0f}" for which in PASSES)])
        every = reached(one)
        head = f"Density {one['density']:g}, {thread_count(one['threads'])}, in GFLOP/s:"
        tail = (
            f"All passes together {every:.0f} GFLOP/s: {every / one['peak']:.0%} of the dense "
            f"product ({one['peak']:.0f}), {every / one['peak_convolution']:.0%} of a large dense "
            f"convolution ({one['peak_convolution']:.0f})."
        )
        made.append(f"{head}\n\n{table(('layer', *PASSES), rows)}\n\n{tail}")
    return "\n\n".join(made)


def _rate(numbers: dict[str, float] | None) -> str:
    return "–" if numbers is None else f"{numbers['gflop'] / numbers['seconds']:.0f}"


def alternatives(result: Result) -> str:
    """Milliseconds of everything a user could pick."""
    made = []
    for net in NAMES:
        chosen = [case for case in result["alternatives"] if case["net"] == net]
        if not chosen:
            continue
        times = [medians(case["seconds"]) for case in chosen]
        heads = ("ms a step", *(f"density {case['density']:g}" for case in chosen))
        wrong = [case["wrong"] for case in chosen]
        names = dict.fromkeys(name for each in (*times, *wrong) for name in each if name != "peak")
        rows = [
            [_package(result, name), *map(partial(_time, name), times, wrong)] for name in names
        ]
        made.append(f"{NAMES[net]}, {thread_count(chosen[0]['threads'])}:\n\n{table(heads, rows)}")
    made.append(_first_steps(result))
    missing = [name for name, version in result["packages"].items() if not version]
    if missing:
        made.append(f"Not installed, so not timed: {', '.join(missing)}.")
    return "\n\n".join(made)


def _time(name: str, times: dict[str, float], wrong: dict[str, str]) -> str:
    """Milliseconds, or what is wrong."""
    return f"wrong: first loss {wrong[name]}" if name in wrong else milliseconds(times[name])


def _first_steps(result: Result) -> str:
    """How long compiling takes, as the first step shows it."""
    taken = [
        seconds
        for case in result["alternatives"]
        for name, seconds in case["first_seconds"].items()
        if "torch.compile" in name
    ]
    if not taken:
        return "`torch.compile` was left out."
    return f"The first step with `torch.compile` took {min(taken):.1f} to {max(taken):.1f} s."


def _package(result: Result, name: str) -> str:
    version = result["packages"].get(name)
    return f"{name} {version}" if version else name


def probes(result: Result) -> str:
    """What PyTorch answers on a CPU."""
    return table(("on a CPU", "answer"), result["probes"].items())


def memory(result: Result) -> str:
    """Bytes counted, and peaks of processes."""
    by = {one["what"]: one for one in result["memory"]}
    kinds = list(dict.fromkeys(kind for one in by.values() for kind in one["counted"]))
    whats = ("nispa", "dense", "masked")
    activations = "kernels: activations"
    rows = [
        [kind, *(megabytes(by[what]["counted"].get(kind, 0)) for what in whats)]
        for kind in kinds
        if kind != activations
    ]
    sums = [
        sum(size for kind, size in by[what]["counted"].items() if kind != activations)
        for what in whats
    ]
    rows.append(["**sum**", *(f"**{megabytes(size)}**" for size in sums)])
    rows.append(["share of dense", *(f"{size / sums[1]:.0%}" for size in sums)])
    held = by["nispa"]["counted"].get(activations, 0)
    rows.append([activations, megabytes(held), "not counted", "not counted"])
    rows.append(["peak of the process", *(megabytes(by[w]["peak_resident"]) for w in whats)])
    alone = megabytes(by["nothing"]["peak_resident"])
    return table(("MB", *whats), rows) + (
        f"\n\nThe libraries and the data set alone take {alone} MB at their peak."
    )


def startup(result: Result) -> str:
    """Seconds of fresh processes."""
    rows = [(f"`{name}`", number(taken)) for name, taken in result["startup"].items()]
    return table(("program", "s"), rows)


def instruction_set(result: Result) -> str:
    """One result on another instruction set, in brief."""
    head = f"Kernels {result['kernels']['name']}, PyTorch as if with {result['capability']}"
    heads = ("network", "threads", "density", "stable units", "masked, ms", "nispa, ms", "ratio")
    rows = []
    for case in result["steps"]:
        if not case["cache"]:
            continue
        seconds = medians(case["seconds"])
        best = seconds[best_masked(seconds)]
        rows.append(
            [
                NAMES[case["net"]],
                str(case["threads"]),
                f"{case['density']:g}",
                f"{case['stable']:.0%}",
                milliseconds(best),
                milliseconds(seconds["nispa"]),
                f"**{number(best / seconds['nispa'])}**",
            ]
        )
    shares = [
        f"Convolution kernels alone, {thread_count(one['threads'])}: {reached(one):.0f} GFLOP/s, "
        f"{reached(one) / one['peak']:.0%} of the dense product ({one['peak']:.0f}) and "
        f"{reached(one) / one['peak_convolution']:.0%} of a large dense convolution "
        f"({one['peak_convolution']:.0f})."
        for one in result["kernels_alone"]
        if one["layers"]
    ]
    return f"{head}:\n\n{table(heads, rows)}\n\n" + "\n".join(shares)
