"""A disk that fails: the n-th thing done to files below a folder goes wrong, for any n."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Dead(BaseException):
    """The process is no more: nothing that it would still do reaches the disk."""


MEANINGS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EIO: "the disk reports a read or write error; check it",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "not permitted; choose a folder that you may write to",
    errno.EDQUOT: "the disk quota is used up; free some space",
}
"""What a message must say of each error: its cause and the fix."""


_NAMELESS = getattr(os, "O_TMPFILE", -1)
"""A file without a name, by which a lock asks what the disk can do; it may fail unnoticed."""


@dataclass
class Disk:
    """What is done to files below a folder, and which of it goes wrong.

    Attributes:
        folder: Where faults strike; all else works.
        fail_at: Number of the call that fails, from 1; 0 for none.
        how: An error number; ``"short"`` for a write that takes a part; ``"die"`` for the end of
            the process before the call (in the middle of it, where it is a write); ``"kill"`` for
            the same by SIGKILL, which really ends it.
        lasting: Whether all later calls fail, too.
        calls: What was done: the name of the call, and the file.
    """

    folder: Path
    fail_at: int = 0
    how: int | str = errno.ENOSPC
    lasting: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    _handles: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> str:
        """The name of the call that failed first; empty where none did."""
        return self.calls[self.fail_at - 1][0] if 0 < self.fail_at <= len(self.calls) else ""

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Within it the faults strike."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(os, "open", self._open(os.open)))
            for name in ("write", "fsync", "close", "ftruncate", "replace", "unlink", "rmdir"):
                stack.enter_context(patch.object(os, name, self._wrapped(name)))
            stack.enter_context(patch.object(os, "mkdir", self._wrapped("mkdir")))
            # Older versions of pathlib keep references of their own to the functions of os.
            for name, method in (("replace", _replace), ("unlink", _unlink), ("mkdir", _mkdir)):
                stack.enter_context(patch.object(Path, name, method))
            stack.enter_context(patch.object(Path, "rmdir", lambda path: os.rmdir(path)))
            yield

    def _name(self, what: Any, dir_fd: int | None = None) -> str | None:
        """The file below the folder that a call is about; None where it is another one."""
        if isinstance(what, int):
            return self._handles.get(what)
        if dir_fd is not None:
            above = self._handles.get(dir_fd)
            return None if above is None else f"{above}/{os.fspath(what)}"
        path = Path(what).parent.resolve() / Path(what).name
        below = path == self.folder or self.folder in path.parents
        return str(path) if below else None

    def _strikes(self, call: str, name: str) -> bool:
        self.calls.append((call, name))
        number = len(self.calls)
        return number == self.fail_at or (self.lasting and number > self.fail_at > 0)

    def _raise(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "die":
            self.lasting = True
            raise Dead
        if isinstance(self.how, int):
            raise OSError(self.how, os.strerror(self.how))

    def _wrapped(self, call: str) -> Callable[..., Any]:
        real = getattr(os, call)

        def wrapper(what: Any, *args: Any, **extra: Any) -> Any:
            name = self._name(what, extra.get("dir_fd"))
            strikes = name is not None and self._strikes(call, name)
            if call == "close":
                self._handles.pop(what, None)
                real(what)  # whatever it reports, it is closed
            if strikes:
                if call == "write" and self.how in ("short", "die", "kill"):
                    written = real(what, bytes(args[0])[: (len(args[0]) + 1) // 2])
                    if self.how == "short":
                        return written
                self._raise()
            done = call == "close" or (call == "fsync" and name is not None)  # that takes long
            return None if done else real(what, *args, **extra)

        return wrapper

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def wrapper(path: Any, *args: Any, **extra: Any) -> int:
            name = self._name(path, extra.get("dir_fd"))
            if args and args[0] & _NAMELESS == _NAMELESS:
                name = None
            if name is not None and self._strikes("open", name):
                self._raise()
            handle = real(path, *args, **extra)
            if name is not None:
                self._handles[handle] = name
            return handle

        return wrapper


# ruff: noqa: PTH102, PTH105, PTH106, PTH108
def _replace(path: Path, target: Path) -> Path:
    os.replace(path, target)
    return target


def _unlink(path: Path, missing_ok: bool = False) -> None:
    with contextlib.suppress(*((FileNotFoundError,) if missing_ok else ())):
        os.unlink(path)


def _mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
    assert not parents or path.parent.is_dir(), "not needed so far"
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not (exist_ok and path.is_dir()):
            raise
