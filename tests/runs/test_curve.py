"""Events as points, and progress.csv; the lines are written by hand, the numbers added by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nispa.errors import FormatError, OutputError
from nispa.runs.curve import Curve, Journal, as_csv
from nispa.runs.folder import EVENTS, PROGRESS, RunFolder

TIME = "2022-06-18T09:30:00Z"
LINES: list[dict[str, Any]] = [
    {"event": "phase_start", "task": 0, "phase": 1, "epochs": 2, "phases": 9, "tau": None},
    {"event": "epoch", "task": 0, "phase": 1, "epoch": 1, "loss": 0.5, "time": TIME}
    | {"validation_accuracy": 0.25, "samples": 30, "seconds": 1.5},
    {"event": "epoch", "task": 0, "phase": 1, "epoch": 2, "loss": 0.125, "time": TIME}
    | {"validation_accuracy": None, "samples": 30, "seconds": 0.25},
    {"event": "phase_end", "task": 0, "phase": 1, "accuracy": 0.75, "tau": 0.875, "time": TIME}
    | {"kept": {"hidden1": 3, "hidden2": 2}, "seconds": 2.0},
    {"event": "task_end", "task": 0, "accuracies": [0.5], "mean_accuracy": 0.5, "time": TIME}
    | {"forgetting": None, "stable": {"hidden1": 2}, "live": 40, "frozen": 10},
    {"event": "epoch", "task": 1, "phase": 1, "epoch": 1, "loss": 1, "time": TIME}
    | {"validation_accuracy": 1.0, "samples": 7, "seconds": 0.5},
    {"event": "task_end", "task": 1, "accuracies": [0.25, 1.0], "mean_accuracy": 0.625}
    | {"forgetting": 0.25, "stable": {}, "live": 0, "frozen": 0},
]
CSV = f"""\
time,train_s,step,epochs,event,task,phase,epoch,loss,validation_accuracy,\
mean_accuracy,forgetting,accuracy_0,accuracy_1
{TIME},1.5,30,1,epoch,0,1,1,0.5,0.25,,,,
{TIME},1.75,60,2,epoch,0,1,2,0.125,,,,,
{TIME},1.75,60,2,task,0,,,,,0.5,,0.5,
{TIME},2.25,67,3,epoch,1,1,1,1.0,1.0,,,,
,2.25,67,3,task,1,,,,,0.625,0.25,0.25,1.0
"""


def test_points_of_lines() -> None:
    points = Curve().points(LINES)
    assert [(point.number, point.kind, point.step, point.epochs) for point in points] == [
        (0, "epoch", 30, 1),
        (1, "epoch", 60, 2),
        (2, "phase", 60, 2),
        (3, "task", 60, 2),
        (4, "epoch", 67, 3),
        (5, "task", 67, 3),
    ]
    assert [dict(point.values) for point in points] == [
        {"train/loss": 0.5, "train/epochs": 1, "validation/accuracy": 0.25},
        {"train/loss": 0.125, "train/epochs": 2},
        {"phase/number": 1, "phase/tau": 0.875, "phase/validation_accuracy": 0.75}
        | {"phase/kept/hidden1": 3, "phase/kept/hidden2": 2},
        {"test/task0": 0.5, "test/mean": 0.5, "stable/hidden1": 2}
        | {"connections/live": 40, "connections/frozen": 10},
        {"train/loss": 1, "train/epochs": 3, "validation/accuracy": 1},
        {"test/task0": 0.25, "test/task1": 1, "test/mean": 0.625, "test/forgetting": 0.25}
        | {"connections/live": 0, "connections/frozen": 0},
    ]
    # 19,161 days and nine and a half hours after 1970 began
    assert points[0].seconds == 19_161 * 86_400 + 9.5 * 3_600
    assert points[5].seconds is None


def test_the_table_of_points() -> None:
    assert as_csv(Curve().points(LINES), 2).decode() == CSV
    assert as_csv([], 1).count(b"\n") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"event": "explosion"},
        {"task": -1},
        {"task": "0"},
        {"samples": 2**63},
        {"loss": float("inf")},
        {"loss": "low"},
        {"time": "=1+1"},
        {"seconds": -1.0},
    ],
    ids=str,
)
def test_what_does_not_fit_is_passed_over(change: dict[str, Any]) -> None:
    damaged = [{**LINES[1], **change}, LINES[2]]
    (point,) = Curve().points(damaged)
    assert (point.number, point.step, point.values["train/loss"]) == (0, 30, 0.125)


def test_a_day_that_never_was() -> None:
    point = Curve().point({**LINES[1], "time": "2022-02-31T00:00:00Z"})
    assert point is not None
    assert point.seconds is None


def test_a_journal_goes_on_after_the_lines_that_are_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    journal = Journal(folder, 2)
    for line in LINES[:3]:
        journal.add(line)
    (tmp_path / PROGRESS).write_text("nonsense")
    journal = Journal(folder, 2)
    for line in LINES[3:]:
        journal.add(line)
    lines = folder.read_events()
    assert [{**line, "time": None} for line in lines] == [{**line, "time": None} for line in LINES]
    assert all(str(line["time"]).endswith("Z") for line in lines)
    written = (tmp_path / PROGRESS).read_text()
    assert written == as_csv(Curve().points(lines), 2).decode()
    rows = [row.split(",")[1:] for row in written.splitlines()]
    assert rows == [row.split(",")[1:] for row in CSV.splitlines()]


def test_a_journal_of_damaged_lines(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text('{"event":\n{}\n')
    with pytest.raises(FormatError, match="line 1, is damaged"):
        Journal(RunFolder(tmp_path), 2)
    with pytest.raises(OutputError, match="the folder does not exist"):
        Journal(RunFolder(tmp_path / "nowhere"), 2)
