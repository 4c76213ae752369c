"""Archives that are damaged or were made to harm: what to expect, and how much they may hold."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path

from nispa.errors import DataError

MOST_UNPACKED = 1 << 30
"""Bytes that a packed file may unpack to, however small it is."""

DAMAGED_ZIP = (
    zipfile.BadZipFile,
    ValueError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)

_END = struct.Struct("<4s4xHH")  # the last record's mark and its two counts of members
_END_BYTES = 22


def check_regular(path: Path) -> None:
    """A file must be a regular one, or a link to one: a pipe or device might never end.

    Raises:
        DataError: It is not there or something else.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not regular:
        raise DataError(f"{path}: is no regular file")


def check_unpacked(promised: int, name: str, fix: str) -> None:
    """What is packed may not unpack to more than :data:`MOST_UNPACKED` bytes.

    Raises:
        DataError: It would.
    """
    if promised > MOST_UNPACKED:
        raise DataError(
            f"{name}: unpacks to {promised / 2**30:.1f} GiB, more than the "
            f"{MOST_UNPACKED / 2**30:.0f} GiB that a packed file may; {fix}"
        )


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Whether the table of contents is whole, which no checksum protects.

    ``zipfile`` passes over members that it lost; names it compares when a member is opened.

    Raises:
        BadZipFile: Members are lost, or their names are not those beside the content.
    """
    with path.open("rb") as file:
        file.seek(-_END_BYTES - len(archive.comment), 2)
        mark, here, total = _END.unpack(file.read(_END.size))
    if mark == b"PK\x05\x06" and total < 0xFFFF and {here, total} != {len(archive.infolist())}:
        raise zipfile.BadZipFile("its table of contents is damaged")
    for info in archive.infolist():
        archive.open(info).close()
