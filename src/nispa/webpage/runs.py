"""The runs of a page: read, sorted into problems and groups, and what a group has in common.

Runs are put side by side only where they learned the same tasks from the same data (a problem), and
averaged only where they differ in nothing but the seed (a group).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nispa.errors import InputError
from nispa.files import one_line, shown
from nispa.reading import compare
from nispa.reading.statistics import interval, spread
from nispa.runs import metrics
from nispa.runs.costs import cost_of
from nispa.runs.folder import EVENTS, RunFolder
from nispa.runs.record import RECORD, Cost, Record, comparable, read_record
from nispa.webpage.phases import Phase, phases_of

MAX_RUNS = 1_000
MOST = 1e15  # seconds or bytes beyond this are no measurement
MOST_OPERATIONS = 1e25


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: What to call it, such as the name of its folder.
        record: Its record.
        phases: Its phases, from its events; empty where there are none.
        note: What is wrong with its events; empty where nothing is.
    """

    name: str
    record: Record
    phases: tuple[Phase, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", one_line(self.name, 80))
        object.__setattr__(self, "note", one_line(self.note, 500))

    @cached_property
    def _cost(self) -> Cost:
        return cost_of(self.record)

    def cost(self, name: str) -> float | None:
        """What it cost, by a name in :data:`nispa.runs.costs.KINDS`; None where it is not known."""
        value: float | None = getattr(self._cost, name)
        most = MOST_OPERATIONS if name.endswith("operations") else MOST
        return float(value) if value is not None and value < most else None


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The folders (or records) of runs among ``paths``.

    A folder that holds no record itself stands for the runs that lie directly in it.

    Raises:
        InputError: A path is no run and holds none, or there are more than :data:`MAX_RUNS`.
    """
    found: list[Path] = []
    for path in paths:
        inside: list[Path] = []
        if _is_folder(path) and not os.path.lexists(path / RECORD):
            inside = sorted(part.parent for part in path.glob(f"*/{RECORD}"))
        found += inside or [path]
    if not found:
        raise InputError("no runs were given; pass at least one folder of a run")
    if len(found) > MAX_RUNS:
        raise InputError(f"{len(found):,} runs are more than {MAX_RUNS:,}; pass fewer of them")
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # such as a name that is too long: read_record says so
        return False


def read_run(path: Path) -> Run:
    """A run from its folder or its record; damaged events are noted, not fatal.

    Raises:
        InputError: There is no record, or it cannot be read.
        FormatError: The record is damaged, no record of nispa, or from a newer version.
    """
    record = read_record(path)
    folder = path if _is_folder(path) else path.parent
    name = folder.resolve().name or shown(folder)
    if not os.path.lexists(folder / EVENTS):
        return Run(name, record)
    try:
        events = RunFolder(folder).read_events()
    except InputError as error:
        return Run(name, record, note=f"Its events are left out: {error}")
    return Run(name, record, phases_of(events, record))


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs at ``paths``, and what is wrong with each record that cannot be read.

    Raises:
        InputError: A path holds no record, or none can be read.
    """
    runs: list[Run] = []
    faults: list[InputError] = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except InputError as error:
            if not _has_record(path):  # mistyped rather than damaged
                raise
            faults.append(error)
    if not runs:
        raise faults[0]
    return runs, [str(fault) for fault in faults]


def _has_record(path: Path) -> bool:
    return os.path.lexists(path if path.name == RECORD else path / RECORD)


@dataclass
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        number: From 1, over the whole page; stands for the group in pictures.
        label: Its method, and what else tells it from the other groups of its problem.
        members: Place of each run among the runs of the page, and the run.
    """

    number: int
    label: str
    members: list[tuple[int, Run]] = field(default_factory=list)

    @cached_property
    def counted(self) -> list[tuple[int, Run]]:
        """Complete runs of all tasks, each result once however often it was given."""
        seen: set[bytes] = set()
        kept = []
        for place, run in self.members:
            if run.record.status != "complete" or accuracy(run) is None:
                continue
            key = comparable(run.record)
            if key not in seen:
                kept.append((place, run))
            seen.add(key)
        return kept


@dataclass
class Problem:
    """Runs that learned the same tasks from the same data in the same way, by group."""

    label: str
    groups: list[Group] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """One of its records, for what all have in common."""
        return self.groups[0].members[0][1].record

    @property
    def counted(self) -> list[Group]:
        """The groups with complete runs, best first."""
        means = [(mean(accuracy(run) for _, run in group.counted), group) for group in self.groups]
        known = [(-value, group.number, group) for value, group in means if value is not None]
        return [group for _, _, group in sorted(known, key=lambda entry: entry[:2])]


def told(record: Record) -> str:
    """Whether what counts was measured with the task told, in words."""
    return "told the task" if record.main_matrix is record.accuracy_matrix else "not told the task"


def problems_of(runs: Sequence[Run]) -> list[Problem]:
    """The runs, sorted into problems and groups in the order in which they were given.

    Problems of one kind (task-, class- or domain-incremental) stand together.
    """
    problems: dict[str, Problem] = {}
    groups: dict[tuple[str, str], Group] = {}
    for place, run in enumerate(runs, start=1):
        record = run.record
        problem_key = _key(
            record.scenario.name,
            _without_seed(record.scenario.settings),
            sorted(data.sha256 for data in record.data),
            [task.classes for task in record.tasks],
            record.incremental,
        )
        label = f"{one_line(record.scenario.name, 40)}, {record.incremental}-incremental"
        problem = problems.setdefault(problem_key, Problem(label))
        key = (problem_key, _key(record.method, record.preset, record.config))
        if key not in groups:
            groups[key] = Group(len(groups) + 1, one_line(record.method, 30))
            problem.groups.append(groups[key])
        groups[key].members.append((place, run))
    found = list(problems.values())
    labels = [problem.label for problem in found]
    for place, problem in enumerate(found):
        if labels.count(labels[place]) > 1:
            problem.label += f", variant {1 + labels[:place].count(labels[place])}"
        named = compare.labels([group.members[0][1].record for group in problem.groups])
        for group, name in zip(problem.groups, named, strict=True):
            group.label = name
    kinds = list(dict.fromkeys(problem.record.incremental for problem in found))
    return sorted(found, key=lambda problem: kinds.index(problem.record.incremental))


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _without_seed(value: Any) -> Any:
    """Settings without those called ``seed``, in which the runs of a group may differ."""
    if isinstance(value, dict):
        return {key: _without_seed(part) for key, part in value.items() if key != "seed"}
    return [_without_seed(part) for part in value] if isinstance(value, list) else value


def accuracy(run: Run) -> float | None:
    """Mean accuracy after the last task, of the matrix that counts; None before that."""
    return metrics.acc(run.record.main_matrix)


def other_accuracy(run: Run) -> float | None:
    """The same of the matrix that does not count; None where there is none."""
    record = run.record
    if record.accuracy_matrix_task_agnostic is None:
        return None
    told = record.main_matrix is record.accuracy_matrix
    rows = record.accuracy_matrix_task_agnostic if told else record.accuracy_matrix
    return metrics.acc(rows)


def forgetting(run: Run) -> float | None:
    """Forgetting, of the matrix that counts."""
    return metrics.forgetting(run.record.main_matrix)


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and 95 % interval of the mean (Student's, within [0, 1]).

    The last two are None for fewer than two values.
    """

    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those values that are not None; None where all are."""
    given = [value for value in values if value is not None]
    return math.fsum(given) / len(given) if given else None


def summary(group: Group) -> Summary | None:
    """The accuracies of a group's runs in short; None where it has none that count."""
    given = [value for value in (accuracy(run) for _, run in group.counted) if value is not None]
    middle = mean(given)
    return None if middle is None else Summary(len(given), middle, spread(given), interval(given))


def settings_of(run: Run) -> Iterator[tuple[str, str]]:
    """Every setting of a run with its value as text: ``method.batch_size`` and ``"512"``."""
    yield from _flat(run.record.config)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else key)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield one_line(name, 80), one_line(text, 120)
