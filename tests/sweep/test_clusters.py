"""Ray and Slurm carry out the same jobs; both are optional."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nispa.errors import FormatError
from nispa.runs.record import comparable, read_record
from nispa.sweep.backends import make_backend, sweep
from nispa.sweep.base import Backend
from nispa.sweep.jobs import Job, Where, execute, prepare
from nispa.sweep.plan import Cell
from tests.extent import optional

SMALL = {"hidden": [12, 12], "e": 5, "max_phases": 3, "batch_size": 16}


def jobs_of(out: Path, seeds: int, method: str = "nispa") -> list[Job]:
    given = (
        SMALL if method == "nispa" else {"hidden": [12, 12], "epochs": 1, "tasks": [[0, 1], [2, 3]]}
    )
    cells = [Cell("split-digits", method, "default", seed, given) for seed in range(seeds)]
    return prepare(cells, Where(out))


def carry_out(backend: Backend, jobs: list[Job]) -> None:
    ended = [each for each in sweep(jobs, backend) if each is not None]
    assert [each.problem for each in ended] == [""] * len(jobs)
    assert {each.job.key for each in ended} == {job.key for job in jobs}


def same(job: Job, folder: Path) -> None:
    (alone,) = [each for each in jobs_of(folder, 3, job.method) if each.key == job.key]
    assert execute(alone).status == "done"
    assert comparable(read_record(job.folder)) == comparable(read_record(alone.folder))


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A Ray cluster of this machine with two workers."""
    optional("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return make_backend("ray", workers=2, threads=1)


@pytest.mark.filterwarnings("ignore")
def test_ray_does_all(two_workers: Backend, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "runs", 3, "finetune")
    (jobs[2].folder).mkdir(parents=True)
    (jobs[2].folder / "record.json").write_text("{}")
    ended = {each.job.key: each for each in sweep(jobs, two_workers) if each is not None}
    assert [ended[job.key].status for job in jobs] == ["done", "done", "failed"]
    assert "record.json" in ended[jobs[2].key].problem
    same(jobs[0], tmp_path / "alone")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_ray_takes_up_what_a_lost_worker_left(two_workers: Backend, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "runs", 2)
    killed, ended = False, []
    for outcome in two_workers.run(jobs):
        if outcome is not None:
            ended.append(outcome)
        elif not killed and (jobs[0].folder / "events.jsonl").exists():
            for process in _workers():
                os.kill(process, signal.SIGKILL)
            killed = True
    assert killed
    assert [each.problem for each in ended] == ["", ""]
    same(jobs[0], tmp_path / "alone")
    same(jobs[1], tmp_path / "alone")


def _workers() -> list[int]:
    """Processes in which Ray is at work on a job."""
    found = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(line[0]) for line in lines if line[1:] and line[1].startswith("ray::_work")]


def test_submitit_does_all(tmp_path: Path) -> None:
    optional("submitit")
    from nispa.sweep.slurm import Slurm

    jobs = jobs_of(tmp_path / "runs", 2, "finetune")
    started = time.time()
    carry_out(Slurm(2, 1, cluster="local"), jobs)
    assert all(read_record(job.folder).status == "complete" for job in jobs)
    assert any(path.stat().st_mtime >= started - 1 for path in (tmp_path / "runs/.slurm").iterdir())
    same(jobs[1], tmp_path / "alone")


def test_what_submitit_unpickles_is_what_it_wrote(tmp_path: Path) -> None:
    """A stranger's folder of runs may hold pickles: each call has a folder of its own for them."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    from nispa.sweep.slurm import Slurm

    jobs = jobs_of(tmp_path / "runs", 1, "finetune")
    logs = tmp_path / "runs" / ".slurm"
    logs.mkdir(parents=True)
    (logs / "1_0_result.pkl").write_bytes(b"cos\nsystem\n.")
    carry_out(Slurm(1, 1, cluster="local"), jobs)
    (used,) = (path for path in logs.iterdir() if path.is_dir())
    assert len(used.name) == 16
    assert any(used.iterdir())
    shutil.rmtree(logs)
    logs.symlink_to(tmp_path)
    with pytest.raises(FormatError, match=r"\.slurm is a link"):
        next(Slurm(1, 1, cluster="local").run(jobs))
