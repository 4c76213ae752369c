"""How much is tested: by default what tells soonest, in CI everything but what is marked slow."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

VARIABLE = "NISPA_TESTS"
"""Environment variable: ``all`` also runs what is marked ``ci``, on more random cases."""

REQUIRE = "NISPA_REQUIRE_LIBRARIES"
"""Environment variable: with 1, a test whose library is not there fails; without, it skips."""

ALL = os.environ.get(VARIABLE) == "all"

if not ALL and os.environ.get(VARIABLE):
    raise pytest.UsageError(f"{VARIABLE}={os.environ[VARIABLE]} must be 'all', or not be set")


def optional(package: str) -> Any:
    """An optional library."""
    if os.environ.get(REQUIRE) == "1":
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"{package} is not installed")
