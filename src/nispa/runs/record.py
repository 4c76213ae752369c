"""The record of a run, ``record.json``: its models, and how it is written and read.

A record always gives the same bytes. Records may come from strangers: reading one runs no code, is
limited in size, and ends in a record or in one :class:`~nispa.errors.FormatError`. No PyTorch here,
so that reports work without it.

``schema`` holds the version of the format. Adding a field keeps the version, since readers ignore
unknown fields; changing the meaning of a field or removing one raises it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from nispa.base.shapes import MAX_SIDES, in_words, is_image
from nispa.errors import FormatError, InputError
from nispa.files import (
    check_own,
    first_fault,
    one_line,
    read_limited,
    seal,
    seal_holds,
    shown,
)
from nispa.runs import metrics as formulas

SCHEMA_NAME = "nispa-record"
SCHEMA_VERSION = 1
RECORD = "record.json"
MAX_RECORD_BYTES = 64 * 2**20
MAX_TASKS = 1_000  # the matrix holds its square, which must fit into memory for any file

NUMBERS = re.compile(r"[0-9]+(-[0-9]+|(,[0-9]+)*)")  # a task named after its class numbers

T = TypeVar("T")
# Accepts a list and stores a tuple, since records are immutable.
Many = Annotated[tuple[T, ...], Field(strict=False)]
# A value beyond these bounds was never measured. Within them, and with at most 1,000 tasks, every
# total of a run is a finite number, and every total of counts fits 64 bits, as Parquet needs.
Count = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0.0, le=1e12)]
Operations = Annotated[int, Field(ge=0, le=10**24)]
Size = Annotated[int, Field(ge=1, le=2**31)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Instant = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]
Matrix = Many[Many[Share | None]]


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            _finite(part)
    return value


Json = Annotated[JsonValue, AfterValidator(_finite)]  # JsonValue alone would accept NaN


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class ScenarioEntry(_Part):
    """The sequence of tasks, with the settings that it was built from."""

    name: str
    settings: dict[str, Json] = Field(default_factory=dict)


class DataEntry(_Part):
    """A data set that the run used.

    Attributes:
        name: Its name, such as ``"emnist-balanced"``.
        canonical: Whether the content equals the published one bit for bit; None for own data.
        sha256: Hash of the content, 64 hexadecimal digits.
        source: Where it was read from, such as ``"IDX files"``.
        note: A remark, such as how it differs from the canonical one.
    """

    name: str
    canonical: bool | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source: str = ""
    note: str = ""


class TaskEntry(_Part):
    """A task of the sequence: its classes, and the number of samples in each split.

    The numbers are None if unknown, as for a matrix imported from another tool.
    """

    name: str
    classes: Many[Count]
    train: Count | None
    validation: Count | None
    test: Count | None


class InputEntry(_Part):
    """How a task's stored pixels x became the network's input: ``(scale x - mean) / std``.

    Attributes:
        scale: Factor of the stored pixels.
        mean: Mean per channel, or per feature; None if nothing is subtracted.
        std: Standard deviation likewise; None if nothing is divided.
    """

    scale: float
    mean: Many[float] | None = None
    std: Many[float] | None = None


class MetricValue(_Part):
    """A metric with its formula; ``value`` is None where it is not defined."""

    value: float | None
    formula: str
    source: str


class UnitCount(_Part):
    """How many of the ``size`` units of a group are stable."""

    stable: Count
    size: Count

    @model_validator(mode="after")
    def _within(self) -> UnitCount:
        if self.stable > self.size:
            raise ValueError(f"stable={self.stable} of {self.size} units")
        return self


class ConnectionCount(_Part):
    """Connections of a layer: ``live`` of ``total`` positions, ``frozen`` of the live ones.

    ``owed`` were dropped and are waiting for a place to grow: live + owed is constant.
    """

    live: Count
    frozen: Count
    total: Count
    owed: Count = 0

    @model_validator(mode="after")
    def _within(self) -> ConnectionCount:
        if not self.frozen <= self.live <= self.total:
            raise ValueError(f"frozen={self.frozen} of live={self.live} of total={self.total}")
        return self


class TaskResult(_Part):
    """The cost of learning one task, and the network after it.

    Attributes:
        phases: Phases trained (1 for methods without phases).
        samples_trained: Training samples seen, over all epochs.
        train_s: Seconds of learning, including validation.
        eval_s: Seconds of measuring test accuracy after the task.
        tau: τ that selected the chosen candidates; None if nothing was selected.
        stop_reason: Why learning ended, in a few words.
        stable_units: Per hidden group of units, in the network's order.
        connections: Per layer, in the network's order.
        storage: Bytes kept beside the network for later tasks, by purpose.
        live: Live weights and biases.
        model_bytes: Bytes of the network: live values and their positions.
        operations: Floating-point operations of learning, by purpose.
        inference_operations: Floating-point operations of predicting one sample of the task.
        train_cpu_s: CPU seconds of learning, over all threads; ``eval_cpu_s`` likewise.
        peak_bytes: Peak resident memory of the process up to the end of the task.
        online_accuracy: Share of training images told right just before they were first learned;
            None if it was not measured.

    From ``live`` on, None means unknown, as in older records.
    """

    phases: Count
    samples_trained: Count
    train_s: Seconds
    eval_s: Seconds
    tau: Share | None = None
    stop_reason: str | None = None
    stable_units: dict[str, UnitCount] = Field(default_factory=dict)
    connections: dict[str, ConnectionCount] = Field(default_factory=dict)
    storage: dict[str, Count] = Field(default_factory=dict, max_length=1_000)
    live: Count | None = None
    model_bytes: Count | None = None
    operations: dict[str, Operations] | None = None
    inference_operations: Operations | None = None
    train_cpu_s: Seconds | None = None
    eval_cpu_s: Seconds | None = None
    peak_bytes: Count | None = None
    online_accuracy: Share | None = None


class Cost(_Part):
    """The cost of a run so far: sums over its tasks, sizes after the last one, the highest peak.

    Fields are named as in :class:`TaskResult`; ``kept_bytes`` is the sum of its ``storage``. None
    if a task's value is unknown.
    """

    live: int | None = None
    model_bytes: int | None = None
    kept_bytes: int | None = None
    operations: dict[str, int] | None = None
    train_operations: int | None = None
    inference_operations: int | None = None
    train_s: float | None = None
    train_cpu_s: float | None = None
    eval_s: float | None = None
    eval_cpu_s: float | None = None
    peak_bytes: int | None = None


class Parameters(_Part):
    """Size of the network: ``live`` of ``total`` positions, biases included."""

    live: Count
    total: Count


class Environment(_Part):
    """Where the run took place. Another machine or thread count may give other numbers."""

    nispa: str
    python: str
    torch: str
    numpy: str
    cpu: str
    threads: Count | None
    device: str
    platform: str
    kernels: str


class Record(_Part):
    """Everything about one run; ``docs/record.md`` explains each field.

    ``accuracy_matrix`` has a row per learned task and a column per task. Entry ``[i][j]`` is the
    share of task j's test samples predicted correctly after task i, None where not measured.
    """

    schema_: Annotated[str, Field(pattern=rf"^{SCHEMA_NAME}/{SCHEMA_VERSION}$")] = Field(
        default=f"{SCHEMA_NAME}/{SCHEMA_VERSION}", alias="schema"
    )
    version: str
    status: Literal["running", "complete", "interrupted", "failed"]
    started: Instant | None
    finished: Instant | None = None
    scenario: ScenarioEntry
    data: Many[DataEntry]
    method: str
    preset: str | None = None
    seed: Seed
    incremental: Literal["task", "class", "domain"] = "task"
    config: dict[str, Json]
    derived: Many[dict[str, Json]] = ()
    tasks: Many[TaskEntry]
    class_names: Many[str] = ()
    input_shape: Annotated[Many[Size], Field(max_length=MAX_SIDES)] | None = None
    columns: Many[str] = ()
    inputs: Many[InputEntry] = ()
    accuracy_matrix: Matrix = ()
    accuracy_matrix_task_agnostic: Matrix | None = None
    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    metrics_task_agnostic: dict[str, MetricValue] | None = None
    per_task: Many[TaskResult] = ()
    cost: Cost | None = None
    parameters: Parameters | None
    environment: Environment
    code: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    notes: Many[str] = ()

    @property
    def scenario_options(self) -> dict[str, Any] | None:
        """Options that the scenario was built with; None if its tasks were built in Python."""
        call = self.scenario.settings
        options = call.get("options")
        if call.get("scenario") != self.scenario.name or not isinstance(options, dict):
            return None
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
            if value is not None
        }

    @property
    def learned(self) -> int:
        """Tasks that were measured after they were learned."""
        return max(len(self.accuracy_matrix), len(self.accuracy_matrix_task_agnostic or ()))

    @property
    def progress(self) -> str:
        """The tasks learned so far, such as ``3 of 5 tasks``."""
        return f"{self.learned} of {len(self.tasks)} tasks"

    @property
    def samples(self) -> str:
        """What the samples are, in words, if they are no images; empty if unknown."""
        shape = self.input_shape
        return "" if shape is None or is_image(shape) else in_words(shape)

    def classes_of(self, task: int) -> list[str]:
        """Names of a task's classes; their numbers in older records, which have no names."""
        names = self.class_names
        return [names[n] if n < len(names) else str(n) for n in self.tasks[task].classes]

    def title_of(self, task: int) -> str:
        """A task's name, or its class names if it is named after class numbers.

        Names may be of any length and may hold control characters.
        """
        name, classes = self.tasks[task].name, self.classes_of(task)
        if NUMBERS.fullmatch(name) and not all(each.isdigit() for each in classes):
            return ", ".join(classes)
        return name

    @property
    def main_matrix(self) -> Matrix:
        """The matrix to report, told the task if each task has its own outputs, else not told."""
        return self.accuracy_matrix if self.told else self.accuracy_matrix_task_agnostic or ()

    @property
    def told(self) -> bool:
        """Whether :attr:`main_matrix` was measured with the task told."""
        return self.incremental == "task" or self.accuracy_matrix_task_agnostic is None

    @property
    def main_metrics(self) -> dict[str, MetricValue]:
        """The metrics of :attr:`main_matrix`."""
        untold = self.metrics_task_agnostic
        return self.metrics if self.incremental == "task" or untold is None else untold

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        count = len(self.tasks)
        if not 1 <= count <= MAX_TASKS:
            raise ValueError(f"{count} tasks: there must be 1 to {MAX_TASKS:,}")
        if len(self.per_task) > count:
            raise ValueError(f"per_task has {len(self.per_task)} entries for {count} tasks")
        for name in ("accuracy_matrix", "accuracy_matrix_task_agnostic"):
            rows = getattr(self, name) or ()
            if len(rows) > count or any(len(row) != count for row in rows):
                raise ValueError(f"{name} must have {count} columns and at most {count} rows")
        return self


