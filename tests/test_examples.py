"""The programs in ``examples/`` run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nispa.methods import METHODS

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, folder: Path) -> str:
    """What an example prints, run in ``folder`` with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'run_example("{path.name}"' in text


@pytest.mark.ci  # by default the README's own is run
def test_quickstart(tmp_path: Path) -> None:
    shown = run_example("quickstart.py", tmp_path)
    assert "\nforgetting 0.00\n" in shown
    assert "the first five tasks are exactly as they were" in shown
    rows = re.findall(r"learned task (\d) in \d+ phases; .*: ([\d. ]+)", shown)
    assert [int(task) for task, _ in rows] == [0, 1, 2, 3, 4]
    columns = [values.split() for _, values in rows]
    assert [len(row) for row in columns] == [1, 2, 3, 4, 5]
    for task in range(5):  # below the diagonal a column never changes
        assert len({row[task] for row in columns[task:]}) == 1
        assert float(columns[task][task]) > 80
    sixth = re.search(r"learned task 5, odd or even: ([\d.]+) %", shown)
    assert sixth is not None
    assert float(sixth[1]) > 80
    assert list(tmp_path.iterdir()) == []


def test_own_method_replaces_no_method_of_the_package() -> None:
    name = re.search(r'^    name = "(.+)"$', (EXAMPLES / "own_method.py").read_text(), re.M)
    assert name is not None
    assert name[1] not in METHODS


@pytest.mark.ci
def test_own_method(tmp_path: Path) -> None:
    shown = run_example("own_method.py", tmp_path)
    found = re.findall(
        r"^strength ([\d.]+): accuracy ([\d.]+) %, forgetting ([\d.]+) %", shown, re.M
    )
    assert [strength for strength, _, _ in found] == ["0.0", "0.003"]
    assert all(float(accuracy) > 80 for _, accuracy, _ in found)
    free, held = (float(forgetting) for _, _, forgetting in found)
    assert held < free


@pytest.mark.ci
def test_own_scenario(tmp_path: Path) -> None:
    shown = run_example("own_scenario.py", tmp_path)
    assert "forgetting = 0.0 (mean over j" in shown
    assert re.search(r"^after negative: [\d.]+, [\d.]+, [\d.]+ %$", shown, re.M)
    assert "three-views, nispa, task-incremental (told the task), preset default, seed 0" in shown
    folder = tmp_path / "runs" / "three-views"
    assert {path.name for path in folder.iterdir()} == {
        "record.json",
        "events.jsonl",
        "origin.json",
        "progress.csv",
        "run.png",
        "network.safetensors",
    }
    epochs = (folder / "events.jsonl").read_text().count('"event":"epoch"')
    assert f"{epochs} epochs are described" in shown


@pytest.mark.ci
def test_compare(tmp_path: Path) -> None:
    shown = run_example("compare.py", tmp_path)
    rows = re.findall(r"^([a-z-]+) +([\d.]+) +(-?[\d.]+)  ", shown, re.M)
    accuracy = {method: float(value) for method, value, _ in rows}
    forgetting = {method: value for method, _, value in rows}
    assert list(accuracy) == ["finetune", "nispa", "stl-iso", "stl", "joint"]
    assert [forgetting[name] for name in ("nispa", "stl-iso", "stl")] == ["0.00"] * 3
    assert float(forgetting["finetune"]) > 1
    assert accuracy["nispa"] > 90
    assert len(list((tmp_path / "runs" / "compare").iterdir())) == 10
