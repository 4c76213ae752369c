"""Runs of several seeds compared: groups, intervals, effect sizes and paired tests.

Pure functions on records: nothing is read or written. Runs that differ only by their seed form a
group; two groups that learned the same are compared over the seeds that both have. Every number
that few seeds cannot bear is None or comes with a warning. ``docs/compare.md`` tells the formulas
and an example by hand. Sources are in :mod:`nispa.reading.statistics`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue

from nispa.errors import ConfigError, InputError, either, unknown_name
from nispa.files import one_line
from nispa.reading.statistics import (
    EXACT_UP_TO,
    ROUNDING,
    cohens_d_z,
    hedges_factor,
    holm,
    interval,
    least_p,
    seeds_needed,
    sign_flip_p,
    spread,
    wilcoxon_p,
)
from nispa.runs.costs import KINDS, cost_of
from nispa.runs.metrics import METRICS
from nispa.runs.record import Record

LEAST_LEVEL = 0.001
MAX_PAIRS = 1_000
MOST_COST = 1e30  # more is no measurement
NAMED = 4  # runs that a warning names before it only counts them


@dataclass(frozen=True)
class Run:
    """A record, and what to call it in warnings."""

    name: str
    record: Record


@dataclass(frozen=True)
class Group:
    """Runs that differ only by their seed.

    Attributes:
        label: What tells it from the other groups.
        scenario: Name of what was learned.
        incremental: What tasks add: ``task``, ``class`` or ``domain``.
        method: Name of the method.
        preset: Name of the preset, or None.
        seeds: In increasing order.
        values: The metric at each seed.
        mean: Their mean.
        sd: Their standard deviation (n - 1 in the denominator); None for one seed.
        interval: Its ends, of the mean; None for one seed.
        costs: Mean of each cost over its runs, by the names in :data:`nispa.runs.costs.KINDS`; None
            where it is not known of all.
    """

    label: str
    scenario: str
    incremental: str
    method: str
    preset: str | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """Two groups over the seeds that both have: first minus second.

    Attributes:
        first: Label of the one.
        second: Label of the other.
        seeds: Those of both, in increasing order.
        only_first: Seeds left out because the second group lacks them.
        only_second: Seeds left out because the first group lacks them.
        differences: At each common seed.
        mean: Of the differences; None without a common seed.
        sd: Their standard deviation; None below two seeds.
        interval: Its ends, of their mean; None below two seeds.
        d_z: Cohen's effect size; None where the differences do not vary.
        g_z: The same with Hedges' correction; None below three seeds, too.
        p: Of the sign-flip test; None below two seeds.
        p_least: The least p that this test can give with so many seeds.
        p_holm: ``p`` after Holm's correction over all pairs that were tested.
        p_wilcoxon: Of the signed-rank test, not corrected.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    d_z: float | None
    g_z: float | None
    p: float | None
    p_least: float | None
    p_holm: float | None
    p_wilcoxon: float | None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``warnings`` say what a reader must know before the numbers.

    ``told`` is None where some numbers were told the task and others were not. ``by_kind``: whether
    groups are compared within a scenario and what its tasks add, or within a scenario alone.
    """

    metric: str
    told: bool | None
    by_kind: bool
    level: float
    baseline: str | None
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]


# Groups and pairs


@dataclass(frozen=True)
class _Member:
    """A run whose number counts."""

    run: Run
    value: float
    told: bool


def compare(
    runs: Sequence[Run],
    metric: str = "acc",
    *,
    told: bool | None = None,
    baseline: str | None = None,
    level: float = 0.05,
) -> Comparison:
    """Compares the groups that runs form, over their common seeds.

    Args:
        runs: In any order; the first of several with the same settings and seed counts.
        metric: A name in :data:`nispa.runs.metrics.METRICS`.
        told: Whether the method was told the task; None takes what counts for each record, and then
            groups whose tasks add different things are not paired.
        baseline: Label, or method, of the group that each other is compared with (one in each
            scenario and kind); None for all pairs. Groups of different scenarios are never paired.
        level: The p below which a difference would be called significant, and the share of
            intervals that may miss, in [0.001, 0.5].

    Raises:
        InputError: A name is unknown, the level out of range, no run has the number, or there
            are too many pairs.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if not LEAST_LEVEL <= level <= 0.5:
        raise ConfigError(
            f"level={level:g} must be a number in [{LEAST_LEVEL}, 0.5]; 0.05 is usual"
        )
    notes: list[str] = []
    members = _usable(runs, metric, told, notes)
    gathered = _gather(members, notes)
    apart = _problem if told is None else _scenario
    sign = 1 if metric == "forgetting" else -1  # best first
    least = 0.0 if metric == "acc" else -1.0
    made = (_group(*entry, least, level) for entry in gathered.items())
    groups = sorted(made, key=lambda group: group.label)
    groups.sort(key=lambda group: sign * group.mean)
    if told is None:
        groups.sort(key=lambda group: ("task", "class", "domain").index(group.incremental))
    groups.sort(key=lambda group: group.scenario)
    bases = [] if baseline is None else _find(groups, baseline, apart)
    pairs = _pairs(groups, bases, apart, 1 - least, level)
    kept = [member for group in gathered.values() for member in group]
    notes += _apart_notes(groups, apart)
    notes += _differences(kept, metric, apart)
    notes += _about_seeds(groups, pairs, apart, level)
    kinds = {member.told for member in kept}
    return Comparison(
        metric=metric,
        told=kinds.pop() if len(kinds) == 1 else None,
        by_kind=told is None,
        level=level,
        baseline=" or ".join(base.label for base in bases) or None,
        groups=tuple(groups),
        pairs=tuple(pairs),
        warnings=tuple(notes),
    )


