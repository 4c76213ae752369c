"""How much is tested: by default what tells soonest, in CI everything but what is marked slow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import Any

import pytest

VARIABLE = "NISPA_TESTS"
"""Environment variable: ``all`` also runs what is marked ``ci``, on more random cases."""

REQUIRE = "NISPA_REQUIRE_LIBRARIES"
"""Environment variable: with 1, a test whose library is not there fails; without, it skips."""

ALL = os.environ.get(VARIABLE) == "all"

if not ALL and os.environ.get(VARIABLE):
    raise pytest.UsageError(f"{VARIABLE}={os.environ[VARIABLE]} must be 'all', or not be set")


ONE_OF_EACH_KIND = ("nispa", "nispa-replay", "finetune", "packnet", "icarl", "stl")
"""Methods that stand for the others where a test is about what learning has in common."""


def one_of_each_kind(methods: Iterable[str]) -> list[Any]:
    """All methods as parameters; by default one of each kind is run."""
    return [
        pytest.param(name, marks=[] if name in ONE_OF_EACH_KIND else [pytest.mark.ci])
        for name in methods
    ]


def optional(package: str) -> Any:
    """An optional library."""
    if os.environ.get(REQUIRE) == "1":
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"{package} is not installed")
