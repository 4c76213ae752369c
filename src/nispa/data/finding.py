"""Finds the files of a data set in a folder that the user names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nispa.data.catalog import CATALOG, MNIST_FILES, Entry
from nispa.data.dataset import listed
from nispa.data.emnist import stored_names
from nispa.data.idx import idx_md5, read_idx
from nispa.data.splits import part_of_folder, unknown_part
from nispa.errors import DataError, either

DEPTH = 3
MOST_ENTRIES = 500_000

Listing = Mapping[Path, Sequence[str]]
"""The names of the files in each folder."""


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set.

    Attributes:
        form: ``"idx"``, ``"zip"``, ``"binary"``, ``"python"`` or ``"parquet"``.
        path: The folder, or the archive.
        files: The files, in order; empty for an archive.
    """

    form: str
    path: Path
    files: tuple[Path, ...] = ()

    @property
    def source(self) -> str:
        """The kind of files, in words."""
        words = {
            "idx": "IDX files",
            "zip": "EMNIST archive gzip.zip",
            "binary": "CIFAR binary version",
            "python": "CIFAR Python version",
            "parquet": "Parquet files",
        }
        return words[self.form]


def check_folder(folder: Path) -> None:
    """Checks that a data folder exists and is readable.

    Raises:
        DataError: It does not, or is not.
    """
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; check {either('folder=', '--data')}")
    if not folder.is_dir():
        option = either("folder=", "--data")
        raise DataError(f"{folder} is not a folder; {option} takes the folder that holds the files")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data folder {folder} cannot be read; check its permissions")


def list_files(folder: Path, depth: int = DEPTH) -> Listing:
    """The files in ``folder`` and, down to ``depth`` levels, in its sub-folders, sorted.

    Raises:
        DataError: There are too many to search.
    """
    found: dict[Path, Sequence[str]] = {}
    seen = 0
    level = [folder]
    for _ in range(depth + 1):
        below = []
        for place in level:
            try:
                with os.scandir(place) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
                files = [entry.name for entry in ordered if entry.is_file()]
                folders = [entry.name for entry in ordered if entry.is_dir()]
            except OSError:  # skip a sub-folder that we may not read
                continue
            seen += len(ordered)
            if seen > MOST_ENTRIES:
                raise DataError(
                    f"data folder {folder} has more than {MOST_ENTRIES} entries; name the folder "
                    "of the data set itself"
                )
            if files:
                found[place] = files
            below += [place / name for name in folders]
        level = below
    return found


def find(entry: Entry, listing: Listing) -> DataFiles | None:
    """The files of a data set in a listing, canonical forms first; None if there are none.

    Raises:
        DataError: Some of its files are present and some are missing.
    """
    if entry.layout == "mnist":
        found = _find_mnist(entry, listing)
    elif entry.layout == "emnist":
        found = _find_emnist(entry, listing)
    else:
        found = _find_cifar(entry, listing)
    return found or _find_parquet(entry, listing)


def idx_files(folder: Path, names: Sequence[str], wanted: Sequence[str]) -> list[Path | None]:
    """The path of each wanted IDX file in a folder, with or without gzip, or None if missing."""
    known = set(names)
    found: list[Path | None] = []
    for name in wanted:
        spellings = [name, name.replace("-idx", ".idx")]
        choices = [each + end for end in ("", ".gz") for each in spellings]
        found.append(next((folder / each for each in choices if each in known), None))
    return found


def _complete(
    folder: Path, files: Sequence[Path | None], wanted: Sequence[str]
) -> DataFiles | None:
    present = [file for file in files if file is not None]
    if not present:
        return None
    if len(present) < len(wanted):
        missing = [name for name, file in zip(wanted, files, strict=True) if file is None]
        raise DataError(f"{folder}: {missing[0]} is missing (with or without .gz)")
    return DataFiles("idx", folder, tuple(present))


