"""Tables of runs: every record found in some folders as a row, filtered and sorted.

The folders are the store: nothing else is kept, and listing never writes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nispa.errors import ConfigError, InputError, either, unknown_name
from nispa.files import one_line
from nispa.reading.groups import IMPORTED, Value, as_text, flatten, scan
from nispa.runs.costs import cost_of
from nispa.runs.record import Record, read_record

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Column:
    """A column of the table of runs: the kind of its values, and their meaning."""

    kind: Literal["text", "whole", "number", "share"]
    doc: str


COLUMNS: dict[str, Column] = {
    "scenario": Column("text", "the sequence of tasks"),
    "method": Column("text", "the method"),
    "preset": Column("text", "the preset, if one was named"),
    "seed": Column("whole", "the seed"),
    "status": Column("text", f"complete, running, interrupted, failed or {UNREADABLE}"),
    "incremental": Column("text", "what a task adds: task, class or domain"),
    "accuracy": Column("share", "mean accuracy after the last task, the record's main metric"),
    "forgetting": Column("share", "mean drop from the best accuracy on each task"),
    "parameters": Column("whole", "live parameters of the network"),
    "kept_bytes": Column("whole", "bytes kept beside the network for later tasks"),
    "train_operations": Column("number", "floating-point operations of training, all tasks"),
    "train_s": Column("number", "seconds of training, all tasks"),
    "started": Column("text", "start, UTC"),
    "folder": Column("text", "its folder"),
    "finished": Column("text", "end, UTC"),
    "tasks": Column("whole", "tasks of the scenario"),
    "learned": Column("whole", "tasks learned so far"),
    "bwt": Column("share", "backward transfer"),
    "fwt": Column("share", "forward transfer"),
    "samples": Column("whole", "training samples seen"),
    "inference_operations": Column("number", "floating-point operations to predict one sample"),
    "model_bytes": Column("whole", "bytes of the network: live values and their positions"),
    "train_cpu_s": Column("number", "CPU seconds of training, all threads and tasks"),
    "eval_s": Column("number", "seconds of measuring accuracy, all tasks"),
    "eval_cpu_s": Column("number", "CPU seconds of measuring accuracy, all tasks"),
    "peak_bytes": Column("whole", "peak resident memory of the process"),
    "canonical": Column("text", "whether the data are the published ones: yes, no or own"),
    "device": Column("text", f"device; {IMPORTED} for runs of another tool"),
    "version": Column("text", "version of nispa that wrote the record"),
    "problem": Column("text", "why its record cannot be read"),
}


@dataclass(frozen=True)
class Row:
    """A run as a row of a table, without its record: ten thousand fit into memory.

    Attributes:
        location: Its folder, as found from the given one.
        columns: Values by column, but for the folder; a missing one is unknown.
        settings: Its settings by flat name, such as ``{"method.learning_rate": 0.01}``.
    """

    location: str
    columns: Mapping[str, Value]
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its folder without control characters."""
        return self.location if self.location.isprintable() else one_line(self.location, 4096)

    def value(self, key: str) -> Value:
        """The value of a column or setting; None if unknown."""
        if key in COLUMNS:
            return self.folder if key == "folder" else self.columns.get(key)
        return self.settings.get(key)


METRICS = {"accuracy": "acc", "forgetting": "forgetting", "bwt": "bwt", "fwt": "fwt"}
COSTS = (
    *("kept_bytes", "model_bytes", "peak_bytes"),
    *("train_s", "train_cpu_s", "eval_s", "eval_cpu_s"),
)


def summarise(record: Record) -> dict[str, Value]:
    """The columns of a record, but for its folder and its problems."""
    cost, metrics = cost_of(record), record.main_metrics
    return {
        "scenario": one_line(record.scenario.name),
        "method": one_line(record.method),
        "preset": None if record.preset is None else one_line(record.preset),
        "seed": record.seed,
        "status": record.status,
        "incremental": record.incremental,
        **{key: metrics[name].value for key, name in METRICS.items() if name in metrics},
        "parameters": cost.live,
        **{name: getattr(cost, name) for name in COSTS},
        "train_operations": _float(cost.train_operations),
        "inference_operations": _float(cost.inference_operations),
        "started": record.started,
        "finished": record.finished,
        "tasks": len(record.tasks),
        "learned": record.learned,
        "samples": sum(t.samples_trained for t in record.per_task) if record.per_task else None,
        "canonical": _canonical([data.canonical for data in record.data]),
        "device": one_line(record.environment.device),
        "version": one_line(record.version),
    }


def _float(count: int | None) -> float | None:
    return None if count is None else float(count)


def _canonical(states: Sequence[bool | None]) -> str | None:
    if not states:
        return None
    return "no" if False in states else "own" if None in states else "yes"


def find_runs(folders: Iterable[str | Path]) -> list[Row]:
    """Every run in the folders and below, by scenario, method, preset and seed.

    Skips what :func:`nispa.reading.groups.scan` skips. A record that cannot be read has a row, too,
    with the status ``"unreadable"`` and its problem.

    Raises:
        InputError: One of the folders does not exist or cannot be read.
    """
    rows: dict[str, Row] = {}
    settings: dict[str, Mapping[str, Value]] = {}  # the seeds of a sweep share them
    for folder in folders:
        root, real = str(folder), os.path.realpath(folder)
        found, problems = scan(root)
        for name in found:
            place = _below(real, name)
            if place not in rows:
                rows[place] = _read(_below(root, name), settings)
        for name, problem in problems.items():
            rows.setdefault(_below(real, name), _unreadable(_below(root, name), problem))
    return sorted(rows.values(), key=_usual_order)


