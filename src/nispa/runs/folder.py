"""A run's folder: its files, who is at work on it, and names for new ones.

A folder holds ``record.json`` (:mod:`nispa.runs.record`), ``events.jsonl`` beside it (a line per epoch,
phase and task), ``progress.csv`` (:mod:`nispa.runs.curve`), the network and the picture ``run.png``. No
torch here, so that reports work without it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import JsonValue, TypeAdapter, ValidationError

from nispa.errors import BusyError, FormatError, InputError, OutputError
from nispa.files import (
    append_line,
    check_own,
    first_fault,
    read_limited,
    reason,
    remove,
    shown,
    write_atomic,
)
from nispa.runs.record import RECORD, Record, decode, encode, read_record

EVENTS, PROGRESS, PICTURE = "events.jsonl", "progress.csv", "run.png"
TRACKERS = "trackers.json"
NETWORK = "network.safetensors"
ORIGIN = "origin.json"
NEWER_NETWORK = "network.next.safetensors"
LOCK = ".nispa-run.lock"
CHECKPOINTS = "checkpoint"
FILES = (RECORD, ORIGIN, EVENTS, PROGRESS, PICTURE, TRACKERS, NETWORK, NEWER_NETWORK, LOCK)
FOLDERS = (CHECKPOINTS, "tensorboard", "wandb")
"""All that is written in a run's folder."""

MAX_EVENTS_BYTES = 256 * 2**20

