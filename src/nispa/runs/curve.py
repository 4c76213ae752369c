"""The curve of a run: measurements over the number of training samples seen.

Each line of ``events.jsonl`` that ends an epoch, a phase or a task is a point. ``progress.csv`` and
trackers are made from those lines alone, so they cannot disagree with them. A resumed run repeats
its unfinished task from the start and comes to the same points with the same numbers. No PyTorch
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nispa.files import append_line, write_atomic
from nispa.runs.folder import EVENTS, PROGRESS, RunFolder
from nispa.runs.record import Count, Instant, Many, Seconds, Share, now

Kind = Literal["epoch", "phase", "task"]

COLUMNS = (
    "time",
    "train_s",
    "step",
    "epochs",
    "event",
    "task",
    "phase",
    "epoch",
    "loss",
    "validation_accuracy",
    "mean_accuracy",
    "forgetting",
)
"""Columns of ``progress.csv``, followed by one accuracy per task."""


class _Line(BaseModel):
    """The fields of a line that make a point; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    event: Literal["epoch", "phase_end", "task_end"]
    task: Count
    time: Instant | None = None
    phase: Count | None = None
    epoch: Count | None = None
    seconds: Seconds = 0.0
    samples: Count = 0
    loss: float | None = None
    validation_accuracy: Share | None = None
    accuracy: Share | None = None
    tau: Share | None = None
    kept: dict[str, Count] = Field(default_factory=dict)
    accuracies: Many[Share | None] = ()
    mean_accuracy: Share | None = None
    forgetting: float | None = None
    stable: dict[str, Count] = Field(default_factory=dict)
    live: Count | None = None
    frozen: Count | None = None


@dataclass(frozen=True)
class Point:
    """One point of the curve.

    Attributes:
        number: Its index in the run, from 0.
        kind: What ended.
        step: Training samples seen since the start of the run.
        epochs: Epochs since the start of the run.
        train_s: Seconds that those epochs took.
        time: UTC, such as ``2022-06-18T09:30:00Z``; None in runs of earlier versions.
        task: The task, from 0.
        phase: The phase of the task, from 1; None at a task's end.
        epoch: The epoch of the phase, from 1; None at a phase's or task's end.
        values: Measurements by the names that trackers show; accuracies are fractions.
    """

    number: int
    kind: Kind
    step: int
    epochs: int
    train_s: float
    time: str | None
    task: int
    phase: int | None = None
    epoch: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """``time`` in seconds since 1970, or None."""
        if self.time is None:
            return None
        try:
            moment = datetime.strptime(self.time, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:  # such as the 31st of February
            return None
        return moment.replace(tzinfo=timezone.utc).timestamp()


class Curve:
    """Turns the lines of a run into points. Pass each line once, in order."""

    def __init__(self) -> None:
        self._number = self._step = self._epochs = 0
        self._train_s = 0.0

    def point(self, event: Mapping[str, Any]) -> Point | None:
        """The point of a line; None if the line measures nothing or is damaged."""
        try:
            line = _Line.model_validate(event)
        except ValidationError:
            return None
        kind: Kind = "task"
        if line.event == "epoch":
            kind = "epoch"
            self._step += line.samples
            self._epochs += 1
            self._train_s += line.seconds
        elif line.event == "phase_end":
            kind = "phase"
        number, self._number = self._number, self._number + 1
        return Point(
            number=number,
            kind=kind,
            step=self._step,
            epochs=self._epochs,
            train_s=self._train_s,
            time=line.time,
            task=line.task,
            phase=line.phase,
            epoch=line.epoch,
            values={key: float(value) for key, value in self._values(line) if value is not None},
        )

    def _values(self, line: _Line) -> Iterable[tuple[str, float | None]]:
        if line.event == "epoch":
            yield "train/loss", line.loss
            yield "train/epochs", self._epochs
            yield "validation/accuracy", line.validation_accuracy
        elif line.event == "phase_end":
            yield "phase/number", line.phase
            yield "phase/tau", line.tau
            yield "phase/validation_accuracy", line.accuracy
            yield from ((f"phase/kept/{group}", units) for group, units in line.kept.items())
        else:
            yield from ((f"test/task{task}", value) for task, value in enumerate(line.accuracies))
            yield "test/mean", line.mean_accuracy
            yield "test/forgetting", line.forgetting
            yield from ((f"stable/{group}", units) for group, units in line.stable.items())
            yield "connections/live", line.live
            yield "connections/frozen", line.frozen

    def points(self, events: Iterable[Mapping[str, Any]]) -> list[Point]:
        """The points of several lines."""
        return [point for event in events if (point := self.point(event)) is not None]


def as_csv(points: Iterable[Point], tasks: int) -> bytes:
    """The content of ``progress.csv`` for these points of a run with ``tasks`` tasks."""
    head = ",".join((*COLUMNS, *(f"accuracy_{task}" for task in range(tasks))))
    rows = [_row(point, tasks) for point in points if point.kind != "phase"]
    return "".join(line + "\n" for line in (head, *rows)).encode()


def _row(point: Point, tasks: int) -> str:
    """A line of ``progress.csv``; no cell ever needs quotes."""
    names = ("train/loss", "validation/accuracy", "test/mean", "test/forgetting")
    cells = [
        point.time,
        point.train_s,
        point.step,
        point.epochs,
        point.kind,
        point.task,
        point.phase,
        point.epoch,
        *(point.values.get(name) for name in names),
        *(point.values.get(f"test/task{task}") for task in range(tasks)),
    ]
    return ",".join("" if cell is None else str(cell) for cell in cells)


class Journal:
    """Writes the events of a run to ``events.jsonl`` and their rows to ``progress.csv``."""

    def __init__(self, folder: RunFolder, tasks: int) -> None:
        """Continues after the events in the folder, and rewrites ``progress.csv`` from them.

        Args:
            folder: The run's folder.
            tasks: Number of tasks of the run.

        Raises:
            OutputError: The file could not be written.
            FormatError: A line is damaged.
        """
        self._folder, self._tasks, self._curve = folder, tasks, Curve()
        begun = (folder.path / EVENTS).is_file()
        points = self._curve.points(folder.read_events() if begun else [])
        write_atomic(folder.path / PROGRESS, as_csv(points, tasks))

    def add(self, event: Mapping[str, Any]) -> None:
        """Writes an event with the current time; raises OutputError if that fails."""
        line = {**event, "time": now()}
        self._folder.append_event(line)
        point = self._curve.point(line)
        if point is not None and point.kind != "phase":
            append_line(self._folder.path / PROGRESS, _row(point, self._tasks))
