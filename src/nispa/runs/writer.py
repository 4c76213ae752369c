"""The one writer of a run's folder while the run is learned: record, network, picture, events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nispa.errors import FormatError, InputError
from nispa.files import move, remove, remove_unfinished, shown, write_atomic
from nispa.methods.base import Method
from nispa.methods.presets import Settings
from nispa.methods.saving import decode
from nispa.runs.curve import Journal
from nispa.runs.folder import NETWORK, NEWER_NETWORK, ORIGIN, PICTURE, RunFolder
from nispa.runs.record import Record, now
from nispa.runs.recording import task_end

Drawing = Callable[[Record], bytes]
"""Draws a record as a PNG file."""
PICTURE_S = 5.0
"""Seconds between two pictures of a run, of which each takes about half a second."""


class RunWriter:
    """Keeps the files of a run in step with its ``record``.

    The record alone says how many tasks are learned, and it never counts a task whose network is
    not on disk. So :meth:`add_task` writes in this order: the network under a second name, the
    event, the record, and only then gives the network its final name. A process may be killed
    between any two of these steps; :meth:`saved_method` and :meth:`reopen` tidy up after it.
    """

    def __init__(self, folder: RunFolder, record: Record, drawing: Drawing | None) -> None:
        self.record = record
        self._folder, self._drawing = folder, drawing
        self._journal: Journal | None = None
        self._draws_at = time.monotonic() + PICTURE_S

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @classmethod
    def create(
        cls, path: Path, record: Record, origin: bytes, drawing: Drawing | None
    ) -> RunWriter:
        """Creates the folder with its first record, and ``origin.json`` before it.

        Raises:
            OutputError: The folder cannot be used; none was left behind.
        """
        return cls(RunFolder.create(path, record, {ORIGIN: origin}), record, drawing)

    def saved_method(self, device: str) -> tuple[Method, Settings]:
        """Loads the network after the last task that the record counts.

        Raises:
            FormatError: It is missing, damaged, or not after that task.
        """
        done, path = len(self.record.per_task), self.path / NETWORK
        newer = self.path / NEWER_NETWORK
        learned = None
        with contextlib.suppress(InputError):  # missing, or half written
            learned = len(decode(newer)[0].learned)
        if learned == done:  # killed after the record was written, before the renaming
            move(newer, path)
        try:
            method, settings, _ = decode(path, device)
        except InputError as error:
            raise FormatError(
                f"{error}; the run cannot be resumed without it: start a new run"
            ) from None
        if len(method.learned) != done:
            raise FormatError(
                f"{shown(path)} has learned {len(method.learned)} tasks, the record counts {done}; "
                "the run cannot be resumed: start a new run"
            )
        return method, settings

    def reopen(self) -> None:
        """Removes what was written of an unfinished task, and marks the run as running."""
        remove_unfinished(self.path)
        remove(self.path / NEWER_NETWORK)
        self._folder.cut_events(len(self.record.per_task))
        self._replace_record(status="running", finished=None)

    def log(self, event: Mapping[str, Any]) -> None:
        """Appends an event to ``events.jsonl``, and its row to ``progress.csv``."""
        if self._journal is None:
            self._journal = Journal(self._folder, len(self.record.tasks))
        self._journal.add(event)

    def add_task(self, record: Record, network: bytes) -> None:
        """Saves a learned task.

        Args:
            record: The record with that task.
            network: The file of the network after it.
        """
        write_atomic(self.path / NEWER_NETWORK, network)
        self.log(task_end(record))
        self.record = record
        self._folder.write_record(record)
        move(self.path / NEWER_NETWORK, self.path / NETWORK)
        # finish() draws the last picture.
        if len(record.per_task) < len(record.tasks) and time.monotonic() >= self._draws_at:
            self._draw(record)
            self._draws_at = time.monotonic() + PICTURE_S

    def finish(self, status: str) -> Record:
        """Writes the final picture and record.

        A record that says ``complete`` comes last, since it promises everything else. Any other
        status comes first, since drawing the picture may be what failed.
        """
        if status != "complete":
            self._replace_record(status=status, finished=now())
        if self.record.per_task:
            self._draw(self.record.model_copy(update={"status": status}))
        if status == "complete":
            self._replace_record(status=status, finished=now())
        return self.record

    def _replace_record(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        self._folder.write_record(self.record)

    def _draw(self, record: Record) -> None:
        if self._drawing is not None:
            write_atomic(self.path / PICTURE, self._drawing(record))
