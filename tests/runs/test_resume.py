"""Runs that die are taken up where they were, and come to the same bytes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import safetensors.torch

from nispa import tensorfile
from nispa.data.own_tasks import from_tasks
from nispa.data.scenarios import Scenario
from nispa.errors import FormatError, InputError, OutputError
from nispa.methods import METHODS
from nispa.methods.presets import resolve, settings_of
from nispa.network.models import UNPOOLED
from nispa.runs.checkpoints import FOLDER, FORMAT, Checkpoints
from nispa.runs.curve import Curve, as_csv
from nispa.runs.folder import NETWORK, NEWER_NETWORK, PROGRESS, RunFolder
from nispa.runs.record import RECORD, Record, comparable, read_record
from nispa.runs.runner import OTHER_CODE, Experiment, Notice, TaskEnd, TaskStart, resume, run
from nispa.training import fit as training
from nispa.training.pausing import FitPause
from tests.extent import one_of_each_kind
from tests.methods.toy import FAST


class Killed(BaseException):
    """Stands for the end of a process; that nothing runs after it is for the slow test to show."""


def scenario(side: int = 4, count: int = 60) -> Scenario:
    """Two tasks of two classes that are not quite easy."""
    tasks = []
    for index in range(2):
        random = np.random.default_rng(index)
        which = np.arange(count) % 2
        images = random.integers(0, 160, (count, side, side), dtype=np.uint8)
        for label in (0, 1):
            images[which == label, :, 2 * label + index] += 60
        tasks.append((images, which + 2 * index))
    return from_tasks(tasks, seed=0, shared_classes=False)


def experiment(method: str, **given: Any) -> Experiment:
    fast: dict[str, Any] = {"hidden": (16, 12), "density": 0.6, "batch_size": 16}
    fast |= FAST.get(method, {"epochs": 20})
    if "epochs" in fast:
        fast["epochs"] = 3
    else:
        fast["epochs_per_phase"] = 2
    if method.startswith("nispa"):
        fast |= {"max_phases": 3, "settle_epochs": 2}
    if method == "packnet":
        fast["retrain_epochs"] = 2
    if "architecture" in given:
        del fast["hidden"]
    sequence = scenario()
    settings = resolve(method, "default", sequence.name, sequence.input_shape, fast | given)
    return Experiment(sequence, settings, seed=0)


def finish(running: Any) -> Record:
    while True:
        try:
            next(running)
        except StopIteration as end:
            found: Record = end.value
            return found


def content(folder: Path) -> tuple[bytes, bytes]:
    return comparable(read_record(folder)), (folder / NETWORK).read_bytes()


def curve(folder: Path) -> list[list[str]]:
    """The rows of progress.csv without the two times that they begin with."""
    return [row.split(",")[2:] for row in (folder / PROGRESS).read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Dying:
    """Lets a process die at one of the places where a checkpoint is due."""

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.reached = Checkpoints.reached

    def __call__(self, checkpoints: Checkpoints, pause: FitPause) -> None:
        self.reached(checkpoints, pause)
        self.left -= 1
        if self.left == 0:
            raise Killed


def die(running: Any, moment: int) -> bool:
    """Runs until the checkpoint of that number; whether it came to that."""
    with patch.object(Checkpoints, "reached", _method(Dying(moment))):
        try:
            finish(running)
        except Killed:
            return True
    return False


def _method(dying: Dying) -> Any:
    def reached(checkpoints: Checkpoints, pause: FitPause, *, last: bool) -> None:
        assert not last
        dying(checkpoints, pause)

    return reached


@pytest.fixture(autouse=True)
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PAUSE_S", 0.0)


@pytest.mark.parametrize("name", one_of_each_kind(METHODS))
def test_a_run_that_dies_comes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    finish(run(experiment(name), whole))
    moment, deaths = 3, 0
    broken = tmp_path / "broken"
    running = run(experiment(name), broken, checkpoint_every=0.0)
    while die(running, moment):
        deaths += 1
        moment += 4  # later and later, so that every part of the run is reached
        running = resume(experiment(name), broken, checkpoint_every=0.0)
    assert deaths >= 2
    assert content(broken) == content(whole)
    assert names(broken) == names(whole)
    assert curve(broken) == curve(whole)
    lines = RunFolder(broken).read_events()
    assert (broken / PROGRESS).read_bytes() == as_csv(Curve().points(lines), tasks=2)


MORE: dict[str, dict[str, Any]] = {
    "statistics": {"architecture": "resnet18", "arguments": ("width=2",)},
    "random numbers": {
        "architecture": "vit-tiny",
        "arguments": ("width=12", "heads=3", "blocks=1", "patch=2", "dropout=0.2"),
    },
    "moves in the last fit": {"settle_epochs": 4, "settle_moves": 2},
    "a network that grows": {"hidden": (1, 1), "density": 1.0, "grow_when_full": 1.0},
}


@pytest.mark.parametrize("name", MORE)
def test_what_some_networks_have_comes_back_too(name: str, tmp_path: Path) -> None:
    given = {"settle_epochs": 1, **MORE[name]}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run(experiment("nispa", **given), whole))
    running, moment, deaths = run(experiment("nispa", **given), broken, checkpoint_every=0.0), 5, 0
    while die(running, moment):
        deaths, moment = deaths + 1, moment + 11
        running = resume(experiment("nispa", **given), broken, checkpoint_every=0.0)
    assert deaths >= 2
    assert content(broken) == content(whole)
    assert curve(broken) == curve(whole)
    grew = ["before task 2 of 2 layers became wider" in note for note in read_record(whole).notes]
    assert any(grew) == ("grow_when_full" in given)


def test_what_was_saved_is_not_learned_again(tmp_path: Path) -> None:
    assert die(run(experiment("nispa"), tmp_path / "run", checkpoint_every=0.0), 17)
    steps: list[int] = []
    counted = training.batch_of

    def counting(*args: Any) -> Any:
        steps.append(1)
        return counted(*args)

    with patch.object(training, "batch_of", counting):
        finish(resume(experiment("nispa"), tmp_path / "run"))
        resumed = len(steps)
        finish(run(experiment("nispa"), tmp_path / "other"))
    # A phase is two epochs of three batches; each batch and each epoch is a place to pause. So 17
    # places are two phases and one batch.
    assert (len(steps) - resumed) - resumed == 2 * 2 * 3 + 1


def test_damaged_checkpoints_cost_time_alone(tmp_path: Path) -> None:
    finish(run(experiment("ewc"), tmp_path / "whole"))
    broken = tmp_path / "broken"
    assert die(run(experiment("ewc"), broken, checkpoint_every=0.0), 9)
    for path in (broken / FOLDER).iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (broken / ".nispa-0123456789abcdef.part").write_bytes(b"half of a fi")
    record = finish(resume(experiment("ewc"), broken))
    assert record == read_record(broken)
    assert record.status == "complete"
    assert content(broken) == content(tmp_path / "whole")
    assert names(broken) == names(tmp_path / "whole")


@pytest.mark.parametrize("counted", [True, False])
def test_dying_between_network_and_record(tmp_path: Path, counted: bool) -> None:
    """The record decides whether the task counts that a newer network has learned."""
    finish(run(experiment("finetune"), tmp_path / "whole"))
    broken = tmp_path / "broken"
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if path.name == NEWER_NETWORK:
            raise Killed
        return replace(path, target)

    with patch.object(Path, "replace", dying), pytest.raises(Killed):
        finish(run(experiment("finetune"), broken))
    if not counted:  # as if it had died before the record was written
        record = read_record(broken)
        earlier = record.model_copy(
            update={"per_task": (), "accuracy_matrix": (), "accuracy_matrix_task_agnostic": ()}
        )
        RunFolder(broken).write_record(earlier)
    finish(resume(experiment("finetune"), broken))
    assert content(broken) == content(tmp_path / "whole")


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    finish(run(experiment("finetune"), tmp_path / "done"))
    with pytest.raises(InputError, match="is complete: nothing is left to resume"):
        next(resume(experiment("finetune"), tmp_path / "done"))
    assert die(run(experiment("finetune"), tmp_path / "half", checkpoint_every=0.0), 5)
    with pytest.raises(InputError, match="was begun with another config"):
        next(resume(experiment("finetune", epochs=2), tmp_path / "half"))
    with pytest.raises(InputError, match="was begun with another method"):
        next(resume(experiment("ewc"), tmp_path / "half"))
    with pytest.raises((InputError, OutputError)):
        next(resume(experiment("finetune"), tmp_path / "nothing"))


def test_what_was_begun_by_another_version_says_which(tmp_path: Path) -> None:
    assert die(run(experiment("finetune"), tmp_path / "run", checkpoint_every=0.0), 2)
    earlier = read_record(tmp_path / "run").model_copy(update={"version": "0.0.9"})
    RunFolder(tmp_path / "run").write_record(earlier)
    with pytest.raises(InputError, match=r"begun with another version \(0\.0\.9, now \d"):
        next(resume(experiment("finetune"), tmp_path / "run"))


@pytest.mark.parametrize("stopped", [TaskStart, TaskEnd])
def test_a_run_that_other_code_began_says_so_once(stopped: type, tmp_path: Path) -> None:
    """In its first task, and after it."""
    for name, code in (("other", "0" * 64), ("same", None)):
        running = run(experiment("finetune"), tmp_path / name)
        assert any(isinstance(event, stopped) for event in running)
        running.close()
        begun = read_record(tmp_path / name)
        assert bool(begun.per_task) == (stopped is TaskEnd)
        if code:
            RunFolder(tmp_path / name).write_record(begun.model_copy(update={"code": code}))
        events = list(resume(experiment("finetune"), tmp_path / name))
        told = [event.text for event in events if isinstance(event, Notice)]
        assert told.count(OTHER_CODE) == (name == "other")
        assert read_record(tmp_path / name).notes.count(OTHER_CODE) == (name == "other")


def test_a_run_from_before_a_setting_came_is_resumed_as_it_was(tmp_path: Path) -> None:
    plain = experiment("finetune")
    network = replace(plain.settings.network, pool_to=UNPOOLED)
    plain = replace(plain, settings=replace(plain.settings, network=network))
    assert die(run(plain, tmp_path / "run", checkpoint_every=0.0), 2)
    record = read_record(tmp_path / "run")
    config: Any = copy.deepcopy(record.config)
    del config["network"]["pool_to"]
    earlier = record.model_copy(update={"config": config})
    RunFolder(tmp_path / "run").write_record(earlier)
    assert settings_of("finetune", "default", *config.values()) == plain.settings
    with pytest.raises(InputError, match="begun with another config"):
        next(resume(experiment("finetune"), tmp_path / "run"))
    assert finish(resume(plain, tmp_path / "run")).status == "complete"


def test_a_record_that_was_changed_is_not_resumed(tmp_path: Path) -> None:
    assert die(run(experiment("finetune"), tmp_path / "run", checkpoint_every=0.0), 2)
    path = tmp_path / "run" / RECORD
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(FormatError, match="does not match its checksum"):
        next(resume(experiment("finetune"), tmp_path / "run"))
    path.write_text(json.dumps(json.loads(content)))
    with pytest.raises(FormatError, match="has no checksum"):
        next(resume(experiment("finetune"), tmp_path / "run"))


def test_the_network_of_another_run_is_not_taken(tmp_path: Path) -> None:
    for name, seed in (("run", 0), ("other", 1)):
        running = run(replace(experiment("finetune"), seed=seed), tmp_path / name)
        while not isinstance(next(running), TaskEnd):
            pass
        running.close()
    shutil.copy(tmp_path / "other" / NETWORK, tmp_path / "run" / NETWORK)
    with pytest.raises(FormatError, match="is of another run; put back"):
        next(resume(experiment("finetune"), tmp_path / "run"))
    (tmp_path / "run" / NETWORK).unlink()
    with pytest.raises(FormatError, match="cannot be resumed without it: start a new run"):
        next(resume(experiment("finetune"), tmp_path / "run"))


def test_a_checkpoint_that_does_not_fit_names_its_folder(tmp_path: Path) -> None:
    assert die(run(experiment("finetune"), tmp_path / "run", checkpoint_every=0.0), 2)
    for path in (tmp_path / "run" / FOLDER).iterdir():
        tensors, header = tensorfile.read(path, FORMAT, "checkpoint")
        header["values"]["ends"] = 7
        path.write_bytes(tensorfile.encode(FORMAT, header, tensors))
    with pytest.raises(FormatError, match=r"checkpoint: the saved state .* delete this folder"):
        finish(resume(experiment("finetune"), tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / FOLDER)
    finish(resume(experiment("finetune"), tmp_path / "run"))


NONSENSE: list[Callable[[dict[str, Any]], None]] = [
    lambda values: values.update(ends=[], epoch=1),
    lambda values: values.update(ends={}),
    lambda values: values.update(best=None),
    lambda values: values.update(best=0.99),
    lambda values: values.update(epoch=1),
    lambda values: values.update(seconds=10**400),
    lambda values: values["ends"][0].update(samples="x"),
    lambda values: values["ends"][0].update(samples=2**63),
    lambda values: values["ends"][0].update(epoch=2),
    lambda values: values["ends"][0].update(validation_accuracy=[]),
    lambda values: values["ends"].pop(),
]


def test_a_strangers_checkpoint_of_nonsense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right: whoever makes it can make that, too."""
    assert die(run(experiment("nispa", keep="best"), tmp_path / "begun", checkpoint_every=0.0), 8)
    name = sorted(path.name for path in (tmp_path / "begun" / FOLDER).iterdir())[0]
    for number, change in enumerate(NONSENSE):
        folder = Path(shutil.copytree(tmp_path / "begun", tmp_path / f"{number}"))
        tensors, header = tensorfile.read(folder / FOLDER / name, FORMAT, "checkpoint")
        assert header["values"]["over"]
        change(header["values"])
        header["sha256"] = tensorfile.digest(header, tensors)
        content = safetensors.torch.save(tensors, {"nispa": json.dumps(header)})
        (folder / FOLDER / name).write_bytes(content)
        with pytest.raises(FormatError, match="the saved state of training does not fit"):
            finish(resume(experiment("nispa", keep="best"), folder))


