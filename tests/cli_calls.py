"""Calls of the command line, in this process and in others, and small data to call it with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nispa.cli import cli

NISPA = [sys.executable, "-m", "nispa"]
NEEDS_TERMINAL = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
SMALL = [f"--set={pair}" for pair in ("hidden=12,12", "e=1", "max_phases=3", "batch_size=16")]


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit code, and what it wrote."""

    code: object
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Ended:
    """Calls the command line in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        cli.main(args=[str(arg) for arg in args], prog_name="nispa")
    out, err = capsys.readouterr()
    return Ended(ending.value.code, out, err)


def spawn(*args: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Starts the command line in a process of its own, with pipes for what it writes."""
    return subprocess.Popen(
        [*NISPA, *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=_hear_interrupts if os.name == "posix" else None,
    )


def _hear_interrupts() -> None:
    """Undoes what a shell does to commands in the background: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def write_npz(path: Path, *, classes: int = 4, each: int = 20, side: int = 4) -> Path:
    """A data set of 20 training and 5 test images a class: class k is bright in row k."""
    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for part, count in (("train", each), ("test", 5)):
        labels = np.repeat(np.arange(classes), count)
        images = random.integers(0, 60, (len(labels), side, side), dtype=np.uint8)
        images[np.arange(len(labels)), labels] += 190
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    savez: Any = np.savez  # its stubs take the names of arrays for its own options
    savez(path, **arrays)
    return path


def on_terminal(folder: Path, *args: str) -> str:
    """What a command that ends well shows on a terminal, without what moves the cursor."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        [*NISPA, *args], cwd=folder, env=environment, stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        seen = read_all(ours)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is shown again
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


def read_all(terminal: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()
