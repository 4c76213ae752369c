"""The folder of a run: its files, the lock of the process at work on it, names for new folders.

A folder holds ``record.json`` (:mod:`nispa.runs.record`), ``events.jsonl`` (a line per epoch, phase
and task), ``progress.csv`` (:mod:`nispa.runs.curve`), the network and the picture ``run.png``. No
PyTorch here, so that reports work without it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import JsonValue, TypeAdapter, ValidationError

from nispa.errors import BusyError, FormatError, OutputError
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
NEWER_NETWORK = "network.next.safetensors"  # until the record counts its task
ORIGIN = "origin.json"
LOCK = ".nispa-run.lock"
CHECKPOINTS = "checkpoint"
FILES = (RECORD, ORIGIN, EVENTS, PROGRESS, PICTURE, TRACKERS, NETWORK, NEWER_NETWORK, LOCK)
FOLDERS = (CHECKPOINTS, "tensorboard", "wandb")
"""Everything that a run writes into its folder."""

MAX_EVENTS_BYTES = 256 * 2**20

_EVENT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class RunFolder:
    """The folder of one run; every file in it is whole or missing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def check(cls, path: str | Path) -> None:
        """Checks that a new run can be written to ``path``; creates nothing.

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
        except OutputError:
            raise
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot use {shown(path)}: {reason(error)}") from error

    @classmethod
    def create(
        cls,
        path: str | Path,
        record: Record | None = None,
        beside: Mapping[str, bytes] | None = None,
    ) -> RunFolder:
        """Creates the folder of a new run at ``path``, with its parents, after :meth:`check`.

        Args:
            path: Where.
            record: The first record, written at once.
            beside: Other files by name, written first: a folder with a record has them all.

        Raises:
            OutputError: The folder cannot be used; none was left behind.
        """
        cls.check(path)
        folder = cls(settled(path))
        made: list[Path] = []
        try:
            missing = [part for part in (folder.path, *folder.path.parents) if not part.exists()]
            for part in reversed(missing):
                part.mkdir()
                made.append(part)
            for name, content in (beside or {}).items():
                write_atomic(folder.path / name, content)
            if record is not None:
                folder.write_record(record)
        except (OSError, ValueError) as error:  # includes OutputError
            if record is not None:  # its last step may have failed, with the file in place
                remove(folder.path / RECORD)
            for name in beside or ():
                remove(folder.path / name)
            _remove_empty(made)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot create {shown(folder.path)}: {reason(error)}") from error
        return folder

    def write_record(self, record: Record) -> None:
        """Replaces ``record.json`` in one step.

        Raises:
            OutputError: It could not be written; the previous record is untouched.
            FormatError: It could not be read again; nothing was written.
        """
        data = encode(record)
        decode(data)  # model_copy() validates nothing
        write_atomic(self.path / RECORD, data)

    def read_record(self, *, sealed: bool = False) -> Record:
        """Reads the run's record; see :func:`nispa.runs.record.read_record`."""
        return read_record(self.path, sealed=sealed)

    def append_event(self, event: Mapping[str, JsonValue]) -> None:
        """Appends a line to ``events.jsonl``; raises OutputError if that fails."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        append_line(self.path / EVENTS, line)

    def cut_events(self, tasks: int) -> None:
        """Drops the events of all but the first ``tasks`` tasks.

        Raises:
            FormatError: A line before the last is damaged.
            OutputError: The file could not be written.
        """
        file = self.path / EVENTS
        if not check_own(file):
            return
        try:
            lines = [line for line, event in self._events() if _task_of(event) < tasks]
        except FormatError as error:
            raise FormatError(f"{error}; delete the file to go on without it") from None
        write_atomic(file, b"".join(line + b"\n" for line in lines))

    def read_events(self) -> list[dict[str, Any]]:
        """Reads all events in order, except for an unfinished last line left by a crash.

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
    """Locks a run's folder for this process. Creates a missing one; removes it if left empty.

    The operating system releases the lock when the process dies in any way. A process that holds
    the lock may ask for it once more.

    Args:
        path: The folder.
        wait: Whether to wait for another process to leave it.

    Raises:
        BusyError: Another process is at work there.
        OutputError: The folder cannot be created or written to.
        FormatError: One of the run's files is a link, or of another kind.
    """
    folder = settled(path)
    for name in FILES:
        check_own(folder / name)
    for name in FOLDERS:
        check_own(folder / name, folder=True)
    made: list[Path] = []
    lock = FileLock(folder / LOCK, is_singleton=True)  # lets the holder ask once more
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
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    (folder / LOCK).unlink(missing_ok=True)
        finally:
            lock.release()
            _remove_empty(made)


def settled(path: str | Path) -> Path:
    """Resolves a path that holds ``..``; any other path stays as it was written.

    ``new/../runs`` stops working when ``new`` is removed, so it is resolved before that.
    """
    path = Path(path)
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def fresh_name(root: str | Path, stem: str) -> Path:
    """The first path in ``root`` that does not exist: ``stem``, ``stem-2``, ``stem-3``, …."""
    root = Path(root)
    path, number = root / stem, 1
    while os.path.lexists(path):
        number += 1
        path = root / f"{stem}-{number}"
    return path


def locate_network(path: Path) -> Path:
    """A learner's file, from its own path or from the folder of a run."""
    return path / NETWORK if path.is_dir() else path
