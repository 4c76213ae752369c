"""What tests of every room share: the real data where it is at hand, and no touch of the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.extent import ALL, VARIABLE

# Where everything runs, random cases are more.
settings.register_profile("all", max_examples=200)
settings.load_profile("all" if ALL else "default")

# The tests run side by side; more threads each, their subprocesses' included, would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Gives each of several processes a run of tests side by side in their files.

    So what a file's tests share (networks that are learned, files that are built) is made in one
    process alone; one that is done takes over tests of another.
    """
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_report_header() -> str:
    """Says which tests run."""
    if ALL:
        return f"{VARIABLE}=all: also what is marked ci"
    return f"what is marked ci is left out; {VARIABLE}=all runs it, too"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked ``ci``, unless all is asked for, or ``-m`` asks for it."""
    if ALL or "ci" in config.option.markexpr.split():
        return
    left_out = [item for item in items if item.get_closest_marker("ci")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("ci")]


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
