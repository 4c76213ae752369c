"""The curve of a run: what was measured, over the training samples seen so far.

Each line of ``events.jsonl`` that ends an epoch, a phase or a task is a point. Points are made from
those lines alone, so that ``progress.csv``, trackers and the lines themselves cannot tell different
stories. A run that is resumed tells its unfinished task again from the start and comes to the same
points under the same numbers. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nispa.files import append_line, write_atomic
from nispa.runs.record import Count, Instant, Many, Seconds, Share, now
from nispa.runs.folder import EVENTS, PROGRESS, RunFolder

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
"""Columns of ``progress.csv``; those of the tasks' accuracies follow."""


class _Line(BaseModel):
    """A line that is a point; what else it holds does not matter here."""

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
        number: Its place in the run, from 0.
        kind: What ended.
        step: Training samples seen since the run began, over all tasks and epochs.
        epochs: Epochs since the run began.
        train_s: Seconds that those epochs took.
        time: When, in UTC, such as ``2022-06-18T09:30:00Z``; None in runs of earlier versions.
        task: The task, from 0.
        phase: The phase of the task, from 1; None at a task's end.
        epoch: The epoch of the phase, from 1; None at a phase's or task's end.
        values: What was measured, by the names that every tracker uses; accuracies are fractions.
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
        """The time as seconds since 1970, or None."""
        if self.time is None:
            return None
        try:
            moment = datetime.strptime(self.time, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:  # such as the 31st of February, in a file of somebody else
            return None
        return moment.replace(tzinfo=timezone.utc).timestamp()


class Curve:
    """Turns the lines of a run, in their order, into points."""

    def __init__(self) -> None:
        self._number = self._step = self._epochs = 0
        self._train_s = 0.0

    def point(self, event: Mapping[str, Any]) -> Point | None:
        """The point that a line is; None if it measures nothing, or is damaged."""
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
        found = (self.point(event) for event in events)
        return [point for point in found if point is not None]


def as_csv(points: Iterable[Point], tasks: int) -> bytes:
    """``progress.csv`` of these points of a run of so many tasks."""
    head = ",".join((*COLUMNS, *(f"accuracy_{task}" for task in range(tasks))))
    rows = [_row(point, tasks) for point in points if point.kind != "phase"]
    return "".join(line + "\n" for line in (head, *rows)).encode()


def _row(point: Point, tasks: int) -> str:
    """Numbers and names of our own alone: nothing needs quotes."""
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
    """Writes what happens in a run: a line of ``events.jsonl``, and its row of ``progress.csv``."""

    def __init__(self, folder: RunFolder, tasks: int) -> None:
        """Goes on after the lines that the folder holds; ``progress.csv`` is made from them anew.

        Args:
            folder: The run's folder.
            tasks: How many tasks the run has.

        Raises:
            OutputError: The file could not be written.
            FormatError: A line is damaged.
        """
        self._folder, self._tasks, self._curve = folder, tasks, Curve()
        there = (folder.path / EVENTS).is_file()
        points = self._curve.points(folder.read_events() if there else [])
        write_atomic(folder.path / PROGRESS, as_csv(points, tasks))

    def add(self, event: Mapping[str, Any]) -> None:
        """Writes an event with the time; raises OutputError where it does not fit."""
        line = {**event, "time": now()}
        self._folder.append_event(line)
        point = self._curve.point(line)
        if point is not None and point.kind != "phase":
            append_line(self._folder.path / PROGRESS, _row(point, self._tasks))
