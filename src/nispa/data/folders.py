"""A folder of class folders of images, with ``train/`` and ``test/`` inside or without."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nispa.data.dataset import BYTE_SCALE, ImageData, Progress, sort_names, split_by_seed
from nispa.data.images import SUFFIXES, ImageStack, lossy_note, same_channels
from nispa.errors import DataError


def read_folder(
    path: Path, *, seed: int, name: str = "", progress: Progress | None = None
) -> ImageData:
    """Images in one folder for each class; the folders' names are the names of the classes.

    Classes are numbered in sorted order (as numbers, where all names are numbers). Without
    ``train/`` and ``test/`` the seed holds out a fifth of each class.

    Args:
        path: The folder.
        seed: Decides the test split where there is none.
        name: Name of the data set; by default the folder's.
        progress: Called while images are decoded.

    Raises:
        DataError: A class is empty, an image is damaged or has another size, or there are none.
    """
    name = name or path.resolve().name
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = _class_files(path / "train"), _class_files(path / "test")
        extra = sorted(set(test) - set(train))
        if extra:
            raise DataError(f"{path}: class folder test/{extra[0]} has no partner in train/")
        names = list(train)
        stack, labels = _read(train, names, name, progress)
        test_stack, test_labels = _read(test, names, name, progress)
        images, test_images = same_channels(stack.finish(), test_stack.finish())
        return ImageData(
            name,
            images,
            labels,
            test_images,
            test_labels,
            tuple(names),
            BYTE_SCALE,
            "image folders",
            note=lossy_note(stack, test_stack),
        )
    files = _class_files(path / "train" if _only_train(path) else path)
    names = list(files)
    stack, labels = _read(files, names, name, progress)
    return split_by_seed(
        name,
        stack.finish(),
        labels,
        tuple(names),
        BYTE_SCALE,
        seed=seed,
        source="image folders",
        note=lossy_note(stack),
    )


def _only_train(path: Path) -> bool:
    """Whether the class folders lie in ``train/``, and nothing lies beside it."""
    folders = [each.name for each in path.iterdir() if each.is_dir()]
    return folders == ["train"] and any(each.is_dir() for each in (path / "train").iterdir())


def _class_files(path: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, classes and files in sorted order."""
    try:
        folders = {
            each.name: each
            for each in path.iterdir()
            if each.is_dir() and not each.name.startswith(".")
        }
        found = {
            name: sorted(
                file
                for file in folder.iterdir()
                if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
            )
            for name, folder in folders.items()
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not found:
        raise DataError(
            f"{path}: holds no data set; expected a folder of images for each class, Parquet or "
            "IDX files"
        )
    for name, files in found.items():
        if not files:
            raise DataError(
                f"{path / name}: class folder without images ({', '.join(sorted(SUFFIXES))})"
            )
    return {name: found[name] for name in sort_names(found)}


def _read(
    files: dict[str, list[Path]], names: list[str], name: str, progress: Progress | None
) -> tuple[ImageStack, Tensor]:
    total = sum(len(each) for each in files.values())
    stack = ImageStack(total, name)
    labels = []
    for label, each in enumerate(names):
        for file in files.get(each, ()):
            stack.add(file, str(file))
            labels.append(label)
            if progress and len(labels) % 256 == 0:
                progress(f"decoding {name}", len(labels), total)
    return stack, torch.tensor(labels, dtype=torch.int64)
