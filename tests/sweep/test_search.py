"""A search sees validation images alone, and goes on where it was stopped."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from nispa.cli import cli
from nispa.cli.search import _progress, command_of
from nispa.data.named import build_scenario
from nispa.data.scenarios import on_validation
from nispa.errors import ConfigError, FormatError, InputError, ScenarioError
from nispa.network.architecture import ARCHITECTURES
from nispa.runs.record import read_record
from tests.cli_calls import NEEDS_TERMINAL, NISPA, call, on_terminal, write_npz
from tests.extent import optional

optuna = optional("optuna")

from nispa.sweep.jobs import Where  # noqa: E402
from nispa.sweep.plan import Cell  # noqa: E402
from nispa.sweep.search import (  # noqa: E402
    STUDY,
    Space,
    Trial,
    open_study,
    parse_range,
)

pytestmark = pytest.mark.filterwarnings("ignore")
Capture = pytest.CaptureFixture[str]
HERE = Where(Path("runs"))
TWO_TASKS = "tasks=[[0, 1], [2, 3]]"
CELL = Cell("split-digits", "finetune", "default", 0, {"hidden": [8]})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    return home


def test_test_images_are_out_of_reach() -> None:
    scenario = build_scenario("split-digits", seed=0)
    hidden = on_validation(scenario)
    for before, after in zip(scenario.tasks, hidden.tasks, strict=True):
        assert after.test is after.validation is before.validation
        assert after.train is before.train
        shown = {tuple(image.flatten().tolist()) for image in _images(before.test)}
        seen = {tuple(image.flatten().tolist()) for image in _images(after.test)}
        assert not shown & seen
    assert hidden.settings["measured"] == "validation"
    none_left = build_scenario("split-digits", seed=0, options={"validation": 0})
    with pytest.raises(ScenarioError, match="no validation images to measure on"):
        on_validation(none_left)


def _images(samples: object) -> torch.Tensor:
    images: torch.Tensor = torch.cat([batch for batch, _ in samples.batches(512)])  # type: ignore[attr-defined]
    return images


def test_ranges_are_read() -> None:
    assert parse_range("lr=0.001..0.1:log") == ("lr", (0.001, 0.1, True))
    assert parse_range("k=1..12") == ("k", (1, 12, False))
    assert parse_range("k=-3..1e2") == ("k", (-3, 100.0, False))
    for text in ("lr", "lr=1", "lr=a..b", "=1..2", "lr=1..2:lin"):
        with pytest.raises(InputError, match=r"must be KEY=LOW\.\.HIGH"):
            parse_range(text)


def test_spaces_that_make_no_sense_are_refused() -> None:
    bad: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {}, "nothing to search"),
        ({"k": (2, 1, False)}, {}, "the range k=2..1 must have low < high"),
        ({"k": (0, 1, True)}, {}, "must have 0 < low < high"),
        ({"k": (0, 1, False)}, {"k": ("1",)}, "k has a range and a choice"),
        ({"hidden": (8, 9, False)}, {}, "hidden is set and searched for"),
        ({}, {"incremental": ("task", "class")}, "search each kind by itself"),
    ]
    for ranges, choices, says in bad:
        with pytest.raises(ConfigError, match=says):
            Space(CELL, (0,), ranges, choices)


def test_whole_numbers_stay_whole() -> None:
    space = Space(CELL, (0, 1), {"epochs": (1, 3, False), "lr": (0.01, 0.1, True)}, {"o": ("a",)})
    found = space.distributions()
    assert found["epochs"] == optuna.distributions.IntDistribution(1, 3)
    assert found["lr"] == optuna.distributions.FloatDistribution(0.01, 0.1, log=True)
    assert found["o"] == optuna.distributions.CategoricalDistribution(("a",))
    first, second = space.cells({"epochs": 2})
    assert (first.seed, second.seed, first.measured) == (0, 1, "validation")
    assert first.given == {"hidden": [8], "epochs": 2}


def test_a_search_finds_what_learns_and_goes_on(home: Path, capsys: Capture) -> None:
    args = ["search", "split-digits", "--method", "joint", "--set", "hidden=12"]
    args += ["--set", "epochs=1", "--set", TWO_TASKS]
    args += ["--range", "learning_rate=1e-6..0.03:log"]
    first = call(capsys, *args, "--trials", "2", "--workers", "2")
    assert first.code == 0, first
    folder = home / "runs" / "search-split-digits-joint"
    records = [read_record(path.parent) for path in folder.glob("*/record.json")]
    assert len(records) == 2
    rates = {record.config["method"]["learning_rate"] for record in records}  # type: ignore[index,call-overload]
    assert len(rates) == 2
    for record in records:
        assert record.notes[0] == "accuracies were measured on validation images"
        assert [task.test for task in record.tasks] == [task.validation for task in record.tasks]
    best = max(record.main_metrics["acc"].value or 0 for record in records)
    assert f"{100 * best:.2f} %" in first.out.split("best of 2 trials")[1].splitlines()[1]
    command = next(line for line in first.out.splitlines() if "nispa run" in line)
    assert "nispa run split-digits --method joint --preset default " in command
    assert " --set hidden=12" in command
    again = call(capsys, *args, "--trials", "3", "--workers", "1")
    assert again.code == 0, again
    assert len(list(folder.glob("*/record.json"))) == 3
    assert call(capsys, *args, "--trials", "3").out.count("trial ") == 3


def test_the_command_at_the_end_can_be_typed() -> None:
    """Options of the scenario are its options, and a shell takes every value as it is."""
    folder = "my photos/it's $HOME"
    given = {"dataset": folder, "tasks": "[[0, 1], [2, 3]]", "normalise": "true", "hidden": [8, 9]}
    cell = Cell("split", "finetune", "default", 0, given)
    space = Space(cell, (0,), {"lr": (0.1, 0.5, False)}, {"validation": ("0.2", "0.1")})
    said = command_of(space, Trial(0, {"lr": 0.123456789012, "validation": "0.2"}, 0.9), HERE)
    run, *words = shlex.split(said)[1:]
    assert run == "run"
    context = cli.commands["run"].make_context("run", list(words))
    found = context.params
    assert (found["scenario"], found["dataset"], found["normalise"]) == ("split", folder, True)
    assert (found["tasks"], found["validation"]) == ("[[0, 1], [2, 3]]", "0.2")
    assert found["pairs"] == ("hidden=8,9", "lr=0.123456789012")
    unlike = replace(space, cell=replace(cell, given={"dataset": "x", "normalise": False}))
    assert "--no-normalise" in command_of(unlike, Trial(0, {}, 0.9), HERE)


def test_the_command_at_the_end_runs(home: Path, capsys: Capture) -> None:
    """With options of the scenario, in a shell, and wherever the data were found."""
    write_npz(home / "it's mine.npz")
    (home / "my data").mkdir()
    args = ["search", "split", "--method", "finetune", "--workers", "1", "--trials", "1"]
    args += ["--set", "dataset=it's mine.npz", "--set", "tasks=[[3, 1], [0, 2]]"]
    args += ["--set", "normalise=t", "--set", "hidden=8,9", "--set", "epochs=1"]
    args += ["--set", "density=0.8"]
    args += ["--choice", "validation=0.25;0.3", "--data", "my data"]
    ended = call(capsys, *args)
    assert ended.code == 0, ended
    command = ended.out.strip().splitlines()[-1].strip()
    assert f"--data '{home / 'my data'}'" in command
    done = subprocess.run(
        ["bash", "-c", command.replace("nispa", shlex.join(NISPA), 1) + " --quiet --out found"],
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = read_record(home / "found")
    assert [task.name for task in record.tasks] == ["1,3", "0,2"]
    options = record.scenario.settings["options"]
    assert isinstance(options, dict)
    assert (options["normalise"], options["validation"]) in ((True, 0.25), (True, 0.3))
    assert record.config["network"]["hidden"] == [8, 9]  # type: ignore[index,call-overload]


MODULE = """
from torch import nn


