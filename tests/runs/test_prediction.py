"""Images of one's own, predicted on the command line by the network of a run."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nispa.learner import Learner
from nispa.runs.folder import RunFolder
from nispa.runs.prediction import Predictor
from nispa.runs.record import read_record
from tests.cli_calls import Ended, call

Capture = pytest.CaptureFixture[str]
Ask = Callable[..., Ended]
ANIMALS = ("bird", "cat", "dog", "fish")


def picture(animal: int, seed: int = 0) -> NDArray[np.uint8]:
    """An animal is bright in two rows of its own."""
    image = np.random.default_rng([animal, seed]).integers(0, 60, (8, 8)).astype(np.uint8)
    image[2 * animal : 2 * animal + 2] += 190
    return image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of animals in folders, more of them to ask about, and runs that learned them."""
    home = tmp_path_factory.mktemp("home")
    for number, animal in enumerate(ANIMALS):
        for folder, count in (("photos", 40), ("new", 3)):
            (home / folder / animal).mkdir(parents=True)
            for seed in range(count):
                image = Image.fromarray(picture(number, seed + 1000 * (folder == "new")))
                image.save(home / folder / animal / f"{seed}.png")
    return home


@pytest.fixture(scope="module")
def learned(home: Path) -> dict[str, Path]:
    """A run that was told the task, and one that was not."""
    from nispa.cli import cli

    runs = {}
    for name, method in (("told", "finetune"), ("untold", "er")):
        runs[name] = home / name
        args = ["run", "split", "--dataset", str(home / "photos"), "--method", method, "--quiet"]
        args += ["--set", "hidden=24", "--set", "epochs=30", "--set", "learning_rate=0.01"]
        with pytest.raises(SystemExit) as ended:
            cli.main([*args, "--normalise", "--out", str(runs[name])], prog_name="nispa")
        assert ended.value.code == 0
    return runs


