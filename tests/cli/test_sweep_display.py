"""What a sweep looks like while it runs: done, running, failed, time left, best so far."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from nispa.cli.progress import percent
from nispa.cli.sweep_display import SweepDisplay
from nispa.runs.folder import RunFolder
from nispa.runs.record import read_record
from nispa.sweep.jobs import Job, Outcome, execute
from tests.sweep.test_sweep import cell, jobs_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Four jobs: the first was done before, the others were not begun."""
    jobs = jobs_of(tmp_path / "runs", [cell(seed=seed) for seed in range(4)])
    execute(jobs[0])
    return jobs


def begin(job: Job, like: Job) -> None:
    """A record as of a job that runs, from that of a complete one."""
    record = read_record(like.folder).model_copy(
        update={"status": "running", "finished": None, "metrics": {}}
    )
    RunFolder.create(job.folder, record)


def accuracy(job: Job) -> str:
    return percent(read_record(job.folder).main_metrics["acc"].value, 2)


def test_plain_lines_tell_where_a_sweep_stands(jobs: list[Job], capsys: Capture) -> None:
    now = [100.0]
    with SweepDisplay(clock=lambda: now[0]) as display:
        display.begin(jobs, jobs[:1], 2)
        begin(jobs[3], jobs[0])
        display.show(None)  # too soon for a line
        now[0] += 60
        display.show(None)
        execute(jobs[1])
        now[0] += 60
        display.show(Outcome(jobs[1], "done", seconds=75.0))
        display.show(Outcome(jobs[2], "failed", "the disk\nis full"))
        now[0] += 60
        display.show(None)
    best = max(jobs[:2], key=lambda job: read_record(job.folder).main_metrics["acc"].value or 0)
    assert capsys.readouterr().out.splitlines() == [
        "4 runs, 1 of them done before, 2 at a time",
        f"1 of 4 done, 1 running; best so far: {accuracy(jobs[0])}, {jobs[0].title}",
        f"[2/4] {jobs[1].title}: {accuracy(jobs[1])} in 1 min 15 s",
        f"[3/4] FAILED: {jobs[2].title}: the disk?is full",
        "2 of 4 done, 1 running, 1 FAILED, about 1 min 30 s left; "
        f"best so far: {accuracy(best)}, {best.title}",
    ]


def test_the_living_lines_name_what_runs(jobs: list[Job]) -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with SweepDisplay(console, lambda: now[0]) as display:
        display.begin(jobs, jobs[:1], 2)
        begin(jobs[3], jobs[0])
        now[0] += 10
        with console.capture() as shown:
            console.print(display._frame())
        display.show(Outcome(jobs[2], "failed", "the disk is full"))
    text = shown.get()
    assert f"{jobs[3].title}  task 5 of 5" in text
    assert f"best so far: {accuracy(jobs[0])}, {jobs[0].title}" in text
    assert "1 of 4 done, 1 running" in text
    lines = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"FAILED: {jobs[2].title}: the disk is full" in lines


def test_a_display_ends_with_its_block() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with SweepDisplay(console) as display:
        pass  # nothing began
    assert display._live is None
    with SweepDisplay(console) as display:
        display.begin([], [], 1)
        assert display._live is not None
        assert display._live.is_started
    assert not display._live.is_started
