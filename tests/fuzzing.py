"""Damaged files in thousands, and what reading one may come to.

Reading ends in an error of nispa of one line, or in the very content of the intact file; where a
format has no checksum, also in another content that passed its checks. Every case follows from its
kind and number. ``python -m tests.fuzzing 1000`` runs so many of each kind and prints what came of
them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nispa.errors import NispaError

SEED = 2022
LONGEST_S = 30.0
"""How long reading one small file may take; thousands of times what it does."""
MOST_GROWTH = 256 * 2**20
"""Bytes by which all readings of a kind together may grow the process: one image of 2^24 pixels."""

Random = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Its name.
        make: Writes what an intact file needs into a folder; returns the file to damage.
        read: Its content, to be compared with ``==``.
        exact: Whether a checksum must notice every change of the content.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    exact: bool = False


# Damage.


def _place(random: Random, size: int) -> int:
    """A place in a file; half of them near its ends, where most formats keep their structure."""
    near = min(size, 200)
    where = random.integers(4)
    if where == 0:
        return int(random.integers(near))
    if where == 1:
        return int(size - 1 - random.integers(near))
    return int(random.integers(size))


def _block(random: Random, size: int) -> tuple[int, int]:
    """Start and end of a block, short ones as likely as long ones."""
    length = int(2 ** random.uniform(0, np.log2(max(2, size / 2))))
    start = int(random.integers(max(1, size - length)))
    return start, start + length


def flip_byte(data: bytearray, random: Random) -> None:
    data[_place(random, len(data))] ^= int(random.integers(1, 256))


def flip_bit(data: bytearray, random: Random) -> None:
    data[_place(random, len(data))] ^= 1 << int(random.integers(8))


def flip_several(data: bytearray, random: Random) -> None:
    for _ in range(int(random.integers(2, 9))):
        flip_byte(data, random)


def cut(data: bytearray, random: Random) -> None:
    del data[int(random.integers(len(data))) :]


def double_block(data: bytearray, random: Random) -> None:
    start, end = _block(random, len(data))
    data[start:start] = data[start:end]


def zero_block(data: bytearray, random: Random) -> None:
    start, end = _block(random, len(data))
    data[start:end] = bytes(len(data[start:end]))


def drop_block(data: bytearray, random: Random) -> None:
    start, end = _block(random, len(data))
    del data[start:end]


def noise_block(data: bytearray, random: Random) -> None:
    start, end = _block(random, len(data))
    data[start:end] = random.bytes(len(data[start:end]))


def swap_blocks(data: bytearray, random: Random) -> None:
    start, end = _block(random, len(data))
    other = int(random.integers(max(1, len(data) - (end - start))))
    first, second = data[start:end], data[other : other + end - start]
    data[start:end], data[other : other + end - start] = second, first


def huge_number(data: bytearray, random: Random) -> None:
    """Writes what readers take for a size: all ones, or the largest number with a sign."""
    numbers = [b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xff" * 3 + b"\x7f"]
    numbers += [b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f", b"\x00\x00\x00\x40", b"\x40\0\0\0"]
    number = numbers[int(random.integers(len(numbers)))]
    start = _place(random, len(data))
    data[start : start + len(number)] = number


def huge_digits(data: bytearray, random: Random) -> None:
    """As :func:`huge_number` where numbers are written out."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return huge_number(data, random)
    match = found[int(random.integers(len(found)))]
    digits = [b"-1", b"0", b"1e999", b"2147483648", b"9223372036854775808", b"1" + b"0" * 30]
    digits.append(b"9" * 5000)
    data[match.start() : match.end()] = digits[int(random.integers(len(digits)))]
    return None


def grow(data: bytearray, random: Random) -> None:
    data += random.bytes(int(random.integers(1, 50)))


DAMAGE: tuple[Callable[[bytearray, Random], None], ...] = (
    flip_byte,
    flip_bit,
    flip_several,
    cut,
    double_block,
    zero_block,
    drop_block,
    noise_block,
    swap_blocks,
    huge_number,
    huge_digits,
    grow,
)


