"""MLflow: what its client is asked for, and what the real one stores."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nispa.runs.folder import TRACKERS
from nispa.runs.record import read_record
from nispa.trackers import open_trackers
from tests.trackers.runs import broken_run, content, follow, points_of

Metrics = dict[str, list[tuple[int, float]]]


@dataclass
class FakeRun:
    """A run in the store."""

    experiment: str
    name: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    states: list[str] = field(default_factory=lambda: ["RUNNING"])


class FakeStore:
    """Stands for ``MlflowClient``: what is used of it, with the same names and arguments."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, FakeRun] = {}

    def __call__(self) -> FakeStore:
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.experiments.get(name)
        return known and SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"number {len(self.experiments)}")

    def create_run(self, experiment_id: str, *, run_name: str) -> Any:
        assert experiment_id in self.experiments.values()
        known = f"{len(self.runs):032x}"
        self.runs[known] = FakeRun(experiment_id, run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=known))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id].states.append(status)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].states.append(status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for key, value in params:
            assert key not in self.runs[run_id].params
            assert len(value) <= 500
            self.runs[run_id].params[key] = value
        for key, value, timestamp, step in metrics:
            assert timestamp > 1.6e12  # milliseconds since 1970
            self.runs[run_id].metrics.setdefault(key, []).append((step, value))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """Stands in for the library."""
    store = FakeStore()
    mlflow, tracking, entities = (ModuleType(f"fake {each}") for each in ("a", "b", "c"))
    entities.__dict__.update(Param=lambda *given: given, Metric=lambda *given: given)
    tracking.__dict__["MlflowClient"] = store
    mlflow.__dict__.update(entities=entities, tracking=tracking)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    return store


def wanted(out: Path) -> Metrics:
    """Step and value of every point by name, from a run's events and its record."""
    curves: Metrics = {}
    points = points_of(out)
    for point in points:
        for name, value in point.values.items():
            curves.setdefault(name, []).append((point.step, value))
    for name, metric in read_record(out).metrics.items():
        if metric.value is not None:
            curves[f"final/{name}"] = [(points[-1].step, metric.value)]
    return curves


def test_what_the_client_is_asked_for(store: FakeStore, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    broken_run(out, (9,), *open_trackers(["mlflow"]))
    assert follow(out, *open_trackers(["mlflow"])) == []
    ((known, run),) = store.runs.items()
    assert store.experiments == {"nispa": run.experiment}
    assert (run.name, run.params["method.epochs_per_phase"]) == ("my run", "2")
    assert run.params["preset"] == "default"
    assert run.metrics == wanted(out)
    assert run.states == ["RUNNING", "FAILED", "RUNNING", "FINISHED"]
    assert json.loads((out / TRACKERS).read_text())["mlflow"]["id"] == known


def test_a_second_run_joins_the_experiment(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    for name in ("one", "two"):
        follow(tmp_path / name, *open_trackers(["mlflow"]), method="finetune")
    assert list(store.experiments) == ["mine"]
    assert [run.name for run in store.runs.values()] == ["one", "two"]


def test_a_run_that_is_gone_over_there(store: FakeStore, tmp_path: Path) -> None:
    broken_run(tmp_path, (9,), *open_trackers(["mlflow"]))
    store.runs.clear()
    (warning,) = follow(tmp_path, *open_trackers(["mlflow"]))
    assert warning.startswith("mlflow is left out from here on: ")
    assert store.runs == {}


@pytest.mark.filterwarnings("default")  # what the library warns of is not ours
def test_what_the_library_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    pytest.importorskip("sqlalchemy")  # which mlflow-skinny comes without
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")

    out = tmp_path / "run"
    broken_run(out, (9,), *open_trackers(["mlflow"]))
    assert follow(out, *open_trackers(["mlflow"])) == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("nispa")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    stored = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert stored == wanted(out)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.hidden"] == "16,12"
    follow(tmp_path / "without")
    assert content(out) == content(tmp_path / "without")
    assert capfd.readouterr() == ("", "")
