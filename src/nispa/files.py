"""Writes files whole or not at all, and reads them without trusting them.

A reader of ``record.json`` sees either the old content or the new, even after a power loss, a full
disk or Ctrl-C. Every failure is an :class:`~nispa.errors.OutputError` of one line.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nispa.errors import FormatError, InputError, OutputError

if TYPE_CHECKING:
    from pydantic import ValidationError

_BINARY = getattr(os, "O_BINARY", 0)  # otherwise Windows changes line ends
_UNFINISHED = re.compile(r"\.nispa-[0-9a-f]{16}\.part")

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file would pass the size limit of this process or disk (see ulimit -f)",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "not permitted; choose a folder that you may write to",
    errno.EPERM: "not permitted; choose a folder that you may write to",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENOENT: "the folder does not exist",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "the links in the path form a circle; choose another folder",
    errno.EIO: "the disk reports a read or write error; check it, or choose another folder",
}


def reason(error: OSError | ValueError) -> str:
    """Why a file operation failed and what to do about it, in a few words."""
    if not isinstance(error, OSError):
        return one_line(str(error))
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return one_line(error.strerror or type(error).__name__)


def check_own(path: Path, *, folder: bool = False) -> bool:
    """Whether a run's file (or folder) exists; refuses links and other kinds of files.

    A run may come from a stranger's archive, which can contain links. Whatever is read, written or
    deleted must therefore be in the run's folder itself. The folder may be reached through links.

    Args:
        path: The path to check.
        folder: Whether it should be a folder.

    Raises:
        FormatError: It is a link, or not a regular file (or folder).
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # missing, or opening it will say why it cannot be reached
        return False
    # Windows has a second kind of link, for folders only; Python supports it from 3.12 on.
    if stat.S_ISLNK(mode) or getattr(os.path, "isjunction", lambda _: False)(path):
        raise FormatError(
            f"{shown(path)} is a link, which may lead anywhere; what belongs to a run must lie in "
            "its folder: delete the link, or put a copy of what it leads to in its place"
        )
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kind = "folder" if folder else "regular file"
        raise FormatError(f"{shown(path)} is not a {kind}, as a run's is; delete it")
    return True


def write_atomic(path: str | Path, data: bytes, *, lasting: bool = True) -> None:
    """Writes a file whole or not at all, replacing an older file of that name in one step.

    A link is replaced as well; its target is never written to.

    Args:
        path: Where to write; its folder must exist.
        data: The whole content.
        lasting: Whether it must survive a power loss from now on, which takes milliseconds.

    Raises:
        OutputError: It could not be written. Nothing is left behind, and an older file of that
            name is untouched.
    """
    path = Path(path)
    temporary = path.parent / f".nispa-{secrets.token_hex(8)}.part"
    created = replaced = False
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():  # never replace a device
            raise OSError(errno.EINVAL, "it is not a regular file")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        created = True
        try:
            _write_all(handle, data)
            if lasting:
                os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        replaced = True
        if lasting:
            _sync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        if replaced:
            after = "the new content is in place, but may not survive a power loss"
        else:
            after = "the previous file is untouched" if _exists(path) else "nothing was written"
        raise OutputError(f"cannot write {shown(path)}: {reason(error)}; {after}") from error
    finally:  # also on Ctrl-C, leave no half-written file behind
        if created and not replaced:
            with contextlib.suppress(OSError):
                temporary.unlink()


def remove_unfinished(folder: str | Path) -> None:
    """Deletes the half-written files that killed processes left in a folder."""
    for path in Path(folder).glob(".nispa-*.part"):
        if _UNFINISHED.fullmatch(path.name):
            remove(path)


def move(source: Path, target: Path) -> None:
    """Moves a file over another one in the same folder, in one step.

    Raises:
        OutputError: It could not be moved; both are unchanged.
    """
    with _failing("replace", target, f"the new content is in {shown(source)}"):
        source.replace(target)


