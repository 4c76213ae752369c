"""Bad input: exit code 2, one line that names the value and the fix, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli_calls import SMALL, call, write_npz
from tests.data.makers import idx_bytes, image_bytes, labels, pixels, write_mnist

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no data folder from outside."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    return home


@pytest.fixture
def refused(capsys: Capture, home: Path) -> Callable[..., None]:
    """Calls ``nispa``: it must refuse, say the words, and leave the folder as it is."""

    def check(*args: str | Path, says: tuple[str, ...]) -> None:
        before = sorted(home.rglob("*"))
        ended = call(capsys, *args)
        assert ended.code == 2, ended
        assert ended.err.startswith("nispa: error: ")
        assert ended.err.endswith("\n")
        assert ended.err.count("\n") == 1
        for words in says:
            assert words in ended.err
        assert sorted(home.rglob("*")) == before

    return check


Refused = Callable[..., None]

USAGE = [
    (["rnu"], ("unknown command 'rnu'", "did you mean 'run'?")),
    (["--bogus"], ("'--bogus'", "nispa --help")),
    (["run"], ("SCENARIO", "nispa run --help")),
    (["run", "split-digits", "more"], ("more", "nispa run --help")),
    (["run", "split-digits", "--sed", "3"], ("'--sed'", "did you mean '--seed'?")),
    (["run", "split-digits", "--seed"], ("--seed", "requires an argument", "--help")),
    (["run", "split-digits", "--seed", "abc"], ("--seed=abc", "[0, 2^63)", "0 is usual")),
    (["run", "split-digits", "--seed", "-1"], ("--seed=-1", "[0, 2^63)")),
    (["run", "split-digits", "--seed", str(2**70)], (f"--seed={2**70}", "[0, 2^63)")),
    (["run", "split-digits", "--seed", str(2**63)], (f"--seed={2**63}", "[0, 2^63)")),
    (["run", "split-digits", "--seed", "1.5"], ("--seed=1.5", "whole number")),
    (["run", "split-digits", "--threads", "0"], ("--threads=0", "[1, 1024]", "leave it out")),
    (["run", "split-digits", "--out", ""], ("--out", "is empty")),
    (["run", "split", "--dataset", ""], ("dataset=''", "is empty")),
    (["run", "split-digits", "--tasks", "[]"], ("tasks=[]", "at least one task")),
    (["list"], ("scenarios", "nispa list --help")),
    (["list", "preset"], ("'preset'", "did you mean 'presets'?")),
    (["list", "settings", "--method", "nipsa"], ("'nipsa'", "did you mean 'nispa'?")),
    (["list", "presets", "--method", "nispa"], ("--method=nispa", "leave it out")),
    (["show"], ("RUN", "nispa show --help")),
    (["show", "nowhere"], ("nowhere holds no record.json", "pass the folder of a run")),
    (["doctor", "--data", "nowhere"], ("nowhere does not exist", "check --data")),
]


def test_a_run_does_not_mix_with_its_images(refused: Refused, home: Path) -> None:
    for name in "ab":
        (home / "photos" / name).mkdir(parents=True)
        for number in range(4):
            content = image_bytes(pixels(1, 6, 6, seed=number)[0])
            (home / "photos" / name / f"{number}.png").write_bytes(content)
    for out in ("photos", "photos/new", "photos/../photos"):
        args = ["run", "split", "--dataset", "photos", "--out", out]
        refused(*args, says=("lies in the data set",))


@pytest.mark.parametrize(("args", "says"), USAGE, ids=[" ".join(args)[:40] for args, _ in USAGE])
def test_usage(refused: Refused, args: list[str], says: tuple[str, ...]) -> None:
    refused(*args, says=says)


NAMES = [
    (["run", "split-digts"], ("unknown scenario 'split-digts'", "did you mean 'split-digits'?")),
    (["run", "split-digits", "--method", "nipsa"], ("method 'nipsa'", "did you mean 'nispa'?")),
    (["run", "split-digits", "--preset", "papr"], ("preset 'papr'", "did you mean 'paper'?")),
    (["run", "split-digits", "--set", "densty=1"], ("'densty'", "did you mean 'density'?")),
    (["run", "split-digits", "--set", "patience=3"], ("'patience'", "finetune", "leave it out")),
    (["run", "split-digits", "--set", "validation=0.2"], ("pass --validation 0.2",)),
    (["run", "split-digits", "--share", "1"], ("--share is no option", "--classes-per-task")),
    (["run", "split", "--dataset", "mnits"], ("'mnits'", "did you mean 'mnist'?")),
    (["run", "split", "--dataset", "./no.npz"], ("no.npz does not exist", "give a file")),
    (["run", "split"], ("needs a data set", "NAME or PATH")),
]


@pytest.mark.parametrize(("args", "says"), NAMES, ids=[" ".join(args) for args, _ in NAMES])
def test_unknown_names(refused: Refused, args: list[str], says: tuple[str, ...]) -> None:
    refused(*args, says=says)


SETTINGS = [
    ("density=1.3", ("density=1.3", "(0, 1]", "for 90 % sparsity pass 0.1")),
    ("density=0", ("density=0 ", "(0, 1]")),
    ("density=nan", ("density=nan", "(0, 1]")),
    ("density=much", ("density=much", "a number")),
    ("lr=0", ("learning_rate=0 ", "(0, 100]", "0.01 is usual")),
    ("lr=inf", ("learning_rate=inf", "(0, 100]")),
    ("learning_rate=fast", ("learning_rate=fast", "a number")),
    ("k=-3", ("k=-3", "(0, inf)", "the default is 30")),
    ("k=many", ("k=many", "a number")),
    ("k=0.5", ("k=0.5 ends the cosine schedule at once", "pass a larger k")),
    ("e=0", ("epochs_per_phase=0", "[1, 1000000]", "the default is 5")),
    ("e=2.5", ("epochs_per_phase=2.5", "whole number")),
    ("schedule=cosin", ("'cosin'", "did you mean 'cosine'?")),
    ("hidden=20,x", ("hidden=20,x", "whole numbers")),
    ("hidden=20,0", ("hidden=20,0", "[1, 1000000]")),
    ("density", ("--set density must be KEY=VALUE", "--set density=0.1")),
    ("=3", ("--set =3 must be KEY=VALUE",)),
]


@pytest.mark.parametrize(("pair", "says"), SETTINGS, ids=[pair for pair, _ in SETTINGS])
def test_settings_out_of_range(refused: Refused, pair: str, says: tuple[str, ...]) -> None:
    refused("run", "split-digits", "--set", pair, says=says)


METHOD_SETTINGS = [
    ("er", ["--set", "memory=5"], ("memory=5", "at least 6", "larger memory, such as 120")),
    ("nispa-replay", ["--set", "memory=4"], ("memory=4", "one sample for each class")),
    ("er", ["--set", "memory_batch=0"], ("memory_batch=0", "[1, 10000000]")),
    ("er", ["--set", "alpha=3"], ("'alpha' is a setting of", "derpp", "leave it out")),
    ("ewc", ["--set", "lambda=-1"], ("strength=-1", "[0, inf)", "0: finetune")),
    ("nispa-replay", ["--set", "lambda=-1"], ("replay_weight=-1", "[0, inf)")),
    ("packnet", ["--set", "prune=1.5"], ("prune=1.5", "[0, 1)", "such as 0.5,0.75")),
    ("packnet", ["--incremental", "class"], ("'packnet' cannot learn", "class; it can with task")),
    ("icarl", ["--incremental", "domain"], ("'icarl' cannot learn", "it can with class")),
    ("er", ["--incremental", "domain"], ("task 2-3 has other classes", "--incremental class")),
]


@pytest.mark.parametrize(("method", "args", "says"), METHOD_SETTINGS)
def test_what_a_method_cannot_do(
    refused: Refused, method: str, args: list[str], says: tuple[str, ...]
) -> None:
    refused("run", "split-digits", "--method", method, *args, says=says)


def test_a_schedule_that_ends_at_once(refused: Refused) -> None:
    pairs = ["--set", "schedule=linear", "--set", "k=0.6"]
    refused("run", "split-digits", *pairs, says=("k=0.6", "linear", "pass a smaller k"))


def test_settings_given_twice(refused: Refused) -> None:
    refused("run", "split-digits", "--set=e=1", "--set=e=2", says=("e=1", "e=2", "keep one"))
    refused("run", "split-digits", "--set=e=1", "--set=epochs_per_phase=2", says=("keep one",))


def test_settings_are_checked_before_data_are_read(refused: Refused) -> None:
    refused("run", "split-mnist", "--data", "nowhere", "--set", "e=0", says=("epochs_per_phase=0",))
    refused("run", "split-mnist", "--data", "nowhere", "--device", "tpu", says=("device=tpu",))


OPTIONS = [
    (["--validation", "1.5"], ("validation=1.5", "[0, 1)")),
    (["--validation", "0"], ("no validation images", "such as 0.1")),
    (["--classes-per-task", "1"], ("classes_per_task=1", "[2, inf)")),
    (["--classes-per-task", "9"], ("classes_per_task=9", "a last task of one class")),
    (["--classes-per-task", "two"], ("classes_per_task=two", "whole number")),
    (["--class-order", "random"], ("'random'", "natural, seeded")),
    (["--tasks", "0,1"], ("tasks=0,1", "such as [[0,1],[2,3,4]]")),
    (["--tasks", "[[0,1],[2]]"], ("task 1 has 1 class", "at least 2")),
    (["--tasks", "[[0,1],[]]"], ("task 1 has 0 classes", "at least 2")),
    (["--tasks", "[]"], ("at least one task",)),
    (["--tasks", "[[0,1],[2,33]]"], ("class 33 is unknown", "0 to 9")),
    (["--tasks", "[[0,1],[1,2]]"], ("class 1 is in task 0 and in task 1",)),
]


@pytest.mark.parametrize(("args", "says"), OPTIONS, ids=[" ".join(args) for args, _ in OPTIONS])
def test_tasks_that_cannot_be_built(
    refused: Refused, args: list[str], says: tuple[str, ...]
) -> None:
    refused("run", "split-digits", *args, says=says)


def test_a_task_without_samples(refused: Refused, home: Path) -> None:
    images = pixels(60, 4, 4)
    train, test = np.arange(40) % 4, np.arange(10) % 2  # no test images of classes 2 and 3
    np.savez(home / "own.npz", x_train=images[:40], y_train=train, x_test=images[:10], y_test=test)
    refused("run", "split", "--dataset", "own.npz", says=("task 1 (2-3) has no test images",))


def test_labels_in_a_file_that_are_no_whole_numbers(home: Path, refused: Refused) -> None:
    labels = np.arange(40) % 4
    np.savez(home / "own.npz", x_train=np.zeros((40, 3), np.float32), y_train=labels * 1.0)
    refused("run", "split", "--dataset", "own.npz", says=("y_train", "save labels.astype(int)"))


# Data folders


def test_missing_data_folder(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("run", "split-mnist", "--data", "nowhere", says=("nowhere does not exist", "--data"))
    monkeypatch.setenv("NISPA_DATA", "nowhere")
    refused("run", "split-mnist", says=("NISPA_DATA=nowhere is not a folder", "pass --data DIR"))


def test_empty_data_folder(refused: Refused, home: Path) -> None:
    (home / "empty").mkdir()
    says = ("mnist: not found in empty", "train-images-idx3-ubyte.gz", "pass --data DIR")
    refused("run", "split-mnist", "--data", "empty", "--no-download", says=says)
    refused("run", "split", "--dataset", "./empty", says=("empty",))


def test_unreadable_data_folder(
    refused: Refused, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(home / "mnist")
    deny(monkeypatch, Path("mnist"), os.R_OK)
    refused("run", "split-mnist", "--data", "mnist", says=("mnist cannot be read", "permissions"))


def deny(monkeypatch: pytest.MonkeyPatch, path: Path, what: int) -> None:
    """Takes a permission away as the system sees it, which works where tests run as root, too."""
    allowed = os.access

    def access(asked: Path, mode: int) -> bool:
        return not (Path(asked) == path and mode & what) and allowed(asked, mode)

    monkeypatch.setattr(os, "access", access)


def test_truncated_idx(refused: Refused, home: Path) -> None:
    folder = write_mnist(home / "mnist", end="")
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    refused("run", "split-mnist", "--data", "mnist", says=("train-images-idx3-ubyte",))


def test_wrong_magic(refused: Refused, home: Path) -> None:
    folder = write_mnist(home / "mnist", end="")
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(b"\x01" + file.read_bytes()[1:])
    refused("run", "split-mnist", "--data", "mnist", says=("t10k-images-idx3-ubyte",))


def test_labels_and_images_of_different_length(refused: Refused, home: Path) -> None:
    folder = write_mnist(home / "mnist", end="")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels(19, 10)))
    refused("run", "split-mnist", "--data", "mnist", says=("20", "19"))


def test_a_label_outside_its_classes(refused: Refused, home: Path) -> None:
    folder = write_mnist(home / "mnist", end="")
    wrong = labels(20, 10)
    wrong[7] = 12
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(wrong))
    refused("run", "split-mnist", "--data", "mnist", says=("label 12 of image 7", "0 to 9"))


def image_folder(home: Path, *, side: int = 6) -> Path:
    """Two classes of three images, of which one has another size unless ``side`` is 6."""
    for name in ("cat", "dog"):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(3):
            size = side if (name, number) == ("dog", 2) else 6
            image = image_bytes(pixels(1, size, size)[0])
            (home / "photos" / name / f"{number}.png").write_bytes(image)
    return home / "photos"


def test_a_corrupt_image(refused: Refused, home: Path) -> None:
    file = image_folder(home) / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    refused("run", "split", "--dataset", "photos/", says=("dog/1.png",))


def test_images_of_another_shape(refused: Refused, home: Path) -> None:
    image_folder(home, side=7)
    refused("run", "split", "--dataset", "photos/", says=("dog/2.png", "7", "6"))


def test_images_too_small_for_the_network(refused: Refused, home: Path) -> None:
    write_npz(home / "tiny.npz")
    pairs = ["--set", "architecture=convnet", "--set", "pool_every=1"]
    refused("run", "split", "--dataset", "tiny.npz", *pairs, says=("4x4", "pool_every"))


# The output folder and the device


def test_an_output_folder_with_a_run_in_it(refused: Refused, home: Path, capsys: Capture) -> None:
    write_npz(home / "tiny.npz")
    args = ["run", "split", "--dataset", "tiny.npz", "--out", "here", *SMALL]
    assert call(capsys, *args).code == 0
    before = {path: path.read_bytes() for path in (home / "here").iterdir()}
    refused(*args, says=("here already holds a run", "choose another output folder"))
    assert {path: path.read_bytes() for path in (home / "here").iterdir()} == before


def test_an_output_folder_that_is_a_file(refused: Refused, home: Path) -> None:
    (home / "here").write_text("mine")
    refused("run", "split-digits", "--out", "here", says=("here is not a folder", "choose another"))
    refused("run", "split-digits", "--out", "here/deep", says=("here", "choose another"))


def test_an_output_folder_that_is_not_writable(
    refused: Refused, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "locked").mkdir()
    deny(monkeypatch, Path("locked"), os.W_OK)
    says = ("locked cannot be written to", "choose an output folder")
    refused("run", "split-digits", "--out", "locked/new", says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_cuda_device_that_is_not_there(refused: Refused) -> None:
    refused("run", "split-digits", "--device", "cuda", says=("device=cuda", "pass --device cpu"))


def test_an_unknown_device(refused: Refused) -> None:
    refused("run", "split-digits", "--device", "tpu", says=("device=tpu", "cpu, cuda or cuda:"))


def test_a_damaged_record(refused: Refused, home: Path) -> None:
    (home / "old").mkdir()
    (home / "old" / "record.json").write_text('{"schema": "nispa-record/1", ')
    refused("show", "old", says=("old/record.json is damaged",))
