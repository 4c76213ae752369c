"""A run goes on from any folder, since it keeps where its data lay."""

from __future__ import annotations

from pathlib import Path

import pytest

from nispa.runs.folder import ORIGIN, RunFolder
from nispa.runs.origin import Origin, origin_file, read_origin
from nispa.runs.record import read_record
from tests.cli_calls import call, write_npz

Capture = pytest.CaptureFixture[str]
ARGS = ["--method", "finetune", "--set", "epochs=1", "--set", "hidden=8", "--quiet"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two working folders; the first is where one is."""
    monkeypatch.delenv("NISPA_DATA", raising=False)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    return here, there


def interrupted(run: Path) -> None:
    """A run as it is when it was stopped in its last task."""
    made = read_record(run)
    cut = {"status": "interrupted", "finished": None}
    for name in ("per_task", "accuracy_matrix", "accuracy_matrix_task_agnostic"):
        cut[name] = getattr(made, name)[:0]
    (run / "network.safetensors").unlink()
    RunFolder(run).write_record(made.model_copy(update=cut))


def test_what_is_kept_is_read_again(folders: tuple[Path, Path]) -> None:
    here, there = folders
    (there / ORIGIN).write_bytes(origin_file(None))
    assert read_origin(there) == Origin(here)
    (there / ORIGIN).write_bytes(origin_file(Path("data")))
    assert read_origin(there) == Origin(here, here / "data")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"folder": 3, "data": null}', b'{"folder": "a", "data": null}'],
)
def test_nonsense_says_nothing(content: bytes, tmp_path: Path) -> None:
    assert read_origin(tmp_path) is None
    (tmp_path / ORIGIN).write_bytes(content)
    assert read_origin(tmp_path) is None


def test_a_relative_data_set_is_found_from_elsewhere(
    folders: tuple[Path, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = folders
    write_npz(here / "own.npz")
    assert call(capsys, "run", "split", "--dataset", "own.npz", "--out", "run", *ARGS).code == 0
    whole = read_record(here / "run").accuracy_matrix
    interrupted(here / "run")
    monkeypatch.chdir(there)
    ended = call(capsys, "resume", "../here/run", "--quiet")
    assert ended.code == 0, ended
    assert read_record(here / "run").accuracy_matrix == whole
    assert str(here) not in (here / "run" / "record.json").read_text()  # it may be given away
    assert Path.cwd() == there


def test_what_moved_along_is_found_from_here(
    folders: tuple[Path, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = folders
    write_npz(here / "own.npz")
    assert call(capsys, "run", "split", "--dataset", "own.npz", "--out", "run", *ARGS).code == 0
    interrupted(here / "run")
    for name in ("own.npz", "run"):
        (here / name).rename(there / name)
    monkeypatch.chdir(there)
    assert call(capsys, "resume", "run", "--quiet").code == 0


def test_the_message_says_where_it_was_looked_for(
    folders: tuple[Path, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = folders
    write_npz(here / "own.npz")
    assert call(capsys, "run", "split", "--dataset", "own.npz", "--out", "run", *ARGS).code == 0
    interrupted(here / "run")
    (here / "own.npz").unlink()
    monkeypatch.chdir(there)
    ended = call(capsys, "resume", "../here/run")
    assert ended.code == 2
    assert "own.npz does not exist" in ended.err
    assert f"looked from the folder {here} and then from {there}" in ended.err


def test_the_data_folder_is_kept(
    folders: tuple[Path, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named data set in ``--data DIR``; one that the environment names now is another."""
    here, there = folders
    _write_mnist(here / "sets" / "mnist")
    args = ["run", "split-mnist", "--tasks", "[[0,1],[2,3]]", "--data", "sets", "--out", "run"]
    assert call(capsys, *args, "--no-download", *ARGS).code == 0
    interrupted(here / "run")
    monkeypatch.chdir(there)
    monkeypatch.setenv("NISPA_DATA", str(there))
    assert call(capsys, "resume", "../here/run", "--no-download", "--quiet").code == 0
    interrupted(here / "run")
    wrong = call(capsys, "resume", "../here/run", "--no-download", "--data", ".")
    assert wrong.code == 2
    assert "not found in" in wrong.err
    assert f"data sets lay in {here / 'sets'}" in wrong.err


def _write_mnist(folder: Path) -> None:
    import numpy as np

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 20)):
        labels = (np.arange(count) % 4).astype(np.uint8)
        images = random.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        head = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = b"\x00\x00\x08\x01" + count.to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
