"""Damaged files: an error of one line, or the content that was written; see ``tests.fuzzing``."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from nispa.files import seal
from nispa.runs.folder import NETWORK, NEWER_NETWORK
from nispa.runs.record import RECORD, comparable, read_record
from nispa.training import fit as training
from tests.cli_calls import call, write_npz
from tests.disk_faults import Disk
from tests.fuzz_kinds import KINDS
from tests.fuzzing import DAMAGE, SEED, HangError, Kind, bounded, flip_each, guarded, run
from tests.test_faults import attempt, counted, run_command

Capture = pytest.CaptureFixture[str]

EXACT = [kind for kind in KINDS if kind.exact]
FAST, SLOW = 2 * len(DAMAGE), 500
RESUMES_FAST, RESUMES_SLOW = range(100, 160), range(160, 2160)


def ids(kinds: tuple[Kind, ...] | list[Kind]) -> list[str]:
    return [kind.name for kind in kinds]


@pytest.mark.parametrize("kind", KINDS, ids=ids(KINDS))
def test_damaged_files(kind: Kind, tmp_path: Path) -> None:
    counts = run(kind, tmp_path / "files", range(FAST))
    assert sum(counts.values()) == FAST


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=ids(KINDS))
def test_many_damaged_files(kind: Kind, tmp_path: Path) -> None:
    run(kind, tmp_path / "files", range(FAST, FAST + SLOW))


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        pytest.param(kind, step, id=f"{kind.name}-{step}", marks=marks)
        for kind in EXACT
        for step, marks in ((101, ()), (1, pytest.mark.slow))
    ],
)
def test_a_changed_byte_is_noticed_or_means_nothing(kind: Kind, step: int, tmp_path: Path) -> None:
    counts = flip_each(kind, tmp_path / "files", step)
    assert counts["other"] == 0
    if kind.name.startswith(("network", "checkpoint", "record")):
        assert set(counts) == {"refused"}


# Runs whose folder is damaged.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    monkeypatch.setattr(training, "PAUSE_S", 0.0)
    write_npz(home / "tiny.npz")
    with patch("nispa.reading.plots.picture", lambda record: b"a picture"):
        yield home


def begin(capsys: Capture, home: Path) -> list[Path]:
    """A whole run, and runs of the same that died at four moments."""
    whole = Disk(home / "whole")
    total = counted(capsys, whole, *run_command(whole.folder, every=0))
    moves = [n for n, (_, at) in enumerate(whole.calls, 1) if at.endswith(NEWER_NETWORK)]
    begun = []
    for moment in (moves[0] // 2, moves[0], (moves[0] + moves[1]) // 2, moves[1]):
        assert moment < total
        folder = home / f"begun{moment}"
        assert attempt(capsys, Disk(folder, moment, "die"), *run_command(folder, every=0)) is None
        begun.append(folder)
    return begun


def damage(folder: Path, number: int) -> str:
    """Damages one file of a run, or puts another one in its place; tells what was done."""
    random = np.random.default_rng([SEED, number])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = (files[int(random.integers(len(files)))] for _ in range(2))
    ways = [*DAMAGE, "delete", "empty", "folder", "copy", "swap", "digit", "digit"]
    way = ways[number % len(ways)]
    data = bytearray(path.read_bytes())
    if way == "digit":  # what no parser can notice
        path = folder / RECORD
        path.write_bytes(other_digit(path.read_bytes(), random))
    elif callable(way):
        if data:
            way(data, random)
        path.write_bytes(data)
    elif way in ("delete", "folder"):
        path.unlink()
        if way == "folder":
            path.mkdir()
    else:
        path.write_bytes(b"" if way == "empty" else other.read_bytes())
        if way == "swap":
            other.write_bytes(data)
    return f"case {number}: {way} {path.relative_to(folder)} ({other.name})"


def other_digit(data: bytes, random: np.random.Generator) -> bytes:
    places = [match.start() for match in re.finditer(rb"[0-9]", data)]
    place = places[int(random.integers(len(places)))]
    digit = b"%d" % ((data[place] - ord("0") + random.integers(1, 10)) % 10)
    return data[:place] + digit + data[place + 1 :]


def resumed(capsys: Capture, folder: Path, whole: Path) -> str:
    """How a resume ends: ``same`` or ``refused``."""
    with guarded():
        ended = call(capsys, "resume", folder.name, "--quiet")
    if ended.code == 0:
        assert comparable(read_record(folder)) == comparable(read_record(whole))
        assert (folder / NETWORK).read_bytes() == (whole / NETWORK).read_bytes()
        return "same"
    assert ended.code in (1, 2), ended
    assert ended.err.startswith("nispa: error: "), ended
    assert ended.err.count("\n") == 1, ended
    return "refused"


@pytest.mark.parametrize(
    "cases",
    [
        RESUMES_FAST,
        pytest.param(RESUMES_SLOW, marks=pytest.mark.slow),
    ],
    ids=["fast", "slow"],
)
def test_a_damaged_run_comes_to_the_same_end_or_to_none(
    home: Path, capsys: Capture, cases: range
) -> None:
    begun = begin(capsys, home)
    counts: Counter[str] = Counter()
    for number in cases:
        folder = Path(shutil.copytree(begun[number % len(begun)], home / "here"))
        done = damage(folder, number)
        try:
            counts[resumed(capsys, folder, home / "whole")] += 1
        except Exception as error:
            raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert counts["same"] > len(cases) / 4
    assert counts["refused"] > len(cases) / 8


NONSENSE: tuple[Any, ...] = (None, -1, 2, 0.5, "x", "", [], {}, [1, 2], True, 2**62, "a\x1b[31m\n")
UNREAD = ("metrics", "metrics_task_agnostic", "per_task", "notes")  # by a resume


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each entry of a JSON value; of long lists the first two."""
    if isinstance(value, dict):
        entries = list(value.items())
    else:
        entries = list(enumerate(value))[:2] if isinstance(value, list) else []
    for key, part in entries:
        yield (*above, key)
        yield from places(part, (*above, key))