def _usual_order(row: Row) -> tuple[Any, ...]:
    get = row.columns.get
    texts = (get("scenario") or "", get("method") or "", get("preset") or "")
    unreadable = get("status") == UNREADABLE
    return (unreadable, *texts, get("seed") or 0, get("started") or "", row.location)


def _below(root: str, name: str) -> str:
    return root if name == "." else f"{root.rstrip('/')}/{name}"


def _read(folder: str, settings: dict[str, Mapping[str, Value]]) -> Row:
    try:
        record = read_record(folder)
    except InputError as error:
        return _unreadable(folder, str(error))
    key = json.dumps(record.config)
    if key not in settings:
        settings[key] = flatten(record.config)
    return Row(folder, summarise(record), settings[key])


def _unreadable(folder: str, problem: str) -> Row:
    return Row(folder, {"status": UNREADABLE, "problem": one_line(problem)})


# --- Choosing and sorting ------------------------------------------------------------------------

_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def known_keys(runs: Iterable[Row]) -> set[str]:
    """All columns, and every setting of any of the runs."""
    return set(COLUMNS).union(*{tuple(run.settings) for run in runs})


def check_keys(runs: Sequence[Row], keys: Iterable[str]) -> None:
    """Refuses keys that are neither a column nor a setting of the runs.

    Raises:
        UnknownNameError: One is neither.
    """
    known = known_keys(runs)
    for key in keys:
        if key not in known:
            raise unknown_name("column or setting", key, known)


def choose(runs: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The runs that meet all conditions, such as ``"method=ewc*"`` or ``"accuracy>=90%"``.

    ``=`` and ``!=`` take shell-like patterns for text, and ``none`` for an unknown value; the
    other operators compare numbers, or texts letter by letter. An unknown value is neither less nor
    greater than anything.

    Raises:
        InputError: A condition is malformed.
        UnknownNameError: It names neither a column nor a setting of the runs.
    """
    parsed = [_parse(condition) for condition in conditions]
    if not runs:
        return []
    check_keys(runs, (key for key, _, _ in parsed))
    chosen = list(runs)
    for key, sign, text in parsed:
        test = _test(key, sign, text)
        chosen = [run for run in chosen if test(run.value(key))]
    return chosen


def _where() -> str:
    return either("", "--where ")


def _parse(condition: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise InputError(
            f"{_where()}{one_line(condition)} must be KEY=VALUE, such as {_where()}'method=ewc*', "
            "or with !=, <, <=, > or >="
        )
    key, sign, text = match.groups()
    return key, "=" if sign == "==" else sign, text


def _test(key: str, sign: str, text: str) -> Callable[[Value], bool]:
    number = _number(key, sign, text)
    if sign in ("=", "!="):
        same = _same(text, number)
        return same if sign == "=" else lambda value: not same(value)
    compare = _COMPARE[sign]

    def test(value: Value) -> bool:
        if isinstance(value, str):
            return compare(value, text)
        if value is None or isinstance(value, bool) or number is None:
            return False
        return compare(value, number)

    return test


def _same(text: str, number: float | None) -> Callable[[Value], bool]:
    fits = re.compile(fnmatch.translate(text)).match

    def same(value: Value) -> bool:
        if number is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
            return value == number
        return fits(as_text(value)) is not None

    return same


def _number(key: str, sign: str, text: str) -> float | None:
    """The number in a condition; None if it is a text."""
    kind = COLUMNS[key].kind if key in COLUMNS else None
    number = None
    with contextlib.suppress(ValueError):
        scale = 100 if text.endswith("%") else 1
        bare = text.removesuffix("%")
        number = int(bare) if scale == 1 and re.fullmatch(r"-?\d+", bare) else float(bare) / scale
    if number is not None and not math.isfinite(number):
        number = None
    wants_number = kind not in (None, "text") and not (text == "none" and sign in ("=", "!="))
    if wants_number and number is None:
        raise ConfigError(f"{_where()}{key}{sign}{one_line(text)}: {key} is a number; give one")
    if kind == "share" and number is not None and not -1 <= number <= 1:
        raise ConfigError(
            f"{_where()}{key}{sign}{text}: {key} is a fraction in [-1, 1]; "
            f"write {number / 100:g} or {number:g}%"
        )
    return number


def arrange(runs: Sequence[Row], key: str) -> list[Row]:
    """Sorts runs by a column or setting, in falling order with a leading ``-``.

    Numbers come before texts. Runs without a value are last in either order.

    Raises:
        UnknownNameError: The key is neither a column nor a setting of the runs.
    """
    name = key.removeprefix("-")
    if runs:
        check_keys(runs, [name])
    known = [run for run in runs if run.value(name) is not None]
    unknown = [run for run in runs if run.value(name) is None]

    def place(run: Row) -> tuple[bool, Any]:
        value = run.value(name)
        return isinstance(value, str), value

    return sorted(known, key=place, reverse=key.startswith("-")) + unknown
