"""Checkpoints within a task: the state of each of its fits, in a folder beside the record.

Every fit has one file, replaced whole and with a checksum. A damaged or missing one costs the time
to repeat its training and changes no result. Work between two fits is repeated, see
:mod:`nispa.training.pausing`.
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
from nispa.runs.folder import CHECKPOINTS
from nispa.runs.usage import Spent, spent
from nispa.training.pausing import FitPause, FitState

FORMAT = "nispa-checkpoint/2"
FOLDER = CHECKPOINTS
EVERY_S = 30.0

# Earlier versions wrote the running fit to a and b in turn.
_NAME = re.compile(r"task[0-9]+-fit[0-9]+-(a|b|part|over)\.safetensors")


class Checkpoints:
    """Checkpoints of one run, task by task."""

    def __init__(self, run: Path, every: float = EVERY_S, identity: str = "") -> None:
        """Keeps checkpoints in a subfolder of ``run``.

        Args:
            run: The run's folder.
            every: Seconds between two checkpoints within a fit, at least.
            identity: Identifies the experiment; checkpoints of another one are ignored.
        """
        self.folder, self._every, self._identity = run / FOLDER, every, identity
        self._task = self._fit = 0
        self._written = self._synced = time.monotonic()
        self.spent = Spent()

    def begin(self, task: int) -> Iterator[FitState]:
        """Begins a task, deletes the checkpoints of others, and sets ``spent`` to its time so far.

        Returns:
            The saved states of the task's fits, in order.

        Raises:
            FormatError: A checkpoint is a link, or the folder is one.
        """
        self._task, self._fit, self.spent = task, 0, Spent()
        self._began, self._written = spent(), time.monotonic()
        mine = f"task{task}-"
        for path in self._files():
            if not path.name.startswith(mine):
                remove(path)
        states: list[FitState] = []
        while (state := self._read(len(states) + 1, "over")) is not None:
            states.append(state)
        if (state := self._read(len(states) + 1, "part")) is not None:
            states.append(state)
        if states:
            self.spent = _spent(states[-1].values)
        return iter(states)

    def fit(self) -> None:
        """Begins the next fit of the task."""
        self._fit += 1

    def reached(self, pause: FitPause, *, last: bool = False) -> None:
        """Writes a checkpoint if the fit is over or one is due.

        Args:
            pause: Where the fit is.
            last: Whether the process is about to end, which makes one due.

        Raises:
            OutputError: It could not be written; the one before is whole.
        """
        due = last or time.monotonic() - self._written >= self._every
        if not (pause.over or due):
            return
        path = self._path(self._fit, "over" if pause.over else "part")
        state = pause.state()
        took = self.spent + (spent() - self._began)
        header = {
            **self._place(self._fit),
            "values": {
                **state.values,
                "task_seconds": took.wall_s,
                "task_cpu_seconds": took.cpu_s,
            },
        }
        make_folder(self.folder)
        # What a power loss takes is trained again. So short phases do not wait for the disk.
        lasting = last or time.monotonic() - self._synced >= self._every
        write_atomic(path, tensorfile.encode(FORMAT, header, state.tensors), lasting=lasting)
        self._synced = time.monotonic() if lasting else self._synced
        if pause.over:
            remove(self._path(self._fit, "part"))
        self._written = time.monotonic()

    def clear(self) -> None:
        """Deletes all checkpoints."""
        for path in self._files():
            remove(path)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """The checkpoints on disk, after deleting files that a killed process left half written.

        Files with other names are not nispa's and stay.
        """
        check_own(self.folder, folder=True)
        remove_unfinished(self.folder)
        paths = [path for path in self.folder.glob("task*") if _NAME.fullmatch(path.name)]
        for path in paths:
            check_own(path)
        return paths

    def _path(self, fit: int, part: str) -> Path:
        return self.folder / f"task{self._task}-fit{fit}-{part}.safetensors"

    def _place(self, fit: int) -> dict[str, int | str]:
        """Header fields that identify a checkpoint, since a file may be renamed."""
        return {"run": self._identity, "task": self._task, "fit": fit}

    def _read(self, fit: int, part: str) -> FitState | None:
        """The state in a file; None if it is missing, damaged or does not belong here."""
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError, OverflowError):
            tensors, header = tensorfile.read(self._path(fit, part), FORMAT, "checkpoint")
            values = header["values"]
            _spent(values)  # raises if there is none
            place = self._place(fit)
            if place == {name: header[name] for name in place} and values["over"] == (
                part == "over"
            ):
                return FitState(tensors, values)
        return None


def _spent(values: Mapping[str, Any]) -> Spent:
    return Spent(float(values["task_seconds"]), float(values["task_cpu_seconds"]))
