"""The number that tells runs apart follows what decides them, and nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import nispa
from nispa.network.backbone import enter
from nispa.runs.identity import READERS, code_digest, code_of, run_key

PACKAGE = Path(nispa.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources, free to be changed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    return Path(shutil.copytree(PACKAGE, tmp_path / "nispa", ignore=ignored))


def changed(copy: Path, name: str) -> bool:
    """Whether a change of a file is seen; the cache knows a folder by its path."""
    before = code_digest(copy)
    path = copy / name
    path.write_bytes(path.read_bytes() + b"\n# changed\n")
    code_digest.cache_clear()
    return code_digest(copy) != before


MAKERS = ["methods/nispa.py", "training/fit.py", "methods/published.py", "runs/identity.py"]
KERNELS = [f"kernels/cpp/{path.name}" for path in (PACKAGE / "kernels" / "cpp").glob("*.*")]


@pytest.mark.parametrize("name", MAKERS + KERNELS)
def test_what_makes_numbers_counts(copy: Path, name: str) -> None:
    assert changed(copy, name)


@pytest.mark.parametrize(
    "name",
    ["cli/run.py", "webpage/charts.py", "reading/plots.py", "runs/costs.py", "sweep/local.py"],
)
def test_what_reads_or_shows_does_not_count(copy: Path, name: str) -> None:
    assert not changed(copy, name)


def test_a_file_that_comes_or_goes_counts(copy: Path) -> None:
    before = code_digest(copy)
    (copy / "methods" / "more.py").write_text("")
    code_digest.cache_clear()
    assert code_digest(copy) != before


def test_the_file_of_a_users_network_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("nispa.network.backbone.ARCHITECTURES", {})
    module = tmp_path / "net_whose_file_counts.py"
    module.write_text("def build(shape, classes): ...\n")
    enter("net_whose_file_counts:build", tmp_path)
    before = code_of("net_whose_file_counts:build")
    module.write_text("def build(shape, classes): ...  # otherwise\n")
    assert len({before, code_of("net_whose_file_counts:build"), code_digest()}) == 3
    assert code_of("mlp") == code_digest()


def test_readers_are_there() -> None:
    for name in READERS:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


PARTS: dict[str, Any] = {
    "method": "nispa",
    "seed": 0,
    "config": {"network": {"density": 0.1}, "method": {"epochs": 1}},
    "scenario": {"scenario": "split-digits", "seed": 0, "options": {"normalise": False}},
    "data": ["ab"],
    "code": "cd",
}
OTHERS: list[tuple[str, Any]] = [
    ("method", "packnet"),
    ("seed", 1),
    ("config", {"network": {"density": 0.2}, "method": {"epochs": 1}}),
    ("scenario", {**PARTS["scenario"], "options": {"normalise": True}}),
    ("scenario", {**PARTS["scenario"], "measured": "validation"}),
    ("data", ["ac"]),
    ("data", ["ab", "ab"]),
    ("code", "ce"),
]


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_every_part_counts(name: str, value: Any) -> None:
    assert run_key(**{**PARTS, name: value}) != run_key(**PARTS)


def test_order_and_what_follows_do_not_count() -> None:
    turned = {name: PARTS["config"][name] for name in reversed(PARTS["config"])}
    more = {**PARTS["scenario"], "resolved": {"tasks": 5}}
    assert run_key(**{**PARTS, "config": turned, "scenario": more}) == run_key(**PARTS)
