"""What the tests of trackers share: no settings from outside, and none left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nispa.training import fit as training


@pytest.fixture(autouse=True)
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may die at any batch."""
    monkeypatch.setattr(training, "PAUSE_S", 0.0)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings or keys of the user's, and nothing that a tracker sets stays."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    for name in set(os.environ) - set(before):
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs of these tests."""
    monkeypatch.setattr("nispa.reading.plots.picture", lambda record: b"")