def name_of(folder: Path) -> str | None:
    """The named data set that the folder's name, or else its parent's, refers to."""
    for part in reversed(folder.resolve().parts[-2:]):
        plain = _plain(part)
        if "fashionmnist" in plain or plain in ("fashion", "fmnist"):
            return "fashion-mnist"
        for known in sorted(CATALOG, key=len, reverse=True):  # cifar100 before cifar10
            if plain.startswith(_plain(known)):
                return known
        if "emnist" in plain or re.search("[a-z0-9]mnist", plain):
            return "another"  # a relative of MNIST without an entry, such as QMNIST
    return None


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _find_mnist(entry: Entry, listing: Listing) -> DataFiles | None:
    """Tells MNIST and Fashion-MNIST, which share file names, apart by content, then by folder."""
    by_name: DataFiles | DataError | None = None
    for folder, names in listing.items():
        files = idx_files(folder, names, MNIST_FILES)
        test_labels = files[-1]
        content = _name_by_content(test_labels) if test_labels is not None else None
        if (content or name_of(folder)) != entry.name:
            continue
        try:
            found = _complete(folder, files, MNIST_FILES)
        except DataError as error:
            by_name = by_name or error
            continue
        if found and content:
            return found
        by_name = by_name if isinstance(by_name, DataFiles) else found or by_name
    if isinstance(by_name, DataError):
        raise by_name
    return by_name


def _name_by_content(test_labels: Path) -> str | None:
    """The data set in MNIST's layout with these canonical test labels, or None."""
    try:
        md5 = idx_md5(read_idx(test_labels, dims=1))
    except DataError:  # reading it later says what is wrong
        return None
    return next((each.name for each in CATALOG.values() if md5 in each.content_md5), None)


def _find_emnist(entry: Entry, listing: Listing) -> DataFiles | None:
    for folder, names in listing.items():
        if "gzip.zip" in names:
            return DataFiles("zip", folder / "gzip.zip")
    wanted = stored_names(entry.name.removeprefix("emnist-"))
    partial: DataError | None = None
    for folder, names in listing.items():
        try:
            found = _complete(folder, idx_files(folder, names, wanted), wanted)
        except DataError as error:
            partial = partial or error
            continue
        if found:
            return found
    if partial:
        raise partial
    return None


CIFAR_FILES = {
    "cifar10": (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
    "cifar100": ("train", "test"),
}


def _find_cifar(entry: Entry, listing: Listing) -> DataFiles | None:
    """Looks for archives first, since their checksums prove canonical content."""
    for archive in entry.archives:
        for folder, names in listing.items():
            if archive in names:
                return DataFiles("binary" if "binary" in archive else "python", folder / archive)
    python = CIFAR_FILES[entry.name]
    binary = tuple(f"{name}.bin" for name in python)
    for form, files in (("python", python), ("binary", binary)):
        for folder, names in listing.items():
            present = [file for file in files if file in names]
            # "train" and "test" are common names; CIFAR-100 also has a file "meta".
            if not present or (files == CIFAR_FILES["cifar100"] and "meta" not in names):
                continue
            if len(present) < len(files):
                missing = next(file for file in files if file not in names)
                raise DataError(f"{folder}: {missing} is missing")
            return DataFiles(form, folder, tuple(folder / file for file in files))
    return None


def parquet_files(folder: Path, listing: Listing) -> tuple[Path, ...]:
    """The Parquet files of a data set in a folder, in the layouts of the Hugging Face hub.

    They are in the folder itself, in one folder per part, or in a single folder around these, such
    as ``data`` or that of a configuration.

    Raises:
        DataError: There are several such folders, or files that belong to no part.
    """
    here = plain_files(folder, listing, ".parquet")
    below = sorted(
        place.relative_to(folder).parts[0]
        for place in listing
        if folder in place.parents and plain_files(place, listing, ".parquet")
    )
    below = [name for name in dict.fromkeys(below) if not name.startswith(".")]
    parts = [name for name in below if part_of_folder(name)]
    others = [folder / name for name in below if name not in parts]
    if (here or parts) and others:
        raise unknown_part(others[0])
    if len(others) > 1:
        raise DataError(
            f"{folder}: holds Parquet files in {listed([each.name for each in others])}; give the "
            f"folder of one, such as {others[0]}"
        )
    if others:
        return parquet_files(others[0], listing)
    inside = [
        file
        for name in parts
        for place in sorted(listing)
        if place == folder / name or folder / name in place.parents
        for file in plain_files(place, listing, ".parquet")
    ]
    return (*here, *inside)


def plain_files(folder: Path, listing: Listing, *ends: str) -> tuple[Path, ...]:
    """The files directly in a folder whose names end in one of ``ends``."""
    return tuple(
        folder / name
        for name in listing.get(folder, ())
        if name.lower().endswith(ends) and not name.startswith(".")
    )


def _find_parquet(entry: Entry, listing: Listing) -> DataFiles | None:
    """Parquet files in a folder whose path names the data set."""
    for folder in listing:
        base = folder.parent if part_of_folder(folder.name) else folder
        if name_of(base) == entry.name:
            files = parquet_files(base, listing)
            if files:
                return DataFiles("parquet", base, files)
    return None
