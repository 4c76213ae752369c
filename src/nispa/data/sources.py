"""Loads data sets: from the folder that the user names, the cache, or a download."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nispa.data.archives import check_regular
from nispa.data.catalog import CATALOG, MNIST_FILES, NAMES, OTHER_NAMES, Entry, Remote
from nispa.data.cifar import read_cifar
from nispa.data.dataset import BYTE_SCALE, ImageData, Progress
from nispa.data.digits import load_digits
from nispa.data.download import cache_folder, fetch
from nispa.data.emnist import read_zip, stored_names
from nispa.data.finding import (
    CIFAR_FILES,
    DataFiles,
    Listing,
    check_folder,
    find,
    idx_files,
    list_files,
    parquet_files,
    plain_files,
)
from nispa.data.folders import read_folder
from nispa.data.idx import idx_md5, image_pair, read_four
from nispa.data.images import suffixes
from nispa.data.npz import read_npy, read_npz
from nispa.data.parquet import read_parquet
from nispa.data.shaping import AS_STORED, Reading, Shaping, shape_data
from nispa.data.tables import read_csv
from nispa.data.zips import read_zip_folders
from nispa.errors import (
    DataError,
    MissingPackageError,
    UnknownNameError,
    either,
    installed,
    unknown_name,
)

LOOSE = "no checksum is published for this form"


def load(
    name_or_path: str | Path,
    *,
    folder: Path | None = None,
    seed: int = 0,
    download: bool = True,
    progress: Progress | None = None,
    remotes: Mapping[str, Sequence[Remote]] | None = None,
    shaping: Shaping = AS_STORED,
    only: Collection[int] | None = None,
    label: str | None = None,
    series: bool = False,
) -> ImageData:
    """A data set by name, or from a user's own file or folder.

    A named one is looked up in ``folder``, then in the cache, then downloaded. A known name is
    never taken for a path: for a folder of that name pass ``./mnist``, or a ``Path``.

    Args:
        name_or_path: A name such as ``"mnist"``; or an ``.npz``, ``.npy``, ``.parquet``, ``.csv``
            or ``.zip`` file, a folder of Parquet, CSV, NumPy or IDX files, or a folder of class
            folders.
        folder: Where to look for named data sets, three levels deep.
        seed: Determines the test split of data without one; named data sets do not depend on it.
        download: Whether to download a data set that is not found.
        progress: Called as ``progress(what, done, total)`` during downloads and decoding.
        remotes: Addresses per data set, instead of the canonical ones.
        shaping: How to crop and scale each image.
        only: Numbers of the classes to read from a user's own image files; None reads all.
        label: Name of a table's column of labels, if it has none of the usual names.
        series: Whether arrays with three dimensions are ``(n, channels, length)``, and tables hold
            series; see ``nispa.data.tables``.

    Raises:
        UnknownNameError: It is neither a known name nor an existing path.
        DataError: The data set is missing or damaged, or could not be downloaded.
    """
    if folder is not None:
        check_folder(folder)
    name = name_or_path if isinstance(name_or_path, str) else ""
    if name == "digits" or name in CATALOG:
        _refuse_label(Path(name), label, table=False)
        _refuse_series(Path(name), series)
        if name == "digits":
            return shape_data(load_digits(), shaping)
        found = _load_named(CATALOG[name], folder, download, progress, remotes)
        return shape_data(found, shaping)
    if isinstance(name_or_path, str) and not name:
        raise DataError("dataset='' is empty; give the name of a data set or a path")
    path = Path(name_or_path).expanduser()
    if path.exists():
        how = Reading(seed, progress, shaping, only, label, series)
        return load_path(path, **vars(how))
    if not name or "/" in name or "\\" in name or path.suffix:
        known = ", ".join(NAMES)
        raise DataError(f"{path} does not exist; give a file, a folder, or one of {known}")
    if name.lower() in OTHER_NAMES:
        meant = OTHER_NAMES[name.lower()]
        raise UnknownNameError(f"unknown data set '{name}'; did you mean '{meant}'?")
    raise unknown_name("data set", name, NAMES)


def _load_named(
    entry: Entry,
    folder: Path | None,
    download: bool,
    progress: Progress | None,
    remotes: Mapping[str, Sequence[Remote]] | None,
) -> ImageData:
    found = find(entry, list_files(folder)) if folder is not None and folder.is_dir() else None
    if found is None:
        cache = cache_folder() / entry.cache
        found = find(entry, list_files(cache)) if cache.is_dir() else None
    if found:
        return read_found(entry, found, progress=progress)
    looked = f"not found in {folder}" if folder else "no data folder was given"
    if not download:
        raise DataError(f"{entry.name}: {looked}; {how_to_get(entry)}")
    wanted = remotes[entry.name] if remotes is not None else entry.remotes
    try:
        fetch(wanted, cache, progress=progress)
    except DataError as error:
        raise DataError(f"{entry.name}: {looked}, and {error}") from None
    found = find(entry, list_files(cache))
    if found is None:
        raise DataError(f"{entry.name}: {cache} does not hold it after the download")
    return read_found(entry, found, progress=progress)


def how_to_get(entry: Entry) -> str:
    """One line: the files to put into the data folder, and where to get them."""
    files = ", ".join(remote.file for remote in entry.remotes)
    source = entry.remotes[0].urls[0].rsplit("/", 1)[0]
    inside = f"{entry.name}/ inside" if entry.layout == "mnist" else "or inside"
    fix = either("folder=DIR", "--data DIR")
    return f"place {files} (from {source}) in {inside} DIR and pass {fix}"


def read_found(entry: Entry, found: DataFiles, *, progress: Progress | None = None) -> ImageData:
    """Reads the files of a named data set and checks whether they are canonical.

    Raises:
        DataError: A file is damaged, or does not contain what its name says.
    """
    proof = ""
    if found.form == "parquet":
        data = read_parquet(
            found.files, name=entry.name, class_names=entry.class_names, progress=progress
        )
    else:
        if found.form in ("idx", "zip"):
            train, test, proof = _read_idx_form(entry, found)
        else:
            train, test, proof = _read_cifar_form(entry, found)
        data = ImageData(entry.name, *train, *test, entry.class_names, BYTE_SCALE, found.source)
    canonical, note = judge(entry, data, proof)
    return replace(data, canonical=canonical, note="; ".join(filter(None, (data.note, note))))


def _read_idx_form(
    entry: Entry, found: DataFiles
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    proof = ""
    if found.form == "zip":
        stored = read_zip(found.path, stored_names(entry.name.removeprefix("emnist-")))
        if _file_md5(found.path) == entry.archives["gzip.zip"]:
            proof = "MD5 of gzip.zip"
    else:
        stored = read_four(found.files)
    turned = entry.layout == "emnist"
    first = 1 if entry.name == "emnist-letters" else 0
    train = image_pair(stored[0], stored[1], transposed=turned, first_label=first)
    test = image_pair(stored[2], stored[3], transposed=turned, first_label=first)
    return train, test, proof


def _read_cifar_form(
    entry: Entry, found: DataFiles
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    names = CIFAR_FILES[entry.name]
    binary = found.form == "binary"
    files = [f"{name}.bin" for name in names] if binary else list(names)
    parts, md5s = read_cifar(found.path, files, classes=len(entry.class_names), binary=binary)
    proof = ""
    if not binary and md5s == [entry.files[name] for name in names]:
        proof = "MD5 of each file"
    elif found.path.is_file() and _file_md5(found.path) == entry.archives.get(found.path.name):
        proof = f"MD5 of {found.path.name}"
    images = torch.cat([each for each, _ in parts[:-1]])
    labels = torch.cat([each for _, each in parts[:-1]])
    return (images, labels), parts[-1], proof


def _file_md5(path: Path) -> str:
    total = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return total.hexdigest()


def judge(entry: Entry, data: ImageData, proof: str) -> tuple[bool, str]:
    """Whether ``data`` is proven to be the canonical data set, and how, or what differs.

    Args:
        entry: The canonical data set.
        data: The one that was read.
        proof: The checksum of the files that matched, in words; empty if none did.
    """
    if proof:
        return True, f"verified by {proof}"
    differs = []
    if data.shape != entry.shape:
        differs.append(f"images of {data.shape} instead of {entry.shape}")
    for labels, count, kind in (
        (data.train_labels, entry.train, "training"),
        (data.test_labels, entry.test, "test"),
    ):
        if len(labels) != count:
            differs.append(f"{len(labels):,} instead of {count:,} {kind} images")
    if differs:
        return False, f"not the canonical data set: {', '.join(differs)}"
    if entry.content_md5 and data.train_images.dtype == torch.uint8:
        arrays = (
            data.train_images[:, 0],
            data.train_labels,
            data.test_images[:, 0],
            data.test_labels,
        )
        kinds = ("training images", "training labels", "test images", "test labels")
        wrong = [
            kind
            for kind, array, md5 in zip(kinds, arrays, entry.content_md5, strict=True)
            if idx_md5(array) != md5
        ]
        if not wrong:
            return True, "verified by MD5 of its content"
        return False, f"not the canonical data set: other {', '.join(wrong)}"
    if "lossy" in data.note:
        return False, "not the canonical pixels"
    return False, f"not verified: as many images as the canonical data set, but {LOOSE}"


def load_path(
    path: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    shaping: Shaping = AS_STORED,
    only: Collection[int] | None = None,
    label: str | None = None,
    series: bool = False,
) -> ImageData:
    """A user's own data set from a file or folder; see :func:`load`.

    Raises:
        DataError: It contains no data set in a known form, or a damaged one.
    """
    how = Reading(seed, progress, shaping, only, label, series)
    if not path.is_dir():
        return _load_file(path, how)
    check_folder(path)
    listing = list_files(path)
    name = path.resolve().name
    parquet = parquet_files(path, listing)
    if parquet:
        return _table_of(read_parquet(parquet, name=name, **vars(how)), how)
    _refuse_label(path, how.label, bool(plain_files(path, listing, *TABLE_ENDS)))
    idx = [file for file in idx_files(path, listing.get(path, ()), MNIST_FILES) if file is not None]
    if idx:
        _refuse_series(path, series)
        return shape_data(_read_own_idx(path, idx, name), how.shaping)
    arrays = plain_files(path, listing, ".npy")
    if arrays:
        return shape_data(read_npy(arrays, name=name, seed=seed, series=series), how.shaping)
    tables = plain_files(path, listing, *TABLE_ENDS)
    if tables and (how.label is not None or not any(_holds_images(listing, path))):
        found = read_csv(tables, name=name, seed=seed, label=label, series=series)
        return shape_data(found, how.shaping)
    _refuse_series(path, series)
    return read_folder(path, seed=seed, progress=progress, shaping=shaping, only=only)


TABLE_ENDS = (".csv", ".tsv")


def _load_file(path: Path, how: Reading) -> ImageData:
    check_regular(path)
    shaping, end = how.shaping, path.suffix.lower()
    arrays: dict[str, Any] = {"seed": how.seed, "series": how.series}
    tables = arrays | {"label": how.label}
    _refuse_label(path, how.label, end in (*TABLE_ENDS, ".parquet"))
    if end == ".npz":
        return shape_data(read_npz(path, **arrays), shaping)
    if end == ".npy":
        beside = plain_files(path.parent, list_files(path.parent, depth=0), ".npy")
        name = path.resolve().parent.name
        return shape_data(read_npy(beside, name=name, asked_for=path, **arrays), shaping)
    if end in TABLE_ENDS:
        return shape_data(read_csv([path], name=path.stem, **tables), shaping)
    if end == ".parquet":
        return _table_of(read_parquet([path], name=path.stem, **vars(how)), how)
    if end == ".zip":
        _refuse_series(path, how.series)
        return read_zip_folders(path, how)
    raise DataError(
        f"{path}: unknown kind of file; give an .npz, .npy, .csv, .parquet or .zip file, or a "
        "folder"
    )


def _table_of(data: ImageData, how: Reading) -> ImageData:
    """Refuses to shape a table from Parquet, and series of images, which were shaped already."""
    if data.scale == 1.0:
        return shape_data(data, how.shaping)
    _refuse_series(Path(data.name), how.series)
    return data


def _refuse_label(path: Path, label: str | None, table: bool) -> None:
    if label is not None and not table:
        raise DataError(f"{path}: has no columns, so label={label} names none; leave it out")


def _refuse_series(path: Path, series: bool) -> None:
    if series:
        raise DataError(
            f"{path}: holds images, not series; leave out {either('series', '--series')}"
        )


def _holds_images(listing: Listing, folder: Path) -> Iterator[bool]:
    """For each file in a sub-folder, whether it is an image."""
    for place, names in listing.items():
        if place != folder:
            yield from (Path(name).suffix.lower() in suffixes() for name in names)


def _read_own_idx(path: Path, files: Sequence[Path], name: str) -> ImageData:
    """A user's own data in MNIST's four files."""
    if len(files) < len(MNIST_FILES):
        raise DataError(f"{path}: needs the four files {', '.join(MNIST_FILES)} (or .gz)")
    values = read_four(files)
    train, test = image_pair(values[0], values[1]), image_pair(values[2], values[3])
    classes = int(train[1].max()) + 1
    names = tuple(str(label) for label in range(classes))
    return ImageData(name, *train, *test, names, BYTE_SCALE, "IDX files")


@dataclass(frozen=True)
class Availability:
    """Whether a named data set is available, without reading it.

    Attributes:
        name: Its name.
        found: Whether its files are present.
        where: Where they are, or what is wrong with them.
        how: How to get it, if it is missing.
    """

    name: str
    found: bool
    where: str
    how: str = ""


def available(folder: Path | None = None) -> list[Availability]:
    """Which named data sets are in ``folder`` or the cache; reads hardly any content.

    Raises:
        DataError: ``folder`` is missing or cannot be read.
    """
    if folder is not None:
        check_folder(folder)
    listings = {"data folder": list_files(folder)} if folder is not None else {}
    result = [_digits()]
    try:
        downloads: Path | None = cache_folder()
    except MissingPackageError:  # then nothing can have been downloaded
        downloads = None
    for entry in CATALOG.values():
        cache = downloads / entry.cache if downloads else None
        places = listings | ({"cache": list_files(cache)} if cache and cache.is_dir() else {})
        result.append(_availability(entry, places.values()))
    return result


def _digits() -> Availability:
    if installed("sklearn"):
        return Availability("digits", True, "ships with scikit-learn")
    return Availability("digits", False, "not found", 'pip install "nispa[sklearn]"')


def _availability(entry: Entry, listings: Iterable[Listing]) -> Availability:
    for listing in listings:
        try:
            found = find(entry, listing)
        except DataError as error:
            return Availability(entry.name, False, str(error), how_to_get(entry))
        if found:
            return Availability(entry.name, True, f"{found.source} in {found.path}")
    return Availability(entry.name, False, "not found", how_to_get(entry))
