"""The pages for readers: their code runs, their tables are the code's, their links lead on."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nispa.base.config import _described, build
from nispa.mechanism.grow import GROWTH_RULES
from nispa.methods import METHODS
from nispa.methods.defaults import RULES, Facts
from nispa.network.models import ARCHITECTURES, NetworkConfig

from .methods.toy import NETWORKS, accuracy_on, finish, toy_problem, toy_task
from .pages import PAGES, ROOT, SHELLS, Block, Page, blocks
from .small_data import write_data_sets, write_own_data, write_runs
from .tables import MARKER, public_names, results_table, settings_table, slug, with_tables

DOCS = ROOT / "docs"
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
CONTRACT = DOCS / "decisions" / "0003-method-contract.md"
TUTORIAL = DOCS / "tutorial.md"  # test_tutorial.py runs it as it stands
WITH_CODE = [
    page
    for page in PAGES
    if page != TUTORIAL and any(block.runs for block in blocks(page.read_text(encoding="utf-8")))
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """Puts back what a page changes for the whole process: registries, and PyTorch's threads."""
    tables: list[dict[str, Any]] = [METHODS, GROWTH_RULES, ARCHITECTURES]
    before, threads = [dict(table) for table in tables], torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for table, names in zip(tables, before, strict=True):
        table.clear()
        table.update(names)
    _described.cache_clear()  # settings that list the names of a registry


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_sets(tmp_path_factory.mktemp("data"))


# These begin many processes.
LONG = [
    ROOT / "README.md", DOCS / "howto" / "many-runs.md", DOCS / "sweeps.md", DOCS / "trackers.md"
]  # fmt: skip


# How long a learner trains that is told nothing: what a page shows of it is not compared.
SHORT_RULES: dict[str, Callable[[Facts], Any]] = {
    "epochs": lambda _: 1,
    "retrain_epochs": lambda _: 1,
    "epochs_per_phase": lambda _: 1,
    "settle_epochs": lambda _: 1,
    "min_phases": lambda _: 2,
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    "path",
    [pytest.param(page, marks=[pytest.mark.ci] * (page in LONG)) for page in WITH_CODE],
    ids=name_of,
)
def test_the_code_of_a_page_runs(
    path: Path, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NISPA_DATA", str(small_data))
    monkeypatch.setattr("nispa.reading.plots.picture", lambda record: b"")  # most of its time
    for name, rule in SHORT_RULES.items():
        monkeypatch.setitem(RULES, name, rule)
    folder = tmp_path / "page"
    folder.mkdir()
    write_own_data(folder)
    write_runs(folder)
    page = Page(path, folder, small_data)
    with page.opened():
        for block in blocks(text_of(path)):
            if block.runs:
                check(page, block)


def check(page: Page, block: Block) -> None:
    """Runs a block; each command ends as the page says: with its error, or with none."""
    for said, ended in page.run(block):
        wrong = [line for line in said.shown.splitlines() if line.startswith("nispa: ")]
        where = f"line {block.line}: {shlex.join(said.args)}\n{ended.err}"
        errors = [line for line in ended.err.splitlines() if line.startswith("nispa: ")]
        assert errors == wrong, where
        assert (ended.code != 0) == bool(wrong), where


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """So that no code hides: fenced, in a language that runs or that is no code, or with a why."""
    text = text_of(page)
    found = blocks(text)
    assert text.count("```") == 2 * len(found) + 2 * text.count("````")
    for block in found:
        known = (*SHELLS, "python", "text", "toml")
        assert block.language in known, f"line {block.line}"
        assert re.fullmatch(
            r"|not run: .{10,}|command: \w+|interrupted after task \d+|prints|file: \S+", block.mark
        ), f"line {block.line}: {block.mark}"
        if block.language == "toml":
            assert block.mark.startswith("file: "), f"line {block.line}: which file?"
    plain = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^ {4}(nispa|python|for|pip) .*$", plain, re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if MARKER.search(text_of(page))], ids=name_of
)
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    text = text_of(page)
    assert text == with_tables(text), "write the tables with: python -m tests.test_docs"


