"""What a run writes and when: pictures, times, what it tidies up, and what it says if it cannot.

Runs of one short epoch a task; the failures are put in place by hand.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nispa import tensorfile
from nispa.data.own_tasks import from_tasks
from nispa.errors import OutputError
from nispa.files import write_atomic
from nispa.methods.presets import resolve
from nispa.network.models import SparseNetwork
from nispa.runs.checkpoints import FOLDER, FORMAT
from nispa.runs.folder import NETWORK, NEWER_NETWORK, PICTURE, RunFolder
from nispa.runs.record import Record, read_record
from nispa.runs.runner import Experiment, Notice, TaskEnd, TaskStart, resume, run

from .test_resume import experiment, finish


def short() -> Experiment:
    return experiment("finetune", epochs=1)


def begin(folder: Path) -> None:
    """A run that is left after its first task."""
    running = run(short(), folder)
    while not isinstance(next(running), TaskEnd):
        pass
    running.close()


def test_the_times_of_the_tasks_fit_into_that_of_the_run(tmp_path: Path) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    record = finish(run(short(), tmp_path / "run"))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found: dict[str, float] = {}
    for name in ("train_s", "eval_s", "train_cpu_s", "eval_cpu_s"):
        times = [getattr(task, name) for task in record.per_task]
        assert min(times) > 0
        found[name] = sum(times)
    assert found["train_s"] + found["eval_s"] <= wall
    assert found["train_cpu_s"] + found["eval_cpu_s"] <= cpu


def test_the_time_before_an_interruption_counts(tmp_path: Path) -> None:
    running = run(short(), tmp_path / "run", stopping=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(running)
    (saved,) = (tmp_path / "run" / FOLDER).iterdir()
    _, header = tensorfile.read(saved, FORMAT, "checkpoint")
    values: dict[str, Any] = header["values"]
    first = finish(resume(short(), tmp_path / "run")).per_task[0]
    assert first.train_s > values["task_seconds"] > 0
    assert first.train_cpu_s is not None
    assert first.train_cpu_s > values["task_cpu_seconds"] > 0


@pytest.mark.parametrize("seconds", [0, 1000])
def test_the_picture_is_drawn_after_a_while_and_at_the_end(
    seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr("nispa.runs.writer.PICTURE_S", seconds)

    def drawing(record: Record) -> bytes:
        drawn.append((len(record.per_task), record.status))
        return b"%d" % len(record.per_task)

    finish(run(short(), tmp_path / "run", drawing=drawing))
    assert drawn == ([(2, "complete")] if seconds else [(1, "running"), (2, "complete")])
    assert (tmp_path / "run" / PICTURE).read_bytes() == b"2"


def test_what_was_left_of_an_unfinished_task_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder)
    begun = read_record(folder)
    assert begun.status == "interrupted"
    assert begun.finished is not None
    for name in (NEWER_NETWORK, ".nispa-0123456789abcdef.part"):
        write_atomic(folder / name, b"half of a network")
    network = (folder / NETWORK).read_bytes()
    RunFolder(folder).append_event({"event": "phase_start", "task": 1, "phase": 1})
    running = resume(short(), folder)
    assert isinstance(next(running), TaskStart)
    assert not (folder / NEWER_NETWORK).exists()
    assert not (folder / ".nispa-0123456789abcdef.part").exists()
    assert (folder / NETWORK).read_bytes() == network
    assert {event["task"] for event in RunFolder(folder).read_events()} == {0}
    record = read_record(folder)
    assert (record.status, record.finished) == ("running", None)
    running.close()


def test_what_is_to_be_known_beforehand_is_noted_first(tmp_path: Path) -> None:
    usual = short()
    first, second = usual.scenario.tasks
    sequence = replace(
        usual.scenario,
        tasks=(first, replace(second, note="one image is dark")),
        settings={**usual.scenario.settings, "measured": "validation"},
    )
    running = run(replace(usual, scenario=sequence), tmp_path / "run")
    assert [next(running), next(running)] == [
        Notice(0, "accuracies were measured on validation images"),
        Notice(0, f"task {second.name}: one image is dark"),
    ]
    assert isinstance(next(running), TaskStart)
    running.close()


@pytest.mark.parametrize(("count", "end"), [(10, "10)"), (11, "10 and 1 more)")])
def test_of_many_outputs_without_a_path_ten_are_named(
    count: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11][:count]
    monkeypatch.setattr(SparseNetwork, "unreached", lambda network: tuple(outputs))
    labels = np.repeat(np.arange(14), 20)
    images = np.random.default_rng(0).integers(0, 256, (280, 4, 4), dtype=np.uint8)
    halves = (labels < 7, labels >= 7)
    sequence = from_tasks([(images[half], labels[half]) for half in halves], seed=0)
    settings = resolve("finetune", "default", sequence.name, sequence.input_shape, {"hidden": (8,)})
    running = run(Experiment(sequence, settings, 0), tmp_path / "run")
    notice = next(running)
    assert isinstance(notice, Notice)
    assert f"to {count} of 14 outputs (classes 0, 1, 2, 3, 4, 5, 7, 8, 9, {end}" in notice.text
    running.close()


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every later write of a record fail; the error says which it was."""
    failed: list[int] = []

    def full(folder: RunFolder, record: Record) -> None:
        failed.append(1)
        raise OutputError(f"no space for record {len(failed)}")

    monkeypatch.setattr(RunFolder, "write_record", full)


def test_of_two_failures_the_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = run(short(), tmp_path / "run")
    next(running)
    refuse(monkeypatch)
    with pytest.raises(OutputError, match="record 1"):
        finish(running)


def test_an_interruption_that_cannot_be_recorded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(short(), tmp_path / "run")
    next(running)
    refuse(monkeypatch)
    with pytest.raises(OutputError, match="record 1"):
        running.close()
