"""What a run shows while it runs: numbers worked out by hand, and a real run on a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from nispa.cli.live import LiveDisplay
from nispa.cli.progress import PlainDisplay, Progress, data_progress, duration
from nispa.methods.base import PhaseStart
from nispa.runs.record import TaskResult, UnitCount
from nispa.runs.runner import TaskEnd, TaskStart
from nispa.training.pausing import EpochEnd
from tests.cli_calls import NEEDS_TERMINAL, on_terminal, write_npz

RESULT = TaskResult(
    phases=2,
    samples_trained=400,
    train_s=75.0,
    eval_s=0.1,
    stop_reason="max_phases",
    stable_units={"fc1": UnitCount(stable=1, size=4), "fc2": UnitCount(stable=5, size=6)},
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_what_all_phases_of_all_tasks_would_take() -> None:
    clock = Clock()
    progress = Progress([100, 50, 50], clock)
    progress.update(TaskStart(0, 3, "0-1"))
    progress.update(PhaseStart(1, epochs=2, phases=5))
    clock.now = 9.0  # warming up: not counted
    progress.update(EpochEnd(1, 0.5, 0.9, 100, 9.0))
    assert progress.left_s is None
    clock.now = 11.0  # 2 s for 100 images
    progress.update(EpochEnd(2, 0.4, 0.95, 100, 2.0))
    # 8 more epochs of 100, then two tasks of 10 epochs of 50: 1,800 images of 0.02 s
    assert progress.left_s == pytest.approx(36.0)
    assert progress.left == "at most 36 s left"
    assert progress.elapsed_s == 11.0
    assert progress.share_done == pytest.approx(2 / 10 / 3)


def test_progress_forgets_a_task_when_the_next_begins() -> None:
    progress = Progress([100, 50], Clock())
    progress.update(TaskStart(0, 2, "0-1"))
    progress.update(PhaseStart(4, epochs=2, phases=5, tau=0.5, stable_share=0.25))
    progress.update(EpochEnd(1, 0.5, 0.9, 100, 1.0))
    assert (progress.phase, progress.epoch, progress.epochs) == (4, 1, 2)
    assert (progress.tau, progress.validation, progress.stable) == (0.5, 0.9, 0.25)
    progress.update(TaskStart(1, 2, "2-3"))
    assert progress.label == "2/2 2-3"
    assert (progress.tau, progress.validation, progress.stable) == (None, None, None)
    assert progress.share_done == 0.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
     (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (172_800, "2 days")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_data_progress() -> None:
    assert data_progress("gzip.zip", 1, 3) == "gzip.zip: 33 %"
    assert data_progress("decoding train", 1500, 0) == "decoding train: 1,500"


def test_plain_lines_about_data_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    display = PlainDisplay("title", clock)
    for done in range(1, 101):
        clock.now += 0.25
        display.loading("gzip.zip", done, 100)
    display.loading("decoding train", 1, 2)
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "data: gzip.zip: 1 %",
        "data: gzip.zip: 41 %",
        "data: gzip.zip: 81 %",
        "data: gzip.zip: 100 %",
        "data: decoding train: 50 %",
    ]


def test_live_display_keeps_a_row_for_each_task() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with LiveDisplay("title", console) as display:
        display.begin([100, 50], "here")
        display.note("tensorboard: there")
        display.show(TaskStart(0, 2, "[b]nasty[/b]\x1b[2J"))
        display.show(PhaseStart(1, 2, phases=3, tau=0.5, stable_share=0.25))
        display.show(EpochEnd(1, 0.5, 0.875, 100, 1.0))
        display.show(TaskEnd(0, (0.75,), RESULT))
        display.show(TaskStart(1, 2, "2-3"))
        display.show(TaskEnd(1, (0.75, 1.0), RESULT))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    # 6 of 10 hidden units are stable; the mean of 0.75 and 1 is 0.875
    assert re.search(r"1/2 \[b\]nasty\S* +75\.0 % +75\.0 % +60 % +2 +1 min 15 s", text)
    assert re.search(r"2/2 2-3 +100\.0 % +87\.5 % +60 % +2 +1 min 15 s", text)
    assert "tensorboard: there" in text
    assert "\x1b[2J" not in file.getvalue()


LONGER = ["--set=hidden=12,12", "--set=epochs_per_phase=100", "--set=max_phases=3"]
"""Settings of a run that takes seconds, since a display is drawn a few times in each."""


@NEEDS_TERMINAL
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz")
    text = on_terminal(tmp_path, "run", "split", "--dataset", "tiny.npz", "--out", "here", *LONGER)
    assert "phase 1 (of at most 3)" in text
    assert re.search(r"2/2 2-3 +[\d.]+ % +[\d.]+ %", text)
    assert "forgetting" in text


@pytest.mark.ci
@NEEDS_TERMINAL
def test_a_sweep_on_a_terminal(tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz")
    text = on_terminal(
        tmp_path, "sweep", "split", "--set=dataset=tiny.npz", "--seeds", "0,1", "--workers", "1",
        "--out", "here", *LONGER,
    )  # fmt: skip
    assert "2 runs, 0 of them done before, 1 at a time" in text
    assert "0 of 2 done, 1 running" in text
    assert re.search(r"split, nispa, preset default, seed 1: [\d.]+ % in ", text)
    assert "best so far: " in text
    assert re.search(r"nispa +2 ", text)
