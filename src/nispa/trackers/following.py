"""Sends the curve of a run to trackers; runner and methods do not know of them.

Points are read from the run's ``events.jsonl``, not from the events in memory. So a tracker that
joins at a resume also gets the earlier tasks, and all trackers agree with the file.
``trackers.json`` holds how many points each tracker has got.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nispa.errors import FormatError
from nispa.files import read_limited, shown, wording, write_atomic
from nispa.runs.curve import Curve, Point
from nispa.runs.folder import EVENTS, MAX_EVENTS_BYTES, TRACKERS
from nispa.runs.record import Count, Record, read_record
from nispa.runs.runner import RunEvent
from nispa.trackers.base import Tracker

Say = Callable[[str], None]
MAX_STATE_BYTES = 2**16


def _warn(text: str) -> None:
    logging.getLogger("nispa").warning(text)  # unlike a Python warning, it can never raise


def tracked(
    running: Generator[RunEvent, None, Record],
    trackers: Iterable[Tracker],
    out: str | Path,
    *,
    warn: Say = _warn,
    tell: Say = lambda text: None,
) -> Generator[RunEvent, None, Record]:
    """Passes on the events of a run and sends its curve to trackers.

    Args:
        running: A generator from :func:`nispa.runs.runner.run` or ``resume``.
        trackers: The trackers.
        out: The run's folder.
        warn: Called with a line when a tracker fails and is dropped; the run goes on. By default
            the line goes to the logger ``nispa``.
        tell: Called with a line that says where a tracker keeps the run.

    Yields and returns:
        The same as ``running``.
    """
    sending = Sending(trackers, Path(out), warn, tell)
    try:
        while True:
            try:
                event = next(running)
            except StopIteration as end:
                record: Record = end.value
                return record
            sending.catch_up()
            yield event
    finally:
        running.close()  # first, so that the record has its final status
        sending.end()


class Sent(BaseModel):
    """The progress of a tracker.

    Attributes:
        id: The tracker's name for the run.
        points: Number of points sent.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    points: Count


_STATE: TypeAdapter[dict[str, Sent]] = TypeAdapter(dict[str, Sent])


def read_state(out: Path) -> dict[str, Sent]:
    """Reads ``trackers.json`` from a run's folder: progress by name of the tracker.

    Raises:
        FormatError: It is damaged.
    """
    path = out / TRACKERS
    if not path.exists():
        return {}
    try:
        return _STATE.validate_json(read_limited(path, MAX_STATE_BYTES))
    except ValidationError:
        raise FormatError(f"{shown(path)} is damaged; delete it to begin a new curve") from None


class Sending:
    """Sends one run to several trackers and drops those that fail."""

    def __init__(self, trackers: Iterable[Tracker], out: Path, warn: Say, tell: Say) -> None:
        self._active, self._out = list(trackers), out
        self._warn, self._tell = warn, tell
        self._state: dict[str, Sent] = {}
        self._curve, self._read = Curve(), 0
        self._begun = False

    def catch_up(self) -> None:
        """Sends the points that are new since the last call; the run's folder must exist."""
        if not self._begun:
            self._begun = True
            self._call_each(self._begin)
        if not self._active:
            return
        for point in self._new_points():
            self._call_each(partial(self._log, point))

    def end(self) -> None:
        """Closes the run in all trackers."""
        if self._begun:
            self._call_each(lambda tracker: tracker.end(read_record(self._out)))

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._active):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - libraries and networks fail in any way
                self._active.remove(tracker)
                self._warn(f"{tracker.name} is left out from here on: {wording(error)}")

    def _begin(self, tracker: Tracker) -> None:
        self._state = {**read_state(self._out), **self._state}
        known = self._state.get(tracker.name)
        opened = tracker.begin(read_record(self._out), self._out, known.id if known else None)
        self._save(tracker, Sent(id=opened.id, points=known.points if known else 0))
        self._tell(f"{tracker.name}: {opened.where}")

    def _log(self, point: Point, tracker: Tracker) -> None:
        """Sends a point unless it was sent before.

        It is counted first: if the process dies in between, a point is missing, but none is there
        twice.
        """
        sent = self._state[tracker.name]
        if point.number < sent.points:
            return
        self._save(tracker, sent.model_copy(update={"points": point.number + 1}))
        try:
            tracker.log(point)
        except Exception:
            self._save(tracker, sent)
            raise

    def _save(self, tracker: Tracker, sent: Sent) -> None:
        self._state[tracker.name] = sent
        write_atomic(self._out / TRACKERS, _STATE.dump_json(self._state, indent=1) + b"\n")

    def _new_points(self) -> list[Point]:
        """The points of the new complete lines in ``events.jsonl``."""
        try:
            return self._curve.points(self._new_lines())
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"trackers are left out from here on: {EVENTS}: {wording(error)}")
            self._active = []
            return []

    def _new_lines(self) -> list[dict[str, Any]]:
        path = self._out / EVENTS
        if not path.exists():  # no event so far
            return []
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read(MAX_EVENTS_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
