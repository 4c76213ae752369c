"""``--track`` of ``nispa run`` and ``nispa resume``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nispa.runs.curve import Curve, as_csv
from nispa.runs.folder import PROGRESS, RunFolder
from nispa.runs.record import read_record
from tests.cli_calls import SMALL, call, spawn, write_npz
from tests.trackers.runs import points_of
from tests.trackers.test_tensorboard import scalars, wanted

Capture = pytest.CaptureFixture[str]
LONG = ["--set=hidden=12,12", "--set=e=6", "--set=batch_size=8", "--set=max_phases=3"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no data folder from outside."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    return home


@pytest.mark.parametrize("command", [["run", "split", "--dataset", "no.npz"], ["resume", "no"]])
def test_bad_trackers_are_met_before_anything_is_read(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name, says in (
        ("wadnb", ("unknown tracker 'wadnb'", "did you mean 'wandb'?")),
        ("wandb", ("tracker 'wandb' needs a library that is missing", "with: pip install wandb")),
    ):
        ended = call(capsys, *command, "--track", name)
        assert ended.code == 2
        assert ended.err.startswith("nispa: error: ")
        assert ended.err.count("\n") == 1
        assert all(words in ended.err for words in says)
    assert list(home.iterdir()) == []


def test_a_library_that_is_broken(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    ended = call(capsys, "run", "split-digits", "--track", "wandb")
    assert ended.code == 2
    assert ended.err.startswith("nispa: error: tracker 'wandb' cannot be used: ")
    assert "pip install --upgrade wandb" in ended.err
    assert ended.err.count("\n") == 1
    assert list(home.iterdir()) == []


def test_a_tracker_that_fails_is_a_line_on_stderr(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise ConnectionError("nobody\nthere")

    pytest.importorskip("tensorboard")
    monkeypatch.setattr("nispa.trackers.tensorboard.TensorBoard.begin", fail)
    write_npz(home / "tiny.npz")
    args = ["run", "split", "--dataset", "tiny.npz", "--out", "here", *SMALL]
    ended = call(capsys, *args, "--track", "tensorboard")
    assert ended.code == 0
    left_out = "tensorboard is left out from here on: nobody there"
    assert ended.err == f"nispa: warning: {left_out}\n"
    assert read_record("here").status == "complete"


@pytest.mark.ci
def test_killed_and_resumed(capsys: Capture, home: Path) -> None:
    """As in life: SIGKILL in mid-task, between any two bytes."""
    pytest.importorskip("tensorboard")
    args = ["run", "split-digits", "--out", "here", *LONG, "--track", "tensorboard"]
    process = spawn(*args, cwd=home)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "task 2/5" in line:
            break
    process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    process.communicate(timeout=60)
    assert "tensorboard: tensorboard --logdir here\n" in lines
    kept = read_record("here")
    assert kept.status == "running"
    assert (home / "here" / PROGRESS).read_bytes().endswith(b"\n")
    again = ["resume", "here", "--track", "tensorboard", "--track", "tensorboard", "--quiet"]
    ended = call(capsys, *again)
    assert (ended.code, ended.out, ended.err) == (0, "here\n", "")
    found, points = scalars(home / "here"), wanted(home / "here")
    assert set(found) == set(points)
    for name, curve in found.items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps))  # none twice
        assert all(point in points[name] for point in curve)
    missing = {step for name in found for step, _ in points[name]}
    missing -= {step for curve in found.values() for step, _ in curve}
    assert len(missing) <= 1  # what was being sent when the process died
    events = RunFolder("here").read_events()
    assert (home / "here" / PROGRESS).read_bytes() == as_csv(Curve().points(events), 5)
    assert len(points_of(home / "here")) == len(events) - sum(
        event["event"] == "phase_start" for event in events
    )
