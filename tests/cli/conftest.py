"""Runs of this process draw no picture: it takes longer than to learn a small task."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for what ``tests/reading/test_plots.py`` and ``tests/runs/test_writer.py`` hold."""
    monkeypatch.setattr("nispa.reading.plots.picture", lambda record: b"a picture")
