"""Checkpoints within a task: what its fits have come to, in a folder beside the record.

A fit that is over has a file of its own, written once. The one that runs has two, written in turn,
so that one of them is always whole. All carry a checksum; a file that is damaged or missing costs
the time to compute what it held, and changes no result. What lies between two fits is computed
anew, see :mod:`nispa.training.pausing`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nispa import tensorfile
from nispa.errors import InputError
from nispa.files import check_own, make_folder, remove, remove_unfinished, write_atomic
from nispa.training.pausing import FitPause, FitState
from nispa.runs.folder import CHECKPOINTS
from nispa.runs.usage import Spent, spent

FORMAT = "nispa-checkpoint/2"
FOLDER = CHECKPOINTS
EVERY_S = 30.0

_NAME = re.compile(r"task[0-9]+-fit[0-9]+-(a|b|over)\.safetensors")


class Checkpoints:
    """Checkpoints of one run, task by task."""

    def __init__(self, run: Path, every: float = EVERY_S, identity: str = "") -> None:
        """Checkpoints in a folder of ``run``, at least ``every`` seconds apart within a fit.

        ``identity`` tells what is run: checkpoints of anything else are not taken.
        """
        self.folder, self._every, self._identity = run / FOLDER, every, identity
        self._task = self._fit = self._number = 0
        self._written = time.monotonic()
        self.spent = Spent()

    def begin(self, task: int) -> Iterator[FitState]:
        """Begins a task; gives what was saved of its fits, the first one first.

        Checkpoints of other tasks are deleted. ``spent`` becomes what the task took so far.

        Raises:
            FormatError: A checkpoint is a link, or the folder is one.
        """
        self._task, self._fit, self._number, self.spent = task, 0, 0, Spent()
        self._began, self._written = spent(), time.monotonic()
        mine = f"task{task}-"
        for path in self._files():
            if not path.name.startswith(mine):
                remove(path)
        return iter(self._found())

    def _found(self) -> list[FitState]:
        found: list[FitState] = []
        while (state := self._read(len(found) + 1, "over")) is not None:
            found.append(state)
        halves = [self._read(len(found) + 1, half) for half in ("a", "b")]
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
            **self._place(self._fit),
            "values": {
                **state.values,
                "number": self._number,
                "task_seconds": took.wall_s,
                "task_cpu_seconds": took.cpu_s,
            },
        }
        make_folder(self.folder)
        write_atomic(path, tensorfile.encode(FORMAT, header, state.tensors))
        if pause.over:
            for half in ("a", "b"):
                remove(self._path(self._fit, half))
        self._written = time.monotonic()

    def clear(self) -> None:
        """Deletes all checkpoints: the run is complete."""
        for path in self._files():
            remove(path)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """The checkpoints that are there; other files, which nispa never wrote, stay.

        What a process left that was killed while it wrote is deleted.
        """
        check_own(self.folder, folder=True)
        remove_unfinished(self.folder)
        found = [path for path in self.folder.glob("task*") if _NAME.fullmatch(path.name)]
        for path in found:
            check_own(path)
        return found

    def _path(self, fit: int, part: str) -> Path:
        return self.folder / f"task{self._task}-fit{fit}-{part}.safetensors"

    def _place(self, fit: int) -> dict[str, int | str]:
        """What a checkpoint belongs to; its name alone could be another one's."""
        return {"run": self._identity, "task": self._task, "fit": fit}

    def _read(self, fit: int, part: str) -> FitState | None:
        """What a file holds; None where there is none, or it is damaged or another one's."""
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError, OverflowError):
            tensors, header = tensorfile.read(self._path(fit, part), FORMAT, "checkpoint")
            values = header["values"]
            int(values["number"])
            took = _spent(values)
            if not all(0 <= seconds < float("inf") for seconds in (took.wall_s, took.cpu_s)):
                return None
            place = self._place(fit)
            if place == {name: header[name] for name in place} and values["over"] == (
                part == "over"
            ):
                return FitState(tensors, values)
        return None


def _spent(values: Mapping[str, Any]) -> Spent:
    return Spent(float(values["task_seconds"]), float(values["task_cpu_seconds"]))