_EVENT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class RunFolder:
    """A run's folder: what belongs to one run lies in it, each file whole or not there at all."""

    def __init__(self, path: str | Path, drawing: Callable[[Record], bytes] | None = None) -> None:
        self.path, self._drawing = Path(path), drawing

    @classmethod
    def check(cls, path: str | Path) -> None:
        """Whether a new run can be written to ``path``; creates nothing.

        Raises:
            OutputError: It is a file, holds a run, or may not be written to.
        """
        path = settled(path)
        try:
            nearest = path
            while not os.path.lexists(nearest):
                nearest = nearest.parent
            if not nearest.is_dir():
                raise OutputError(f"{shown(nearest)} is not a folder; choose another output folder")
            for name in (RECORD, EVENTS, PROGRESS, PICTURE, NETWORK, TRACKERS):
                if nearest == path and os.path.lexists(path / name):
                    raise OutputError(
                        f"{shown(path)} already holds a run ({name}); choose another output "
                        "folder, or delete this one first"
                    )
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise OutputError(
                    f"{shown(nearest)} cannot be written to; choose an output folder that can"
                )
        except (OSError, ValueError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot use {shown(path)}: {reason(error)}") from error

    @classmethod
    def create(
        cls,
        path: str | Path,
        record: Record | None = None,
        beside: Mapping[str, bytes] | None = None,
        drawing: Callable[[Record], bytes] | None = None,
    ) -> RunFolder:
        """A new run's folder at ``path``, made with its parents after :meth:`check`.

        Args:
            path: Where.
            record: The first record, written at once.
            beside: Files to write before it, by name: where the record is, they are.
            drawing: Draws a record's picture; None writes none.

        Raises:
            OutputError: It cannot be used; no folder was left behind.
        """
        cls.check(path)
        folder = settled(path)
        made: list[Path] = []
        try:
            missing = [part for part in (folder, *folder.parents) if not part.exists()]
            for part in reversed(missing):
                part.mkdir()
                made.append(part)
            for name, content in (beside or {}).items():
                write_atomic(folder / name, content)
            if record is not None:
                cls(folder).write_record(record)
        except (OSError, ValueError) as error:  # OutputError is a ValueError, too
            if record is not None:  # it may be in place, and only not safe from a power loss
                remove(folder / RECORD)
            for name in beside or ():
                remove(folder / name)
            for part in reversed(made):
                with contextlib.suppress(OSError):
                    part.rmdir()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot create {shown(folder)}: {reason(error)}") from error
        return cls(folder, drawing)

    def write_picture(self, record: Record) -> None:
        """Replaces ``run.png``, if anyone draws it; raises OutputError where it does not fit."""
        if self._drawing is not None:
            write_atomic(self.path / PICTURE, self._drawing(record))

    def write_record(self, record: Record) -> None:
        """Replaces ``record.json`` in one step.

        Raises:
            OutputError: It could not be written; the previous record is untouched.
        """
        data = encode(record)
        decode(data)  # what is written can be read: model_copy() and the like check nothing
        write_atomic(self.path / RECORD, data)

    def read_record(self, *, sealed: bool = False) -> Record:
        """The run's record; see :func:`read_record`."""
        return read_record(self.path, sealed=sealed)

    def append_event(self, event: Mapping[str, JsonValue]) -> None:
        """Adds a line to ``events.jsonl``; raises OutputError when it does not fit."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        append_line(self.path / EVENTS, line)

    def cut_events(self, tasks: int) -> None:
        """Keeps the events of the first ``tasks`` tasks alone.

        Raises:
            FormatError: A line before the last is damaged.
            OutputError: It could not be written.
        """
        file = self.path / EVENTS
        if not check_own(file):
            return
        try:
            kept = [line for line, event in self._events() if _task_of(event) < tasks]
        except FormatError as error:
            raise FormatError(f"{error}; delete the file to go on without it") from None
        write_atomic(file, b"".join(line + b"\n" for line in kept))

    def read_events(self) -> list[dict[str, Any]]:
        """All events in order; an unfinished last line, as a crash leaves it, is passed over.

        Raises:
            FormatError: A line before the last is damaged.
            InputError: There are no events, or they cannot be read.
        """
        return [event for _, event in self._events()]

    def _events(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        file = self.path / EVENTS
        check_own(file)
        lines = read_limited(file, MAX_EVENTS_BYTES).split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                event = _EVENT.validate_json(line)
            except ValidationError as error:
                what = first_fault(error)
                raise FormatError(f"{shown(file)}, line {number}, is damaged: {what}") from None
            yield line, event


def _task_of(event: Mapping[str, Any]) -> int:
    task = event.get("task")
    return task if isinstance(task, int) else 0


@contextlib.contextmanager
def held(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps a run's folder for this process; made if it is missing, gone again if left empty.

    The system frees it when the process dies, however it does.

    Args:
        path: The folder.
        wait: Whether to wait for another process to leave it.

    Raises:
        BusyError: Another process is at work there.
        OutputError: The folder cannot be made or written to.
        FormatError: One of a run's files is a link there, or of another kind.
    """
    folder = settled(path)
    for name in FILES:
        check_own(folder / name)
    for name in FOLDERS:
        check_own(folder / name, folder=True)
    made: list[Path] = []
    lock = FileLock(folder / LOCK, is_singleton=True)  # so that the holder may ask once more
    try:
        for part in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            part.mkdir(exist_ok=True)
            made.append(part)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BusyError(
            f"another process is at work on {shown(folder)}; wait until it is done, or choose "
            "another folder"
        ) from None
    except (OSError, ValueError) as error:
        _remove_empty(made)
        raise OutputError(f"cannot use {shown(folder)}: {reason(error)}") from error
    try:
        yield
    finally:
        try:
            if lock.lock_counter == 1:
                with contextlib.suppress(OSError):  # some systems keep a file that is open
                    (folder / LOCK).unlink(missing_ok=True)
        finally:
            lock.release()
            _remove_empty(made)


def settled(path: str | Path) -> Path:
    """The path without a ``..``, which leads elsewhere as soon as the folder before it is gone.

    A path without one stays as it was written.
    """
    path = Path(path)
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def fresh_name(root: str | Path, stem: str) -> Path:
    """A path in ``root`` that nothing has yet: ``stem``, then ``stem-2``, ``stem-3`` and on."""
    root = Path(root)
    path, number = root / stem, 1
    while os.path.lexists(path):
        number += 1
        path = root / f"{stem}-{number}"
    return path


def locate_network(path: Path) -> tuple[Path, str]:
    """Where a learner's file is, and what to know of it.

    Args:
        path: The file, or the folder of a run.

    Returns:
        The file, and a sentence where it is that of a run which prepared its images in a way that
        the file does not keep, else an empty text.
    """
    if path.is_dir():
        path = path / NETWORK
    if path.name == NETWORK:
        with contextlib.suppress(InputError):
            scenario = read_record(path.parent).scenario.settings
            if scenario.get("normalise"):
                return path, (
                    "this run normalised its images: pass images with the mean 0 and the deviation "
                    "1 that its training images got in each channel"
                )
            if scenario.get("kind") == "permuted":
                return path, "this run moved the pixels of each task: pass images in that order"
    return path, ""
