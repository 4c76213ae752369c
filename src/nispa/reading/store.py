"""Runs in folders: found, summarised, chosen and sorted. The folders themselves are the store.

An index beside many runs keeps what was read of each record, so that the next call need not read
them again. It is a cache: it can be deleted at any time, and a folder that cannot be written to
does without. An entry counts only while its record's size, times and inode are those it was read
with. A copy of a folder has other ones, so that an index which came along with somebody else's
runs is never believed; what it holds is checked like any other file from outside.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nispa.errors import ConfigError, InputError, OutputError, either, unknown_name
from nispa.files import one_line, read_limited, reason, seal, seal_holds, shown, write_atomic
from nispa.runs.costs import cost_of
from nispa.runs.record import RECORD, Record, read_record

Value = str | int | float | bool | None

INDEX = ".nispa-index.json"
MAX_INDEX_BYTES = 64 * 2**20
MAX_DEPTH = 8  # folders below the one given
WORTH_AN_INDEX = 200  # runs; fewer are read in no time, and no file appears in their folder
MAX_SETTINGS = 500
MAX_TEXT = 200
MAX_INT = 2**63 - 1
UNREADABLE = "unreadable"
IMPORTED = "imported"  # what stands as the device of a run that another tool made

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Whole = Annotated[int, Field(ge=0, le=MAX_INT)]


@dataclass(frozen=True)
class Column:
    """One thing known of every run: its kind, and what it is."""

    kind: Literal["text", "whole", "number", "share"]
    doc: str


COLUMNS: dict[str, Column] = {
    "scenario": Column("text", "the sequence of tasks"),
    "method": Column("text", "the method"),
    "preset": Column("text", "the preset, where one was named"),
    "seed": Column("whole", "the seed"),
    "status": Column("text", f"complete, running, interrupted, failed or {UNREADABLE}"),
    "incremental": Column("text", "what a task adds: task, class or domain"),
    "accuracy": Column("share", "mean accuracy after the last task, the record's main metric"),
    "forgetting": Column("share", "mean fall from the best accuracy of each task"),
    "parameters": Column("whole", "live parameters of the network"),
    "kept_bytes": Column("whole", "bytes kept beside the network for the tasks to come"),
    "train_operations": Column("number", "floating-point operations of training, all tasks"),
    "train_s": Column("number", "seconds of training, all tasks together"),
    "started": Column("text", "when it started, UTC"),
    "folder": Column("text", "where it lies"),
    "finished": Column("text", "when it finished, UTC"),
    "tasks": Column("whole", "tasks of the scenario"),
    "learned": Column("whole", "tasks learned so far"),
    "bwt": Column("share", "backward transfer"),
    "fwt": Column("share", "forward transfer"),
    "samples": Column("whole", "training samples seen"),
    "inference_operations": Column("number", "floating-point operations of predicting one sample"),
    "model_bytes": Column("whole", "bytes of the network: live values and their positions"),
    "train_cpu_s": Column("number", "CPU seconds of training, threads included, all tasks"),
    "eval_s": Column("number", "seconds of measuring accuracy, all tasks"),
    "eval_cpu_s": Column("number", "CPU seconds of measuring accuracy, all tasks"),
    "peak_bytes": Column("whole", "most memory that the process had resident"),
    "canonical": Column("text", "whether the data are the published ones: yes, no or own"),
    "device": Column("text", f"what it ran on; {IMPORTED} for another tool's"),
    "version": Column("text", "version of nispa that wrote the record"),
    "problem": Column("text", "why its record cannot be read"),
}


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Summary(_Checked):
    """The columns of one run, but for its folder; None where a value is not known."""

    scenario: Text | None = None
    method: Text | None = None
    preset: Text | None = None
    seed: Whole | None = None
    status: Text
    incremental: Text | None = None
    accuracy: float | None = None
    forgetting: float | None = None
    parameters: Whole | None = None
    kept_bytes: Whole | None = None
    train_operations: float | None = None
    train_s: float | None = None
    started: Text | None = None
    finished: Text | None = None
    tasks: Whole | None = None
    learned: Whole | None = None
    bwt: float | None = None
    fwt: float | None = None
    samples: Whole | None = None
    inference_operations: float | None = None
    model_bytes: Whole | None = None
    train_cpu_s: float | None = None
    eval_s: float | None = None
    eval_cpu_s: float | None = None
    peak_bytes: Whole | None = None
    canonical: Text | None = None
    device: Text | None = None
    version: Text | None = None
    problem: Text | None = None


@dataclass(frozen=True)
class Run:
    """A run found on disk.

    Attributes:
        location: Its folder, as found from the one that was given.
        summary: What its record says; ``status`` is ``"unreadable"`` where it cannot be read.
        settings: Its configuration as one flat table, such as ``{"method.learning_rate": 0.01}``.
    """

    location: str
    summary: Summary
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its folder as a text without control characters."""
        return self.location if self.location.isprintable() else one_line(self.location, 4096)

    def value(self, key: str) -> Value:
        """What a column or setting is for this run; None where it has no such thing."""
        if key in COLUMNS:
            found: Value = getattr(self if key == "folder" else self.summary, key)
            return found
        return self.settings.get(key)


