"""The whole page: head, security policy, sections, and a bound on its size."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element

from nispa import __version__
from nispa.files import one_line
from nispa.reading.groups import Run
from nispa.webpage import overview
from nispa.webpage.details import details
from nispa.webpage.headline import headline
from nispa.webpage.markup import Node, add, raw, render, tag
from nispa.webpage.problems import Problem, problems_of, told

MAX_BYTES = 5_000_000
"""Upper bound on the size of a page."""

MAX_RUNS = 1_000
MARK = "<!doctype html>\n<!-- report of nispa -->\n"  # by which an earlier report is recognised

WORDS = (
    ("stable", "needed by tasks already learned: connections into a stable unit are frozen"),
    ("candidate", "picked after a phase to become stable; each phase picks again"),
    ("plastic", "free to learn; the plastic units are the capacity left in the network"),
    ("frozen", "a connection whose value no longer changes"),
    ("owed", "a connection that was dropped without a place to grow elsewhere"),
    ("τ", "share of a layer's activation that the candidates must carry"),
    ("told the task", "a prediction chooses among the outputs of one task, which it is told"),
    ("FLOP", "a multiplication or an addition in a pass through live connections; docs/cost.md"),
    ("canonical", "the content is the published data set, bit for bit"),
)


def page(runs: Sequence[Run], left_out: Sequence[str] = ()) -> bytes:
    """The page of one run or many, in UTF-8 and below :data:`MAX_BYTES`.

    Single runs that no longer fit are left out, and the page says from which on.

    Args:
        runs: At least one run.
        left_out: What is wrong with each record that could not be read.
    """
    alone = len(runs) == 1
    problems = problems_of(runs)
    section = _section("each", "The run" if alone else "Each run")
    first = [] if alone else _overview(runs, problems)
    main = tag("main", *first, section, *_last(runs, problems))
    top = _top(runs, problems, left_out)
    html = tag("html", _head(runs), tag("body", stripes(), top, main), lang="en")
    room = MAX_BYTES - len(render(html).encode()) - len(MARK) - 2_000
    first_out = ""
    for place, run in enumerate(runs, start=1):
        if not first_out:
            made = details(run, place, alone=alone)
            room -= len(render(made).encode())
        if room < 0 and place > 1:
            first_out = first_out or run.name
            made = tag("p", f"{place}. {run.name}: left out", id=f"run-{place}", data_run=place)
        section.append(made)
    if first_out:
        text = f"From {first_out} on, single runs are left out to keep the page below "
        text += f"{MAX_BYTES // 10**6} MB; pass fewer runs to see them."
        section.insert(1, tag("p", text, class_="warn"))
    return (MARK + render(html) + "\n").encode()


def _head(runs: Sequence[Run]) -> Element:
    return head(_title(runs), _file("script.js"))


def head(title: str, script: str = "") -> Element:
    """The head of a page: its style, and a policy that allows nothing but it and ``script``."""
    style = _file("style.css")
    allowed = f"script-src {_hash(script)}; " if script else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; {allowed}base-uri 'none'; "
        "form-action 'none'"
    )
    meta = tag("meta", content=policy)
    meta.set("http-equiv", "Content-Security-Policy")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        meta,
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content=f"nispa {__version__}"),
        tag("title", title),
        raw("style", style),
        raw("script", script) if script else None,
    )


def _file(name: str) -> str:
    return (files("nispa.webpage") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _title(runs: Sequence[Run]) -> str:
    scenarios = list(dict.fromkeys(one_line(run.record.scenario.name, 40) for run in runs))
    what = ", ".join(scenarios[:4]) + (" and more" if len(scenarios) > 4 else "")
    if len(runs) == 1:
        return f"{one_line(runs[0].record.method, 30)} on {what}, seed {runs[0].record.seed}"
    return f"{len(runs):,} runs on {what}"


def stripes() -> Element:
    """The fill pattern of candidates, shared by all charts."""
    box = tag("rect", width=5, height=5)
    line = tag("path", d="M-1 6L6 -1M-1 1L1 -1M4 6L6 4")
    pattern = tag("pattern", box, line, id="stripes", width=5, height=5)
    pattern.set("patternUnits", "userSpaceOnUse")
    return tag("svg", tag("defs", pattern), class_="hidden-picture", aria_hidden="true")


def _top(runs: Sequence[Run], problems: Sequence[Problem], left_out: Sequence[str]) -> Element:
    links = [("methods", "Methods side by side"), ("runs", "Runs"), ("each", "Each run")]
    links += [("settings", "Settings that differ")]
    if len(runs) == 1:
        links = [("each", "The run")]
    links += [("data", "Data"), ("where", "Environment"), ("words", "Words and formulas")]
    nav = tag("nav", aria_label="Contents")
    for number, (name, text) in enumerate(links):
        add(nav, " · " if number else None, tag("a", text, href=f"#{name}"))
    top = tag("header", tag("h1", _title(runs)), *headline(runs, problems))
    return add(top, *overview.alarms(runs, left_out), nav)


def _overview(runs: Sequence[Run], problems: Sequence[Problem]) -> list[Node]:
    groups = [group for problem in problems for group in problem.groups]
    group_of = {place: group.number for group in groups for place, _ in group.members}
    methods = _section("methods", "Methods side by side")
    for number, problem in enumerate(problems, start=1):
        add(methods, tag("h3", f"{problem.label} ({told(problem.record)})"))
        add(methods, *overview.side_by_side(problem, number))
    text = (
        "Means over runs that differ only in the seed and learned all tasks; std is the sample "
        "standard deviation; the interval of the mean is Student's, clipped to 0 and 100 %, as in "
        "nispa compare. Of several runs with one seed the first counts. Seconds compare only "
        "within one environment."
    )
    add(methods, tag("p", text, class_="note"))
    return [methods, _section("runs", "Runs", *overview.runs_table(runs, group_of))]


def _last(runs: Sequence[Run], problems: Sequence[Problem]) -> list[Node]:
    same = tag("p", "No two methods on the same tasks differ in a setting.")
    tables = [made for made in map(overview.differing, problems) if made is not None] or [same]
    words = tag("dl")
    for word, meaning in WORDS:
        add(words, tag("dt", word), tag("dd", meaning))
    return [
        _section("settings", "Settings that differ", *tables) if len(runs) > 1 else None,
        _section("data", "Data", overview.data_table(runs)),
        _section("where", "Environment", overview.environments(runs)),
        _section("words", "Words and formulas", *overview.formulas(runs), words),
    ]


def _section(name: str, title: str, *content: Node) -> Element:
    return tag("section", tag("h2", title, id=name), *content)
