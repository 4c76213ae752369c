"""Zip archives that are damaged or were made to harm: what to expect of Python's ``zipfile``."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

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