def summarise(record: Record) -> Summary:
    """The columns of a record."""
    metrics = {name: metric.value for name, metric in record.main_metrics.items()}
    learned = max(len(record.accuracy_matrix), len(record.accuracy_matrix_task_agnostic or ()))
    cost = cost_of(record)
    return Summary(
        scenario=_text(record.scenario.name),
        method=_text(record.method),
        preset=None if record.preset is None else _text(record.preset),
        seed=record.seed,
        status=record.status,
        incremental=record.incremental,
        accuracy=metrics.get("acc"),
        forgetting=metrics.get("forgetting"),
        parameters=cost.live,
        kept_bytes=cost.kept_bytes,
        train_operations=_float(cost.train_operations),
        train_s=cost.train_s,
        started=record.started,
        finished=record.finished,
        tasks=len(record.tasks),
        learned=learned,
        bwt=metrics.get("bwt"),
        fwt=metrics.get("fwt"),
        samples=_whole([task.samples_trained for task in record.per_task]),
        inference_operations=_float(cost.inference_operations),
        model_bytes=cost.model_bytes,
        train_cpu_s=cost.train_cpu_s,
        eval_s=cost.eval_s,
        eval_cpu_s=cost.eval_cpu_s,
        peak_bytes=cost.peak_bytes,
        canonical=_canonical([data.canonical for data in record.data]),
        device=_text(record.environment.device),
        version=_text(record.version),
    )


def _text(value: str) -> str:
    return one_line(value, MAX_TEXT)


def _whole(parts: Sequence[int]) -> int | None:
    """The sum, or None where there is nothing to add or no table could hold it."""
    total = sum(parts)
    return total if parts and total <= MAX_INT else None


def _float(count: int | None) -> float | None:
    return None if count is None else float(count)


def _canonical(states: Sequence[bool | None]) -> str | None:
    if not states:
        return None
    return "no" if False in states else "own" if None in states else "yes"


def flatten(config: Mapping[str, Any]) -> dict[str, Value]:
    """A configuration as one flat table, bounded: ``{"network.hidden": "400,400,400"}``.

    Groups become part of the name, lists become a text as the command line takes them.
    """
    found: dict[str, Value] = {}
    waiting = list(config.items())[::-1]
    while waiting and len(found) < MAX_SETTINGS:
        key, value = waiting.pop()
        if isinstance(value, dict) and value and key.count(".") < MAX_DEPTH:
            waiting += [(f"{key}.{name}", part) for name, part in value.items()][::-1]
        else:
            found[_text(key)] = _plain(value)
    return found


def _plain(value: Any) -> Value:
    if isinstance(value, list):
        return _text(",".join(as_text(_plain(part)) for part in value[:MAX_TEXT]))
    if isinstance(value, dict) or (isinstance(value, int) and abs(value) > MAX_INT):
        return _text(json.dumps(value))
    return _text(value) if isinstance(value, str) else value


