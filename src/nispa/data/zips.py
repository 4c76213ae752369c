"""Reads a zip archive of class folders in place: nothing is written to disk."""

from __future__ import annotations

import functools
import stat
import threading
import zipfile
from pathlib import Path

from nispa.data.archives import (
    DAMAGED_ZIP,
    MOST_UNPACKED,
    check_members,
    check_regular,
    check_unpacked,
)
from nispa.data.dataset import ImageData
from nispa.data.folders import Place, Tree, read_tree
from nispa.data.images import Source
from nispa.data.shaping import Reading
from nispa.errors import DataError
from nispa.files import one_line, wording

PLAIN_RATIO = 8  # images are compressed already, so an archive of them hardly shrinks further


def read_zip_folders(path: Path, how: Reading) -> ImageData:
    """Images in a zip archive, as :func:`nispa.data.folders.read_folder` reads a folder.

    Raises:
        DataError: The archive is damaged or hostile.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            tree = _tree(archive, path)
            return read_tree(tree, path.stem, "image folders in a zip archive", how)
    except DataError:
        raise
    except DAMAGED_ZIP as error:
        raise DataError(f"{path}: not a readable zip archive ({wording(error)})") from None


def _tree(archive: zipfile.ZipFile, path: Path) -> Tree:
    """The content of the archive; names are never used as paths on disk."""
    files: dict[Place, Source] = {}
    folders: set[Place] = set()
    lock = threading.Lock()
    total = 0
    for info in archive.infolist():
        place = tuple(part for part in info.filename.replace("\\", "/").split("/") if part)
        where = f"{path}: {one_line(info.filename, 80)}"
        if not place or any(part.startswith(".") or part == "__MACOSX" for part in place):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where}: is a link; put the file itself into the archive")
        if info.flag_bits & 1:
            raise DataError(f"{where}: is encrypted; unpack the archive and give the folder")
        above = place if info.is_dir() else place[:-1]
        folders.update(above[: depth + 1] for depth in range(len(above)))
        if info.is_dir():
            continue
        if place in files:
            raise DataError(f"{where}: is there twice")
        total += info.file_size
        files[place] = functools.partial(_content, archive, info, lock, where)
    if total > max(MOST_UNPACKED, PLAIN_RATIO * path.stat().st_size):
        check_unpacked(total, str(path), "unpack it yourself and give the folder")
    return Tree(str(path), files, frozenset(folders))


def _content(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock, where: str
) -> bytes:
    """A member's bytes; a lock lets threads read in turn, but decode in parallel."""
    try:
        with lock, archive.open(info) as file:
            return file.read()
    except DAMAGED_ZIP as error:
        raise DataError(f"{where}: damaged ({wording(error)})") from None
