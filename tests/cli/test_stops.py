"""Runs that end before their time: what they say, with which exit code, and what they keep."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nispa.cli import cli
from nispa.cli.exits import Terminated, terminable
from nispa.learner import Learner
from nispa.runs.folder import RunFolder
from nispa.runs.record import comparable, read_record
from tests.cli_calls import SMALL, call, spawn, write_npz

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
LONG = ["--set", "hidden=12,12", "--set", "e=20", "--set", "batch_size=8", "--threads", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no data folder from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    return tmp_path


def stop_after_first_task(home: Path, number: signal.Signals) -> tuple[int, str]:
    """Runs split-digits until its first task is learned, sends a signal, and waits for the end."""
    # The four tasks that follow take seconds more, however late this process gets to send it.
    process = spawn(
        "run", "split-digits", "--out", "here", "--set", "max_phases=3", *LONG, cwd=home
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "learned, test" in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def check_kept(home: Path, number: signal.Signals, code: int, word: str) -> None:
    """Stops a run, and looks at what it said and kept."""
    ended, err = stop_after_first_task(home, number)
    assert ended == code, err
    record = read_record(home / "here")
    assert record.status == "interrupted"
    assert record.finished is not None
    done = len(record.accuracy_matrix)
    assert 1 <= done < 5
    assert err == (
        f"nispa: {word}: kept {done} of 5 tasks in here "
        "(events.jsonl, network.safetensors, origin.json, progress.csv, record.json, run.png); "
        "go on with: nispa resume here\n"
    )
    learner = Learner.load(home / "here" / "network.safetensors")
    assert len(learner.tasks) == done
    assert RunFolder(home / "here").read_events()[-1]["task"] in (done - 1, done)


@posix
def test_a_signal_in_mid_run(home: Path) -> None:
    check_kept(home, signal.SIGTERM, 143, "terminated")


@pytest.mark.ci
@posix
def test_ctrl_c_and_going_on_come_to_the_same_bytes(home: Path, capsys: Capture) -> None:
    check_kept(home, signal.SIGINT, 130, "interrupted")
    assert (home / "here" / "checkpoint").is_dir()
    ended = call(capsys, "resume", "here", "--threads", "1", "--quiet")
    assert (ended.code, ended.out) == (0, "here\n")
    args = ("run", "split-digits", "--out", "there", "--set", "max_phases=3", *LONG, "--quiet")
    threads = torch.get_num_threads()
    try:
        assert call(capsys, *args).code == 0
    finally:
        torch.set_num_threads(threads)
    assert comparable(read_record("here")) == comparable(read_record("there"))
    networks = [(home / name / "network.safetensors").read_bytes() for name in ("here", "there")]
    assert networks[0] == networks[1]
    again = call(capsys, "resume", "here")
    assert again.code == 2
    assert "here is complete: nothing is left to resume" in again.err


def test_ctrl_c_before_the_first_task_is_over(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(home / "tiny.npz")
    interrupt_at(monkeypatch, "nispa.methods.nispa.Nispa.rewire")
    ended = call(capsys, "run", "split", "--dataset", "tiny.npz", "--out", "here", *SMALL)
    assert ended.code == 130
    kept = "kept no finished task in here (events.jsonl, origin.json, progress.csv, record.json)"
    assert ended.err == f"nispa: interrupted: {kept}; go on with: nispa resume here\n"
    assert read_record("here").status == "interrupted"


def test_ctrl_c_while_data_are_read(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(home / "tiny.npz")
    interrupt_at(monkeypatch, "nispa.data.sources.read_npz")
    ended = call(capsys, "run", "split", "--dataset", "tiny.npz", "--out", "here", *SMALL)
    assert (ended.code, ended.err) == (130, "nispa: interrupted: nothing was written\n")
    assert not Path("here").exists()


def test_ctrl_c_in_a_command_without_a_run(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, "nispa.data.sources.available")
    ended = call(capsys, "doctor")
    assert (ended.code, ended.err) == (130, "nispa: interrupted: nothing was written\n")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt(*args: object, **extra: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)


def test_sigterm_has_its_old_meaning_after_a_run() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["nispa", *sys.argv[2:]]
runpy.run_module("nispa", run_name="__main__")
"""


def run_with_full_disk(home: Path, limit_bytes: int) -> subprocess.CompletedProcess[str]:
    """A run in which no file can grow beyond a size, as on a full disk."""
    write_npz(home / "tiny.npz")
    args = ["run", "split", "--dataset", "tiny.npz", "--out", "here", "--set=epochs_per_phase=1"]
    # Few events and many weights, so that what holds the network is the largest file.
    args += ["--set=max_phases=3", "--set=settle_epochs=0", "--set=hidden=200"]
    command = [sys.executable, "-c", LIMITED, str(limit_bytes), *args]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60)


@posix
def test_a_disk_that_is_full_from_the_start(home: Path) -> None:
    done = run_with_full_disk(home, 100)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("nispa: error: cannot write here/")
    assert done.stderr.count("\n") == 1
    assert not Path("here").exists()


@posix
def test_a_disk_that_fills_up_in_mid_run(home: Path) -> None:
    done = run_with_full_disk(home, 9000)  # enough for the first record, not for a checkpoint
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("nispa: error: cannot write here/")
    assert "Run: kept " in done.stderr
    assert done.stderr.count("\n") == 1
    record = read_record("here")
    assert record.status == "failed"
    names = {path.name for path in Path("here").iterdir()}
    whole = {"record.json", "events.jsonl", "progress.csv", "network.safetensors", "checkpoint"}
    whole.add("origin.json")
    assert names <= whole  # no half-written file


def test_a_loss_that_is_no_number(capsys: Capture, home: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.random((40, 4, 4), dtype=np.float32) * 90, np.arange(40) % 4
    np.savez("huge.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    args = ["--set", "optimiser=sgd", "--set", "lr=100", "--set", "weight_decay=1e6", *SMALL]
    ended = call(capsys, "run", "split", "--dataset", "huge.npz", "--out", "here", *args)
    assert ended.code == 1
    assert "no longer finite" in ended.err or "the loss became " in ended.err
    assert "pass a smaller learning_rate" in ended.err
    assert "kept no finished task in here" in ended.err
    assert ended.err.count("\n") == 1
    assert read_record("here").status == "failed"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
)
def test_not_enough_memory(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    write_npz(home / "tiny.npz")
    monkeypatch.setattr("nispa.methods.nispa.Nispa.start", fail)
    ended = call(capsys, "run", "split", "--dataset", "tiny.npz", "--out", "here", *SMALL)
    assert ended.code == 1
    assert ended.err == (
        "nispa: error: not enough memory; pass a smaller network or batch_size. "
        "Run: nothing was written\n"
    )
    assert not Path("here").exists()


def test_an_unforeseen_error_keeps_its_traceback(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a mistake in nispa")

    monkeypatch.setattr("nispa.data.sources.available", fail)
    with pytest.raises(RuntimeError, match="a mistake in nispa"):
        cli.main(args=["doctor"])
