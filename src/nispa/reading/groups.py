"""Runs: find their folders, read them, and group those that differ only in the seed.

Every command that compares, averages or tabulates runs uses the rule of :func:`key_of`: two runs
belong to one group if they differ in nothing but the seed and what the seed decides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nispa.errors import InputError
from nispa.files import one_line, reason, shown
from nispa.reading.phases import Phase, phases_of
from nispa.reading.statistics import Estimate, estimate, mean_of_all
from nispa.runs import metrics
from nispa.runs.costs import cost_of
from nispa.runs.folder import EVENTS, RunFolder
from nispa.runs.record import RECORD, Cost, Record, read_record

Value = str | int | float | bool | None

IMPORTED = "imported"
"""Device, and section of the settings, of a run that another tool made."""

MAX_DEPTH = 8  # folders below the given one, and levels of settings
MAX_SETTINGS = 500
MAX_TEXT = 200
MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class Run:
    """A run as it was read.

    Attributes:
        name: What messages and pages call it, such as the name of its folder.
        record: Its record.
        phases: Its phases; empty if its events were not read or hold none.
        note: Why its events could not be read; empty if they could.
    """

    name: str
    record: Record
    phases: tuple[Phase, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", one_line(self.name, 80))
        object.__setattr__(self, "note", one_line(self.note, 500))

    @cached_property
    def accuracy(self) -> float | None:
        """Mean accuracy after the last task, from the main matrix; None before that."""
        return metrics.acc(self.record.main_matrix)

    @cached_property
    def forgetting(self) -> float | None:
        """Forgetting, from the main matrix; None if not defined."""
        return metrics.forgetting(self.record.main_matrix)

    @cached_property
    def _cost(self) -> Cost:
        return cost_of(self.record)

    def cost(self, name: str) -> float | None:
        """A cost by its name in :data:`nispa.runs.costs.KINDS`; None if unknown."""
        value: float | None = getattr(self._cost, name)
        return None if value is None else float(value)


# --- Grouping ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        number: Position among the groups, from 1.
        label: The method, and the settings that distinguish the group from the others.
        members: Each run with its position among all runs, from 1.
    """

    number: int
    label: str
    members: tuple[tuple[int, Run], ...]

    @property
    def record(self) -> Record:
        """One of its records, for what all of them share."""
        return self.members[0][1].record

    @cached_property
    def counted(self) -> list[tuple[int, Run]]:
        """The complete members, one for each seed, that means are taken over."""
        first: dict[int, tuple[int, Run]] = {}
        for position, run in self.members:
            if run.record.status == "complete" and run.accuracy is not None:
                first.setdefault(run.record.seed, (position, run))
        return list(first.values())

    def mean(self, value: Callable[[Run], float | None]) -> float | None:
        """The mean of a value over the counted runs; None unless known of every one."""
        return mean_of_all(value(run) for _, run in self.counted)

    @cached_property
    def estimate(self) -> Estimate | None:
        """Mean accuracy of the counted runs with its interval; None if no run counts."""
        values = [run.accuracy for _, run in self.counted if run.accuracy is not None]
        return estimate(values) if values else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The groups that runs form, in order of appearance; see :func:`key_of`."""
    members: dict[str, list[tuple[int, Run]]] = {}
    for position, run in enumerate(runs, start=1):
        members.setdefault(key_of(run.record), []).append((position, run))
    names = labels([group[0][1].record for group in members.values()])
    return [
        Group(number, label, tuple(group))
        for number, (label, group) in enumerate(zip(names, members.values(), strict=True), start=1)
    ]


def key_of(record: Record) -> str:
    """Equal for two runs that differ only in the seed: the rule by which runs are grouped.

    Such runs have the same scenario with the same options, the same published data, the same kind
    of tasks, the same method, preset and settings. Whatever the seed may decide can differ: the
    classes of a task, arrays of the user's own, every setting called ``seed``.
    """
    return _as_key([_learned(record), _learner(record)])


def problem_of(record: Record) -> str:
    """The part of :func:`key_of` that says what was learned; equal if methods can be ranked."""
    return _as_key(_learned(record))


def _as_key(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return json.dumps(_without_seed(value), sort_keys=True) if '"seed"' in text else text


def _learned(record: Record) -> dict[str, Any]:
    settings = record.scenario.settings
    if "options" in settings and "resolved" in settings:  # the seed decides what they resolve to
        settings = {"options": settings["options"]}
    data: dict[str, list[str]] = {}
    for entry in record.data:
        if entry.canonical is not None:
            data.setdefault(entry.name, []).append(entry.sha256[:12])
    return {
        "name": record.scenario.name,
        "incremental": record.incremental,
        "scenario": settings,
        "data": data,
    }


def _learner(record: Record) -> dict[str, Any]:
    config = {key: value for key, value in record.config.items() if key != IMPORTED}
    return {"method": record.method, "preset": record.preset, "config": config}


def _without_seed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seed(part) for key, part in value.items() if key != "seed"}
    if isinstance(value, (list, tuple)):
        return [_without_seed(part) for part in value]
    return value


def facts(record: Record) -> dict[str, str]:
    """What the runs of a group share, as flat names and JSON: ``{"config.lr": "0.01"}``.

    Settings of the scenario begin with ``scenario.``, those of the method with ``config.``, and
    hashes of published data with ``data.``.
    """
    shared = _without_seed({**_learned(record), **_learner(record)})
    flat = leaves({name: shared[name] for name in ("scenario", "config", "data")})
    return {name: json.dumps(value, separators=(",", ":")) for name, value in flat}


def labels(records: Sequence[Record]) -> list[str]:
    """A short, unique label per group, from one record of each."""
    every = [
        {
            "preset": record.preset or "no preset",
            "incremental": f"{record.incremental}-incremental",
            **facts(record),
        }
        for record in records
    ]
    several = len({record.scenario.name for record in records}) > 1
    names = [f"{r.scenario.name} {r.method}" if several else r.method for r in records]
    names = _tell_apart(names, every, ["preset"])
    names = _tell_apart(names, every, ["incremental"])
    settings = dict.fromkeys(name for known in every for name in known if "." in name)
    names = [one_line(name, 80) for name in _tell_apart(names, every, list(settings))]
    count: Counter[str] = Counter()
    for position, name in enumerate(names):  # labels may be equal once they are cut
        count[name] += 1
        names[position] = f"{name} #{count[name]}" if count[name] > 1 else name
    return names


def _tell_apart(
    names: Sequence[str], every: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> list[str]:
    """Extends equal names by the values of those ``keys`` in which their groups differ."""
    longer = list(names)
    for name, count in Counter(names).items():
        if count < 2:
            continue
        places = [place for place, other in enumerate(names) if other == name]
        differing = [key for key in keys if len({every[p].get(key) for p in places}) > 1]
        lasts = Counter(key.rpartition(".")[2] for key in differing)
        for place, key in itertools.product(places, differing):
            last = key.rpartition(".")[2]
            short = last if lasts[last] == 1 else key.partition(".")[2]
            value = _typed(every[place].get(key, "-"))
            longer[place] += f" {short}={value}" if "." in key else f" {value}"
    return longer


def _typed(value: str) -> str:
    """A value in JSON as one would type it: no quotes, and no brackets around a plain list."""
    bare = value.strip('"')
    inside = bare[1:-1] if bare[:1] == "[" and bare[-1:] == "]" else bare
    return (bare if "[" in inside else inside.replace('"', "")).replace("null", "none")


# --- Settings ------------------------------------------------------------------------------------


def leaves(
    settings: Mapping[str, Any], prefix: str = "", depth: int = 1_000
) -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and values; tables below ``depth`` levels stay whole."""
    for key, value in settings.items():
        if isinstance(value, dict) and value and depth:
            yield from leaves(value, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", value


def flatten(config: Mapping[str, Any]) -> dict[str, Value]:
    """Settings for a table: ``{"network.hidden": "400,400,400"}``, lists as text.

    Bounded, since a record may come from anyone: 500 settings, 8 levels, 200 characters a text.
    """
    bounded = itertools.islice(leaves(config, depth=MAX_DEPTH), MAX_SETTINGS)
    return {one_line(name): _plain(value) for name, value in bounded}


def _plain(value: Any) -> Value:
    if isinstance(value, list):
        return one_line(",".join(as_text(_plain(part)) for part in value[:MAX_TEXT]))
    if isinstance(value, dict) or (isinstance(value, int) and abs(value) > MAX_INT):
        return one_line(json.dumps(value))
    return one_line(value) if isinstance(value, str) else value


def as_text(value: Value) -> str:
    """A value as the command line takes it: ``true``, ``none``, ``0.01``."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


# --- Finding and reading -------------------------------------------------------------------------


def scan(root: str) -> tuple[list[str], dict[str, str]]:
    """Folders with a record, in ``root`` and below, and why others could not be searched.

    Hidden folders, folders reached through a link and those more than 8 levels down are skipped.

    Returns:
        Paths relative to ``root``, ``"."`` for itself: those of records, and those of folders that
        cannot be read, with the reason.

    Raises:
        InputError: ``root`` cannot be read.
    """
    found: list[str] = []
    problems: dict[str, str] = {}
    waiting = [("", 0)]
    while waiting:
        below, depth = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below) if below else root) as entries:  # noqa: PTH118
                for entry in entries:
                    if entry.name == RECORD:
                        found.append(below or ".")
                    elif (
                        depth < MAX_DEPTH
                        and not entry.name.startswith(".")
                        and entry.is_dir(follow_symlinks=False)
                    ):
                        waiting.append((f"{below}/{entry.name}".lstrip("/"), depth + 1))
        except (OSError, ValueError) as error:
            if not below:
                raise InputError(
                    f"cannot read the folder {shown(root)}: {reason(error)}; "
                    "pass the folder that holds your runs"
                ) from error
            problems[below] = f"the folder cannot be read: {reason(error)}"
    return found, problems


def find_folders(paths: Iterable[Path], most: int) -> list[Path]:
    """The folders (or records) of runs among ``paths``.

    A folder without a record stands for all runs below it, as :func:`scan` finds them, and for
    links in it that lead to a run.

    Raises:
        InputError: ``paths`` is empty, or there are more than ``most`` runs.
    """
    found: list[Path] = []
    for path in paths:
        below: list[Path] = []
        if not os.path.lexists(path / RECORD) and _is_folder(path):
            with contextlib.suppress(InputError, OSError):  # reading it as a run says what is wrong
                linked = {file.parent for file in path.glob(f"*/{RECORD}")}
                below = sorted(linked.union(path / name for name in scan(str(path))[0]))
        found += below or [path]
    if not found:
        raise InputError("no runs were given; pass at least one folder of a run")
    if len(found) > most:
        raise InputError(f"{len(found):,} runs are more than {most:,}; pass fewer of them")
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def read_run(path: Path, *, events: bool = True) -> Run:
    """A run from its folder or its record; damaged events are noted, not fatal.

    Args:
        path: The folder or the record.
        events: Whether to read its phases.

    Raises:
        InputError: There is no record, or it cannot be read.
        FormatError: The record is damaged, not nispa's, or from a newer version.
    """
    record = read_record(path)
    folder = _folder_of(path)
    name = folder.resolve().name or shown(folder)
    if not events or not os.path.lexists(folder / EVENTS):
        return Run(name, record)
    try:
        lines = RunFolder(folder).read_events()
    except InputError as error:
        return Run(name, record, note=f"Its events are left out: {error}")
    return Run(name, record, phases_of(lines, record))


def read_runs(paths: Iterable[Path], *, events: bool = True) -> tuple[list[Run], list[str]]:
    """The runs at ``paths``, and for each record that cannot be read what is wrong with it.

    Different folders of the same name are called by their paths.

    Raises:
        InputError: A path holds no record, or no record can be read.
    """
    runs: list[tuple[Path, Run]] = []
    faults: list[InputError] = []
    for path in paths:
        try:
            runs.append((_folder_of(path), read_run(path, events=events)))
        except InputError as error:
            if not os.path.lexists(path if path.name == RECORD else path / RECORD):
                raise  # mistyped rather than damaged
            faults.append(error)
    if not runs and faults:
        raise faults[0]
    homes: dict[str, set[Path]] = {}
    for folder, run in runs:
        homes.setdefault(run.name, set()).add(folder)
    named = [
        replace(run, name=str(folder)) if len(homes[run.name]) > 1 else run for folder, run in runs
    ]
    return named, [str(fault) for fault in faults]


def _folder_of(path: Path) -> Path:
    return path if _is_folder(path) else path.parent