def make_folder(path: Path) -> None:
    """Creates a folder unless it exists.

    Raises:
        OutputError: It could not be created.
    """
    with _failing("create", path, "nothing was written"):
        path.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Deletes a file that is no longer needed; ignores failure."""
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def _failing(verb: str, path: Path, after: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot {verb} {shown(path)}: {reason(error)}; {after}") from error


def append_line(path: str | Path, line: str) -> None:
    """Appends one complete line to a text file in a single write.

    An unfinished last line from a crash is removed first, and a line that does not fit on the disk
    is removed again, so the file always consists of complete lines.

    Args:
        path: The file; it is created if missing.
        line: The text, without line breaks.

    Raises:
        OutputError: It could not be added; earlier lines are untouched.
        FormatError: The path is a link, or not a regular file.
    """
    path = Path(path)
    check_own(path)
    data = line.encode(errors="replace") + b"\n"
    if b"\n" in data[:-1] or b"\r" in data:
        raise ValueError("a line must not hold a line break")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        try:
            end = _after_last_line(handle)
            if end != os.lseek(handle, 0, os.SEEK_END):
                os.ftruncate(handle, end)
            os.lseek(handle, end, os.SEEK_SET)
            try:
                _write_all(handle, data)
            except BaseException:  # not even Ctrl-C may leave half a line
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot add to {shown(path)}: {reason(error)}; the lines before are untouched"
        ) from error


def read_limited(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        FormatError: It is larger, or a pipe or device that might never end.
        InputError: It does not exist or cannot be read.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could wait forever
            raise FormatError(f"{shown(path)} is not a regular file")
        with path.open("rb") as file:
            # Python makes room for all that is asked for: not for the limit, if the file is small.
            size = max(os.fstat(file.fileno()).st_size, 2**16)
            data = file.read(min(limit, size) + 1)
    except FileNotFoundError:
        raise InputError(f"cannot read {shown(path)}: there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {shown(path)}: {reason(error)}") from error
    if len(data) > limit:
        raise FormatError(f"{shown(path)} is larger than {limit:,} bytes, the most read here")
    return data


_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_SEAL_BYTES = 83


def seal(data: bytes) -> bytes:
    """Adds a checksum to a JSON object: a last entry ``sha256`` over all bytes before it.

    Args:
        data: The object's text; an old seal is replaced.
    """
    body, found = _parted(data)
    if found is None:
        body = data.rstrip()[:-1].rstrip()  # without the closing brace
    return b'%b,\n  "sha256": "%b"\n}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def seal_holds(data: bytes) -> bool | None:
    """Whether a JSON text matches its seal; None if it has none.

    Line ends are ignored, since git may change them. A text that another program has reformatted
    has no seal.
    """
    body, found = _parted(data.replace(b"\r\n", b"\n"))
    return None if found is None else found == hashlib.sha256(body).hexdigest().encode()


def _parted(data: bytes) -> tuple[bytes, bytes | None]:
    """A JSON text without its seal, and the checksum in it."""
    match = _SEAL.search(data, max(0, len(data) - _SEAL_BYTES))
    return (data, None) if match is None else (data[: match.start()], match[1])


def too_deep(value: Any, most: int) -> bool:
    """Whether a value from JSON or TOML nests deeper than ``most`` lists and tables.

    Recursive functions would otherwise exhaust the stack on it.
    """
    level = [value]
    for _ in range(most):
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return False
        level = [
            part for each in level for part in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, (dict, list)) for each in level)


def shown(path: str | Path) -> str:
    """A path for a message: on one line, shortened."""
    return one_line(str(path))


def one_line(text: str, limit: int = 200) -> str:
    """An untrusted text for a terminal: shortened, without control characters or line breaks."""
    if len(text) <= limit and text.isprintable():  # nearly all texts
        return text
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def first_fault(error: ValidationError) -> str:
    """The place and message of the first error in a pydantic validation."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return one_line(f"{place}: {found['msg']}" if place else found["msg"])


def wording(error: object) -> str:
    """The message of an exception on one line, or its type if it has none."""
    return one_line(" ".join(str(error).split())) or type(error).__name__


def _write_all(handle: int, data: bytes) -> None:
    """Writes ``data`` to an open file; the system may take it in several pieces."""
    rest = memoryview(data)
    while rest:
        written = os.write(handle, rest)
        if written == 0:  # neither progress nor an error: do not loop forever
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[written:]


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power loss, if the system supports it."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems have no such call
            raise
    finally:
        os.close(handle)


def _after_last_line(handle: int) -> int:
    """Where the last complete line of an open file ends, read backwards from its end."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