def test_a_setting_as_a_row() -> None:
    assert (
        "| `learning_rate`, `lr` | `0.01` | step size of the optimiser | number in (0, 100] |"
        in settings_table(METHODS["finetune"].config_class)
    )


def test_results_of_a_method() -> None:
    rows = results_table("joint").splitlines()[2:]
    where = "[Split MNIST, class-incremental, memory 1,000]"
    assert [row.partition("(")[0] for row in rows] == [
        "| [EFMNIST, task-incremental: methods side by side]",
        f"| {where}",
        "| [EFMNIST, class-incremental, memory 5,700]",
    ]
    assert " | joint | 5 | 97.36 (0.10) | 99.63 | 1.28 | 64,970 | 47,520 | 44 |" in rows[1]


def test_every_public_name_of_the_contract_is_on_its_page() -> None:
    page = text_of(DOCS / "api" / "methods.md")
    modules = [f"nispa.methods.{part}" for part in ("base", "events", "carried", "parts")]
    names = [name for module in modules for name, _ in public_names(module)]
    assert {"Method", "Problem", "LearnReport", "Event", "Part", "Network"} <= set(names)
    assert all(f"| `{name}` |" in page for name in names)


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=name_of)
def test_a_page_of_names_has_a_table_and_a_text_for_each_module(page: Path) -> None:
    text = text_of(page)
    modules = re.findall(r"^## `([\w.]+)`$", text, re.MULTILINE)
    assert modules
    for marker in ("<!-- table: api {} -->", "<!-- api: {} -->"):
        assert [module for module in modules if marker.format(module) not in text] == []


def test_every_method_has_a_page() -> None:
    assert {page.stem for page in METHOD_PAGES} == set(METHODS)
    index = text_of(DOCS / "README.md")
    assert all(f"(methods/{name}.md)" in index for name in METHODS)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name_of)
def test_every_method_page_tells_the_same_things(page: Path) -> None:
    text = text_of(page)
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Usage", "Settings", "Events", "Differences from the publication", "Results"]
    assert f"nispa run split-digits --method {page.stem}" in text or page.stem == "nispa"
    for table in ("settings", "presets", "results"):
        assert f"<!-- table: {table} {page.stem} -->" in text


def test_decisions_are_numbered_dated_and_in_the_index() -> None:
    index = text_of(DOCS / "README.md")
    numbers = [int(page.name[:4]) for page in DECISIONS]
    assert sorted(set(numbers)) == numbers
    for number, page in zip(numbers, DECISIONS, strict=True):
        text = text_of(page)
        assert text.startswith(f"# {number:04} ")
        assert re.search(r"^\d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
        for head in ("Context", "Decision", "Why"):
            assert f"\n## {head}\n" in text, page.name
        assert f"(decisions/{page.name})" in index


def test_every_page_is_in_the_index() -> None:
    index = text_of(DOCS / "README.md")
    pages = [page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"]
    assert [page for page in pages if f"({page.relative_to(DOCS).as_posix()})" not in index] == []


def places(page: Path) -> set[str]:
    """The anchors of a page, as a code host and the site make them from headings."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {slug(head) for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    plain = re.sub(r"^( *)```.*?^\1```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", plain):
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link  # a folder is a page on a code host, but not on the site
        assert not place or place in places(target), link


SKETCHES = re.findall(r"^class (\w+)\((?!Finetune)\w+\):", text_of(CONTRACT), re.MULTILINE)


def test_the_contract_is_tried_on_these() -> None:
    assert SKETCHES == ["Hat"]


@pytest.fixture(scope="module")
def sketches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    page = Page(CONTRACT, tmp_path_factory.mktemp("contract"))
    with page.opened():
        for block in blocks(text_of(CONTRACT)):
            page.run(block)
    return page.names


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
    for path in PAGES:
        if MARKER.search(text_of(path)):
            path.write_text(with_tables(text_of(path)), encoding="utf-8")
