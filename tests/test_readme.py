"""The README's commands and code are what is tested, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
    learner: Any = names["learner"]
    images, labels, new = (names[name] for name in ("images", "labels", "new"))
    assert len(learner.tasks) == 2
    assert learner.accuracy(images[new], labels[new], task=1) > 0.9  # type: ignore[index]


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
