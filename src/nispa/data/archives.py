"""What Python's ``zipfile`` raises on an archive that is damaged or was made to harm."""

from __future__ import annotations

import struct
import zipfile
import zlib

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
