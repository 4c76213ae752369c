"""Writing that fails at any call: nothing that was there is lost, and a resume comes to the end.

The n-th call of a run (open, write, fsync, close, rename, mkdir, unlink) fails, for n = 1, 2, ….
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from nispa import tensorfile
from nispa.cli import cli
from nispa.errors import OutputError
from nispa.learner import Learner
from nispa.methods.saving import decode
from nispa.runs.checkpoints import FORMAT
from nispa.runs.folder import EVENTS, LOCK, NETWORK, NEWER_NETWORK, ORIGIN
from nispa.runs.record import RECORD, comparable, read_record
from nispa.training import fit as training
from tests.cli_calls import Ended, call, write_npz
from tests.disk_faults import MEANINGS, Dead, Disk

Capture = pytest.CaptureFixture[str]

SMALL = ("hidden=6,5", "epochs=1", "batch_size=32")
METHOD = ("--method", "finetune", *(f"--set={pair}" for pair in SMALL))
HARMLESS = ("unlink", "rmdir")  # what is no longer needed may stay
ERRORS = tuple(MEANINGS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with data; pictures take no time."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setattr(training, "PAUSE_S", 0.0)
    write_npz(home / "tiny.npz")
    with patch(
        "nispa.reading.plots.picture", lambda record: f"{len(record.per_task)} tasks".encode()
    ):
        yield home


def run_command(folder: Path, every: int = 3600) -> tuple[str, ...]:
    """A run of two tasks, with checkpoints every so many seconds: 0 is at each batch."""
    how = ("--threads", "1", "--quiet", "--checkpoint-every", str(every))
    return ("run", "split", "--dataset", "tiny.npz", *METHOD, *how, "--out", folder.name)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def result(folder: Path) -> tuple[bytes, bytes, int]:
    events = (folder / EVENTS).read_bytes().count(b"\n")
    return comparable(read_record(folder)), (folder / NETWORK).read_bytes(), events


def attempt(capsys: Capture, disk: Disk, *command: str) -> Ended | None:
    """How a command ends on a failing disk; None where its process died."""
    with disk.failing():
        if disk.how != "die" or not disk.fail_at:
            return call(capsys, *command)
        try:
            cli.main(args=list(command), prog_name="nispa")
        except (Dead, SystemExit) as end:
            return None if isinstance(end, Dead) else Ended(end.code, "", "")
    raise AssertionError("a command ends with SystemExit")


def counted(capsys: Capture, disk: Disk, *command: str) -> int:
    """How many calls a command makes where nothing fails."""
    ended = attempt(capsys, disk, *command)
    assert ended is not None
    assert ended.code == 0, ended
    return len(disk.calls)


def check_error(ended: Ended, disk: Disk) -> None:
    """One line that names the file, the cause and the fix."""
    assert ended.code in (1, 2), (ended, disk.calls[disk.fail_at - 1])
    assert ended.err.startswith("nispa: error: cannot "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert disk.folder.name in ended.err.partition(": cannot ")[2].partition(":")[0]
    assert isinstance(disk.how, int)
    assert MEANINGS[disk.how] in ended.err


def check_whole(folder: Path) -> None:
    """Every file of a run that failed can be read, and the record counts no task too much."""
    if not (folder / RECORD).exists():
        left = [name for name in names(folder) if not name.endswith(".part")]
        assert set(left) <= {LOCK, ORIGIN}, left
        return
    done = len(read_record(folder, sealed=True).per_task)
    found = [folder / name for name in (NETWORK, NEWER_NETWORK) if (folder / name).exists()]
    learned = [len(decode(path)[0].learned) for path in found]
    assert done == 0 or done in learned
    for path in (folder / "checkpoint").glob("*.safetensors"):
        tensorfile.read(path, FORMAT, "checkpoint")


def check_ending(ended: Ended | None, disk: Disk) -> None:
    """What must hold after a command on a failing disk."""
    assert disk.failed, "the command ended before the fault"
    if ended is not None:
        call, at = disk.calls[disk.fail_at - 1]
        folder = str(disk.folder.resolve())
        locking = at == f"{folder}/{LOCK}"
        harmless = disk.failed in HARMLESS or (locking and call == "close")
        # Newer locks look at the folder first, and do without where they cannot.
        looking = at == folder and ("open", f"{folder}/{LOCK}") not in disk.calls[: disk.fail_at]
        if ended.code:
            assert disk.lasting or not harmless, ended
            check_error(ended, disk)
        else:  # an open that must not make the lock's file is tried as one of what is there
            assert harmless or ((locking or looking) and call == "open"), ended
            assert read_record(disk.folder).status == "complete"
    if disk.folder.exists():
        check_whole(disk.folder)


def go_on(capsys: Capture, disk: Disk, whole: Path) -> None:
    """Finishes a run on a disk that works again: it comes to what an undisturbed one does."""
    folder = disk.folder
    if not (folder / RECORD).exists():
        shutil.rmtree(folder, ignore_errors=True)
        assert call(capsys, *run_command(folder)).code == 0
    elif read_record(folder).status != "complete":
        ended = call(capsys, "resume", folder.name, "--quiet")
        assert ended.code == 0, ended
    assert result(folder) == result(whole)
    more = set(names(folder)) ^ set(names(whole))
    if disk.failed in HARMLESS:
        more = {name for name in more if not name.startswith("checkpoint")}
    assert not more - {LOCK}  # which holds nothing once its process is gone
    shutil.rmtree(folder)


def each_call(
    capsys: Capture,
    home: Path,
    how: int | str | None,
    *,
    lasting: bool = False,
    every: int = 3600,
    step: int = 1,
) -> None:
    """A run for each of its calls, which fails in one way (None: in all of them in turn)."""
    total = counted(capsys, Disk(home / "whole"), *run_command(home / "whole", every))
    assert total > 80
    for number in range(1, total + 1, step):
        way = ERRORS[number % len(ERRORS)] if how is None else how
        disk = Disk(home / "here", number, way, lasting)
        ended = attempt(capsys, disk, *run_command(disk.folder, every))
        check_ending(ended, disk)
        if ended is not None and ended.code == 2 and not lasting:
            assert not disk.folder.exists(), "code 2 says that nothing was written"
        go_on(capsys, disk, home / "whole")


def test_any_call_of_a_run_may_fail(home: Path, capsys: Capture) -> None:
    each_call(capsys, home, None)


def test_a_process_may_die_at_any_call(home: Path, capsys: Capture) -> None:
    """In the middle of a write, too; the slow test tries each call."""
    each_call(capsys, home, "die", step=3)


@pytest.mark.slow
@pytest.mark.parametrize("how", [*ERRORS, "die"])
@pytest.mark.parametrize("lasting", [False, True])
def test_any_call_may_fail_in_any_way(
    home: Path, capsys: Capture, how: int | str, lasting: bool
) -> None:
    each_call(capsys, home, how, lasting=lasting, every=0)


def test_a_disk_that_stays_full_is_told_by_what_failed_first(home: Path, capsys: Capture) -> None:
    disk = Disk(home / "whole")
    counted(capsys, disk, *run_command(disk.folder))
    names = [Path(at).name for _, at in disk.calls]
    before = names.index(NEWER_NETWORK) - 2 * 8  # a file takes eight calls; the record comes second
    disk = Disk(home / "here", before + 1, errno.ENOSPC, lasting=True)
    ended = attempt(capsys, disk, *run_command(disk.folder))
    assert ended is not None
    assert "cannot write here/network.next.safetensors: the disk is full" in ended.err


def resume_each(capsys: Capture, home: Path, how: int | str, step: int) -> None:
    """Resumes a run whose record counts a task before the network has taken its place."""
    whole, begun = Disk(home / "whole"), home / "begun"
    counted(capsys, whole, *run_command(whole.folder))
    moves = [n for n, (name, at) in enumerate(whole.calls, 1) if at.endswith(NEWER_NETWORK)]
    assert attempt(capsys, Disk(begun, moves[0], "die"), *run_command(begun)) is None
    assert (begun / NEWER_NETWORK).exists()
    resume = ("resume", "here", "--quiet")
    shutil.copytree(begun, home / "here")
    total = counted(capsys, Disk(home / "here"), *resume)
    shutil.rmtree(home / "here")
    for number in range(1, total + 1, step):
        shutil.copytree(begun, home / "here")
        disk = Disk(home / "here", number, how)
        check_ending(attempt(capsys, disk, *resume), disk)
        go_on(capsys, disk, whole.folder)


@pytest.mark.parametrize("how", [errno.ENOSPC, "die"])
def test_a_resume_may_fail_at_any_call(home: Path, capsys: Capture, how: int | str) -> None:
    resume_each(capsys, home, how, step=5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [*ERRORS, "die"])
def test_a_resume_may_fail_at_each_call(home: Path, capsys: Capture, how: int | str) -> None:
    resume_each(capsys, home, how, step=1)


def test_writes_that_take_half_of_it_are_continued(home: Path, capsys: Capture) -> None:
    counted(capsys, Disk(home / "whole"), *run_command(home / "whole"))
    disk = Disk(home / "here", 1, "short", lasting=True)
    counted(capsys, disk, *run_command(disk.folder))
    assert [name for name, _ in disk.calls].count("write") > 100
    go_on(capsys, disk, home / "whole")


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_a_file_is_on_the_disk_before_it_gets_its_name(home: Path, capsys: Capture) -> None:
    """What a power loss must not tear apart: content, name, and the order of the two."""
    disk = Disk(home / "here")
    counted(capsys, disk, *run_command(disk.folder, every=0))
    moved = [n for n, (name, at) in enumerate(disk.calls) if name == "replace" and ".part" in at]
    assert len(moved) > 10
    for number in moved:
        path = disk.calls[number][1]
        before = [name for name, at in disk.calls[:number] if at == path]
        assert before[-2:] == ["fsync", "close"]
        assert set(before[:-2]) == {"open", "write"}
        folder = str(Path(path).parent)
        after = disk.calls[number + 1 : number + 4]
        assert after == [("open", folder), ("fsync", folder), ("close", folder)]


# Other commands.

OUTPUTS = {
    "report": ("report", "whole", "--out", "there/page.html"),
    "export": ("export", "whole", "--to", "there/table.csv"),
    "import": ("import", "matrix.csv", "--name=x", "--method=y", "--seed=0", "--out=there/run"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_other_commands_write(home: Path, capsys: Capture, name: str) -> None:
    counted(capsys, Disk(home / "whole"), *run_command(home / "whole"))
    (home / "matrix.csv").write_text("90,\n50,80\n")
    folder = home / "there"
    folder.mkdir()
    total = counted(capsys, Disk(folder), *OUTPUTS[name])
    expected = names(folder)
    assert total >= 8
    for number in range(1, total + 1):
        shutil.rmtree(folder)
        folder.mkdir()
        disk = Disk(folder, number, ERRORS[number % len(ERRORS)])
        ended = attempt(capsys, disk, *OUTPUTS[name])
        assert ended is not None
        check_error(ended, disk)
        assert names(folder) in ([], expected)  # in place where the last sync alone failed


def test_a_learner_is_saved_whole_or_not(home: Path) -> None:
    made = Learner("finetune", input_shape=(1, 2, 2), classes=2, hidden=(3,), density=1.0)
    folder = home / "there"
    folder.mkdir()
    made.save(folder / "learner")
    before = (folder / "learner").read_bytes()
    disk = Disk(folder)
    with disk.failing():
        made.save(folder / "learner")
    for number in range(1, len(disk.calls) + 1):
        failing = Disk(folder, number, errno.ENOSPC)
        says = r"cannot write .*learner: the disk is full; free some"
        with failing.failing(), pytest.raises(OutputError, match=says):
            made.save(folder / "learner")
        assert names(folder) == ["learner"]
        assert (folder / "learner").read_bytes() == before
