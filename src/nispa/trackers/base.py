"""What a tracker is, and what all of them are told of a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from nispa.reading.groups import flatten
from nispa.runs.curve import Point
from nispa.runs.record import Record

Setting = str | int | float | bool | None


class Opened(NamedTuple):
    """Where a tracker keeps a run: its ``id`` for the next time, and words for people."""

    id: str
    where: str


class Tracker(Protocol):
    """One place that the curve of a run is sent to.

    Making one checks that its library is there and writes nothing. Whatever a call raises, the run
    goes on without this tracker.
    """

    name: str

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        """Opens the run.

        Args:
            record: The run as it stands: its settings.
            folder: The run's folder.
            known: The ``id`` that this gave when the run was first opened; None the first time.
        """
        ...

    def log(self, point: Point) -> None:
        """Sends a point; each comes once, in order."""
        ...

    def end(self, record: Record) -> None:
        """Closes the run; the record holds its status and last metrics."""
        ...


def settings_of(record: Record) -> dict[str, Setting]:
    """The settings of a run by flat names such as ``method.learning_rate``.

    Only what is needed to run it again: no user's or machine's name.
    """
    return {
        "scenario": record.scenario.name,
        "method": record.method,
        "preset": record.preset,
        "seed": record.seed,
        "incremental": record.incremental,
        **flatten(record.config),
        **flatten({"tasks": dict(record.scenario.settings)}),
        "version": record.version,
        "torch": record.environment.torch,
        "kernels": record.environment.kernels,
        "threads": record.environment.threads,
    }


def final_metrics(record: Record) -> dict[str, float]:
    """The metrics that count, such as ``final/acc``; those that are not defined are left out."""
    return {
        f"final/{name}": metric.value
        for name, metric in record.main_metrics.items()
        if metric.value is not None
    }
