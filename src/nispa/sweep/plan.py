"""Plans: descriptions of many runs. Every combination of the lists in a plan is a run.

A plan is a TOML file::

    about = "learning rates of two methods"
    scenario = "split-digits"
    seed = [0, 19, 42]

    [[runs]]
    method = ["nispa", "packnet"]
    [runs.set]
    density = 0.1
    [runs.grid]
    learning_rate = [0.003, 0.01]

Everything before the first ``[[runs]]`` applies to all of them, and each may replace it. ``set``
holds settings, ``grid`` lists of values to try; both take settings of the network, the method and
the scenario.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nispa.errors import ConfigError, FormatError, needs, unknown_name
from nispa.files import one_line, read_limited, shown, too_deep, wording

if sys.version_info >= (3, 11):
    import tomllib
else:
    with needs("sweep", "a plan of a sweep"):
        import tomli as tomllib

MAX_PLAN_BYTES = 2**20
MAX_CELLS = 100_000
MAX_GRIDS = 10_000
MAX_SETTINGS = 200  # per table
MAX_NESTING = 8  # depth of lists and tables
MAX_TEXT = 200
MAX_SEED = 2**63 - 1

Measured = Literal["test", "validation"]  # which images accuracies are measured on

AXES = ("scenario", "method", "preset", "seed")
TABLES = ("set", "grid")
KEYS = ("about", *AXES, *TABLES, "runs")


@dataclass(frozen=True)
class Cell:
    """One run of a plan, before its settings are resolved.

    Attributes:
        scenario: Name of the scenario.
        method: Name of the method.
        preset: Name of the preset.
        seed: The seed.
        given: Settings of network, method and scenario that replace those of the preset.
        varied: Names of those settings that differ between runs of the plan.
        measured: Which images accuracies are measured on.
    """

    scenario: str
    method: str
    preset: str
    seed: int
    given: Mapping[str, Any] = field(default_factory=dict)
    varied: tuple[str, ...] = ()
    measured: Measured = "test"

    @property
    def title(self) -> str:
        """The run in a line."""
        parts = [self.scenario, self.method, f"preset {self.preset}"]
        parts += [f"{name}={as_text(self.given[name])}" for name in self.varied]
        return ", ".join([*parts, f"seed {self.seed}"])


@dataclass(frozen=True)
class Grid:
    """Lists of which every combination is a run.

    Attributes:
        scenario: Names of scenarios.
        method: Names of methods.
        preset: Names of presets.
        seed: Seeds.
        set: Settings of all runs.
        grid: Values to try, by setting.
        told: Names in ``set`` to show in the runs' titles, since other grids differ in them.
    """

    scenario: tuple[str, ...]
    method: tuple[str, ...] = ("nispa",)
    preset: tuple[str, ...] = ("default",)
    seed: tuple[int, ...] = (0,)
    set: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*AXES, "grid"):
            lists = getattr(self, name)
            for key, values in lists.items() if name == "grid" else ((name, lists),):
                _check_list(key, values)
        both = sorted(set(self.set) & set(self.grid))
        if both:
            raise ConfigError(f"{both[0]} is in set and in grid; keep one of them")

    @property
    def runs(self) -> int:
        """Number of runs, which may be astronomically large."""
        lists = [*(getattr(self, name) for name in AXES), *self.grid.values()]
        return math.prod(map(len, lists))

    def cells(self, seed: int) -> Iterator[Cell]:
        """All runs with one of its seeds."""
        names = tuple(self.grid)
        for scenario, method, preset in itertools.product(self.scenario, self.method, self.preset):
            for values in itertools.product(*self.grid.values()):
                given = {**self.set, **dict(zip(names, values, strict=True))}
                yield Cell(scenario, method, preset, seed, given, (*self.told, *names))


def _check_list(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ConfigError(f"{name}=[] holds no value; give one or more, or leave it out")
    seen: set[str] = set()
    for text in map(as_text, values):
        if text in seen:
            raise ConfigError(f"{name} holds {one_line(text)} twice; give it once")
        seen.add(text)


@dataclass(frozen=True)
class Plan:
    """Several grids.

    Attributes:
        grids: The grids.
        about: The purpose of the plan, in a line.
    """

    grids: tuple[Grid, ...]
    about: str = ""

    def __post_init__(self) -> None:
        _check_runs(len(self))

    def __len__(self) -> int:
        return min(sum(grid.runs for grid in self.grids), 2**31)  # len() has a limit

    def only(self, methods: Sequence[str]) -> Plan:
        """The plan restricted to these methods, or the whole plan if there are none.

        Raises:
            UnknownNameError: The plan has no such method.
        """
        if not methods:
            return self
        known = dict.fromkeys(name for grid in self.grids for name in grid.method)
        for name in methods:
            if name not in known:
                raise unknown_name("method of this plan", name, known)
        grids = tuple(
            replace(grid, method=tuple(name for name in grid.method if name in methods))
            for grid in self.grids
            if set(grid.method) & set(methods)
        )
        return Plan(grids, self.about)

    def cells(self) -> Iterator[Cell]:
        """Its runs, seed by seed, so that the first results already compare everything."""
        grids_of: dict[int, list[Grid]] = {}
        for grid in self.grids:
            for seed in grid.seed:
                grids_of.setdefault(seed, []).append(grid)
        for seed, grids in grids_of.items():
            for grid in grids:
                yield from grid.cells(seed)


# A dotted name with many parts, which takes the TOML reader a time that grows with their square.
_PART = rb"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_LONG_NAME = re.compile(rb"(?<![A-Za-z0-9_-])(?:%b[ \t]*\.[ \t]*){64}" % _PART)


def read_plan(path: Path) -> Plan:
    """Reads a plan from a TOML file.

    Raises:
        InputError: It cannot be read.
        FormatError: It is not TOML.
        ConfigError: A key is unknown, or a value has the wrong type.
    """
    data = read_limited(path, MAX_PLAN_BYTES)
    if _LONG_NAME.search(data):
        raise FormatError(f"{shown(path)} holds a name of more than 64 parts; plans need three")
    try:
        values = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # includes errors in TOML and UTF-8
        raise FormatError(f"{shown(path)} is not TOML: {wording(error)}") from None
    try:
        return make_plan(values)
    except ConfigError as error:
        raise type(error)(f"{shown(path)}: {error}") from None


def make_plan(values: Mapping[str, Any]) -> Plan:
    """Makes a plan from the content of a TOML document.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type.
    """
    if too_deep(values, MAX_NESTING):
        raise ConfigError(
            f"a value nests more than {MAX_NESTING} lists or tables; a plan's settings are texts, "
            "numbers and lists of them"
        )
    _check_keys(values, KEYS)
    about = values.get("about", "")
    if not isinstance(about, str):
        raise ConfigError(f"about={as_text(about)} must be a text")
    parts = values.get("runs", [{}])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ConfigError("runs must be tables, each headed [[runs]]")
    if len(parts) > MAX_GRIDS:
        raise ConfigError(
            f"the plan has {len(parts):,} tables [[runs]], more than {MAX_GRIDS:,}; use lists of "
            "values, which make many runs of one table"
        )
    _check_tables(values)
    grids: list[Grid] = []
    runs = 0
    for part in parts:
        grids.append(_grid(values, part))
        runs += grids[-1].runs
        _check_runs(runs)
    return Plan(tuple(grids), one_line(about, MAX_TEXT))


def _check_runs(runs: int) -> None:
    if runs > MAX_CELLS:
        raise ConfigError(
            f"the plan has {one_line(f'{runs:,}', 40)} runs, more than {MAX_CELLS:,}; shorten a "
            "list"
        )


def _check_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(str(unknown_name("key", one_line(key), known)))


def _grid(shared: Mapping[str, Any], part: Mapping[str, Any]) -> Grid:
    _check_keys(part, (*AXES, *TABLES))
    _check_tables(part)
    axes = {
        name: _axis(name, part.get(name, shared.get(name)))
        for name in AXES
        if name in part or name in shared
    }
    if "scenario" not in axes:
        raise ConfigError('the scenario is missing; add a line such as scenario = "efmnist"')
    own_set, own_grid = part.get("set", {}), part.get("grid", {})
    # What a part sets or lists itself replaces the shared value or list; Grid refuses both at once.
    fixed = {key: value for key, value in shared.get("set", {}).items() if key not in own_grid}
    lists = {key: values for key, values in shared.get("grid", {}).items() if key not in own_set}
    return Grid(**axes, set=fixed | own_set, grid=lists | own_grid, told=tuple(own_set))


def _check_tables(values: Mapping[str, Any]) -> None:
    """Checks that ``set`` and ``grid`` are tables of possible settings.

    Raises:
        ConfigError: They are not.
    """
    for name in TABLES:
        table = values.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name} must be a table of settings, such as [{name}]")
        if len(table) > MAX_SETTINGS:
            raise ConfigError(
                f"{name} has {len(table):,} settings, more than {MAX_SETTINGS}, which no method "
                "has; leave some out"
            )
    for key, value in values.get("set", {}).items():
        _check_value(key, value)
    for key, tried in values.get("grid", {}).items():
        if not isinstance(tried, list):
            raise ConfigError(
                f"grid.{one_line(key)}={as_text(tried)} must be a list of values; one value "
                "belongs in set"
            )
        for value in tried:
            _check_value(key, value)


def _axis(name: str, value: Any) -> tuple[Any, ...]:
    values = value if isinstance(value, list) else [value]
    for each in values:
        if name == "seed":
            if type(each) is not int or not 0 <= each <= MAX_SEED:
                raise ConfigError(f"seed={as_text(each)} must be a whole number in [0, 2^63)")
        elif not isinstance(each, str):
            raise ConfigError(f"{name}={as_text(each)} must be a name")
    return tuple(values)


def _check_value(key: str, value: Any) -> None:
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, (str, int, float)) for part in parts):  # bool is an int
        raise ConfigError(
            f"{one_line(key)}={as_text(value)} must be a text, a number, true, false, or a list "
            "of them"
        )
    if any(isinstance(part, int) and abs(part) >= 2**63 for part in parts):
        raise ConfigError(
            f"{one_line(key)}={as_text(value)} must hold whole numbers in (-2^63, 2^63)"
        )


def as_text(value: Any) -> str:
    """A value in a line, as a command line takes it."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, (list, tuple)):
        return one_line(",".join(as_text(part) for part in value[:MAX_TEXT]))
    if isinstance(value, int) and abs(value) >= 2**63:  # Python refuses to print very long numbers
        return one_line(hex(value), 40)
    if isinstance(value, dict):
        return "{...}"
    try:
        return one_line(json.dumps(value))
    except (TypeError, ValueError):  # such as a date
        return one_line(str(value))
