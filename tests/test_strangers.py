"""A stranger's run folder: links and pipes in it lead nowhere, and what is not a run's stays."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from nispa.errors import FormatError
from nispa.runs.folder import (
    CHECKPOINTS,
    EVENTS,
    FILES,
    FOLDERS,
    LOCK,
    NETWORK,
    NEWER_NETWORK,
    RunFolder,
    held,
)
from nispa.runs.record import RECORD, comparable, read_record
from nispa.trackers.tensorboard import FOLDER as TENSORBOARD
from nispa.training import fit as training
from nispa.webpage import read_run
from tests.cli_calls import call, write_npz
from tests.disk_faults import Disk
from tests.fuzzing import guarded
from tests.test_faults import attempt, counted, run_command

Capture = pytest.CaptureFixture[str]

PRECIOUS = {"thesis.tex": b"no line end", ".hidden": b"x\ny", "task1.txt": b"z", "b/photo.jpg": b""}
POSIX = pytest.mark.skipif(os.name == "nt", reason="links and pipes as POSIX has them")
pytestmark = POSIX


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with data, a whole run, one that died in its second task, and a victim."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setattr(training, "PAUSE_S", 0.0)
    write_npz(home / "tiny.npz")
    for name, content in PRECIOUS.items():
        (home / "victim" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "victim" / name).write_bytes(content)
    with patch("nispa.reading.plots.picture", lambda record: b"a picture"):
        yield home


@pytest.fixture
def begun(home: Path, capsys: Capture) -> Path:
    whole = Disk(home / "whole")
    counted(capsys, whole, *run_command(whole.folder, every=0))
    begun = home / "begun"
    ends = [n for n, (_, at) in enumerate(whole.calls, 1) if at.endswith(NEWER_NETWORK)]
    moment = sum(ends) // 2  # in the second of two tasks, with a checkpoint
    assert attempt(capsys, Disk(begun, moment, "die"), *run_command(begun, every=0)) is None
    assert list((begun / CHECKPOINTS).glob("task*"))
    assert len(read_record(begun).per_task) == 1
    return begun


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def resumed(capsys: Capture, folder: Path) -> str:
    """What a resume that is refused says."""
    with guarded():
        ended = call(capsys, "resume", folder.name, "--quiet")
    assert ended.code in (1, 2), ended
    assert ended.err.startswith("nispa: error: "), ended
    assert ended.err.count("\n") == 1
    return ended.err


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, "a checkpoint"])
@pytest.mark.parametrize("target", ["its own", "victim", "nowhere"])
def test_no_command_follows_a_link_in_a_run(
    home: Path, capsys: Capture, begun: Path, name: str, target: str
) -> None:
    place = begun / name
    if name == "a checkpoint":
        (place, *_) = sorted((begun / CHECKPOINTS).glob("task*"))
    aim = home / "victim" if name in FOLDERS else home / "victim" / "thesis.tex"
    if target == "its own" and place.exists():
        aim = home / "victim" / "moved"
        place.rename(aim)
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(home / "absent" if target == "nowhere" else aim)
    before = content(home / "victim")
    assert f"{place.name} is a link, which may lead anywhere" in resumed(capsys, begun)
    for command in (
        ("show",),
        ("runs",),
        ("export", "--to", "t.csv"),
        ("report", "--out", "r.html"),
    ):
        with guarded():
            ended = call(capsys, command[0], "begun", *command[1:])
        refused = name == RECORD and command[0] in ("show", "report", "export")
        if name == RECORD and command[0] == "runs":
            assert "is a link" in ended.out
        elif not refused:
            assert ended.code == 0, ended
        assert "Traceback" not in ended.err
    assert place.is_symlink()
    assert content(home / "victim") == before
    assert not (home / "absent").exists()


@pytest.mark.parametrize("name", [LOCK, CHECKPOINTS, TENSORBOARD])
def test_no_run_begins_where_a_link_waits_for_it(home: Path, capsys: Capture, name: str) -> None:
    (home / "here").mkdir()
    (home / "here" / name).symlink_to(home / "victim" / ("" if name in FOLDERS else "thesis.tex"))
    before = content(home / "victim")
    ended = call(capsys, *run_command(home / "here"))
    assert ended.code == 2
    assert "is a link" in ended.err
    assert content(home / "victim") == before
    assert [path.name for path in (home / "here").iterdir()] == [name]


def test_links_above_a_run_are_its_users_own(home: Path, capsys: Capture, begun: Path) -> None:
    (home / "elsewhere").mkdir()
    begun.rename(home / "elsewhere" / "begun")
    (home / "runs").symlink_to("elsewhere")
    (home / "link").symlink_to(home / "runs" / "begun")
    (home / "link" / "notes").symlink_to(home / "victim")  # nothing of nispa's
    ended = call(capsys, "resume", "link", "--quiet")
    assert ended.code == 0, ended
    assert comparable(read_record(home / "link")) == comparable(read_record(home / "whole"))
    assert (home / "link" / NETWORK).read_bytes() == (home / "whole" / NETWORK).read_bytes()
    for command in (("show",), ("runs",), ("report", "--out", "page.html")):
        assert call(capsys, command[0], "link", *command[1:]).code == 0
    assert (home / "page.html").is_file()


def test_files_that_nispa_never_wrote_stay(home: Path, capsys: Capture, begun: Path) -> None:
    kept = {"task9-fit1-over.txt", "task1", ".nispa-mine.part", "thesis.tex", ".hidden"}
    (begun / ".nispa-mine.part").write_bytes(b"precious")
    gone = ("task0-fit1-over.safetensors", ".nispa-0123456789abcdef.part")
    for name in (*kept, *gone):
        (begun / CHECKPOINTS / name).write_bytes(b"precious")
    assert call(capsys, "resume", "begun", "--quiet").code == 0
    assert {path.name for path in (begun / CHECKPOINTS).iterdir()} == kept
    assert (begun / ".nispa-mine.part").exists()
    assert comparable(read_record(begun)) == comparable(read_record(home / "whole"))


def test_deleting_takes_a_link_and_not_what_it_leads_to(home: Path) -> None:
    from nispa.files import remove, remove_unfinished

    before = content(home / "victim")
    links = [
        home / "a",
        home / ".nispa-0123456789abcdef.part",
        home / ".nispa-0123456789abcdee.part",
    ]
    for link, target in zip(links, ("thesis.tex", "thesis.tex", ""), strict=True):
        link.symlink_to(home / "victim" / target)
    remove(links[0])
    remove_unfinished(home)
    assert not any(link.is_symlink() for link in links)
    assert content(home / "victim") == before


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # their paths must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


KINDS: tuple[Callable[[Path], None], ...] = (a_pipe, a_socket, Path.mkdir)


@pytest.mark.parametrize("make", KINDS)
def test_pipes_and_folders_in_the_place_of_files_are_not_waited_for(
    home: Path, capsys: Capture, begun: Path, make: Callable[[Path], None]
) -> None:
    for name in FILES:
        folder = Path(shutil.copytree(begun, home / "here"))
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        assert f"{name} is not a regular file" in resumed(capsys, folder)
        for command in (("show",), ("runs",), ("report", "--out", "page.html")):
            with guarded():
                ended = call(capsys, command[0], "here", *command[1:])
            assert ended.code == (2 if name == RECORD and command[0] != "runs" else 0), ended
        shutil.rmtree(folder)
    for name in FOLDERS:
        folder = Path(shutil.copytree(begun, home / "here"))
        shutil.rmtree(folder / name, ignore_errors=True)
        if make is not Path.mkdir:
            make(folder / name)
            assert f"{name} is not a folder" in resumed(capsys, folder)
        shutil.rmtree(folder)


def test_a_report_says_that_it_left_out_linked_events(home: Path, begun: Path) -> None:
    (begun / EVENTS).rename(home / EVENTS)
    (begun / EVENTS).symlink_to(home / EVENTS)
    found = read_run(begun)
    assert not found.phases
    assert "is a link" in found.note
    with pytest.raises(FormatError, match="is a link"):
        RunFolder(begun).append_event({"event": "epoch"})
    with pytest.raises(FormatError, match="is a link"):
        RunFolder(begun).cut_events(1)
    with pytest.raises(FormatError, match="is a link"), held(begun):
        pass


@pytest.mark.parametrize("name", ["data.npz", "data.parquet", "plan.toml", "matrix.csv", "m.npy"])
def test_pipes_given_as_files_are_not_waited_for(home: Path, capsys: Capture, name: str) -> None:
    os.mkfifo(home / name)
    commands: dict[str, tuple[str, ...]] = {
        "data": ("run", "split", "--dataset", name),
        "plan": ("sweep", name),
        "matrix": ("import", name, "--name=a", "--method=b", "--seed=0"),
    }
    kind = {"m": "matrix"}.get(name.partition(".")[0], name.partition(".")[0])
    with guarded():
        ended = call(capsys, *commands[kind])
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert not (home / "runs").exists()