def as_text(value: Value) -> str:
    """A value as a condition or a command line takes it: ``true``, ``none``, ``0.01``."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


# --- Finding -------------------------------------------------------------------------------------


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Every run in the folders and below, by scenario, method, preset and seed.

    Folders reached through links and hidden ones are passed over, and so is what lies more than
    8 levels deep. A record that cannot be read is a run, too: its status is ``"unreadable"`` and
    its problem says why.

    Raises:
        InputError: One of the folders does not exist or cannot be read.
    """
    runs: dict[str, Run] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        for name, run in _runs_below(str(folder)).items():
            runs.setdefault(_below(real, name), run)
    return sorted(runs.values(), key=_usual_order)


def _usual_order(run: Run) -> tuple[Any, ...]:
    s = run.summary
    texts = (s.scenario or "", s.method or "", s.preset or "")
    return (s.status == UNREADABLE, *texts, s.seed or 0, s.started or "", run.location)


def _below(root: str, name: str) -> str:
    """The path of a run; a text, since ten thousand of them as objects take a while."""
    return root if name == "." else os.path.join(root, name)  # noqa: PTH118


def _runs_below(root: str) -> dict[str, Run]:
    """Runs by their path below ``root``; reads what the index does not know, and keeps it there."""
    marks, problems = _scan(root)
    index = _read_index(root) if len(marks) >= WORTH_AN_INDEX else {}
    runs: dict[str, Run] = {
        name: Run(_below(root, name), Summary(status=UNREADABLE, problem=_text(problem)))
        for name, problem in problems.items()
    }
    known: dict[str, str] = {}
    for name, mark in marks.items():
        mark_then, run = index.get(name, ("", None))
        if run is None or mark_then != mark:
            run = _read(_below(root, name))
        runs[name] = run
        if run.summary.status != UNREADABLE:  # tried again next time
            known[name] = mark
    if len(marks) >= WORTH_AN_INDEX and known != {name: mark for name, (mark, _) in index.items()}:
        _write_index(root, {name: (mark, runs[name]) for name, mark in known.items()})
    return runs


def _read(folder: str) -> Run:
    try:
        record = read_record(folder)
    except InputError as error:
        return Run(folder, Summary(status=UNREADABLE, problem=_text(str(error))))
    return Run(folder, summarise(record), flatten(record.config))


def _scan(root: str) -> tuple[dict[str, str], dict[str, str]]:
    """Marks of all records below ``root``, and what stood in the way, by folder."""
    marks: dict[str, str] = {}
    problems: dict[str, str] = {}
    waiting = [("", 0)]
    while waiting:
        below, depth = waiting.pop()
        try:
            with os.scandir(_below(root, below or ".")) as entries:
                for entry in entries:
                    if entry.name == RECORD:
                        marks[below or "."] = _mark(entry)
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
    return marks, problems


def _mark(entry: os.DirEntry[str]) -> str:
    """What changes with a record: size, time of change, inode, and the time of its inode's change.

    The last cannot be set, so that nobody who made an index elsewhere can know it.
    """
    try:
        state = entry.stat()
    except OSError:
        return "gone"
    return f"{state.st_size}.{state.st_mtime_ns}.{state.st_ino}.{state.st_ctime_ns}"


# --- The index -----------------------------------------------------------------------------------


class _Entry(_Checked):
    mark: Text
    summary: Summary
    settings: Annotated[int, Field(ge=0)]


class _Index(_Checked):
    """Runs by path; names of settings, their values and whole tables are kept once each.

    A table is a row of numbers: that of its names, then that of each value.
    """

    version: Literal[2] = 2
    names: list[list[Text]]
    values: list[str | int | float | bool | None]
    tables: list[Annotated[list[int], Field(min_length=1)]]
    runs: dict[str, _Entry]
    sha256: Text | None = None


