"""What the commands do when all is well; bad input and interruptions have files of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nispa import __version__
from nispa.base.config import describe
from nispa.cli.run import run
from nispa.learner import Learner
from nispa.methods import METHODS
from nispa.methods.base import CACHE_BYTES
from nispa.methods.nispa_config import NispaConfig
from nispa.network.models import NetworkConfig
from nispa.runs.record import comparable, read_record
from tests.cli_calls import NISPA, SMALL, call, spawn, write_npz

Capture = pytest.CaptureFixture[str]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no data folder from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def npz(home: Path) -> Path:
    return write_npz(home / "tiny.npz")


def test_bare_call_shows_the_help_and_is_no_error(capsys: Capture) -> None:
    ended = call(capsys)
    assert (ended.code, ended.err) == (0, "")
    for command in ("run", "show", "list", "doctor"):
        assert re.search(rf"^  {command} +\w", ended.out, re.M)


def test_version(capsys: Capture) -> None:
    assert call(capsys, "--version").out == f"nispa {__version__}\n"


@pytest.mark.parametrize("command", ["run", "show", "list", "doctor"])
def test_help_of_each_command_has_an_example(capsys: Capture, command: str) -> None:
    ended = call(capsys, command, "--help")
    assert ended.code == 0
    assert f"\n    nispa {command} " in ended.out


def test_help_of_run_has_the_options_of_all_scenarios(capsys: Capture) -> None:
    ended = call(capsys, "run", "-h")
    for option in ("--dataset", "--classes-per-task", "--tasks", "--class-order", "--validation"):
        assert option in ended.out
    assert "--shared-classes / --no-shared-classes" in ended.out
    assert "natural|seeded" in ended.out


def test_run_writes_a_record_a_picture_and_a_network(capsys: Capture, npz: Path) -> None:
    ended = call(capsys, "run", "split", "--dataset", npz, "--out", "here", "--seed", "3", *SMALL)
    assert (ended.code, ended.err) == (0, "")
    folder = Path("here")
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.jsonl",
        "network.safetensors",
        "origin.json",
        "progress.csv",
        "record.json",
        "run.png",
    ]
    record = read_record(folder)
    assert (record.status, record.seed, record.method) == ("complete", 3, "nispa")
    assert [task.classes for task in record.tasks] == [(0, 1), (2, 3)]
    network = record.config["network"]
    assert isinstance(network, dict)
    assert network["hidden"] == [12, 12]
    assert len(Learner.load(folder / "network.safetensors").tasks) == 2


def test_plain_output_has_a_line_for_each_phase_and_task(capsys: Capture, npz: Path) -> None:
    once = ("--set", "accuracy_drop=100")  # no last fit is done again
    ended = call(capsys, "run", "split", "--dataset", npz, "--out", "here", *SMALL, *once)
    lines = ended.out.splitlines()
    assert lines[0] == "split, nispa, task-incremental (told the task), preset default, seed 0"
    derived = lines.pop(1)
    assert derived.startswith("network: architecture mlp, hidden 12-12, ")
    assert "; derived from the data: learning_rate 0.01, " in derived
    assert lines[1] == "2 tasks; the record goes to here"
    assert sum(" phase " in line for line in lines) == 8  # two tasks: three phases, a last fit
    assert re.match(r"task 1/2 0-1: phase 1 \(of at most 3\), validation [\d.]+ %, tau -", lines[2])
    assert re.search(r"phase 3 .*, tau 0\.989, .*at most .* left$", lines[4])
    assert "phase 4 (of at most 4)" in lines[5]
    assert re.match(r"task 1/2 0-1: learned, test [\d.]+ %, mean so far", lines[6])
    assert "4 phases" in lines[6]
    assert CONTROL.search(ended.out) is None
    assert [line for line in ended.out.splitlines() if line != line.rstrip()] == []
    stable = [re.search(r"stable (or candidate )?\d", line) for line in lines[2:7]]
    assert [bool(each and each[1]) for each in stable] == [True, True, True, True, False]


def test_a_task_that_was_not_learned_is_named(capsys: Capture, npz: Path) -> None:
    with np.load(npz) as arrays:
        alike = {name: each * 0 if "x_" in name or "images" in name else each
                 for name, each in arrays.items()}  # fmt: skip
    np.savez(npz, **alike)
    few = ("--method", "finetune", "--set", "hidden=8", "--set", "epochs=1", "--out", "here")
    ended = call(capsys, "run", "split", "--dataset", npz, *few)
    named = [line for line in ended.out.splitlines() if "was not learned: 50" in line]
    names = [line.partition(" was")[0] for line in named]
    assert names == ["task 0-1", "task 2-3", "Note: task 0-1", "Note: task 2-3"]


def test_the_version_has_a_short_option(capsys: Capture) -> None:
    assert call(capsys, "-V").out == call(capsys, "--version").out


def test_a_folder_beside_one_that_is_not_there(capsys: Capture, npz: Path) -> None:
    """``new/..`` is here as long as ``new`` is there, which it is for a moment only."""
    args = ["run", "split", "--dataset", str(npz), "--method", "finetune", "--set", "epochs=1"]
    ended = call(capsys, *args, "--out", "new/../x", "--quiet")
    assert ended.code == 0, ended
    assert read_record("x").status == "complete"
    assert not Path("new").exists()
    dry = call(capsys, "sweep", "split-digits", "--out", "new/../y", "--dry-run")
    assert dry.code == 0
    assert not Path("new").exists()


def test_run_ends_with_the_report_and_the_places_of_its_files(capsys: Capture, npz: Path) -> None:
    out = call(capsys, "run", "split", "--dataset", npz, "--out", "here", *SMALL).out
    assert "forgetting" in out
    assert "Stable units after each task" in out
    assert out.splitlines()[-4:] == [
        "Record:  here/record.json",
        "Picture: here/run.png",
        "Network: here/network.safetensors",
        "Events:  here/events.jsonl",
    ]
    assert call(capsys, "show", "here").out in out
    assert call(capsys, "show", "here/record.json").out in out


def test_quiet_run_prints_its_folder_alone(capsys: Capture, npz: Path) -> None:
    ended = call(capsys, "run", "split", "--dataset", npz, "--quiet", *SMALL)
    assert (ended.out, ended.err) == ("runs/split-nispa-default-s0\n", "")
    ended = call(capsys, "run", "split", "--dataset", npz, "--quiet", *SMALL)
    assert ended.out == "runs/split-nispa-default-s0-2\n"


def test_options_reach_the_scenario_and_settings_the_method(capsys: Capture, npz: Path) -> None:
    ended = call(
        capsys, "run", "split", "--dataset", npz, "--tasks", "[[3,1],[0,2]]", "--normalise",
        "--validation", "0.25", "--method", "finetune", "--set", "lr=0.03", "--set", "epochs=1",
        "--set", "hidden=8", "--preset", "paper-digits", "--out", "here", "--no-download",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    record = read_record("here")
    assert [task.name for task in record.tasks] == ["1,3", "0,2"]
    assert [task.validation for task in record.tasks] == [10, 10]
    options = record.scenario.settings["options"]
    assert isinstance(options, dict)
    assert options["normalise"] is True
    config = record.config["method"]
    assert isinstance(config, dict)
    assert (config["learning_rate"], config["epochs"]) == (0.03, 1)
    assert (record.method, record.preset) == ("finetune", "paper-digits")


def test_data_folder_may_come_from_the_environment(
    capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "one").mkdir()
    (home / "two").mkdir()
    monkeypatch.setenv("NISPA_DATA", "one")
    assert re.search(r"^  folder +one$", call(capsys, "doctor").out, re.M)
    assert re.search(r"^  folder +two$", call(capsys, "doctor", "--data", "two").out, re.M)


def test_the_default_cache_is_that_of_methods() -> None:
    option = next(option for option in run.params if option.name == "cache_mb")
    assert int(str(option.default)) * 2**20 == CACHE_BYTES


def test_a_cache_changes_no_result(capsys: Capture, npz: Path) -> None:
    for megabytes in (0, 512):
        out = f"cache{megabytes}"
        cache = ("--cache-mb", str(megabytes))
        call(capsys, "run", "split", "--dataset", npz, "--out", out, *cache, *SMALL)
    assert comparable(read_record("cache0")) == comparable(read_record("cache512"))
    networks = [Path(out, "network.safetensors").read_bytes() for out in ("cache0", "cache512")]
    assert networks[0] == networks[1]


def test_threads_are_set(capsys: Capture, npz: Path) -> None:
    before = torch.get_num_threads()
    try:
        call(capsys, "run", "split", "--dataset", npz, "--out", "here", "--threads", "3", *SMALL)
        assert read_record("here").environment.threads == 3
    finally:
        torch.set_num_threads(before)


def test_list_scenarios_methods_presets_and_datasets(capsys: Capture) -> None:
    listed = {
        what: {line.split()[0] for line in call(capsys, "list", what).out.splitlines() if line}
        for what in ("scenarios", "methods", "presets", "datasets")
    }
    assert {"split", "split-digits", "efmnist", "permuted-mnist"} <= listed["scenarios"]
    assert listed["methods"] - {"method"} == set(METHODS)
    assert {"default", "paper", "efmnist", "paper-efmnist"} <= listed["presets"]
    assert {"digits", "mnist", "emnist-balanced", "cifar100"} <= listed["datasets"]


def test_list_settings_has_every_key_with_default_range_doc_and_aliases(capsys: Capture) -> None:
    out = call(capsys, "list", "settings", "--method", "nispa").out
    keys = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert keys == {field.name for cls in (NetworkConfig, NispaConfig) for field in describe(cls)}
    assert re.search(r"^  density +0\.2 +share of live connections: number in \(0, 1\]$", out, re.M)
    assert re.search(r"^  learning_rate +0\.01 .*in \(0, 100\]; also called lr$", out, re.M)
    assert re.search(r"^  schedule +cosine +.*: cosine, linear, exponential$", out, re.M)
    assert "  patience" in call(capsys, "list", "settings").out  # a key of other methods


def test_doctor_names_versions_kernels_and_missing_data(capsys: Capture) -> None:
    out = call(capsys, "doctor").out
    assert re.search(rf"^  torch +{re.escape(torch.__version__)}$", out, re.M)
    assert re.search(r"^  kernels +\w+: \w+", out, re.M)
    assert re.search(r"^  threads +\d+ \(", out, re.M)
    assert re.search(r"^  digits +ships with scikit-learn$", out, re.M)
    assert re.search(r"^  mnist +not found$", out, re.M)
    assert "train-images-idx3-ubyte.gz" in out


@pytest.mark.parametrize("args", [["list", "settings"], ["show", "here"]])
def test_a_closed_pipe_is_no_traceback(
    capsys: Capture, npz: Path, home: Path, args: list[str]
) -> None:
    call(capsys, "run", "split", "--dataset", npz, "--out", "here", "--quiet", *SMALL)
    process = spawn(*args, cwd=home)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 1


def test_output_without_colour_in_ascii(npz: Path, home: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    command = [*NISPA, "run", "split", "--dataset", str(npz), "--out", "hérè", *SMALL]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"forgetting" in done.stdout
    assert b"\x1b" not in done.stdout


def test_commands_without_computing_import_no_torch() -> None:
    code = (
        "import sys; from nispa.cli import cli\n"
        "for args in (['--help'], ['show', '/nowhere'], ['rnu']):\n"
        "    try: cli.main(args)\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules, 'nispa.runs.record' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False True"


def test_events_are_kept_beside_the_record(capsys: Capture, npz: Path) -> None:
    once = ("--set", "accuracy_drop=100")  # no last fit is done again
    call(capsys, "run", "split", "--dataset", npz, "--out", "here", "--quiet", *SMALL, *once)
    lines = Path("here/events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("phase_end") == events.count("phase_start") == 8
    assert events.count("epoch") > 8  # one in each of three phases, more in the last fit


def test_class_incremental_runs_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ("--set", "epochs=1", "--set", "hidden=16", "--out", out)
    ended = call(
        capsys, "run", "split-digits", "--method", "finetune", "--incremental", "class", *few
    )
    assert ended.code == 0
    assert "class-incremental" in ended.out
    record = read_record(out)
    assert record.incremental == "class"
    assert record.config["method"]["incremental"] == "class"  # type: ignore[index,call-overload]
    assert record.main_matrix == record.accuracy_matrix_task_agnostic
    untold, told = "Accuracy without knowing the task", "Accuracy on each task"
    assert 0 < ended.out.index(untold) < ended.out.index(told)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--incremental", "class"), "method 'nispa' cannot learn with incremental=class; it can "),
        (("--incremental", "sideways"), "unknown incremental 'sideways'. Known: class, "),
        (("--incremental", "task", "--set", "incremental=class"), "contradict each other"),
        (
            ("--method", "finetune", "--incremental", "domain"),
            "task 2-3 has other classes than the tasks before",
        ),
    ],
)
def test_a_kind_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    ended = call(capsys, "run", "split-digits", *args, "--out", tmp_path / "run")
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "run").exists()
