"""``kill -9`` after a task: its network is written, and the record does not count the task yet.

A process kills itself at each call of that window, from the first byte of the network to the move
that gives it its name. Whatever it left, a resume comes to the same bytes as a run without kills.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nispa.methods.saving import decode
from nispa.runs.folder import EVENTS, LOCK, NETWORK, NEWER_NETWORK, PROGRESS
from nispa.runs.record import RECORD, Record, read_record
from nispa.runs.runner import resume, run
from nispa.training import fit as training
from tests.disk_faults import Disk
from tests.runs.test_resume import content, experiment, finish

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no such signal")

FILES = 8  # calls that writing a file whole takes
LINES = 3  # calls that adding a line takes


def _drawn(record: Record) -> bytes:
    return b"a picture"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(training, "PAUSE_S", 0.0)
    yield
    torch.set_num_threads(threads)


def _live(folder: str, method: str, number: int) -> None:
    """A run in a process of its own, or what is left of it, up to one of its calls."""
    torch.set_num_threads(1)
    training.PAUSE_S = 0.0
    out = Path(folder)
    go = resume if (out / RECORD).exists() else run
    with Disk(out, number, "kill").failing():
        finish(go(experiment(method), out, drawing=_drawn))


def killed(folder: Path, method: str, number: int) -> bool:
    """Whether a process was killed at its call of that number; it may have fewer."""
    context = multiprocessing.get_context("forkserver")
    # Loaded once for all of them.
    context.set_forkserver_preload(["nispa.runs.runner", "tests.test_kills"])
    process = context.Process(target=_live, args=(str(folder), method, number))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def windows(disk: Disk) -> list[int]:
    """The numbers of the calls between learning a task and its network's getting its name."""
    names = [Path(at).name for _, at in disk.calls]
    found: list[int] = []
    for end, name in enumerate(names):
        if name == NEWER_NETWORK:
            assert names[end - FILES - 2 * LINES] == EVENTS
            assert names[end - FILES - LINES] == PROGRESS
            found += range(end - 2 * FILES - 2 * LINES + 1, end + 3)  # numbers begin with 1
    return found


def check(folder: Path) -> str:
    """Which of the three states is on disk; none of them counts a task without its network."""
    done = len(read_record(folder, sealed=True).per_task)
    at = [
        len(decode(folder / n)[0].learned)
        for n in (NETWORK, NEWER_NETWORK)
        if (folder / n).exists()
    ]
    assert not done or done in at
    if max(at, default=0) > done:
        return "ahead"
    return "counted" if (folder / NEWER_NETWORK).exists() else "settled"


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("finetune", 5),
        pytest.param("nispa", 1, marks=pytest.mark.slow),
        pytest.param("er", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_between_a_network_and_its_record(method: str, step: int, tmp_path: Path) -> None:
    """Each second run is killed a second time, while it goes on."""
    disk = Disk(tmp_path / "whole")
    with disk.failing():
        finish(run(experiment(method), disk.folder, drawing=_drawn))
    wanted = content(disk.folder)
    numbers, seen = windows(disk)[::step], set()
    assert len(numbers) >= 48 // step
    for number in numbers:
        folder = tmp_path / "run"
        assert killed(folder, method, number)
        seen.add(check(folder))
        if number % 2 and killed(folder, method, FILES + number // 4):
            seen.add(check(folder))
        if read_record(folder).status != "complete":
            finish(resume(experiment(method), folder, drawing=_drawn))
        assert content(folder) == wanted
        assert {path.name for path in folder.iterdir()} - {LOCK} == {
            path.name for path in disk.folder.iterdir()
        }
        shutil.rmtree(folder)
    assert seen == {"ahead", "counted", "settled"}