def small(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))
"""


@patch.dict(ARCHITECTURES)
def test_a_network_of_ones_own(home: Path, capsys: Capture) -> None:
    (home / "searched_nets.py").write_text(MODULE)
    args = ["search", "split-digits", "--method", "joint", "--model", "searched_nets:small"]
    args += ["--set", "epochs=1", "--set", TWO_TASKS, "--range", "learning_rate=0.01..0.02"]
    ended = call(capsys, *args, "--trials", "1", "--workers", "1")
    assert ended.code == 0, ended
    command = ended.out.strip().splitlines()[-1].strip()
    assert "--model searched_nets:small" in command
    words = shlex.split(command)[1:]
    assert call(capsys, *words, "--quiet", "--out", "found").code == 0
    network = read_record(home / "found").config["network"]
    assert network["architecture"] == "searched_nets:small"  # type: ignore[index,call-overload]
    both = call(capsys, *args, "--model", "mlp", "--set", "architecture=mlp", "--dry-run")
    assert (both.code, "keep one of the two" in both.err) == (2, True)


@NEEDS_TERMINAL
def test_a_search_on_a_terminal(home: Path) -> None:
    args = ["search", "split-digits", "--method", "joint", "--set=hidden=12", "--set=epochs=1"]
    args += ["--range", "learning_rate=0.001..0.03:log", "--workers", "1", "--trials", "2"]
    args += ["--set", TWO_TASKS]
    text = on_terminal(home, *args)
    assert "0 of 2 trials" in text
    first, second = (f"trial {number}: " for number in (0, 1))
    assert 0 < text.index(first) < text.index("1 of 2 trials") < text.index(second)
    assert "best so far: trial 0: " in text


def test_settings_with_brackets_are_shown_as_they_are() -> None:
    progress = _progress(quiet=False)
    progress.add_task("best so far: name=[/b]", total=1)
    column = progress.columns[-1]
    assert not isinstance(column, str)
    assert str(column(progress.tasks[0])) == "best so far: name=[/b]"


def test_a_trial_that_was_cut_off_comes_again(home: Path) -> None:
    study = open_study(home, 0)
    asked = study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
    again = open_study(home, 0).ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
    assert again.params == asked.params
    assert (home / STUDY).is_file()


@pytest.mark.parametrize(
    "line", ["x", "[1]", '{"op_code": 99}', '{"op_code": 4}', '{"op_code": 0, "worker_id": "a"}']
)
def test_a_strangers_study_of_nonsense_is_one_line(home: Path, capsys: Capture, line: str) -> None:
    open_study(home, 0)
    (home / STUDY).write_text((home / STUDY).read_text() + line + "\n")
    args = ["search", "split-digits", "--method=joint", "--range", "learning_rate=1e-6..0.03:log"]
    ended = call(capsys, *args, "--out", home)
    assert ended.code == 2, ended
    assert f"{STUDY} cannot be read: " in ended.err
    assert ended.err.count("\n") == 1


def test_a_study_that_is_a_link_is_not_written_to(home: Path) -> None:
    (home / "mine").write_bytes(b"precious")
    (home / STUDY).symlink_to("mine")
    with pytest.raises(FormatError, match="is a link"):
        open_study(home, 0)
    assert (home / "mine").read_bytes() == b"precious"


def test_a_command_to_copy_holds_settings_and_nothing_else() -> None:
    """A stranger's study may hold any text as a value."""
    space = Space(CELL, (0,), {}, {"bias": ("zero", "x; touch y $(touch z)")})
    command = command_of(space, Trial(0, {"bias": "x; touch y $(touch z)"}, 0.5), HERE)
    assert shlex.split(command)[-1] == "bias=x; touch y $(touch z)"


def test_bad_calls_are_refused(home: Path, capsys: Capture) -> None:
    bad = [
        (["search", "split-digits"], "nothing to search"),
        (["search", "split-digits", "--range", "lr=1"], "must be KEY=LOW..HIGH"),
        (["search", "split-digits", "--range", "density=0.5..2"], "density=2"),
        (["search", "split-digits", "--range", "densty=0.5..1"], "did you mean 'density'"),
        (["search", "split-digits", "--choice", "optimiser=adam,adom"], "adom"),
        (["search", "split-nothing", "--range", "density=0.5..1"], "unknown scenario"),
        (["search", "split-digits", "--range", "k=1..2", "--trials", "0"], "--trials=0"),
    ]
    for args, says in bad:
        ended = call(capsys, *args)
        assert ended.code == 2, (args, ended)
        assert says in ended.err, (args, ended.err)
        assert ended.err.count("\n") == 1
        assert list(home.iterdir()) == []
