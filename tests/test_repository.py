"""The files that others' tools read: citation, recipe, container, forms, workflows, notes."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.light import PROJECT, ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["preferred-citation"]["year"] == 2022


def test_the_recipe_wants_what_the_wheel_wants() -> None:
    recipe = read(ROOT / "conda" / "recipe.yaml")
    assert recipe["context"]["version"] == PROJECT["version"]
    wanted = {line.replace("torch", "pytorch", 1) if line.startswith("torch") else line
              for line in PROJECT["dependencies"]}  # fmt: skip
    wanted.add(f"python{PROJECT['requires-python']}")
    assert {line.replace(" ", "") for line in recipe["requirements"]["run"]} == wanted


def test_the_container_copies_what_the_build_reads() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert {"src", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"} <= let_in
    assert all((ROOT / name).exists() for name in let_in)
    text = (ROOT / "Dockerfile").read_text()
    assert "[all]" in text
    assert re.search(r"(?m)^USER nispa$", text)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_name_their_parts(path: Path) -> None:
    form = read(path)
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    names = [part["id"] for part in form["body"]]
    assert len(set(names)) == len(names)
    assert all(part["attributes"]["label"] for part in form["body"])


def test_the_bug_form_asks_for_a_report_that_exists() -> None:
    from nispa.cli.doctor import doctor

    asked = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "nispa doctor --report" in asked
    assert any("--report" in param.opts for param in doctor.params)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_may_only_read_unless_they_say_so(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)", path.read_text())
    actions = [action for action in used if not action.startswith("./")]
    assert actions
    assert [action for action in actions if not re.search(r"@v\d+\.\d+\.\d+$", action)] == []
    assert all((ROOT / action).exists() for action in used if action.startswith("./"))


def test_a_release_is_built_from_its_tag_and_only_drafted() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "--draft --verify-tag" in text
    assert "cyclonedx-py" in text
    assert "release_notes.py" in text


def test_the_site_is_built_as_the_readme_does() -> None:
    jobs = read(ROOT / ".readthedocs.yaml")["build"]["jobs"]
    (command,) = jobs["build"]["html"]
    readme = (ROOT / "README.md").read_text()
    for word in ("sphinx-build", "--fail-on-warning", "--keep-going", "--conf-dir docs ."):
        assert word in command
        assert word.split()[0] in readme
    assert "[docs]" in jobs["install"][0]


def notes(version: str, changelog: str) -> str:
    path = ROOT / ".github" / "release_notes.py"
    spec = importlib.util.spec_from_file_location("release_notes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.notes(version, changelog))


def test_notes_of_a_release_are_its_part_of_the_changelog() -> None:
    changelog = "# C\n\n## [0.2.0] - now\n\n### Added\n\n- b\n\n## [0.1.0] - then\n\n- a\n"
    assert notes("0.2.0", changelog) == "### Added\n\n- b"
    assert notes("0.1.0", changelog) == "- a"
    for version in ("0.3.0", "0.1"):
        with pytest.raises(SystemExit, match="nothing under"):
            notes(version, changelog)
    assert notes(PROJECT["version"], (ROOT / "CHANGELOG.md").read_text())


def test_the_language_of_the_source_is_that_of_the_oldest_python() -> None:
    lowest = PROJECT["requires-python"].removeprefix(">=3.")
    for path in sorted((ROOT / "src").rglob("*.py")):
        ast.parse(path.read_text(), feature_version=(3, int(lowest)))
