"""Runs to follow, and trackers that keep what they are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nispa.runs.curve import Curve, Point
from nispa.runs.folder import NETWORK, RunFolder
from nispa.runs.record import Record, comparable, read_record
from nispa.runs.runner import resume, run
from nispa.trackers import Opened, tracked
from tests.runs.test_resume import Killed, die, experiment, finish

__all__ = ["Fake", "Killed", "broken_run", "content", "follow", "points_of", "read_record"]


@dataclass
class Fake:
    """A tracker in memory; ``fails`` names the call that raises, log's at point ``at``."""

    name: str = "fake"
    fails: str = ""
    at: int = 0
    error: BaseException = field(default_factory=lambda: ConnectionError("the network\nis gone"))
    known: list[str | None] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        assert (folder / "record.json").is_file()
        self.known.append(known)
        self._perhaps("begin")
        return Opened(known or f"id-of-{self.name}", "in memory")

    def log(self, point: Point) -> None:
        if point.number == self.at:
            self._perhaps("log")
        self.points.append(point)

    def end(self, record: Record) -> None:
        self.ends.append(record.status)
        self._perhaps("end")

    def _perhaps(self, call: str) -> None:
        if self.fails == call:
            raise self.error


def follow(out: Path, *trackers: Any, method: str = "nispa") -> list[str]:
    """Runs or resumes to the end with these trackers; the warnings that came."""
    warnings: list[str] = []
    begun = (out / "record.json").exists()
    running = (resume if begun else run)(experiment(method), out)
    finish(tracked(running, trackers, out, warn=warnings.append))
    return warnings


def broken_run(out: Path, moments: Iterable[int], *trackers: Any, method: str = "nispa") -> None:
    """A run that dies at each of the moments, checkpoints counted from where it is taken up."""
    for moment in moments:
        begun = (out / "record.json").exists()
        running = (resume if begun else run)(experiment(method), out, checkpoint_every=0.0)
        assert die(tracked(running, trackers, out), moment)


def content(out: Path) -> tuple[bytes, bytes]:
    """What trackers must not change."""
    return comparable(read_record(out)), (out / NETWORK).read_bytes()


def points_of(out: Path) -> list[Point]:
    """The points of a run's events."""
    return Curve().points(RunFolder(out).read_events())
