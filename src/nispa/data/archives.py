"""Limits and checks for archives, which may be damaged or hostile."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path

from nispa.errors import DataError

MOST_UNPACKED = 1 << 30
"""The most bytes that a compressed file may unpack to."""

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
    """Refuses a path that is not a regular file or a link to one: a pipe or device may never end.

    Raises:
        DataError: The file is missing, or is a pipe, device or folder.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not regular:
        raise DataError(f"{path}: is no regular file")


def check_unpacked(promised: int, name: str, fix: str, most: int | None = None) -> None:
    """Refuses content that would unpack to too many bytes.

    Args:
        promised: Bytes that the file says it unpacks to.
        name: What to call it in the error.
        fix: How to pass more.
        most: The most bytes; by default :data:`MOST_UNPACKED`.

    Raises:
        DataError: It would.
    """
    most = MOST_UNPACKED if most is None else most
    if promised > most:
        raise DataError(
            f"{name}: unpacks to {promised / 2**30:.1f} GiB, more than the {most / 2**30:.0f} GiB "
            f"that a packed file may; {fix}"
        )


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Checks the table of contents, which no checksum protects.

    ``zipfile`` silently skips members that a damaged table has lost, and compares names only when a
    member is opened.

    Raises:
        BadZipFile: Members are missing, or their names differ from those beside the content.
    """
    with path.open("rb") as file:
        file.seek(-_END_BYTES - len(archive.comment), 2)
        mark, here, total = _END.unpack(file.read(_END.size))
    if mark == b"PK\x05\x06" and total < 0xFFFF and {here, total} != {len(archive.infolist())}:
        raise zipfile.BadZipFile("its table of contents is damaged")
    for info in archive.infolist():
        archive.open(info).close()