def _read_index(root: str) -> dict[str, tuple[str, Run]]:
    """The marks and runs of an index; empty where there is none or it is not as it should be."""
    try:
        data = read_limited(Path(root) / INDEX, MAX_INDEX_BYTES)
        if not seal_holds(data) or not _is_printable(data):
            return {}
        index = _Index.model_validate_json(data)
        tables: list[dict[str, Value]] = [
            dict(zip(index.names[head], map(index.values.__getitem__, row), strict=True))
            for head, *row in index.tables
        ]
        return {
            name: (entry.mark, Run(_below(root, name), entry.summary, tables[entry.settings]))
            for name, entry in index.runs.items()
        }
    except (ValueError, IndexError):  # InputError and pydantic's errors are values' errors, too
        return {}


def _is_printable(data: bytes) -> bool:
    """Whether JSON holds no letter that a terminal might obey, neither as such nor escaped.

    Records lose such letters when they are read; nobody may bring them in by the index.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    text = text.replace("\n", "").replace("\\\\", "")
    return text.isprintable() and not re.search(r'\\[^"]', text)


def _write_index(root: str, known: Mapping[str, tuple[str, Run]]) -> None:
    """Replaces the index in one step: of two at once the last one wins, and both are right."""
    heads: dict[tuple[str, ...], int] = {}
    values: dict[tuple[type, Value], int] = {}  # 1, 1.0 and true are equal, but not the same
    tables: dict[tuple[int, ...], int] = {}
    entries: dict[str, _Entry] = {}
    for name, (mark, run) in known.items():
        if name.isprintable():  # JSON cannot hold every name of a file
            row = [heads.setdefault(tuple(run.settings), len(heads))]
            row += [values.setdefault((type(v), v), len(values)) for v in run.settings.values()]
            number = tables.setdefault(tuple(row), len(tables))
            entries[name] = _Entry(mark=mark, summary=run.summary, settings=number)
    index = _Index(
        names=[list(head) for head in heads],
        values=[value for _, value in values],
        tables=[list(row) for row in tables],
        runs=entries,
    )
    data = seal(index.model_dump_json(exclude_defaults=True).encode())
    if len(data) <= MAX_INDEX_BYTES:
        with contextlib.suppress(OutputError):  # a read-only folder works without one
            write_atomic(Path(root) / INDEX, data)


# --- Choosing and sorting ------------------------------------------------------------------------

_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
}


def known_keys(runs: Iterable[Run]) -> set[str]:
    """All columns, and every setting that one of the runs has."""
    return set(COLUMNS).union(*{tuple(run.settings) for run in runs})


def check_keys(runs: Sequence[Run], keys: Iterable[str]) -> None:
    """Whether each key is a column or a setting of one of the runs.

    Raises:
        UnknownNameError: One is not.
    """
    known = known_keys(runs)
    for key in keys:
        if key not in known:
            raise unknown_name("column or setting", key, known)


def choose(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet all conditions, such as ``"method=ewc*"`` or ``"accuracy>=90%"``.

    ``=`` and ``!=`` take shell-like patterns for texts, and ``none`` for what is not known; the
    other signs compare numbers, or texts letter by letter. A run without a value is never less
    or greater than anything.

    Raises:
        InputError: A condition cannot be understood.
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
    """The number that a condition compares with; None where it is a text."""
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


def arrange(runs: Sequence[Run], key: str) -> list[Run]:
    """The runs by a column or setting, rising; falling with a leading ``-``.

    Numbers come before texts, and runs without a value last either way.

    Raises:
        UnknownNameError: The key is neither a column nor a setting of the runs.
    """
    name = key.removeprefix("-")
    if runs:
        check_keys(runs, [name])
    having = [run for run in runs if run.value(name) is not None]
    lacking = [run for run in runs if run.value(name) is None]

    def place(run: Run) -> tuple[bool, Any]:
        value = run.value(name)
        return isinstance(value, str), value

    return sorted(having, key=place, reverse=key.startswith("-")) + lacking