def kind_in_words(incremental: str, told: bool) -> str:
    """The kind of learning, such as ``class-incremental (not told the task)``."""
    return f"{incremental}-incremental ({'told' if told else 'not told'} the task)"


def now() -> str:
    """The current time in UTC, such as ``2022-06-18T09:30:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_rows(matrix: formulas.Rows) -> tuple[tuple[float | None, ...], ...]:
    """An accuracy matrix ``(rows, tasks)`` as tuples, with None for NaN."""
    values = np.asarray(matrix, dtype=np.float64).tolist()
    return tuple(tuple(None if math.isnan(value) else value for value in row) for row in values)


def measured(
    matrix: formulas.Rows, chance: Sequence[float] | None = None
) -> dict[str, MetricValue]:
    """Computes all metrics of an accuracy matrix.

    Args:
        matrix: ``(rows, tasks)`` fractions; NaN or None where not measured.
        chance: Accuracy of guessing on each task, ``(tasks,)``; FWT is None without it.
    """
    return {
        name: MetricValue(
            value=metric.function(matrix, chance), formula=metric.formula, source=metric.source
        )
        for name, metric in formulas.METRICS.items()
    }


def _lay_out(value: Any, indent: str = "") -> str:
    """Readable JSON: a value that fits on a line of 100 columns stays on one line."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, (dict, list)) or not value or len(indent) + len(flat) <= 96:
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [
            f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_lay_out(item, deeper)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if set(map(type, value)) <= {float, int, type(None)}:  # a long row of a matrix
        return f"[\n{deeper}" + flat[1:-1].replace(", ", f",\n{deeper}") + f"\n{indent}]"
    return "[\n" + ",\n".join(deeper + _lay_out(item, deeper) for item in value) + f"\n{indent}]"


def encode(record: Record) -> bytes:
    """The content of ``record.json``; equal records give equal bytes.

    Fields are in the order of the models, groups and layers in the network's order. Floats have
    the fewest digits that read back to the same value. The last entry is a checksum.
    """
    return seal(_lay_out(record.model_dump(mode="json", by_alias=True)).encode())


def comparable(record: Record) -> bytes:
    """The part of a record on which two runs of the same command and seed agree, as bytes.

    Omits when and where it ran: ``started``, ``finished``, ``environment``, all seconds and peak
    memory. Keys are sorted.
    """
    values = record.model_dump(mode="json", by_alias=True)
    for name in ("started", "finished", "environment"):
        del values[name]
    for part in (*values["per_task"], values["cost"] or {}):
        for name in ("train_s", "train_cpu_s", "eval_s", "eval_cpu_s", "peak_bytes"):
            part.pop(name, None)
    return (json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


class _Head(BaseModel):
    schema_: Annotated[str, Field(max_length=100)] = Field(alias="schema")
    version: JsonValue = None


def decode(data: bytes, name: str = RECORD) -> Record:
    """Reads a record from the content of its file.

    Args:
        data: The content; it may be anything.
        name: The file's name for messages.

    Raises:
        FormatError: It is damaged, not a record of nispa, or from a newer version.
    """
    record, fault = None, ""
    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        fault = first_fault(error)
    if record is None or "schema_" not in record.model_fields_set:
        _check_head(data, name)  # says it better
        raise FormatError(f"{name} is damaged: {fault}")
    if seal_holds(data) is False:
        raise FormatError(
            f"{name} is damaged: its content does not match its checksum; if it was changed on "
            "purpose, delete its last entry, sha256"
        )
    return record


def _check_head(data: bytes, name: str) -> None:
    """Refuses what is not JSON, not a record, or newer than this version."""
    try:
        head = _Head.model_validate_json(data)
    except ValidationError as error:
        cut = error.errors(include_url=False)[0]["type"] == "json_invalid"
        what = "is damaged" if cut else "is not a record of nispa"
        raise FormatError(f"{name} {what}: {first_fault(error)}") from None
    match = re.fullmatch(rf"{SCHEMA_NAME}/([1-9][0-9]{{0,8}})", head.schema_, re.ASCII)
    if match is None:
        raise FormatError(
            f"{name} is not a record of nispa: schema={head.schema_!r}, "
            f"expected '{SCHEMA_NAME}/{SCHEMA_VERSION}'"
        )
    if int(match[1]) > SCHEMA_VERSION:
        version = one_line(head.version, 20) if isinstance(head.version, str) else "unknown"
        raise FormatError(
            f"{name} was written by a newer nispa (version {version}, schema {head.schema_}; this "
            f"one reads up to {SCHEMA_VERSION}); update with: pip install --upgrade nispa"
        )


def read_record(path: str | Path, *, sealed: bool = False) -> Record:
    """Reads the record of a run.

    Args:
        path: The run's folder, or the file itself.
        sealed: Whether to require a checksum. Records that another program wrote have none.

    Raises:
        InputError: There is no record, or it cannot be read.
        FormatError: It is damaged, a link, not a record of nispa, or from a newer version.
    """
    path = Path(path)
    file = path if path.name == RECORD and not path.is_dir() else path / RECORD
    if not check_own(file):
        raise InputError(f"{shown(path)} holds no {RECORD}; pass the folder of a run")
    data = read_limited(file, MAX_RECORD_BYTES)
    record = decode(data, shown(file))
    if sealed and seal_holds(data) is None:
        raise FormatError(
            f"{shown(file)} has no checksum, so another program wrote it last; a run can be "
            "resumed only from its own record: put that back, or start a new run"
        )
    return record