@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_a_strangers_record_of_nonsense_is_one_line(home: Path, capsys: Capture, step: int) -> None:
    """Its checksum is right: whoever makes it can make that, too."""
    begun = begin(capsys, home)[2]
    base = json.loads((begun / RECORD).read_bytes())
    del base["sha256"]
    cases = [(place, bad) for place in places(base) if place[0] not in UNREAD for bad in NONSENSE]
    assert len(cases) > 1000
    for place, bad in cases[::step]:
        changed = json.loads(json.dumps(base))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = bad
        folder = Path(shutil.copytree(begun, home / "here"))
        (folder / RECORD).write_bytes(seal(json.dumps(changed).encode()))
        with guarded():
            ended = call(capsys, "resume", "here", "--quiet")
        assert ended.code in (0, 1, 2), (place, bad, ended)
        assert ended.err.count("\n") == (1 if ended.code else 0), (place, bad, ended)
        assert ended.err.rstrip("\n").isprintable(), (place, bad, ended)
        shutil.rmtree(folder)


# The guards themselves.


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")
def test_the_guards_notice_what_they_are_for() -> None:
    with pytest.raises(AssertionError, match=r"something was executed: .*find_class"), guarded():
        pickle.loads(b"cbuiltins\nlen\n.")  # noqa: S301
    with patch("tests.fuzzing.LONGEST_S", 0.05), pytest.raises(HangError), guarded():
        time.sleep(20)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can tell")
def test_memory_is_measured() -> None:
    with pytest.raises(AssertionError, match="more than 33,554,432"), bounded(32 * 2**20):
        bytearray(64 * 2**20)
    with pytest.raises(MemoryError), bounded():
        bytearray(16 * 2**30)
    with bounded(32 * 2**20):
        bytearray(2**20)
