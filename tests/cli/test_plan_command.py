"""``nispa plan``."""

from __future__ import annotations

import pytest

from tests.cli_calls import call

Capture = pytest.CaptureFixture[str]
QUICK = [f"--set={pair}" for pair in ("e=1", "max_phases=3", "batch_size=64", "unit_share=0")]


def test_it_tries_each_width_with_each_density(capsys: Capture) -> None:
    tried = ("--learn=1", "--width=0.1,0.2", "--density=0.3,0.5")
    ended = call(capsys, "plan", "split-digits", *tried, *QUICK)
    assert ended.code == 0
    rows = [line.split()[:2] for line in ended.out.splitlines() if line[:3] in ("0.1", "0.2")]
    assert rows == [["0.1", "0.3"], ["0.1", "0.5"], ["0.2", "0.3"], ["0.2", "0.5"]]
    assert "tasks" in ended.out.splitlines()[-1]


def test_too_few_units_get_advice(capsys: Capture) -> None:
    # After three phases tau has hardly fallen, so the first task takes nearly everything.
    ended = call(capsys, "plan", "split-digits", "--learn=1", *QUICK)
    assert ended.code == 0
    assert "--width 2" in ended.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--width=0"], "--width=0 must be numbers in (0, 100]"),
        (["--width=1,x"], "--width=1,x"),
        (["--density=2"], "--density=2 must be numbers in (0, 1]"),
        (["--learn=0"], "--learn=0"),
        (["--method=finetune"], "makes no units stable"),
        (["--set=tasks=2"], "--tasks"),
    ],
)
def test_bad_input_is_one_line(args: list[str], words: str, capsys: Capture) -> None:
    ended = call(capsys, "plan", "split-digits", *args)
    assert ended.code == 2
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1
