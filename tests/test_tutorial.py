"""The tutorial as it stands: every command and block runs, and prints what the page shows.

Numbers need not be the same on every machine. Where the kernels are those that the page was made
with they must be near; elsewhere only the words must be the same.
"""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path

import pytest

from nispa.kernels.dispatch import in_use
from nispa.runs.record import read_record

from .pages import ROOT, Block, Page, blocks

PAGE = ROOT / "docs" / "tutorial.md"
MADE_WITH = "avx512"
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
ANY = "..."


def as_lines(text: str) -> list[str]:
    """The lines that say something, with one blank between words."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def same(shown: str, real: str, *, numbers: bool) -> bool:
    """Whether a line is as shown; ``...`` at its end stands for the rest."""
    if shown.endswith(f" {ANY}"):
        words = shown.split()[:-1]
        shown, real = " ".join(words), " ".join(real.split()[: len(words)])
    if NUMBER.split(shown) != NUMBER.split(real):
        return False
    pairs = zip(NUMBER.finditer(shown), NUMBER.finditer(real), strict=True)
    return not numbers or all(near(*pair) for pair in pairs)


def near(shown: re.Match[str], real: re.Match[str]) -> bool:
    """Within 15, or half of the larger one; seconds are whatever they are."""
    if re.match(r" (s|min)\b", shown.string[shown.end() :]):
        return True
    a, b = (float(number[0].replace(",", "")) for number in (shown, real))
    return abs(a - b) <= max(15, max(abs(a), abs(b)) / 2)


def mismatch(shown: str, real: str, *, numbers: bool) -> str | None:
    """The line of ``shown`` that ``real`` does not go on with, or None where they agree.

    A line ``...`` stands for any number of lines.
    """
    wanted, found = as_lines(shown), as_lines(real)
    furthest = 0

    @functools.cache
    def agree(place: int, at: int) -> bool:
        nonlocal furthest
        furthest = max(furthest, place)
        if place == len(wanted):
            return at == len(found)
        if wanted[place] == ANY:
            return any(agree(place + 1, later) for later in range(at, len(found) + 1))
        fits = at < len(found) and same(wanted[place], found[at], numbers=numbers)
        return fits and agree(place + 1, at + 1)

    return None if agree(0, 0) else [*wanted, "(the end)"][furthest]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("nispa.reading.plots.picture", lambda record: b"")  # half of the time
    page = Page(PAGE, tmp_path)
    numbers = in_use().name == MADE_WITH
    printed = ""
    with page.opened():
        for block in blocks(PAGE.read_text(encoding="utf-8")):
            if block.mark == "prints":
                assert mismatch(block.code, printed, numbers=numbers) is None, printed
            elif block.runs:
                printed = follow(page, block, numbers=numbers)
    records = {path.name: read_record(path) for path in (tmp_path / "runs").iterdir()}
    assert len(records) == 6
    for name, record in records.items():
        assert record.status == "complete"
        lost = record.metrics["forgetting"].value
        assert lost is not None
        assert lost == 0 if "nispa" in name else lost > 0


def follow(page: Page, block: Block, *, numbers: bool) -> str:
    """Runs a block, compares what it prints, and gives that back."""
    printed = ""
    for said, ended in page.run(block):
        printed = ended.out
        if block.language == "console":
            wrong = mismatch(said.shown, ended.out + ended.err, numbers=numbers)
            assert wrong is None, f"line {block.line}, {said.args}: {wrong}\n{ended.out}{ended.err}"
        else:
            assert ended.code == 0, f"line {block.line}, {said.args}: {ended.err}"
        assert (ended.code == 0) == ("nispa: " not in ended.err)
    return printed


@pytest.mark.parametrize(
    ("shown", "real", "fits"),
    [
        ("a 1.0 b", "a  2.0 b", True),
        ("a 1.0 b", "a 100.0 b", False),
        ("a 40 b", "a 79 b", True),
        ("took 1 s", "took 99 s", True),
        ("a 1.0 b", "a 1.0 c", False),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("a\n...\nc", "a\nb\nb", False),
        ("a", "a\nb", False),
        ("a\n...", "a\nb", True),
        ("a ...", "a b c", True),
        ("a ...", "b b c", False),
        ("a\nb", "a", False),
    ],
)
def test_what_counts_as_the_same(shown: str, real: str, fits: bool) -> None:
    assert (mismatch(shown, real, numbers=True) is None) == fits


def test_elsewhere_only_words_count() -> None:
    assert mismatch("a 1.0 b", "a 100.0 b", numbers=False) is None
    assert mismatch("a 1.0 b", "a 1.0 c", numbers=False) is not None
