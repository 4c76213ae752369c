"""Reads EMNIST from its canonical archive ``gzip.zip`` without unpacking it to disk."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from nispa.data.archives import DAMAGED_ZIP, check_unpacked
from nispa.data.idx import read_idx_stream
from nispa.errors import DataError
from nispa.files import wording


def read_zip(path: Path, files: Sequence[str]) -> list[Tensor]:
    """IDX members of a zip archive: images and labels alternating, uint8 as stored.

    Args:
        path: The archive.
        files: Names of the members without folder and ``.gz``; those of images contain ``idx3``.

    Raises:
        DataError: The archive is damaged, or a member is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(info.filename).name: info for info in archive.infolist()}
            found = []
            for file in files:
                info = members.get(f"{file}.gz") or members.get(file)
                if info is None:
                    raise DataError(f"{path}: holds no {file}.gz; it is not EMNIST's archive")
                where = f"{path}: {info.filename}"
                check_unpacked(info.file_size, where, "get the archive again")
                with archive.open(info) as member:
                    plain = io.BufferedReader(cast(Any, member))
                    dims = 3 if "idx3" in file else 1
                    found.append(read_idx_stream(plain, dims, where))
            return found
    except DataError:
        raise
    except DAMAGED_ZIP as error:
        raise DataError(
            f"{path}: damaged or truncated ({wording(error)}); get the file again"
        ) from None


def stored_names(split: str) -> tuple[str, ...]:
    """The four IDX files of an EMNIST split, such as ``"balanced"``."""
    return tuple(
        f"emnist-{split}-{part}-{kind}-ubyte"
        for part in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    )
