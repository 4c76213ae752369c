"""A task on its way into a learner, and the process that learns it (:mod:`.learning`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nispa.errors import InputError
from nispa.files import one_line
from nispa.learner import Learner
from nispa.serve.bodies import Lesson

if TYPE_CHECKING:
    from nispa.serve.service import Setup

ENDED = ("learned", "failed", "dropped")
BEFORE, AFTER = "before.safetensors", "after.safetensors"
IMAGES, TASK = "images.npy", "task.json"
MAX_LINE = 100_000
PATIENCE_S = 10.0


class Stopped(Exception):  # noqa: N818 - it is no error
    """The task was called off, or the server ends."""


@dataclass
class Job:
    """A task on its way.

    Attributes:
        number: Its number, from 1.
        name: The task's name.
        examples: Number of examples.
        labels: Its labels.
        state: ``queued``, ``learning``, ``checking``, then one of :data:`ENDED`.
        progress: The last of phase, epoch and validation accuracy.
        task: Number of the task, from 1, once it is learned.
        old_answers: How old answers were held against new ones.
        notes: Warnings about the examples.
        error: Why it failed.
        seconds: How long it took.
        stop: Set to call it off.
    """

    number: int
    name: str
    examples: int
    labels: list[Any]
    state: str = "queued"
    progress: dict[str, Any] = field(default_factory=dict)
    task: int | None = None
    old_answers: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    error: str = ""
    seconds: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def end(self, state: str, error: str) -> None:
        """Says how it ended."""
        self.error, self.seconds = error, round(time.monotonic() - self.began, 3)
        self.state = state  # last: whoever sees it sees the rest

    def as_json(self) -> dict[str, Any]:
        """For the reply to whoever asks."""
        state = self.state
        return {
            "job": self.number,
            "name": self.name,
            "state": state,
            "examples": self.examples,
            "labels": self.labels,
            "progress": dict(self.progress),
            "task": self.task,
            "old_answers": self.old_answers,
            "notes": list(self.notes),
            "error": self.error or None,
            "seconds": self.seconds,
        }


def learn_apart(job: Job, lesson: Lesson, learner: Learner, setup: Setup) -> bytes:
    """Learns a task in a process of its own.

    Returns:
        The file of the learner that has learned it.

    Raises:
        Stopped: The job was called off.
        InputError: The task cannot be learned, or the process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="nispa-serve-") as name:
        folder = Path(name)
        learner.save(folder / BEFORE)
        np.save(folder / IMAGES, lesson.images, allow_pickle=False)
        task = {
            "name": lesson.name,
            "labels": lesson.labels,
            "channels_first": lesson.channels_first,
            "device": setup.device,
            "model": setup.model,
            "threads": setup.threads,
        }
        (folder / TASK).write_text(json.dumps(task), encoding="utf-8")
        ended = _follow(job, folder)
        if ended.get("ended") == "learned":
            job.notes = [one_line(str(note), 500) for note in ended.get("notes", [])]
            return (folder / AFTER).read_bytes()
        raise InputError(str(ended.get("error")))


def _follow(job: Job, folder: Path) -> dict[str, Any]:
    """Runs the process and follows its lines to the last."""
    errors = folder / "errors.txt"
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nispa.serve.learning", str(folder)],
            stdin=subprocess.PIPE,  # closed when this process dies, and then that one ends
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the server, which then ends it
        )
    watcher = threading.Thread(target=_end_when_stopped, args=(job, process), daemon=True)
    watcher.start()
    ended: dict[str, Any] = {}
    assert process.stdout is not None
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        while line := process.stdout.readline(MAX_LINE):
            told = _said(line)
            if "ended" in told:
                ended = told
            else:
                job.progress = {**job.progress, **told}
        process.wait(PATIENCE_S)
    watcher.join()
    if job.stop.is_set() and not ended:
        raise Stopped
    if not ended:
        last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        why = one_line(last[0], 300) if last else "it said nothing"
        raise InputError(f"the process that learns ended with code {process.returncode}: {why}")
    return ended


def _said(line: bytes) -> dict[str, Any]:
    """A line of the process; nothing if a library wrote it."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _end_when_stopped(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Kills the process once its job is called off; nothing it does is kept."""
    while process.poll() is None:
        if job.stop.wait(0.1):
            process.kill()
            return