def damaged(intact: bytes, name: str, number: int) -> bytes:
    """The content of case ``number`` of the kind ``name``."""
    random = np.random.default_rng([SEED, zlib.crc32(name.encode()), number])
    data = bytearray(intact)
    DAMAGE[number % len(DAMAGE)](data, random)
    return bytes(data)


# What must never happen.

FORBIDDEN = (
    "ctypes.dlopen",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
)
_watched: list[str] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event in FORBIDDEN:
        _watched.append(f"{event} {args}"[:200])


_hooked = False


class HangError(BaseException):
    """Reading took too long; no reader may catch it."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Fails where something is executed, or does not end."""
    global _watched, _hooked
    if not _hooked:  # a hook stays for ever
        sys.addaudithook(_watch)
        _hooked = True
    _watched = []
    try:
        with _alarm():
            yield
        assert not _watched, f"something was executed: {_watched}"
    finally:
        _watched = None


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise HangError(f"still reading after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_STATUS = Path("/proc/self/status")


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


@contextlib.contextmanager
def bounded(most: int = MOST_GROWTH) -> Iterator[None]:
    """Fails where the process grew by more than ``most`` bytes meanwhile, were it for a moment.

    Only Linux can tell. A limit far above keeps the machine alive where something goes wrong.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        yield
        return
    import resource

    before = _kilobytes("VmHWM")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    room = _kilobytes("VmSize") * 1024 + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = (_kilobytes("VmHWM") - before) * 1024
    assert grown <= most, f"reading took {grown:,} bytes, more than {most:,}"


# Cases.


def outcome(kind: Kind, path: Path, intact: Any) -> str:
    """What comes of a damaged file: ``refused``, ``same`` or ``other`` content."""
    try:
        with guarded():
            found = kind.read(path)
    except NispaError as error:
        line = str(error)
        assert line, "an error without words"
        assert line.isprintable(), line
        return "refused"
    if found == intact:
        return "same"
    assert not kind.exact, "another content was read than was written"
    return "other"


def run(kind: Kind, folder: Path, numbers: range) -> Counter[str]:
    """The cases ``numbers`` of a kind, in a folder of their own."""
    folder.mkdir(parents=True)
    path = kind.make(folder)
    content = path.read_bytes()
    intact = kind.read(path)
    counts: Counter[str] = Counter()
    with bounded():
        for number in numbers:
            path.write_bytes(damaged(content, kind.name, number))
            with _named(f"{kind.name}, case {number}"):
                counts[outcome(kind, path, intact)] += 1
    return counts


def flip_each(kind: Kind, folder: Path, step: int = 1) -> Counter[str]:
    """One flip at every ``step``-th byte of a kind with a checksum, one after the other."""
    assert kind.exact
    folder.mkdir(parents=True)
    path = kind.make(folder)
    content = path.read_bytes()
    intact = kind.read(path)
    counts: Counter[str] = Counter()
    for place in range(0, len(content), step):
        data = bytearray(content)
        random = np.random.default_rng([SEED, place])
        data[place] ^= int(random.integers(1, 256))
        path.write_bytes(data)
        with _named(f"{kind.name}, byte {place}"):
            counts[outcome(kind, path, intact)] += 1
    return counts


@contextlib.contextmanager
def _named(case: str) -> Iterator[None]:
    """Puts the name of a case before what went wrong in it."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error


def main(count: int) -> None:
    """Runs so many cases of each kind, and a flip at each byte where a checksum protects it."""
    from tests.fuzz_kinds import KINDS

    warnings.simplefilter("error")
    total = 0
    with tempfile.TemporaryDirectory() as place:
        for number, kind in enumerate(KINDS):
            found = {kind.name: run(kind, Path(place, str(number)), range(count))}
            if kind.exact:
                name = f"{kind.name}, each byte"
                found[name] = flip_each(kind, Path(place, f"{number} each"))
            for name, counts in found.items():
                cases = sum(counts.values())
                total += cases
                told = ", ".join(f"{counts[key]} {key}" for key in ("refused", "same", "other"))
                print(f"{name:36} {cases:6} cases: {told}", flush=True)  # noqa: T201
    print(f"{'all':36} {total:6} cases")  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
