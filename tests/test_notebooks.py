"""The notebooks in docs: they are whole, carry no output, and run from top to bottom."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def run(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does; returns what it shows: its last line, if that is a value."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_well_formed_and_carries_no_output(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.ci
def test_the_tutorial_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [
        run("".join(cell["source"]), names)
        for cell in cells(ROOT / "docs" / "notebooks" / "tutorial.ipynb")
        if cell["cell_type"] == "code"
    ]
    assert "<table>" in shown[1]._repr_html_()
    assert shown[2].phases >= 3
    assert shown[4] is True  # the scores of the first task, bit for bit
    assert min(shown[5]) > 0.9
    for frame in shown[6:8]:
        assert 'srcdoc="' in frame._repr_html_()
        assert "Accuracy on each task (%)" in repr(frame)
    learned, predicted = shown[8]
    assert learned == ["0 and 1", "2 and 3", "4 and 5"]
    assert np.isin(predicted, (0, 1)).all()