# Processes that are killed.

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from nispa.training import fit as training
from nispa.runs.record import RECORD, read_record
from nispa.runs.runner import resume, run
from tests.runs.test_resume import experiment, finish
training.PAUSE_S = 0.0
folder, kind, network = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
what = experiment(kind, architecture=network, channels=(4, 6), fc=(8,))
begun = (folder / RECORD).exists()
print("ready", flush=True)
if begun and read_record(folder).status == "complete":
    sys.exit()  # it was killed on its way out
finish((resume if begun else run)(what, folder, checkpoint_every=0.0))
"""
KILLED = [
    ("nispa", "mlp"),
    ("nispa", "convnet"),
    ("ewc", "mlp"),
    ("ewc", "convnet"),
    ("er", "mlp"),
    ("nispa-replay", "convnet"),
]


def killed(folder: Path, method: str, network: str, after: float) -> bool:
    """Runs or resumes in a process that is killed after some seconds; whether it was."""
    command = [sys.executable, "-c", SCRIPT, str(folder), method, network]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    assert process.returncode == 0
    return False


def killed_until_done(folder: Path, method: str, network: str, longest: float, kills: int) -> int:
    """Kills a run again and again at random moments; how often it took."""
    random, done = np.random.default_rng(len(method) + 100 * len(network)), 0
    while done < kills and killed(folder, method, network, float(random.uniform(0, longest))):
        done += 1
    killed(folder, method, network, 600)
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("method", "network"), KILLED)
def test_killed_at_random_moments(method: str, network: str, tmp_path: Path) -> None:
    """SIGKILL, in writing, in rewiring and between tasks: the same bytes as an undisturbed run."""
    began = time.perf_counter()
    killed(tmp_path / "whole", method, network, 600)
    took = time.perf_counter() - began
    wanted = content(tmp_path / "whole")
    total = 0
    while total < 200 / len(KILLED):
        folder = tmp_path / f"run{total}"
        total += max(1, killed_until_done(folder, method, network, took / 4, kills=12))
        assert content(folder) == wanted
        assert names(folder) == names(tmp_path / "whole")
