"""The first sentences of the page: what came out, of how many runs, measured in which way."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from nispa.files import one_line
from nispa.reading.groups import Group, Run
from nispa.reading.statistics import Estimate
from nispa.runs import metrics
from nispa.runs.metrics import percent
from nispa.runs.record import Record
from nispa.webpage.markup import Node, add, tag
from nispa.webpage.problems import Problem, told

BOUNDS = frozenset({"joint", "stl", "stl-iso"})
"""Methods that keep all data or a network a task: bounds for the others, never the best of them."""
MAX_SENTENCES = 8


def headline(runs: Sequence[Run], problems: Sequence[Problem]) -> list[Node]:
    """A sentence for a single run, or one for each problem."""
    if len(runs) == 1:
        return [_single(runs[0].record)]
    made: list[Node] = [_problem(problem) for problem in problems[:MAX_SENTENCES]]
    if len(problems) > MAX_SENTENCES:
        more = f"and {len(problems) - MAX_SENTENCES} more scenarios or kinds of runs, below"
        made.append(tag("p", more))
    kinds = list(dict.fromkeys(problem.record.incremental for problem in problems))
    if len(kinds) > 1:
        listed = " and ".join(f"{kind}-incremental" for kind in kinds)
        text = f"The page holds {listed} runs. They answer different questions, so they stand "
        text += "apart: nothing is averaged or ranked over more than one kind."
        made.append(tag("p", text, class_="warn"))
    return made


# One run


def _single(record: Record) -> Element:
    done, tasks = len(record.main_matrix), len(record.tasks)
    many = f"{tasks} tasks" if done == tasks else f"{done} of {tasks} tasks"
    what = f"{one_line(record.method, 30)} learned {many} of {one_line(record.scenario.name, 40)}"
    line = tag("p", f"{what} ({record.incremental}-incremental, {told(record)})", class_="lead-in")
    value = metrics.acc([row[:done] for row in record.main_matrix])
    if value is not None:
        over = "" if done == tasks else " over these"
        add(line, ": mean accuracy ", tag("strong", f"{percent(value)} %"), over)
        lost = metrics.forgetting([row[:done] for row in record.main_matrix])
        add(line, f", forgetting {percent(lost)} points" if lost is not None else None)
    return add(line, ".", _fill(record))


def _fill(record: Record) -> str:
    """How full the network is, where it has stable units."""
    counts = record.per_task[-1].stable_units.values() if record.per_task else ()
    stable, size = sum(c.stable for c in counts), sum(c.size for c in counts)
    if not stable:
        return ""
    share = f"{100 * stable // size} %"
    text = f" {stable:,} of its {size:,} hidden units are stable ({share}), "
    return text + f"{size - stable:,} are left for further tasks."


# Many runs


def _problem(problem: Problem) -> Element:
    record = problem.record
    line = tag("p", tag("strong", problem.label), f" ({told(record)}): ", class_="lead-in")
    ranked = problem.ranked
    able = [group for group in ranked if not _is_bound(group)] or ranked
    given = sum(len(group.members) for group in problem.groups)
    if not able:
        return add(line, f"none of {_many(given, 'run')} has learned all tasks yet.")
    best = able[0]
    found = best.estimate
    assert found is not None
    several = len(able) > 1
    methods = len({group.members[0][1].record.method for group in able})
    what = "methods" if methods == len(able) else "methods and settings"
    add(line, f"the best of {len(able)} {what} is " if several else None, tag("strong", best.label))
    add(line, f"{', with' if several else ' reached'} a mean accuracy of ")
    add(line, tag("strong", f"{percent(found.mean)} %"))
    add(line, f" over {_many(len(record.tasks), 'task')} ({_how_sure(found)})")
    lost = best.mean(lambda run: run.forgetting)
    add(line, f", forgetting {percent(lost)} points" if lost is not None else None, ". ")
    if several:
        add(line, _second(able[1], found))
    for group in ranked:
        if group not in able:
            value = group.mean(lambda run: run.accuracy)
            add(line, f"{group.label}, a bound, has {percent(value)} %. ")
    seeds = len({run.record.seed for group in ranked for _, run in group.counted})
    counted = sum(len(group.counted) for group in ranked)
    runs = _many(counted, "run") if counted == given else f"{counted} of {given} runs"
    return add(line, f"{runs}, {_many(seeds, 'seed')}.")


def _is_bound(group: Group) -> bool:
    method = group.members[0][1].record.method
    return method.rpartition(":")[2] in BOUNDS  # before it stands the tool of an imported run


def _how_sure(found: Estimate) -> str:
    if found.interval is None:
        return "one run, so no interval"
    low, high = map(percent, found.interval)
    return f"95 % interval {low} to {high}, {found.count} runs"


def _second(group: Group, best: Estimate) -> str:
    found = group.estimate
    assert found is not None
    text = f"Next is {group.label} with {percent(found.mean)} % ({_how_sure(found)}); "
    if found.interval is None or best.interval is None:
        return text + "one run does not tell which is better. "
    apart = found.interval[1] < best.interval[0]
    return text + ("the intervals lie apart. " if apart else "the intervals overlap. ")


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
