"""Where a run found its data, so that it can be resumed from any working folder.

``origin.json`` holds the working folder in which the run was begun, and the folder in which data
sets were looked for. These are private paths of one machine. They are kept out of the record and of
everything made from it (reports, exports), and the file can be deleted before a run is shared.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from nispa.files import read_limited
from nispa.runs.folder import ORIGIN

MAX_BYTES = 2**16
"""Limit on the size of ``origin.json``."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Origin:
    """Where a run was begun.

    Attributes:
        folder: The working folder at that time, the base of relative paths.
        data: The folder in which data sets were looked for, or None.
    """

    folder: Path
    data: Path | None = None


_FILE: TypeAdapter[Origin] = TypeAdapter(Origin)


def origin_file(data: Path | None) -> bytes:
    """The content of ``origin.json`` for a run begun here, with its data sets in ``data``."""
    origin = Origin(Path.cwd(), None if data is None else data.absolute())
    return _FILE.dump_json(origin, indent=1) + b"\n"


def read_origin(run: Path) -> Origin | None:
    """Reads a run's ``origin.json``; None if it is missing or unusable."""
    try:
        origin = _FILE.validate_json(read_limited(run / ORIGIN, MAX_BYTES))
    except ValueError:  # includes InputError and ValidationError
        return None
    return origin if origin.folder.is_absolute() else None


@contextlib.contextmanager
def working_in(folder: Path | None) -> Iterator[None]:
    """Makes ``folder`` the working folder for a block; does nothing if it is not there."""
    before = Path.cwd()
    with contextlib.suppress(OSError, ValueError):
        if folder is not None:
            os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
