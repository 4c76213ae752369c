"""Warnings of a comparison: what a reader must know before the numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nispa.errors import either
from nispa.files import one_line
from nispa.reading.groups import facts
from nispa.reading.samples import Measured, Pair, Sample, Scope
from nispa.reading.statistics import EXACT_UP_TO, least_p, seeds_needed
from nispa.runs.record import Record

MAX_NAMES = 4  # runs that a warning names; beyond, it counts them


def of_scopes(samples: Sequence[Sample], scope: Scope) -> list[str]:
    """Warnings about groups that are not compared with each other."""
    warnings = []
    scenarios = dict.fromkeys(one_line(sample.scenario, 40) for sample in samples)
    if len(scenarios) > 1:
        names = ", ".join(scenarios)
        warnings.append(f"Groups of different scenarios are not compared with each other: {names}")
    if len(set(map(scope, samples))) > len(scenarios):
        kinds = dict.fromkeys(f"{sample.incremental}-incremental" for sample in samples)
        warnings.append(
            "Accuracies where tasks add different things are not compared with each other: "
            f"{', '.join(kinds)}; learn one kind with "
            f"{either('incremental=', '--incremental')}, or pass {either('told=True', '--told')}"
        )
    return warnings


def of_differences(members: Sequence[Measured], metric: str, scope: Scope) -> list[str]:
    """Warnings about compared runs that differ in more than seed, method and settings."""
    warnings = []
    scopes = dict.fromkeys(scope(member.run.record) for member in members)
    for name in scopes:
        compared = [member for member in members if scope(member.run.record) == name]
        records = [member.run.record for member in compared]
        found = _settings(records) or of_tasks(records)
        for what, value in _must_agree(metric).items():
            runs_with: dict[str, list[str]] = {}
            for member in compared:
                runs_with.setdefault(value(member), []).append(member.run.name)
            if len(runs_with) > 1:
                parts = [f"{one_line(v, 100)} ({_named(runs)})" for v, runs in runs_with.items()]
                found.append(f"{what} differ: {_listed(parts, '; ')}")
        where = f"{', '.join(one_line(part, 40) for part in name)}: "
        warnings += [where + text if len(scopes) > 1 else text for text in found]
    return warnings


def _must_agree(metric: str) -> dict[str, Callable[[Measured], str]]:
    """What all compared runs should share, by the words of its warning."""

    def formula(member: Measured) -> str:
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
    """Names and hashes of the user's own data sets, or of the published ones."""
    chosen = [data for data in record.data if (data.canonical is None) == own]
    return ", ".join(f"{data.name} {data.sha256[:12]}" for data in chosen) or "none"


def _settings(records: Sequence[Record]) -> list[str]:
    every = [facts(record) for record in records]
    names = dict.fromkeys(name for known in every for name in known if name.startswith("scenario."))
    parts = []
    for name in names:
        values = dict.fromkeys(known.get(name, "-") for known in every)
        if len(values) > 1:
            choices = " or ".join(one_line(value, 40) for value in values)
            parts.append(f"{one_line(name.rpartition('.')[2], 40)} is {choices}")
    return [f"Settings of the scenario differ: {_listed(parts)}"] if parts else []


def of_tasks(records: Iterable[Record]) -> list[str]:
    """A warning about seeds at which runs learned different tasks or from different own data."""
    learned: dict[int, set[str]] = {}
    for record in records:
        tasks = [task.model_dump(mode="json") for task in record.tasks]
        whole = [tasks, record.scenario.settings.get("seed"), _data(record, own=True)]
        learned.setdefault(record.seed, set()).add(json.dumps(whole, sort_keys=True))
    uneven = [seed for seed in sorted(learned) if len(learned[seed]) > 1]
    if not uneven:
        return []
    return [f"Tasks or data differ between runs of the same seed: at {_seeds(uneven)}"]


def of_seeds(
    samples: Sequence[Sample], pairs: Sequence[Pair], scope: Scope, level: float
) -> list[str]:
    """Warnings about seeds that are missing or too few."""
    warnings = []
    lacking: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
    for sample in samples:
        every = {seed for s in samples if scope(s) == scope(sample) for seed in s.seeds}
        missing = tuple(sorted(every - set(sample.seeds)))
        lacking.setdefault((scope(sample), missing), []).append(sample.label)
    for (_, missing), labels in lacking.items():
        if missing:
            warnings.append(
                f"Without {_seeds(missing)}, which other groups have and pairs with these leave "
                f"out: {_listed(labels, most=20)}"
            )
    single = [sample.label for sample in samples if len(sample.seeds) == 1]
    if single:
        warnings.append(f"One seed only, so no interval and no test: {_listed(single)}")
    without = [f"{pair.first} and {pair.second}" for pair in pairs if not pair.seeds]
    if without:
        warnings.append(f"No common seed: {_listed(without, '; ')}")
    return warnings + _of_power(pairs, level)


def _of_power(pairs: Sequence[Pair], level: float) -> list[str]:
    """Warnings if no difference, however large, could be significant."""
    tested = Counter(len(pair.seeds) for pair in pairs if pair.p is not None)
    total = sum(tested.values())
    warnings = []
    for count, number in sorted(tested.items()):
        least = least_p(count)
        how = f"With {count} common seeds ({number} pair{'s' if number > 1 else ''})"
        power = f"2/2^{count} = {least:.3g}" if count <= EXACT_UP_TO else f"{least:.3g}"
        if least > level:
            more = f", and {seeds_needed(level, total)} where Holm counts all {total} pairs"
            warnings.append(
                f"{how} the least possible p is {power} > {level:g}, whatever the difference: "
                f"at least {seeds_needed(level)} seeds are needed{more if total > 1 else ''}"
            )
        elif least * total > level:
            warnings.append(
                f"{how} the least possible p is {power}, but Holm over {total} pairs can raise it "
                f"to {min(1.0, least * total):.3g} > {level:g}: {seeds_needed(level, total)} seeds "
                f"are needed, or fewer pairs ({either('baseline=', '--baseline')})"
            )
    return warnings


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed([str(seed) for seed in seeds], most=10)}"


def _named(runs: Sequence[str]) -> str:
    if len(runs) > MAX_NAMES:
        return f"{len(runs)} runs"
    return ", ".join(one_line(name, 60) for name in runs)


def _listed(parts: Sequence[str], between: str = ", ", most: int = 6) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return between.join(parts[:most]) + more
