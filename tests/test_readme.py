"""The README's commands and code are what is tested, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "readme_command tests" in (ROOT / ".ci" / "run").read_text()
    block = re.search(r"<!-- command: tests -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert "pytest" in block[1]


def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    learner, images, labels = (names[name] for name in ("learner", "images", "labels"))
    assert len(learner.tasks) == 6  # type: ignore[attr-defined]
    assert learner.accuracy(1 - images, labels % 2, task=5) > 0.8  # type: ignore[attr-defined,operator]


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
