"""What a tracker is, and the settings and metrics that every tracker gets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from nispa.reading.groups import Value, flatten
from nispa.runs.curve import Point
from nispa.runs.record import Record


class Opened(NamedTuple):
    """A run in a tracker: its ``id`` for reopening it, and a text that says where to find it."""

    id: str
    where: str


class Tracker(Protocol):
    """A destination for the curve of a run.

    The constructor checks that the library is there and writes nothing. If a method raises
    anything, the run continues without this tracker.
    """

    name: str

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        """Opens the run.

        Args:
            record: The run's record so far.
            folder: The run's folder.
            known: The ``id`` from the first call for this run; None in the first call.
        """
        ...

    def log(self, point: Point) -> None:
        """Sends a point. Called once per point, in order."""
        ...

    def end(self, record: Record) -> None:
        """Closes the run, with its status and last metrics in ``record``."""
        ...


def settings_of(record: Record) -> dict[str, Value]:
    """The settings of a run under flat names such as ``method.learning_rate``.

    Only what is needed to repeat the run; no name of a user or machine.
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
    """The main metrics, such as ``final/acc``, without those that are undefined."""
    return {
        f"final/{name}": metric.value
        for name, metric in record.main_metrics.items()
        if metric.value is not None
    }
