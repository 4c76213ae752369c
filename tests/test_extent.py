"""What CI runs beyond the default, and that it cannot pass over it in silence."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest
from tests.extent import REQUIRE, VARIABLE, optional
from tests.light import PROJECT

CI = (Path(__file__).parents[1] / ".ci" / "run").read_text()


def chosen(monkeypatch: pytest.MonkeyPatch, *, all_of_them: bool, marks: str) -> list[str]:
    """Which of a plain test and one marked ``ci`` are run with ``-m MARKS``."""
    monkeypatch.setattr(conftest, "ALL", all_of_them)
    items: list[Any] = [
        SimpleNamespace(name=name, get_closest_marker=lambda mark, name=name: mark == name)
        for name in ("plain", "ci")
    ]
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=marks), hook=hook)
    conftest.pytest_collection_modifyitems(config, items)
    return [item.name for item in items]


def test_what_is_marked_ci_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, all_of_them=False, marks="not slow") == ["plain"]
    assert chosen(monkeypatch, all_of_them=True, marks="not slow") == ["plain", "ci"]
    assert chosen(monkeypatch, all_of_them=False, marks="ci and not slow") == ["plain", "ci"]


def test_a_library_that_must_be_there_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_library is not installed"):
        optional("no_such_library")
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(ModuleNotFoundError):
        optional("no_such_library")
    assert optional("math").pi > 3


def test_ci_runs_everything_and_needs_every_library() -> None:
    before, _, after = CI.partition("pip install --quiet --constraint constraints.txt")
    assert f"export {VARIABLE}=all\n" in before
    extras = re.search(r"'nispa\[([\w,]+)\]'", after)
    assert extras is not None
    assert {"ray", "slurm"} <= set(extras[1].split(","))
    run = next(line for line in after.splitlines() if "-m pytest" in line)
    assert run.startswith(f"{REQUIRE}=1 ")
    assert "tests/sweep/test_clusters.py" in run.split()
    # All others come with the README's command, or their tests would be passed over in silence.
    assert "nispa[all]" in PROJECT["optional-dependencies"]["test"]
