"""Checkpoints within a task: what its fits have come to, in a folder beside the record.

A fit that is over has a file of its own, written once. The one that runs has two, written in turn,
so that one of them is always whole. All carry a checksum; a file that is damaged or missing costs
the time to compute what it held, and changes no result. What lies between two fits is computed
anew, see :mod:`nispa.pausing`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nispa import tensorfile
from nispa.errors import InputError
from nispa.files import write_atomic
from nispa.pausing import FitPause, FitState
from nispa.usage import Spent, spent

FORMAT = "nispa-checkpoint/2"
FOLDER = "checkpoint"
EVERY_S = 30.0


class Checkpoints:
    """Checkpoints of one run, task by task."""

    def __init__(self, run: Path, every: float = EVERY_S) -> None:
        """Checkpoints in a folder of ``run``, at least ``every`` seconds apart within a fit."""
        self._folder, self._every = run / FOLDER, every
        self._task = self._fit = self._number = 0
        self._written = time.monotonic()
        self.spent = Spent()

    def begin(self, task: int) -> Iterator[FitState]:
        """Begins a task; gives what was saved of its fits, the first one first.

        Files of other tasks are deleted. ``spent`` becomes what the task took so far.
        """
        self._task, self._fit, self._number, self.spent = task, 0, 0, Spent()
        self._began, self._written = spent(), time.monotonic()
        mine = f"task{task}-"
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if not path.name.startswith(mine):
                    path.unlink(missing_ok=True)
        found = self._found()
        return iter(found)

    def _found(self) -> list[FitState]:
        found: list[FitState] = []
        while (state := self._read(self._path(len(found) + 1, "over"))) is not None:
            found.append(state)
        halves = [self._read(self._path(len(found) + 1, half)) for half in ("a", "b")]
        running = [state for state in halves if state is not None]
        if running:
            found.append(max(running, key=lambda state: int(state.values["number"])))
            self._number = int(found[-1].values["number"])
        if found:
            self.spent = _spent(found[-1].values)
        return found

    def fit(self) -> None:
        """The next fit of the task begins."""
        self._fit += 1

    def reached(self, pause: FitPause, *, last: bool = False) -> None:
        """A fit may be left here: writes a checkpoint if it is over, or one is due.

        Args:
            pause: Where the fit is.
            last: Whether the process ends now, so that one is due in any case.

        Raises:
            OutputError: It could not be written; the one before is whole.
        """
        due = last or time.monotonic() - self._written >= self._every
        if not (pause.over or due):
            return
        self._number += 1
        path = self._path(self._fit, "over" if pause.over else "ab"[self._number % 2])
        state = pause.state()
        took = self.spent + (spent() - self._began)
        header = {
            "task": self._task,
            "fit": self._fit,
            "values": {
                **state.values,
                "number": self._number,
                "task_seconds": took.wall_s,
                "task_cpu_seconds": took.cpu_s,
            },
        }
        self._folder.mkdir(exist_ok=True)
        write_atomic(path, tensorfile.encode(FORMAT, header, state.tensors))
        if pause.over:
            for half in ("a", "b"):
                self._path(self._fit, half).unlink(missing_ok=True)
        self._written = time.monotonic()

    def clear(self) -> None:
        """Deletes all: the run is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, fit: int, part: str) -> Path:
        return self._folder / f"task{self._task}-fit{fit}-{part}.safetensors"

    def _read(self, path: Path) -> FitState | None:
        """What a file holds; None where there is none, or it is damaged."""
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
            tensors, header = tensorfile.read(path, FORMAT, "checkpoint")
            values = header["values"]
            int(values["number"]), _spent(values)
            return FitState(tensors, values)
        return None


def _spent(values: Mapping[str, Any]) -> Spent:
    return Spent(float(values["task_seconds"]), float(values["task_cpu_seconds"]))
