"""MLflow: a run in the store that ``MLFLOW_TRACKING_URI`` names, or in MLflow's default one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nispa.files import one_line
from nispa.runs.curve import Point
from nispa.runs.record import Record
from nispa.trackers.base import Opened, final_metrics, settings_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MOST_AT_ONCE = 1000  # metrics per call
MOST_PARAMS = 100  # parameters per call
MOST_LETTERS = 500  # per parameter value; the limit of some versions
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # keeps its lines out of our display
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, so that a lost server does not delay a run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
ENDS = {"complete": "FINISHED", "interrupted": "KILLED"}


class MLflow:
    """Logs metrics over samples trained, settings as parameters, last metrics as ``final/…``."""

    name = "mlflow"

    def __init__(self) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._client_class, self._entities = MlflowClient, entities
        self._client: MlflowClient
        self._run, self._last = "", 0

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        """Creates a run with its parameters, or reopens it; see :class:`Tracker`."""
        self._client = self._client_class()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "nispa"
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return Opened(known, f"run {known}")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        params = [
            self._entities.Param(key, one_line(str(value), MOST_LETTERS))
            for key, value in settings_of(record).items()
        ]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])
        return Opened(self._run, f"run {self._run} in experiment {one_line(name)}")

    def log(self, point: Point) -> None:
        """Sends a point's values; see :class:`Tracker`."""
        self._send(point.values, point.seconds, point.step)
        self._last = point.step

    def end(self, record: Record) -> None:
        """Sends the last metrics and the status; see :class:`Tracker`."""
        if record.status == "complete":
            self._send(final_metrics(record), None, self._last)
        self._client.set_terminated(self._run, ENDS.get(record.status, "FAILED"))

    def _send(self, values: Mapping[str, float], seconds: float | None, step: int) -> None:
        when = int(1000 * (time.time() if seconds is None else seconds))
        metrics = [self._entities.Metric(name, value, when, step) for name, value in values.items()]
        for start in range(0, len(metrics), MOST_AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_AT_ONCE])
