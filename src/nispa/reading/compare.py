"""Compare groups of runs over their seeds: intervals, effect sizes and paired tests.

Pure functions on records: nothing is read or written. Two groups that learned the same are compared
over the seeds that both have. A number that needs more seeds than there are is None, or comes with
a warning. ``docs/compare.md`` has the formulas and an example worked by hand, and
:mod:`nispa.reading.statistics` their sources.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nispa.errors import ConfigError, InputError, either, unknown_name
from nispa.files import one_line
from nispa.reading import cautions
from nispa.reading.groups import Run, group_runs
from nispa.reading.samples import Measured, Pair, Sample, Scope, pair_of, sample_of
from nispa.reading.statistics import ROUNDING, holm
from nispa.runs.metrics import METRICS
from nispa.runs.record import Record

LEAST_LEVEL = 0.001
MAX_PAIRS = 1_000


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    Attributes:
        metric: Name of the metric.
        told: Whether methods were told the task; None if some were and others were not.
        by_kind: Whether groups are compared within a scenario and kind of tasks, or within a
            scenario alone.
        level: Level of the tests.
        baseline: Label of the baseline, several joined by "or"; None for all pairs.
        groups: Best first, by scenario and kind.
        pairs: Each compared pair.
        warnings: What a reader must know before the numbers, a sentence each.
    """

    metric: str
    told: bool | None
    by_kind: bool
    level: float
    baseline: str | None
    groups: tuple[Sample, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]


def compare(
    runs: Sequence[Run],
    metric: str = "acc",
    *,
    told: bool | None = None,
    baseline: str | None = None,
    level: float = 0.05,
) -> Comparison:
    """Compares groups of runs over their common seeds.

    Args:
        runs: In any order; if a group has a seed several times, its first run counts.
        metric: A name in :data:`nispa.runs.metrics.METRICS`.
        told: Whether to take numbers for which the method was told the task; None takes the main
            ones of each record and compares only groups whose tasks add the same.
        baseline: Label or method of the group to compare each other group with, one in each
            scenario and kind; None for all pairs. Groups of different scenarios are never paired.
        level: The p below which a difference counts as significant, and the share of intervals
            that may miss, in [0.001, 0.5].

    Raises:
        InputError: A name is unknown, the level is out of range, no run has the metric, or there
            are too many pairs.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if not LEAST_LEVEL <= level <= 0.5:
        raise ConfigError(
            f"level={level:g} must be a number in [{LEAST_LEVEL}, 0.5]; 0.05 is usual"
        )
    warnings: list[str] = []
    usable = _usable(runs, metric, told, warnings)
    scope = _kind if told is None else _scenario
    least = 0.0 if metric == "acc" else -1.0
    counted: list[Measured] = []
    samples: list[Sample] = []
    for group in group_runs([entry.run for entry in usable]):
        members = _one_per_seed([usable[position - 1] for position, _ in group.members], warnings)
        samples.append(sample_of(group.label, members, least, level))
        counted += members
    sign = 1 if metric == "forgetting" else -1  # best first
    samples.sort(key=lambda sample: (sign * sample.mean, sample.label))
    if told is None:
        kinds = ("task", "class", "domain")
        samples.sort(key=lambda sample: kinds.index(sample.incremental))
    samples.sort(key=lambda sample: sample.scenario)
    bases = [] if baseline is None else _find(samples, baseline, scope)
    pairs = _pairs(samples, bases, scope, 1 - least, level)
    warnings += cautions.of_scopes(samples, scope)
    warnings += cautions.of_differences(counted, metric, scope)
    warnings += cautions.of_seeds(samples, pairs, scope, level)
    told_of = {entry.told for entry in counted}
    return Comparison(
        metric=metric,
        told=told_of.pop() if len(told_of) == 1 else None,
        by_kind=told is None,
        level=level,
        baseline=" or ".join(base.label for base in bases) or None,
        groups=tuple(samples),
        pairs=tuple(pairs),
        warnings=tuple(warnings),
    )


def _kind(of: Sample | Record) -> tuple[str, ...]:
    return (*_scenario(of), of.incremental)


def _scenario(of: Sample | Record) -> tuple[str, ...]:
    return (of.scenario if isinstance(of, Sample) else of.scenario.name,)


def _usable(
    runs: Sequence[Run], metric: str, told: bool | None, warnings: list[str]
) -> list[Measured]:
    """The complete runs that have the metric; adds a warning for each other run."""
    usable = []
    for run in runs:
        record = run.record
        here = told
        if here is None:
            here = record.incremental == "task" or record.metrics_task_agnostic is None
        entry = (record.metrics if here else record.metrics_task_agnostic or {}).get(metric)
        if record.status != "complete":
            why = f"it is {record.status} ({record.progress})"
        elif not here and record.metrics_task_agnostic is None:
            why = "it was not measured without telling the task"
        elif entry is None or entry.value is None:
            why = f"its {metric} is not defined"
        elif not -1 <= entry.value <= 1:
            why = f"its {metric}={entry.value:g} is no fraction in [-1, 1]"
        else:
            usable.append(Measured(run, round(entry.value, 12) + 0.0, here))
            continue
        warnings.append(f"{one_line(run.name, 60)} is left out: {why}")
    if not usable:
        first = f" {warnings[0]}" if warnings else ""
        raise InputError(f"none of {len(runs)} runs can be compared;{first}")
    return usable


def _one_per_seed(members: Sequence[Measured], warnings: list[str]) -> list[Measured]:
    """The first run of each seed, by seed; adds a warning for each repetition."""
    first: dict[int, Measured] = {}
    for member in members:
        seed = member.run.record.seed
        counts = first.setdefault(seed, member)
        if counts is not member:
            same = abs(counts.value - member.value) <= ROUNDING
            warnings.append(
                f"{one_line(member.run.name, 60)} is left out: it repeats seed {seed} of "
                f"{one_line(counts.run.name, 60)} with {'the same' if same else 'ANOTHER'} value"
            )
    return [first[seed] for seed in sorted(first)]


def _find(samples: Sequence[Sample], name: str, scope: Scope) -> list[Sample]:
    """The group with that label, or the only one of that method in each scope."""
    found = [sample for sample in samples if sample.label == name]
    found = found or [sample for sample in samples if sample.method == name]
    if len(set(map(scope, found))) < len(found):
        labels = ", ".join(f"'{sample.label}'" for sample in found)
        raise InputError(f"baseline={one_line(name)} names {len(found)} groups; pass one: {labels}")
    if not found:
        raise unknown_name("baseline", one_line(name), [sample.label for sample in samples])
    return found


def _pairs(
    samples: Sequence[Sample], bases: Sequence[Sample], scope: Scope, most: float, level: float
) -> list[Pair]:
    """Each group minus each baseline; without a baseline, each minus those after it."""
    if bases:
        chosen = [(sample, base) for base in bases for sample in samples if sample is not base]
    else:
        chosen = list(itertools.combinations(samples, 2))
    chosen = [(first, second) for first, second in chosen if scope(first) == scope(second)]
    if len(chosen) > MAX_PAIRS:
        raise InputError(
            f"{len(samples)} groups make {len(chosen):,} pairs, more than {MAX_PAIRS:,}; pass "
            f"{either('baseline=', '--baseline NAME')} or fewer runs"
        )
    pairs = [pair_of(first, second, most, level) for first, second in chosen]
    corrected = holm([made.p for made in pairs])
    return [replace(made, p_holm=p) for made, p in zip(pairs, corrected, strict=True)]
