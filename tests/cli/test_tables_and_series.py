"""Tables and series on the command line: learned, shown, reported, resumed and predicted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from nispa.runs.record import read_record
from nispa.runs.runner import TaskEnd
from tests.cli_calls import call

Capture = pytest.CaptureFixture[str]
NAMES = ("=ape", "bee", "cat", "dog")
QUICK = ["--method", "er", "--seed", "1"]
QUICK += [f"--set={pair}" for pair in ("hidden=16", "density=0.7", "epochs=15", "batch_size=16")]


def rows(seed: int, each: int = 30) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Four classes that columns of unlike scales tell apart."""
    labels = np.tile(np.arange(4), each)
    made = np.random.default_rng(seed).normal(0, 1, (len(labels), 5))
    made[:, 0] += 6 * (labels % 2)
    made[:, 1] += 6 * (labels // 2)
    return made * [0.01, 900, 1, 20_000, 5], np.array(NAMES)[labels]


def write_csv(path: Path, seed: int, *, labels: bool = True) -> Path:
    values, names = rows(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "c", "d", "e", *(["species"] if labels else [])])
        for row, name in zip(values, names, strict=True):
            table.writerow([*row, *([name] if labels else [])])
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a run that learned it standardised."""
    from nispa.cli import cli

    folder = tmp_path_factory.mktemp("home")
    write_csv(folder / "mine.csv", 0)
    args = ["run", "split", "--dataset", str(folder / "mine.csv"), "--label", "species"]
    args += ["--standardise", "--out", str(folder / "run"), "--quiet", *QUICK]
    with pytest.raises(SystemExit) as ended:
        cli.main(args, prog_name="nispa")
    assert ended.value.code == 0
    return folder


def test_a_table_is_learned_shown_and_reported(home: Path, tmp_path: Path, capsys: Capture) -> None:
    record = read_record(home / "run")
    assert (record.input_shape, record.class_names) == ((5,), NAMES)
    assert record.columns == tuple("abcde")
    assert record.inputs[0].mean is not None
    assert len(record.inputs[0].mean) == 5
    assert record.metrics["acc"].value is not None
    assert record.metrics["acc"].value > 0.8
    shown = call(capsys, "show", home / "run")
    assert shown.code == 0
    assert "rows of 5 features" in shown.out
    assert call(capsys, "report", home / "run", "--out", tmp_path / "page.html").code == 0
    assert "bee" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", ["with labels", "without", ".parquet", ".npy", ".npz"])
def test_rows_of_every_kind_are_predicted(
    kind: str, home: Path, tmp_path: Path, capsys: Capture
) -> None:
    values, names = rows(7)
    path = tmp_path / f"new{kind if kind.startswith('.') else '.csv'}"
    if kind == ".parquet":
        columns = {name: values[:, n] for n, name in enumerate("abcde")}
        turned = dict(reversed(columns.items())) | {"extra": np.zeros(len(values))}
        pq.write_table(pa.table(turned), path)  # the names decide, not the order
    elif kind == ".npy":
        np.save(path, values)
    elif kind == ".npz":
        np.savez(path, x=values)
    else:
        write_csv(path, 7, labels=kind == "with labels")
    ended = call(capsys, "predict", home / "run", path, "--csv")
    assert ended.code == 0, ended.err
    found = list(csv.reader(io.StringIO(ended.out)))[1:]
    assert [row[0] for row in found] == [f"{path}[{n}]" for n in range(len(values))]
    cells = [f"'{name}" if name.startswith("=") else name for name in names]
    right = np.mean([row[1] == cell for row, cell in zip(found, cells, strict=True)])
    assert right > 0.6


def test_what_is_no_row_is_one_line(home: Path, tmp_path: Path, capsys: Capture) -> None:
    from PIL import Image

    Image.new("L", (5, 1)).save(tmp_path / "a.png")
    np.save(tmp_path / "six.npy", np.zeros((3, 6)))
    np.save(tmp_path / "images.npy", np.zeros((3, 2, 5)))
    (tmp_path / "text.csv").write_text("a,b,c,d,e\n1,2,3,4,red\n2,2,3,4,blue\n")
    (tmp_path / "few.csv").write_text("a,b,species\n1,2,bee\n2,2,bee\n")
    for name, says in (
        ("a.png", "the network learned rows of 5 features, not images"),
        ("six.npy", "rows of 6 features, but the network learned rows of 5 features"),
        ("images.npy", "images of 2x5 pixels, but the network learned rows of 5 features"),
        ("text.csv", "column e holds 'red' where a feature is a number"),
        ("few.csv", "has no column c, d, e, as the training table has"),
    ):
        ended = call(capsys, "predict", home / "run", tmp_path / name)
        assert (ended.code, ended.out) == (2, ""), name
        assert says in ended.err
        assert ended.err.count("\n") == 1


def test_a_convnet_and_changes_of_images_are_refused(home: Path, capsys: Capture) -> None:
    table: list[str | Path] = ["run", "split", "--dataset", home / "mine.csv"]
    table += ["--label", "species"]
    for more, says in (
        (["--set", "architecture=convnet"], "a ConvNet reads images, not rows of 5 features"),
        (["--resize", "8"], "leave out --resize"),
        (["--grey", "--crop"], "leave out --crop and --grey"),
        (["--augment", "flip"], "augment must be off for rows of 5 features"),
        (["--normalise", "--standardise"], "normalise and standardise contradict each other"),
    ):
        ended = call(capsys, *table, *more, "--out", home / "never")
        assert ended.code == 2, (more, ended)
        assert says in ended.err
        assert ended.err.count("\n") == 1
    assert not (home / "never").exists()


def test_what_is_known_of_the_data_is_said_at_the_start(
    home: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--set=hidden=8", "--set=epochs=1", "--set=density=0.9", "--method=finetune"]
    table: list[str | Path] = ["--dataset", home / "mine.csv", "--label", "species"]
    out = call(capsys, "run", "split", *table, *quick, "--out", "run").out
    before, _, after = out.partition("task 1/2")
    assert after
    for note in ("a fifth of each class was held out by seed 0", "pass --standardise, or scale"):
        assert note in before, out
    assert "pass --standardise" in "\n".join(read_record(tmp_path / "run").notes)
    out = call(capsys, "run", "split", *table, *quick, "--standardise", "--out", "other").out
    assert "pass --standardise" not in out


def test_series_are_learned_resumed_and_predicted(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nispa.data.named import build_scenario
    from nispa.methods.presets import resolve
    from nispa.runs.runner import Experiment, run

    monkeypatch.chdir(tmp_path)
    labels = np.tile(np.arange(4), 30)
    series = np.random.default_rng(0).normal(0, 1, (120, 2, 12))
    series[:, 0] += 3 * (labels % 2)[:, None]
    series[:, 1] += 3 * (labels // 2)[:, None]
    np.savez("own.npz", x=series * [[5], [3000]], y=labels)
    options = ["--dataset", "own.npz", "--series", "--standardise"]
    assert call(capsys, "run", "split", *options, *QUICK, "--out", "whole", "--quiet").code == 0
    given = {"dataset": "own.npz", "series": True, "standardise": True}
    tasks = build_scenario("split", seed=1, options=given)
    assert tasks.input_shape == (2, 12)
    quick = {"hidden": (16,), "density": 0.7, "epochs": 15, "batch_size": 16}
    settings = resolve("er", "default", "split", (2, 12), quick, outputs=4, tasks=2)
    begun = run(Experiment(tasks, settings, 1), Path("run"))
    for event in begun:
        if isinstance(event, TaskEnd):
            begun.close()
            break
    ended = call(capsys, "resume", "run", "--quiet")
    assert ended.code == 0, ended.err
    found, whole = read_record(Path("run")), read_record(Path("whole"))
    assert found.accuracy_matrix == whole.accuracy_matrix
    assert found.input_shape == (2, 12)
    assert (
        Path("run/network.safetensors").read_bytes()
        == Path("whole/network.safetensors").read_bytes()
    )
    np.save("new.npy", series[:40] * [[5], [3000]])
    lines = call(capsys, "predict", "run", "new.npy").out.splitlines()
    right = np.mean(
        [line.split()[1] == str(label) for line, label in zip(lines, labels[:40], strict=True)]
    )
    assert right > 0.75
    assert "series of 2 channels and 12 steps" in call(capsys, "show", "run").out
