"""Where a run found its data: kept beside its record, so that it can go on from any folder.

``origin.json`` holds the folder that the run was begun in, and the one where data sets were looked
for. Both are paths of one's own machine, which are nobody else's business: they stand neither in
the record nor in what is made of it (reports, exports), and the file can be deleted before a run's
folder is given away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from nispa.files import read_limited
from nispa.runs.folder import ORIGIN

MAX_BYTES = 2**16
"""What no file of ours reaches."""

_Path = Annotated[str, Field(min_length=1, max_length=4096)]


@checked(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class _Written:
    folder: _Path
    data: _Path | None


_FILE: TypeAdapter[_Written] = TypeAdapter(_Written)


@dataclass(frozen=True)
class Origin:
    """Where a run was begun.

    Attributes:
        folder: The working folder then, which relative paths start from.
        data: Where data sets were looked for, or None.
    """

    folder: Path
    data: Path | None = None


def origin_file(data: Path | None) -> bytes:
    """What ``origin.json`` holds for a run that is begun here, with its data sets in ``data``."""
    where = _Written(str(Path.cwd()), None if data is None else str(data.absolute()))
    return _FILE.dump_json(where, indent=1) + b"\n"


def read_origin(run: Path) -> Origin | None:
    """What a run's folder says; None where it says nothing, or nothing that can be used."""
    try:
        found = _FILE.validate_json(read_limited(run / ORIGIN, MAX_BYTES))
    except (ValueError, ValidationError):  # InputError is a ValueError, too
        return None
    folder = Path(found.folder)
    if not folder.is_absolute():
        return None
    return Origin(folder, None if found.data is None else Path(found.data))


@contextlib.contextmanager
def working_in(folder: Path | None) -> Iterator[None]:
    """Relative paths start from ``folder`` within it; from where they do where it is not there."""
    before = Path.cwd()
    try:
        if folder is not None:
            os.chdir(folder)
    except (OSError, ValueError):
        pass
    try:
        yield
    finally:
        os.chdir(before)