@pytest.fixture
def ask(capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.chdir(home)
    return lambda *args: call(capsys, "predict", *args)


def answers(ended: Ended) -> dict[str, str]:
    assert ended.code == 0, ended.err
    return {line.split()[0]: line.split()[1] for line in ended.out.splitlines()}


def test_classes_are_called_by_their_names(learned: dict[str, Path], ask: Ask) -> None:
    found = answers(ask("untold", "new"))
    assert len(found) == 12
    right = [Path(name).parent.name == answer for name, answer in found.items()]
    assert sum(right) >= 10
    told = answers(ask("told", "new/dog", "new/fish/1.png", "--task", "2"))
    assert list(told) == [*(f"new/dog/{n}.png" for n in range(3)), "new/fish/1.png"]
    assert [Path(name).parent.name for name in told] == list(told.values())


def test_the_same_images_give_what_the_record_says(learned: dict[str, Path], home: Path) -> None:
    """Prepared as in the run, mean and deviation included: all test images of it are right."""
    made = read_record(learned["told"])
    assert made.inputs[0].mean is not None
    assert made.class_names == ANIMALS
    predictor = Predictor(learned["told"])
    for task, names in ((1, ANIMALS[:2]), (2, ANIMALS[2:])):
        found = predictor.predict([home / "photos" / name for name in names], task)
        right = [Path(each.name).parent.name == each.classes[0] for each in found]
        accuracy = made.accuracy_matrix[-1][task - 1]
        assert accuracy is not None
        assert np.mean(right) == pytest.approx(accuracy, abs=0.15)


def test_several_classes_and_a_table(learned: dict[str, Path], ask: Ask) -> None:
    ended = ask("untold", "new/cat", "--top", "9", "--csv")
    rows = list(csv.reader(io.StringIO(ended.out)))
    assert rows[0][:3] == ["image", "class_1", "share_1"]
    assert len(rows) == 4
    for row in rows[1:]:
        assert set(row[1::2]) == set(ANIMALS)
        shares = [float(share) for share in row[2::2]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert ask("untold", "new/cat/0.png", "--csv").out.startswith("image,class,share\n")


def test_arrays_are_taken_as_well(learned: dict[str, Path], home: Path, ask: Ask) -> None:
    images = np.stack([picture(number, 7) for number in (3, 2)])
    np.savez(home / "some.npz", images=images)
    np.save(home / "flat.npy", images.reshape(2, 64) / np.float32(255))
    for name in ("some.npz", "flat.npy"):
        found = answers(ask("told", name, "--task", "2"))
        assert found == {f"{name}[0]": "fish", f"{name}[1]": "dog"}


def test_colour_that_is_grey_is_taken(learned: dict[str, Path], home: Path, ask: Ask) -> None:
    Image.fromarray(picture(3)).convert("RGB").save(home / "rgb.png")
    assert answers(ask("told", "rgb.png", "--task", "2")) == {"rgb.png": "fish"}


def test_what_cannot_be_predicted_is_one_line(
    learned: dict[str, Path], home: Path, ask: Ask
) -> None:
    Image.new("L", (9, 7)).save(home / "large.png")
    Image.new("RGB", (8, 8), "red").save(home / "red.png")
    (home / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (home / "broken.npz").write_bytes(b"PK\x05\x06")
    np.savez(home / "other.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez(home / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    (home / "nothing").mkdir(exist_ok=True)
    bad = [
        (["told"], "no images given"),
        (["told", "new"], "pass --task N, learned are 1 (bird, cat), 2 (dog, fish)"),
        (["told", "new", "--task", "3"], "--task=3 is no learned task"),
        (["told", "new", "--task", "0"], "--task=0"),
        (["told", "missing.png", "--task", "1"], "missing.png does not exist"),
        (["told", "large.png", "--task", "1"], "9×7 pixels, but the network learned images of 8×8"),
        (["told", "red.png", "--task", "1"], "it is in colour"),
        (["told", "broken.png", "--task", "1"], "not a readable image"),
        (["told", "broken.npz", "--task", "1"], "broken.npz"),
        (["told", "other.npz", "--task", "1"], "the images must be called"),
        (["told", "objects.npz", "--task", "1"], "objects.npz"),
        (["told", "nothing", "--task", "1"], "holds no image file"),
        (["told", "told/record.json", "--task", "1"], "not a readable image"),
        (["elsewhere", "new"], "holds no record.json"),
        (["untold", "new", "--top", "0"], "--top=0"),
    ]
    for args, says in bad:
        ended = ask(*args)
        assert ended.code == 2, (args, ended)
        assert ended.out == ""
        assert ended.err.startswith("nispa: error: ")
        assert ended.err.count("\n") == 1
        assert says in ended.err, (args, ended.err)


def test_a_run_of_an_older_version_predicts_as_far_as_it_can(
    learned: dict[str, Path], tmp_path: Path, ask: Ask
) -> None:
    """It kept neither names nor the mean: classes are numbers, and a mean is asked for."""
    made = read_record(learned["untold"])
    assert json.loads(made.model_dump_json())["class_names"]
    old = tmp_path / "old"
    RunFolder.create(old, made.model_copy(update={"class_names": (), "inputs": ()}))
    (old / "network.safetensors").write_bytes(
        (learned["untold"] / "network.safetensors").read_bytes()
    )
    ended = ask(old, "new")
    assert ended.code == 2
    assert "start a new run" in ended.err
    settings = {"options": {"dataset": "x"}, "scenario": "split", "resolved": {"normalise": False}}
    plain = made.scenario.model_copy(update={"settings": settings})
    RunFolder(old).write_record(
        made.model_copy(update={"class_names": (), "inputs": (), "scenario": plain})
    )
    assert set(answers(ask(old, "new")).values()) <= set(ANIMALS)  # the network file has them


def test_a_run_that_varied_its_images_as_a_scenario_still_predicts(
    learned: dict[str, Path], tmp_path: Path, ask: Ask
) -> None:
    """As scenarios once did."""
    before = answers(ask("untold", "new"))
    shutil.copytree(learned["untold"], tmp_path / "older")
    record = read_record(learned["untold"])
    call_ = record.scenario.settings
    options = {**call_["options"], "augment": "shift:1"}  # type: ignore[dict-item]
    scenario = record.scenario.model_copy(update={"settings": {**call_, "options": options}})
    RunFolder(tmp_path / "older").write_record(record.model_copy(update={"scenario": scenario}))
    assert answers(ask(str(tmp_path / "older"), "new")) == before


def test_pixels_are_permuted_as_in_the_task(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.stack([picture(n % 4, n) for n in range(160)])
    np.savez("own.npz", x=images, y=np.arange(160) % 4)
    args = ["permuted-mnist", "--dataset", "own.npz", "--tasks", "2", "--method", "joint"]
    args += ["--set", "hidden=24", "--set", "epochs=30", "--out", "run", "--quiet"]
    assert call(capsys, "run", *args).code == 0
    np.save("four.npy", np.stack([picture(n, 5000) for n in range(4)]))
    for task in ("1", "2"):
        ended = call(capsys, "predict", "run", "four.npy", "--task", task)
        assert [line.split()[1] for line in ended.out.splitlines()] == ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def learner(home: Path) -> Path:
    """A file of a learner that was taught the animals two by two."""
    made = Learner("finetune", input_shape=(1, 8, 8), classes=4, hidden=(24,), epochs=30, lr=0.01)
    for animals in ((0, 1), (2, 3)):
        images = np.stack([picture(animal, seed) for animal in animals for seed in range(40)])
        made.learn(images, [ANIMALS[animal] for animal in animals for _ in range(40)])
    made.save(home / "learner.safetensors")
    return home / "learner.safetensors"


def test_a_learner_s_file_predicts_as_it_does(home: Path, learner: Path, capsys: Capture) -> None:
    ended = call(capsys, "predict", learner, home / "new" / "dog", "--task=2", "--top=2", "--csv")
    assert ended.code == 0
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    loaded = Learner.load(learner)
    wanted = loaded.predict_proba(np.stack([picture(2, seed + 1000) for seed in range(3)]), 1)
    assert [row["class_1"] for row in rows] == ["dog"] * 3
    for row, shares in zip(rows, wanted, strict=True):
        assert float(row["share_1"]) == pytest.approx(shares.max(), abs=1e-6)
    refused = call(capsys, "predict", learner, home / "new")
    assert refused.code == 2
    assert "--task N, from 1 to 2" in refused.err
    refused = call(capsys, "predict", learner, home / "new", "--task=3")
    assert "--task=3 is no learned task" in refused.err


def test_files_are_named_by_a_pattern_or_on_standard_input(
    home: Path, learner: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = call(capsys, "predict", learner, home / "new" / "do*" / "*.png", "--task=2")
    files = sorted(str(path) for path in (home / "new" / "dog").iterdir())
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files) + "\n"))
    named = call(capsys, "predict", learner, "-", "--task=2")
    assert pattern.code == named.code == 0
    assert pattern.out == named.out
    assert len(named.out.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    empty = call(capsys, "predict", learner, "-", "--task=2", "--csv")
    assert (empty.code, "names no file" in empty.err) == (2, True)
    nothing = call(capsys, "predict", learner, home / "new" / "x*.png", "--task=2")
    assert nothing.code == 2
    assert "no file is named like" in nothing.err
