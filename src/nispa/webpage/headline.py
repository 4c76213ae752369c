"""The first sentences of the page: the result, over how many runs, measured in which way."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Group, Run
from nispa.reading.statistics import Estimate
from nispa.runs import metrics
from nispa.runs.metrics import percent
from nispa.runs.record import Record
from nispa.webpage.markup import Node, add, tag, warn
from nispa.webpage.problems import Problem, told

BOUNDS = frozenset({"joint", "stl", "stl-iso"})
"""Methods that keep all data or a network per task: bounds for the others, not competitors."""
MAX_SENTENCES = 8


def headline(runs: Sequence[Run], problems: Sequence[Problem]) -> list[Node]:
    """A sentence about a single run, or one per problem."""
    if len(runs) == 1:
        return [_of_run(runs[0].record)]
    made: list[Node] = [_of_problem(problem) for problem in problems[:MAX_SENTENCES]]
    if len(problems) > MAX_SENTENCES:
        more = f"and {len(problems) - MAX_SENTENCES} more scenarios or kinds of runs, below"
        made.append(tag("p", more))
    kinds = list(dict.fromkeys(f"{p.record.incremental}-incremental" for p in problems))
    if len(kinds) > 1:
        text = f"The page holds {' and '.join(kinds)} runs. They answer different questions, so "
        text += "they stand apart: nothing is averaged or ranked over more than one kind."
        made.append(warn(text))
    return made


def _of_run(record: Record) -> Element:
    learned, tasks = len(record.main_matrix), len(record.tasks)
    many = f"{tasks} tasks" if learned == tasks else f"{learned} of {tasks} tasks"
    what = f"{one_line(record.method, 30)} learned {many} of {one_line(record.scenario.name, 40)}"
    line = tag("p", f"{what} ({record.incremental}-incremental, {told(record)})", class_="lead-in")
    matrix = [row[:learned] for row in record.main_matrix]
    accuracy, lost = metrics.acc(matrix), metrics.forgetting(matrix)
    if accuracy is not None:
        over = "" if learned == tasks else " over these"
        add(line, ": mean accuracy ", tag("strong", f"{percent(accuracy)} %"), over)
        add(line, f", forgetting {percent(lost)} points" if lost is not None else None)
    return add(line, ".", _fill(record))


def _fill(record: Record) -> str:
    """How full the network is, if it has stable units."""
    counts = record.per_task[-1].stable_units.values() if record.per_task else ()
    stable, size = sum(c.stable for c in counts), sum(c.size for c in counts)
    if not stable:
        return ""
    text = f" {stable:,} of its {size:,} hidden units are stable ({100 * stable // size} %), "
    return text + f"{size - stable:,} are left for further tasks."


def _of_problem(problem: Problem) -> Element:
    record = problem.record
    line = tag("p", tag("strong", problem.label), f" ({told(record)}): ", class_="lead-in")
    ranked = problem.ranked
    competing = [group for group in ranked if not _is_bound(group)] or ranked
    given = sum(len(group.members) for group in problem.groups)
    if not competing:
        return add(line, f"none of {_many(given, 'run')} has learned all tasks yet.")
    best = competing[0]
    found = best.estimate
    assert found is not None
    several = len(competing) > 1
    methods = len({group.record.method for group in competing})
    what = "methods" if methods == len(competing) else "methods and settings"
    add(line, f"the best of {len(competing)} {what} is " if several else None)
    add(line, tag("strong", best.label), ", with" if several else " reached")
    add(line, " a mean accuracy of ", tag("strong", f"{percent(found.mean)} %"))
    add(line, f" over {_many(len(record.tasks), 'task')} ({_how_sure(found)})")
    lost = best.mean(lambda run: run.forgetting)
    add(line, f", forgetting {percent(lost)} points" if lost is not None else None, ". ")
    if several:
        add(line, _next(competing[1], found))
    for group in ranked:
        if group not in competing and group.estimate:
            add(line, f"{group.label}, a bound, has {percent(group.estimate.mean)} %. ")
    seeds = len({run.record.seed for group in ranked for _, run in group.counted})
    counted = sum(len(group.counted) for group in ranked)
    runs = _many(counted, "run") if counted == given else f"{counted} of {given} runs"
    return add(line, f"{runs}, {_many(seeds, 'seed')}.")


def _is_bound(group: Group) -> bool:
    return group.record.method.rpartition(":")[2] in BOUNDS  # imported: "tool:method"


def _how_sure(found: Estimate) -> str:
    if found.interval is None:
        return "one run, so no interval"
    low, high = map(percent, found.interval)
    return f"95 % interval {low} to {high}, {found.count} runs"


def _next(group: Group, best: Estimate) -> str:
    found = group.estimate
    assert found is not None
    text = f"Next is {group.label} with {percent(found.mean)} % ({_how_sure(found)}); "
    if found.interval is None or best.interval is None:
        return text + "one run does not tell which is better. "
    apart = found.interval[1] < best.interval[0]
    return text + ("the intervals lie apart. " if apart else "the intervals overlap. ")


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
