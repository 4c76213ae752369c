"""Networks by name and by a function of the user's, on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nispa.backbones import BACKBONES
from nispa.learner import Learner
from nispa.network.architecture import ARCHITECTURES
from nispa.runs.record import read_record
from tests.cli_calls import call, write_npz

from .test_stops import interrupt_at

Capture = pytest.CaptureFixture[str]
QUICK = [f"--set={pair}" for pair in ("e=1", "max_phases=3", "batch_size=16", "density=0.5")]
MODEL = """
from torch import nn

def build(shape, classes, width=4):
    channels = shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes),
    )

nothing = 3
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr("nispa.reading.plots.picture", lambda record: b"")
    for name in ("mymodel:build", "mymodel:nothing"):
        # Known during a test alone: undone, the first of these leaves nothing behind.
        monkeypatch.setitem(ARCHITECTURES, name, ARCHITECTURES["mlp"])
        monkeypatch.delitem(ARCHITECTURES, name)
    monkeypatch.delitem(sys.modules, "mymodel", raising=False)
    (tmp_path / "mymodel.py").write_text(MODEL)
    return tmp_path


def test_a_network_by_name(home: Path, capsys: Capture) -> None:
    data = write_npz(home / "tiny.npz")
    what = ["run", "split", "--dataset", str(data), "--model", "resnet18", *QUICK]
    small = ("--set=arguments=width=2", "--set=settle_epochs=1")
    ended = call(capsys, *what, *small, "--out", "run")
    assert (ended.code, ended.err) == (0, "")
    record = read_record(home / "run")
    network = record.config["network"]
    assert isinstance(network, dict)
    assert (network["architecture"], network["arguments"]) == ("resnet18", ["width=2"])
    for command in (["show", "run"], ["report", "run"]):
        assert call(capsys, *command).code == 0
    assert "layer2.0.shortcut.0" in (home / "report.html").read_text()


def test_a_function_of_the_users(home: Path, capsys: Capture) -> None:
    data = write_npz(home / "tiny.npz")
    what = ["run", "split", "--dataset", str(data), *QUICK]
    ended = call(capsys, *what, "--model", "mymodel:build", "--out", "run")
    assert (ended.code, ended.err) == (0, "")
    del ARCHITECTURES["mymodel:build"]  # as in another process
    ended = call(capsys, "predict", "run", data, "--task", "1")
    assert ended.code == 2
    assert "mymodel:build is a function of your own" in ended.err
    assert "pass --model mymodel:build" in ended.err
    ended = call(capsys, "predict", "run", data, "--task", "1", "--model", "mymodel:build")
    assert ended.code == 0
    assert Learner.load(home / "run", model="mymodel:build").tasks


def test_what_goes_on_with_a_stopped_run_names_the_function(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_npz(home / "tiny.npz"))
    with monkeypatch.context() as change:
        interrupt_at(change, "nispa.methods.nispa.Nispa.rewire")
        words = ["run", "split", "--dataset", data, *QUICK, "--model", "mymodel:build"]
        ended = call(capsys, *words, "--out", "run")
    assert ended.err.endswith("go on with: nispa resume run --model mymodel:build\n")
    del ARCHITECTURES["mymodel:build"]  # as in another process
    assert call(capsys, *ended.err.split("nispa ")[-1].split()).code == 0


PLAN = """
scenario = "split-digits"
method = "finetune"
[set]
architecture = "mymodel:build"
arguments = "width=3"
density = 0.5
epochs = 1
batch_size = 64
"""


def test_a_sweep_of_functions(home: Path, capsys: Capture) -> None:
    (home / "plan.toml").write_text(PLAN)
    asked = call(capsys, "sweep", "plan.toml", "--out", "runs")
    assert (asked.code, asked.err.count("\n")) == (2, 1)
    assert "pass --model mymodel:build" in asked.err
    assert "mymodel" not in sys.modules  # nothing imports it because a file names it
    what = ["sweep", "plan.toml", "--model", "mymodel:build", "--out", "runs", "--workers", "1"]
    assert call(capsys, *what).code == 0  # in processes of its own
    (record,) = [read_record(path.parent) for path in (home / "runs").glob("*/record.json")]
    network = record.config["network"]
    assert isinstance(network, dict)
    assert (network["architecture"], network["arguments"]) == ("mymodel:build", ["width=3"])
    assert "1 runs, 1 of them done" in call(capsys, *what, "--dry-run").out
    del ARCHITECTURES["mymodel:build"]  # as another process, which must be told again
    assert call(capsys, "sweep", "plan.toml", "--out", "runs").code == 2


def test_models_of_a_sweep(home: Path, capsys: Capture) -> None:
    what = ["sweep", "split-digits", "--method", "finetune", "--dry-run"]
    ended = call(capsys, *what, "--model", "mymodel:build", "--model", "mlp")
    assert ended.code == 0
    assert [f"architecture={name}" in ended.out for name in ("mymodel:build", "mlp")] == [True] * 2
    (home / "plan.toml").write_text(PLAN)
    for given, said in (
        (["plan.toml", "--model", "resnet18"], "--model resnet18 belongs in the plan"),
        (["split-digits", "--model", "mlp", "--set=architecture=convnet"], "name two networks"),
        (
            ["split-digits", "--model=mlp", "--model=convnet", "--grid=architecture=mlp"],
            "--model and architecture name networks",
        ),
    ):
        ended = call(capsys, "sweep", *given)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert said in ended.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "resnet19"], "did you mean 'resnet18'"),
        (["--model", "mymodel:nothing"], "model mymodel:nothing is no function"),
        (["--model", "mymodel:other"], "model mymodel:other cannot be imported"),
        (["--model", "own"], "is a module of your own"),
        (["--model", "resnet18", "--set=architecture=mlp"], "name two networks"),
        (["--model", "resnet18", "--method", "hat"], "method 'hat' works on mlp and convnet alone"),
        (["--model", "resnet18", "--set=hidden=3"], "hidden is a setting of architecture=mlp"),
        (["--model", "resnet18", "--set=arguments=depth=3"], "model resnet18 cannot be built"),
        (["--model", "resnet18", "--set=arguments=width=900000"], "pass smaller arguments"),
        (["--model", "vgg11-bn"], "at least 32x32 pixels"),
    ],
)
def test_what_is_refused(home: Path, capsys: Capture, given: list[str], said: str) -> None:
    data = write_npz(home / "tiny.npz")
    ended = call(capsys, "run", "split", "--dataset", str(data), "--out", "run", *given)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not (home / "run").exists()


def test_the_models_are_listed(capsys: Capture) -> None:
    ended = call(capsys, "list", "models")
    assert ended.code == 0
    assert all(f"\n{name} " in f"\n{ended.out}" for name in BACKBONES)
    assert "heads=12" in ended.out