Apart = Callable[["Group | Record"], tuple[str, ...]]
"""What two groups must agree on to be compared."""


def _problem(of: Group | Record) -> tuple[str, ...]:
    return (*_scenario(of), of.incremental)


def _scenario(of: Group | Record) -> tuple[str, ...]:
    return (of.scenario if isinstance(of, Group) else of.scenario.name,)


def _usable(runs: Sequence[Run], metric: str, told: bool | None, notes: list[str]) -> list[_Member]:
    """The runs that are complete and have the number; ``notes`` tells of the others."""
    members = []
    for run in runs:
        record = run.record
        here = told
        if here is None:
            here = record.incremental == "task" or record.metrics_task_agnostic is None
        entry = (record.metrics if here else record.metrics_task_agnostic or {}).get(metric)
        why = ""
        if record.status != "complete":
            done = f"{len(record.accuracy_matrix)} of {len(record.tasks)} tasks"
            why = f"it is {record.status} ({done})"
        elif not here and record.metrics_task_agnostic is None:
            why = "it was not measured without telling the task"
        elif entry is None or entry.value is None:
            why = f"its {metric} is not defined"
        elif not -1 <= entry.value <= 1:
            why = f"its {metric}={entry.value:g} is no fraction in [-1, 1]"
        else:
            members.append(_Member(run, round(entry.value, 12) + 0.0, here))
            continue
        notes.append(f"{one_line(run.name, 60)} is left out: {why}")
    if not members:
        first = f" {notes[0]}" if notes else ""
        raise InputError(f"none of {len(runs)} runs can be compared;{first}")
    return members


def _facts(record: Record) -> dict[str, str]:
    """Everything that two runs of one group have in common, as names and texts."""
    given = record.scenario.settings
    if "options" in given and "resolved" in given:  # what options come to depends on the seed
        given = {"options": given["options"]}
    facts = {"method": record.method, "preset": record.preset or "no preset"}
    facts |= {"incremental": f"{record.incremental}-incremental", "scenario": record.scenario.name}
    _flatten(given, "scenario", facts)
    _flatten(record.config, "config", facts)
    return facts


