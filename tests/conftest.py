"""What tests of every room share: the real data where it is at hand, and no touch of the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The tests run side by side; more threads each, their subprocesses' included, would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets that NISPA_DATA names.

    Without it a test skips; where NISPA_REQUIRE_DATA is 1 (as in CI) it fails instead.
    """
    named = os.environ.get("NISPA_DATA", "")
    if named and Path(named).is_dir():
        return Path(named)
    reason = f"NISPA_DATA={named} must name the folder of real data sets"
    if os.environ.get("NISPA_REQUIRE_DATA") == "1":
        pytest.fail(f"{reason}, since NISPA_REQUIRE_DATA=1")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, so that no test reads or fills the user's."""
    cache = tmp_path / "private cache"
    monkeypatch.setenv("NISPA_CACHE", str(cache))
    return cache
