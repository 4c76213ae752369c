from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nispa.errors import FormatError, InputError, OutputError
from nispa.files import (
    append_line,
    check_own,
    one_line,
    read_limited,
    seal,
    seal_holds,
    write_atomic,
)


def failing(code: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    write_atomic(str(path), b"")
    assert path.read_bytes() == b""
    write_atomic(path, b"three")
    assert path.read_bytes() == b"three"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="modes are a POSIX matter")
def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:3])))
    write_atomic(tmp_path / "a", b"0123456789")
    append_line(tmp_path / "b", "0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert (tmp_path / "b").read_bytes() == b"0123456789\n"


def test_a_write_without_progress_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda handle, data: 0)
    with pytest.raises(OutputError, match="read or write error"):
        write_atomic(tmp_path / "a", b"x")


@pytest.mark.parametrize(
    ("call", "code", "word"),
    [
        ("write", errno.ENOSPC, "disk is full"),
        ("write", errno.EIO, "read or write error"),
        ("write", errno.EDQUOT, "quota"),
        ("fsync", errno.EIO, "read or write error"),
        ("fsync", errno.ENOSPC, "disk is full"),
        ("open", errno.EROFS, "read-only"),
        ("open", errno.EACCES, "not permitted"),
        ("open", errno.EMFILE, "Too many open files"),
    ],
)
def test_a_fault_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, word: str
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(code))
        with pytest.raises(OutputError, match=f"{word}.*previous file is untouched"):
            write_atomic(path, b"after")
        with pytest.raises(OutputError, match=f"{word}.*nothing was written"):
            write_atomic(tmp_path / "new", b"after")
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_a_fault_in_the_middle_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"before")
    real, calls = os.write, []

    def write(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return real(handle, bytes(data[:5]))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match="disk is full"):
        write_atomic(path, b"after and after")
    assert calls == [15, 10]
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_ctrl_c_in_the_middle_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"before")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_a_folder_that_fails_to_sync_is_told_honestly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"before")
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "bad")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="new content is in place"):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"after"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    bad = {
        "file/a": "a part of the path is a file",
        "absent/a": "does not exist",
        "folder": "folder of that name",
        "nul\0": "null",
    }
    for name, word in bad.items():
        with pytest.raises(OutputError, match=word) as caught:
            write_atomic(tmp_path / name, b"x")
        assert "\n" not in str(caught.value)
        assert "\0" not in str(caught.value)
    with pytest.raises(OutputError, match="too long"):
        write_atomic(tmp_path / ("x" * 300), b"x")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="not a regular file"):
        write_atomic(link, b"x")
    assert link.is_symlink()
    with pytest.raises(FormatError, match="is a link"):
        append_line(link, "x")
    with pytest.raises(FormatError, match="not a regular file"):
        append_line("/dev/full", "x")
    with pytest.raises(FormatError, match="not a regular file"):
        read_limited(link, 10)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_is_replaced_and_what_it_leads_to_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomic(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_what_belongs_to_a_run_lies_there_itself(tmp_path: Path) -> None:
    assert not check_own(tmp_path / "absent")
    assert not check_own(tmp_path / "absent" / "file")
    assert not check_own(tmp_path / "nul\0")
    (tmp_path / "file").write_bytes(b"mine")
    assert check_own(tmp_path / "file")
    assert check_own(tmp_path, folder=True)
    with pytest.raises(FormatError, match="is not a regular file"):
        check_own(tmp_path)
    with pytest.raises(FormatError, match="is not a folder"):
        check_own(tmp_path / "file", folder=True)


SCRIPT = """
import resource, sys
from pathlib import Path
from nispa.errors import OutputError
from nispa.files import append_line, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for call in (lambda: write_atomic("record", b"x" * 20_000),
             lambda: append_line("events", "x" * 5_000)):
    try:
        call()
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs RLIMIT_FSIZE")
def test_a_real_size_limit_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(b"before")
    (tmp_path / "events").write_bytes(b"y" * 7_999 + b"\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert "size limit" in first
    assert "previous file is untouched" in first
    assert "lines before are untouched" in second
    assert (tmp_path / "record").read_bytes() == b"before"
    assert (tmp_path / "events").read_bytes() == b"y" * 7_999 + b"\n"
    assert names(tmp_path) == ["events", "record"]


def test_lines_are_added_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events"
    append_line(path, "a")
    append_line(path, "ü")
    assert path.read_bytes() == "a\nü\n".encode()


@pytest.mark.parametrize("size", [0, 1, 5, 4095, 4096, 4097, 9000])
def test_a_torn_last_line_is_removed_before_the_next(tmp_path: Path, size: int) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"whole\n" + b"t" * size)
    append_line(path, "next")
    assert path.read_bytes() == b"whole\nnext\n"


def test_a_file_of_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"t" * 5000)
    append_line(path, "next")
    assert path.read_bytes() == b"next\n"


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events"
    append_line(path, "whole")
    real, calls = os.write, []

    def write(handle: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return real(handle, bytes(data[:2]))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match="disk is full"):
        append_line(path, "next")
    assert len(calls) == 2
    assert path.read_bytes() == b"whole\n"


def test_a_line_holds_no_line_break(tmp_path: Path) -> None:
    for text in ("a\nb", "a\r", "a\n"):
        with pytest.raises(ValueError, match="line break"):
            append_line(tmp_path / "events", text)
    assert names(tmp_path) == []


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(FormatError, match="larger than 4 bytes"):
        read_limited(path, 4)
    with pytest.raises(FormatError, match="not a regular file"):
        read_limited(tmp_path, 4)
    with pytest.raises(InputError, match="there is no such file"):
        read_limited(tmp_path / "absent", 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        read_limited(tmp_path / "pipe", 4)


@given(st.text(), st.integers(3, 40))
def test_one_line_is_short_and_harmless(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line == "" or line.isprintable()


def test_one_line_by_hand() -> None:
    assert one_line("a\x1b[31mb\nc") == "a?[31mb?c"
    assert one_line("abcdef", 5) == "ab..."


def test_a_seal_is_the_hash_of_what_stands_before_it() -> None:
    body = b'{"a": 1,\n "b": [2]'
    sealed = seal(body + b"\n}\n")
    total = hashlib.sha256(body).hexdigest()
    assert sealed == body + f',\n  "sha256": "{total}"\n}}\n'.encode()
    assert json.loads(sealed) == {"a": 1, "b": [2], "sha256": total}
    assert seal(sealed) == sealed
    assert seal_holds(sealed) is True
    assert seal_holds(sealed.replace(b"\n", b"\r\n")) is True
    assert seal_holds(sealed.replace(b"2", b"3", 1)) is False
    assert seal_holds(body + b"}") is None
    assert seal_holds(json.dumps(json.loads(sealed)).encode()) is None
