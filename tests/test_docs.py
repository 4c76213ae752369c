"""The pages for readers: their code runs, their tables are the code's, their links lead on."""

from __future__ import annotations

import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nispa.config import build, describe
from nispa.mechanism.grow import GROWTH_RULES
from nispa.methods import METHODS
from nispa.models import NetworkConfig
from nispa.published import BENCHMARKS, PAPER_METHODS, PAPER_NETWORK

from .methods.toy import NETWORKS, accuracy_on, finish, toy_problem, toy_task

ROOT = Path(__file__).parents[1]
METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
CONTRACT = ROOT / "docs" / "decisions" / "0003-method-contract.md"
WITH_CODE = [
    ROOT / "CONTRIBUTING.md",
    *METHOD_PAGES,
    *(page for page in DECISIONS if "```python" in page.read_text()),
]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_of(page: Path) -> str:
    """The Python blocks of a page as one script."""
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(textwrap.dedent(block) for _, block in blocks)


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Runs a page's code as a script in ``folder`` and gives the names it defined."""
    script = folder / "page.py"
    script.write_text("from __future__ import annotations\n" + code_of(page))
    return runpy.run_path(str(script), run_name="__main__")


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """Puts back the registries that a page adds to."""
    tables: list[dict[str, Any]] = [METHODS, GROWTH_RULES]
    before = [dict(table) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        table.clear()
        table.update(names)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(page)
    run_page(page, tmp_path)


def shown(value: object) -> str:
    """A setting's value as a command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def settings_table(cls: type[Any]) -> str:
    """The settings of a class as a table."""
    rows = ["| setting | default | what it is | values |", "|---|---|---|---|"]
    for field in describe(cls):
        names = ", ".join(f"`{name}`" for name in (field.name, *field.aliases))
        allowed = ", ".join(f"`{choice}`" for choice in field.choices) or field.kind
        interval = f" in {field.interval}" if field.interval else ""
        rows.append(f"| {names} | `{shown(field.default)}` | {field.doc} | {allowed}{interval} |")
    return "\n".join(rows)


def preset_table(method: str) -> str:
    """What each benchmark sets for a method and its network."""
    rows = ["| preset | network | method |", "|---|---|---|"]
    for name, benchmark in BENCHMARKS.items():
        sets = [
            ", ".join(f"`{key}={shown(value)}`" for key, value in values.items())
            for values in (
                {**benchmark.network, **benchmark.networks.get(method, {})},
                benchmark.methods.get(method, {}),
            )
        ]
        rows.append(f"| `{name}` | {sets[0]} | {sets[1]} |")
    return "\n".join(rows)


def paper_table() -> str:
    """What the behaviour ``paper`` sets, and what the correct version has instead."""
    rows = ["| setting | `paper` | `default` |", "|---|---|---|"]
    for values, cls, where in (
        (PAPER_NETWORK["mlp"], NetworkConfig, "MLP"),
        (PAPER_NETWORK["convnet"], NetworkConfig, "ConvNet"),
        (PAPER_METHODS["nispa"], METHODS["nispa"].config_class, ""),
    ):
        usual = {field.name: field.default for field in describe(cls)}
        for key, value in values.items():
            label = f"`{key}` ({where})" if where else f"`{key}`"
            rows.append(f"| {label} | `{shown(value)}` | `{shown(usual[key])}` |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """Every generated table by the name that its marker carries."""
    made = {"settings network": settings_table(NetworkConfig), "paper": paper_table()}
    for name, method in METHODS.items():
        made[f"settings {name}"] = settings_table(method.config_class)
        made[f"presets {name}"] = preset_table(name)
    return made


def with_tables(text: str) -> str:
    """A page with the tables after its ``<!-- table: NAME -->`` markers as they should be."""

    def put(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables()[match[2]]}\n"

    return re.sub(r"(<!-- table: ([a-z -]+) -->)\n(?:\|.*\n)*", put, text)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert f"<!-- table: settings {page.stem} -->" in text
    assert text == with_tables(text), "write the tables with: python -m tests.test_docs"


def test_a_setting_as_a_row() -> None:
    assert (
        "| `learning_rate`, `lr` | `0.01` | step size of the optimiser | number in (0, 100] |"
        in settings_table(METHODS["finetune"].config_class)
    )


def test_every_method_has_a_page() -> None:
    assert {page.stem for page in METHOD_PAGES} == set(METHODS)
    index = (ROOT / "docs" / "README.md").read_text()
    assert all(f"(methods/{name}.md)" in index for name in METHODS)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.name)
def test_every_method_page_tells_the_same_things(page: Path) -> None:
    text = page.read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Usage", "Settings", "Events", "Differences from the publication", "Results"]
    assert f"nispa run split-digits --method {page.stem}" in text or page.stem == "nispa"


def test_decisions_are_numbered_dated_and_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for number, page in enumerate(DECISIONS, start=1):
        text = page.read_text()
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number:04} ")
        assert re.search(r"^\d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
        for head in ("Context", "Decision", "Why"):
            assert f"\n## {head}\n" in text, page.name
        assert f"(decisions/{page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


SKETCHES = re.findall(r"^class (\w+)\((?!Finetune)\w+\):", CONTRACT.read_text(), re.MULTILINE)


def test_the_contract_is_tried_on_these() -> None:
    assert SKETCHES == ["Hat"]


@pytest.fixture(scope="module")
def sketches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_page(CONTRACT, tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize("name", SKETCHES)
def test_a_sketch_of_the_contract_learns(name: str, sketches: dict[str, Any]) -> None:
    cls = sketches[name]
    network = build(NetworkConfig, NETWORKS["mlp"])
    values = {"learning_rate": 0.01, "batch_size": 8, "epochs": 10}
    method = cls(toy_problem(2), network, build(cls.config_class, values), seed=0)
    method.start()
    _, report = finish(method.learn(toy_task(0)))
    assert report.samples_trained == 480 * report.phases
    assert accuracy_on(method, toy_task(0)) >= 0.9
    finish(method.learn(toy_task(1)))
    assert accuracy_on(method, toy_task(1)) >= 0.9


if __name__ == "__main__":
    for method_page in METHOD_PAGES:
        method_page.write_text(with_tables(method_page.read_text()))
