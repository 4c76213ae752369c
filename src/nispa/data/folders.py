"""Image folders: one per class, optionally inside one per part (training, test)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nispa.data.dataset import MOST_NAMED, ImageData, Progress, check_wanted, sort_names
from nispa.data.images import HEIC, ImageStack, Source, data_of, suffixes
from nispa.data.shaping import AS_STORED, Reading, Shaping
from nispa.data.splits import TRAIN, choose_test, part_in_name, part_of_folder, unknown_part
from nispa.errors import DataError
from nispa.files import one_line

DEEPEST = 32
Place = tuple[str, ...]
"""A path inside a tree: the names of the folders above, and its own."""


@dataclass(frozen=True)
class Tree:
    """Files and folders below a folder or in an archive, without hidden ones.

    Attributes:
        where: What to call it in an error.
        files: Where to read each file from.
        folders: All folders, including empty ones.
    """

    where: str
    files: Mapping[Place, Source]
    folders: frozenset[Place]

    @cached_property
    def tops(self) -> dict[str, Tree]:
        """The tree in each of its top folders, in sorted order."""
        files: dict[str, dict[Place, Source]] = {
            place[0]: {} for place in sorted(self.folders) if len(place) == 1
        }
        folders: dict[str, set[Place]] = {name: set() for name in files}
        for place, file in self.files.items():
            if len(place) > 1:
                files[place[0]][place[1:]] = file
        for place in self.folders:
            if len(place) > 1:
                folders[place[0]].add(place[1:])
        return {
            name: Tree(f"{self.where}/{name}", files[name], frozenset(folders[name]))
            for name in files
        }

    @cached_property
    def images(self) -> dict[str, Source]:
        """All image files by path, sorted, including those in deeper folders."""
        return {
            "/".join((self.where, *place)): self.files[place]
            for place in sorted(self.files)
            if _suffix(place) in suffixes()
        }

    @property
    def direct(self) -> int:
        """The number of image files outside its folders."""
        return sum(len(place) == 1 and _suffix(place) in suffixes() for place in self.files)


def read_folder(
    path: Path,
    *,
    seed: int = 0,
    name: str = "",
    progress: Progress | None = None,
    shaping: Shaping = AS_STORED,
    only: Collection[int] | None = None,
) -> ImageData:
    """Images in one folder per class; the folders' names are the names of the classes.

    Classes are numbered in sorted order (as numbers, if all names are numbers). Images in deeper
    folders belong to the class above. The class folders may be inside folders for training and test
    (any of the names in :mod:`nispa.data.splits`). Without a test folder the validation folder
    takes its place; without either the seed holds out a fifth of each class.

    Args:
        path: The folder.
        seed: Determines the test split if there is none.
        name: Name of the data set; by default the folder's.
        progress: Called as ``progress(what, done, total)`` while images are decoded.
        shaping: How to crop and scale each image.
        only: Numbers of the classes to read; None for all.

    Raises:
        DataError: A class has no images, or an image is damaged or has another size.
    """
    how = Reading(seed, progress, shaping, only)
    return read_tree(walk(path), name or path.resolve().name, "image folders", how)


def walk(path: Path) -> Tree:
    """Everything below a folder; links are followed.

    Raises:
        DataError: A folder cannot be read, or an image is a pipe or a device.
    """
    files: dict[Place, Source] = {}
    folders: set[Place] = set()
    seen: set[tuple[int, int]] = set()
    waiting: list[Place] = [()]
    while waiting:
        place = waiting.pop()
        here = path.joinpath(*place)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen or len(place) > DEEPEST:
                continue  # a link that leads back up
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
            for entry in found:
                below = (*place, entry.name)
                if entry.is_dir():
                    folders.add(below)
                    waiting.append(below)
                elif entry.is_file():
                    files[below] = Path(entry.path)
                elif _suffix(below) in suffixes():
                    raise DataError(f"{entry.path}: is no regular file, or a link to nowhere")
        except OSError as error:
            raise DataError(f"{here}: cannot be read ({error.strerror or error})") from None
    return Tree(str(path), files, frozenset(folders))


def read_tree(tree: Tree, name: str, source: str, how: Reading) -> ImageData:
    """A data set from a tree of files; see :func:`read_folder`."""
    while len(tree.tops) == 1 and not tree.direct:
        ((top, inner),) = tree.tops.items()
        if part_of_folder(top) or not inner.tops:
            break
        tree = inner  # a single folder around everything
    parts = _parts(tree)
    chosen = [_classes(parts[TRAIN])]
    names = list(chosen[0])
    check_wanted(name, how.only, len(names))
    test_part, notes = choose_test(parts)
    if test_part is not None:
        chosen.append(_classes(parts[test_part], may_lack=True))
        extra = sorted(set(chosen[1]) - set(names))
        if extra:
            where = parts[test_part].where.removeprefix(f"{tree.where}/")
            raise DataError(
                f"{tree.where}: class folder {where}/{extra[0]} has no partner in train/"
            )
    read = [_read(files, names, name, how) for files in chosen]
    return data_of(name, read, names, how, source=source, notes=[_left_out(parts.values()), *notes])


def _parts(tree: Tree) -> dict[str, Tree]:
    """The parts of a data set; without folders for parts, all of it is for training."""
    read = part_of_folder
    holders = [name for name, inner in tree.tops.items() if _holds_classes(inner)]
    around = [name for name in holders if read(name)]
    if not around:
        read = part_in_name  # such as training_set; less certain, so only beside another part
        around = [name for name in holders if read(name)]
        if not {TRAIN} < {read(name) for name in around}:
            return {TRAIN: tree}
    found: dict[str, Tree] = {}
    for name, inner in tree.tops.items():
        part = read(name)
        if not part:
            raise unknown_part(inner.where)
        if part in found:
            raise DataError(
                f"{inner.where}: is {part} as {found[part].where} is; put them together"
            )
        if inner.direct:
            raise DataError(
                f"{inner.where}: holds images but no class folders around them, so their classes "
                "are not known; make a folder for each class, or move them away"
            )
        if inner.images:
            found[part] = inner
    if TRAIN not in found:
        raise DataError(f"{tree.where}: has {', '.join(around)}, but no train/ with images")
    return found


def _holds_classes(tree: Tree) -> bool:
    """Whether a folder holds class folders, so that it is no class that is called as a part is."""
    return bool(tree.tops) and not tree.direct


def _classes(tree: Tree, *, may_lack: bool = False) -> dict[str, dict[str, Source]]:
    """The image files of each class folder by path, classes in sorted order."""
    if not tree.tops:
        raise DataError(
            f"{tree.where}: holds no data set; expected a folder of images for each class, or "
            "Parquet, CSV, NumPy or IDX files"
        )
    for inner in tree.tops.values():
        if not inner.images and not may_lack:
            why = _left_out([inner], within=True)
            raise DataError(
                f"{inner.where}: class folder without images; add some or take it away"
                + (f" ({why})" if why else "")
            )
    found = {name: tree.tops[name].images for name in sort_names(tree.tops)}
    return {name: files for name, files in found.items() if files}


def _left_out(trees: Iterable[Tree], *, within: bool = False) -> str:
    """A note on files that were not read, and why; empty if all were.

    Args:
        trees: Trees of class folders, or single class folders.
        within: Whether they are single class folders.
    """
    kinds: Counter[str] = Counter()
    for tree in trees:
        if tree.direct and not within:
            kinds["image beside the class folders"] += tree.direct
        for place in tree.files:
            end = _suffix(place)
            if end not in suffixes() and (within or len(place) > 1 or end in HEIC):
                kinds[_why(end)] += 1
    if not kinds:
        return ""
    most = kinds.most_common(MOST_NAMED)
    others = sum(kinds.values()) - sum(count for _, count in most)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in most)
    return f"files left out: {shown}" + (f", {others:,} others" if others else "")


def _why(end: str) -> str:
    if end in HEIC:
        return f"{end} (to read them: pip install 'nispa[heic]')"
    return one_line(end, 20) or "without an ending"


def needs_heic(name: str) -> bool:
    """Whether a file is an image that only a library that is not installed can read."""
    end = _suffix((name,))
    return end in HEIC and end not in suffixes()


def _suffix(place: Place) -> str:
    return os.path.splitext(place[-1])[1].lower()  # noqa: PTH122 - of a name, not of a path


def _read(
    files: Mapping[str, Mapping[str, Source]], names: Sequence[str], name: str, how: Reading
) -> tuple[ImageStack, Tensor]:
    """The images of the requested classes, and their labels."""
    chosen = [
        (label, file, shown)
        for label, each in enumerate(names)
        if how.only is None or label in how.only
        for shown, file in files.get(each, {}).items()
    ]
    stack = ImageStack(len(chosen), name, how.shaping)
    stack.fill(((file, shown) for _, file, shown in chosen), how.progress)
    return stack, torch.tensor([label for label, _, _ in chosen], dtype=torch.int64)