def _flatten(value: JsonValue, path: str, into: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            if key != "seed":
                _flatten(part, f"{path}.{key}", into)
    elif path not in into:
        into[path] = json.dumps(value, sort_keys=True, separators=(",", ":"))


def _gather(members: Iterable[_Member], notes: list[str]) -> dict[str, list[_Member]]:
    """Label to members, a seed at most once; ``notes`` tells of the seeds that came twice."""
    found: dict[frozenset[tuple[str, str]], dict[int, _Member]] = {}
    facts: list[dict[str, str]] = []
    for member in members:
        record = member.run.record
        own = _facts(record)
        key = frozenset(own.items())
        if key not in found:
            found[key] = {}
            facts.append(own)
        first = found[key].setdefault(record.seed, member)
        if first is not member:
            same = abs(first.value - member.value) <= ROUNDING
            notes.append(
                f"{one_line(member.run.name, 60)} is left out: it repeats seed {record.seed} of "
                f"{one_line(first.run.name, 60)} with {'the same' if same else 'ANOTHER'} value"
            )
    return {
        label: [seeds[seed] for seed in sorted(seeds)]
        for label, seeds in zip(_labels(facts), found.values(), strict=True)
    }


def labels(records: Sequence[Record]) -> list[str]:
    """What :func:`compare` calls groups of runs, from one record of each."""
    return _labels([_facts(record) for record in records])


def _labels(groups: Sequence[Mapping[str, str]]) -> list[str]:
    """A short, unique label per group: the method, and what else tells it from the others."""
    several = len({facts["scenario"] for facts in groups}) > 1
    heads = [f"{facts['scenario']} " if several else "" for facts in groups]
    labels = [head + facts["method"] for head, facts in zip(heads, groups, strict=True)]
    labels = _tell_apart(labels, groups, ["preset"])
    labels = _tell_apart(labels, groups, ["incremental"])
    known = dict.fromkeys(name for facts in groups for name in facts if "." in name)
    labels = [one_line(label, 80) for label in _tell_apart(labels, groups, list(known))]
    met: Counter[str] = Counter()
    for place, label in enumerate(labels):  # cut texts may be the same
        met[label] += 1
        labels[place] = f"{label} #{met[label]}" if met[label] > 1 else label
    return labels


def _tell_apart(
    labels: Sequence[str], groups: Sequence[Mapping[str, str]], names: Sequence[str]
) -> list[str]:
    """Adds to labels that are the same those facts among ``names`` in which their groups differ."""
    longer = list(labels)
    for label, count in Counter(labels).items():
        places = [place for place, other in enumerate(labels) if other == label]
        if count < 2:
            continue
        apart = [name for name in names if len({groups[p].get(name) for p in places}) > 1]
        lasts = Counter(name.rpartition(".")[2] for name in apart)
        for place, name in itertools.product(places, apart):
            last = name.rpartition(".")[2]
            key = last if lasts[last] == 1 else name.partition(".")[2]
            value = groups[place].get(name, "-").strip('"[]').replace("null", "none")
            longer[place] += f" {key}={value}" if "." in name else f" {value}"
    return longer


def _group(label: str, members: Sequence[_Member], least: float, level: float) -> Group:
    record = members[0].run.record
    values = tuple(member.value for member in members)
    return Group(
        label=label,
        scenario=record.scenario.name,
        incremental=record.incremental,
        method=record.method,
        preset=record.preset,
        seeds=tuple(member.run.record.seed for member in members),
        values=values,
        mean=float(np.mean(values).round(12)),
        sd=spread(values),
        interval=interval(values, least, level=level),
        costs=_costs(members),
    )


def _costs(members: Sequence[_Member]) -> dict[str, float | None]:
    """The mean of each cost over some runs; None where one of them does not tell it."""
    every = [cost_of(member.run.record) for member in members]
    found: dict[str, float | None] = {}
    for name in KINDS:
        values = [getattr(cost, name) for cost in every]
        mean = None if None in values else sum(values) / len(values)
        found[name] = mean if mean is not None and mean < MOST_COST else None
    return found


def _find(groups: Sequence[Group], name: str, apart: Apart) -> list[Group]:
    """The group of that label, or the only one of that method for each problem."""
    found = [group for group in groups if group.label == name]
    found = found or [group for group in groups if group.method == name]
    if len(set(map(apart, found))) < len(found):
        labels = ", ".join(f"'{group.label}'" for group in found)
        raise InputError(f"baseline={one_line(name)} names {len(found)} groups; pass one: {labels}")
    if not found:
        raise unknown_name("baseline", one_line(name), [group.label for group in groups])
    return found


def _pairs(
    groups: Sequence[Group], bases: Sequence[Group], apart: Apart, most: float, level: float
) -> list[Pair]:
    """Each group minus each base; without bases, each minus those that stand after it."""
    if bases:
        chosen = [(group, base) for base in bases for group in groups if group is not base]
    else:
        chosen = list(itertools.combinations(groups, 2))
    chosen = [(first, second) for first, second in chosen if apart(first) == apart(second)]
    if len(chosen) > MAX_PAIRS:
        raise InputError(
            f"{len(groups)} groups make {len(chosen):,} pairs, more than {MAX_PAIRS:,}; pass "
            f"{either('baseline=', '--baseline NAME')} or fewer runs"
        )
    pairs = [pair(first, second, most, level) for first, second in chosen]
    corrected = holm([found.p for found in pairs])
    return [replace(found, p_holm=p) for found, p in zip(pairs, corrected, strict=True)]


def pair(first: Group, second: Group, most: float = 1.0, level: float = 0.05) -> Pair:
    """First minus second at each common seed; ``p_holm`` is that of one pair alone.

    ``most`` is the greatest difference that there can be.
    """
    ones, others = (dict(zip(g.seeds, g.values, strict=True)) for g in (first, second))
    seeds = tuple(seed for seed in first.seeds if seed in others)
    # Rounded, so that equal differences are equal: tests and effect sizes hang on it.
    differences = np.array([ones[seed] - others[seed] for seed in seeds]).round(12) + 0.0
    count = len(seeds)
    d_z, factor = cohens_d_z(differences) if count > 1 else None, hedges_factor(count)
    p = sign_flip_p(differences) if count > 1 else None
    return Pair(
        first=first.label,
        second=second.label,
        seeds=seeds,
        only_first=tuple(seed for seed in first.seeds if seed not in others),
        only_second=tuple(seed for seed in second.seeds if seed not in ones),
        differences=tuple(differences.tolist()),
        mean=float(differences.mean().round(12)) if count else None,
        sd=spread(differences),
        interval=interval(differences, -most, most, level=level),
        d_z=d_z,
        g_z=None if d_z is None or factor is None else d_z * factor,
        p=p,
        p_least=None if p is None else least_p(count),
        p_holm=p,
        p_wilcoxon=None if p is None else wilcoxon_p(differences),
    )


# What a reader must know


def _apart_notes(groups: Sequence[Group], apart: Apart) -> list[str]:
    """What is not compared with each other."""
    notes = []
    scenarios = dict.fromkeys(one_line(group.scenario, 40) for group in groups)
    if len(scenarios) > 1:
        names = ", ".join(scenarios)
        notes.append(f"Groups of different scenarios are not compared with each other: {names}")
    if len(set(map(apart, groups))) > len(scenarios):
        kinds = dict.fromkeys(f"{group.incremental}-incremental" for group in groups)
        notes.append(
            "Accuracies where tasks add different things are not compared with each other: "
            f"{', '.join(kinds)}; learn one kind with "
            f"{either('incremental=', '--incremental')}, or pass {either('told=True', '--told')}"
        )
    return notes


def _differences(members: Sequence[_Member], metric: str, apart: Apart) -> list[str]:
    """What should be the same in runs that are compared, and is not."""
    notes = []
    problems = dict.fromkeys(apart(member.run.record) for member in members)
    for problem in problems:
        same = [member for member in members if apart(member.run.record) == problem]
        where = f"{', '.join(one_line(part, 40) for part in problem)}: "
        found = _setting_notes(same) or _task_notes(same)
        for what, value in _must_agree(metric).items():
            held: dict[str, list[str]] = {}
            for member in same:
                held.setdefault(value(member), []).append(member.run.name)
            if len(held) > 1:
                parts = [f"{one_line(text, 100)} ({_named(runs)})" for text, runs in held.items()]
                found.append(f"{what} differ: {_listed(parts, '; ')}")
        notes += [where + note if len(problems) > 1 else note for note in found]
    return notes


def _must_agree(metric: str) -> dict[str, Callable[[_Member], str]]:
    """What to compare between runs, by what a warning calls it."""

    def formula(member: _Member) -> str:
        record = member.run.record
        metrics = record.metrics if member.told else record.metrics_task_agnostic or {}
        return metrics[metric].formula

    return {
        "Formulas of the metric": formula,
        "Numbers told the task and not": lambda m: "told" if m.told else "not told",
        "Incremental kinds": lambda m: m.run.record.incremental,
        "Data": lambda m: _data(m.run.record, own=False),
        "Versions of nispa": lambda m: m.run.record.version,
        "Versions of PyTorch": lambda m: m.run.record.environment.torch,
        "Devices": lambda m: m.run.record.environment.device,
        "Processors": lambda m: m.run.record.environment.cpu,
        "Kernels": lambda m: m.run.record.environment.kernels,
        "Thread counts": lambda m: str(m.run.record.environment.threads),
    }


def _data(record: Record, *, own: bool) -> str:
    """Names and hashes of the data sets: those of one's own, or the published ones."""
    chosen = [data for data in record.data if (data.canonical is None) == own]
    return ", ".join(f"{data.name} {data.sha256[:12]}" for data in chosen) or "none"


def _setting_notes(members: Sequence[_Member]) -> list[str]:
    """Settings of one scenario in which groups differ."""
    held: dict[str, dict[str, None]] = {}
    every = [_facts(member.run.record) for member in members]
    names = dict.fromkeys(name for facts in every for name in facts if name.startswith("scenario."))
    for name in names:
        held[name] = dict.fromkeys(facts.get(name, "-") for facts in every)
    parts = [
        f"{one_line(name.rpartition('.')[2], 40)} is {' or '.join(one_line(v, 40) for v in values)}"
        for name, values in held.items()
        if len(values) > 1
    ]
    return [f"Settings of the scenario differ: {_listed(parts)}"] if parts else []


def _task_notes(members: Sequence[_Member]) -> list[str]:
    """Seeds at which runs did not learn the same tasks from the same data."""
    seen: dict[int, set[str]] = {}
    for member in members:
        record = member.run.record
        tasks = [task.model_dump(mode="json") for task in record.tasks]
        whole = [tasks, record.scenario.settings.get("seed"), _data(record, own=True)]
        seen.setdefault(record.seed, set()).add(json.dumps(whole, sort_keys=True))
    uneven = [seed for seed in sorted(seen) if len(seen[seed]) > 1]
    if not uneven:
        return []
    return [f"Tasks or data differ between runs of the same seed: at {_seeds(uneven)}"]


def _about_seeds(
    groups: Sequence[Group], pairs: Sequence[Pair], apart: Apart, level: float
) -> list[str]:
    """Seeds that are missing or too few."""
    notes = []
    lacking: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
    for group in groups:
        every = {s for g in groups if apart(g) == apart(group) for s in g.seeds}
        missing = tuple(sorted(every - set(group.seeds)))
        lacking.setdefault((apart(group), missing), []).append(group.label)
    for (_, missing), labels in lacking.items():
        if missing:
            notes.append(
                f"Without {_seeds(missing)}, which other groups have and pairs with these leave "
                f"out: {_listed(labels, most=20)}"
            )
    single = [group.label for group in groups if len(group.seeds) == 1]
    if single:
        notes.append(f"One seed only, so no interval and no test: {_listed(single)}")
    without = [f"{p.first} and {p.second}" for p in pairs if not p.seeds]
    if without:
        notes.append(f"No common seed: {_listed(without, '; ')}")
    return notes + _power_notes(pairs, level)


def _power_notes(pairs: Sequence[Pair], level: float) -> list[str]:
    """Where no difference, however large, could pass the level."""
    tested = Counter(len(pair.seeds) for pair in pairs if pair.p is not None)
    total = sum(tested.values())
    notes = []
    for count, number in sorted(tested.items()):
        least = least_p(count)
        how = f"With {count} common seeds ({number} pair{'s' if number > 1 else ''})"
        power = f"2/2^{count} = {least:.3g}" if count <= EXACT_UP_TO else f"{least:.3g}"
        if least > level:
            more = f", and {seeds_needed(level, total)} where Holm counts all {total} pairs"
            notes.append(
                f"{how} the least possible p is {power} > {level:g}, whatever the difference: "
                f"at least {seeds_needed(level)} seeds are needed{more if total > 1 else ''}"
            )
        elif least * total > level:
            notes.append(
                f"{how} the least possible p is {power}, but Holm over {total} pairs can raise it "
                f"to {min(1.0, least * total):.3g} > {level:g}: {seeds_needed(level, total)} seeds "
                f"are needed, or fewer pairs ({either('baseline=', '--baseline')})"
            )
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed([str(seed) for seed in seeds], most=10)}"


def _named(runs: Sequence[str]) -> str:
    short = [one_line(name, 60) for name in runs]
    return f"{len(runs)} runs" if len(runs) > NAMED else ", ".join(short)


def _listed(parts: Sequence[str], between: str = ", ", most: int = 6) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return between.join(parts[:most]) + more
