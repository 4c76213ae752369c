"""Follows a run for its trackers, so that neither runner nor methods know of them.

What trackers are sent is read from the run's ``events.jsonl`` and not from the events in memory: so
a tracker is told of the tasks before a pause, too, and sees what the files say. How far each has
come is kept in ``trackers.json``.
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
    logging.getLogger("nispa").warning(text)  # which no setting turns into an exception


def tracked(
    running: Generator[RunEvent, None, Record],
    trackers: Iterable[Tracker],
    out: str | Path,
    *,
    warn: Say = _warn,
    tell: Say = lambda text: None,
) -> Generator[RunEvent, None, Record]:
    """The events of a run, sent to trackers on their way.

    Args:
        running: What :func:`nispa.runs.runner.run` or :func:`nispa.runs.runner.resume` gave.
        trackers: Where to send to.
        out: The run's folder.
        warn: Told in a line when a tracker fails, which is then left out; the run goes on. Without
            it the line goes to the logger ``nispa``.
        tell: Told in a line where each tracker keeps the run.

    Yields and returns:
        What ``running`` does.
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
        running.close()  # before the end, so that the record says how the run ended
        sending.end()


class Sent(BaseModel):
    """How far a tracker has come.

    Attributes:
        id: What it calls the run.
        points: How many points of the curve it was sent.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    points: Count


_STATE: TypeAdapter[dict[str, Sent]] = TypeAdapter(dict[str, Sent])


def read_state(out: Path) -> dict[str, Sent]:
    """What ``trackers.json`` in a run's folder holds, by the trackers' names.

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
    """Some trackers of one run; one that fails is left out."""

    def __init__(self, trackers: Iterable[Tracker], out: Path, warn: Say, tell: Say) -> None:
        self._active, self._out = list(trackers), out
        self._warn, self._tell = warn, tell
        self._state: dict[str, Sent] = {}
        self._curve, self._read = Curve(), 0
        self._begun = False

    def catch_up(self) -> None:
        """Sends what has come since the last time; the run's folder is there."""
        if not self._begun:
            self._begun = True
            self._each(self._begin)
        if not self._active:
            return
        for point in self._new_points():
            self._each(partial(self._log, point))

    def end(self) -> None:
        """Closes what was opened."""
        if self._begun:
            self._each(lambda tracker: tracker.end(read_record(self._out)))

    def _each(self, call: Callable[[Tracker], None]) -> None:
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
        self._keep(tracker, Sent(id=opened.id, points=known.points if known else 0))
        self._tell(f"{tracker.name}: {opened.where}")

    def _log(self, point: Point, tracker: Tracker) -> None:
        """Sends a point that is new; it counts before it is sent, so that none comes twice."""
        sent = self._state[tracker.name]
        if point.number < sent.points:
            return
        self._keep(tracker, sent.model_copy(update={"points": point.number + 1}))
        try:
            tracker.log(point)
        except Exception:
            self._keep(tracker, sent)
            raise

    def _keep(self, tracker: Tracker, sent: Sent) -> None:
        self._state[tracker.name] = sent
        text = {name: each.model_dump() for name, each in self._state.items()}
        write_atomic(self._out / TRACKERS, (json.dumps(text, indent=1) + "\n").encode())

    def _new_points(self) -> list[Point]:
        """The points of the complete lines that are new in ``events.jsonl``."""
        try:
            return self._curve.points(self._new_lines())
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"trackers are left out from here on: {EVENTS}: {wording(error)}")
            self._active = []
            return []

    def _new_lines(self) -> list[dict[str, Any]]:
        path = self._out / EVENTS
        if not path.exists():  # nothing has happened yet
            return []
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read(MAX_EVENTS_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
