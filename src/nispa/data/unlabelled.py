"""Samples without labels, for prediction: images in files and folders, arrays, tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nispa.base.shapes import Shape, holds_rows, in_words, is_image
from nispa.data.archives import check_regular
from nispa.data.arrays import as_images
from nispa.data.dataset import BYTE_SCALE
from nispa.data.folders import needs_heic, walk
from nispa.data.images import check_brightness, decode
from nispa.data.npz import read_file, read_members
from nispa.data.parquet import read_rows
from nispa.errors import DataError
from nispa.files import one_line, wording

KEYS = ("x", "images", "x_test", "test_images")
ARRAYS = (".npz", ".npy")
TABLES = (".csv", ".tsv", ".parquet")
MOST_BYTES = 2**33  # of a compressed array


@dataclass(frozen=True)
class Unlabelled:
    """Samples of one source.

    Attributes:
        names: What to call each sample.
        images: ``(n, *shape)``, uint8 or float32.
        scale: Factor that scales a pixel to [0, 1], judged by its type alone.
        stored: Whether they are arrays, whose values have the meaning of the training arrays.
    """

    names: tuple[str, ...]
    images: Tensor
    scale: float
    stored: bool


def read_unlabelled(
    paths: Sequence[Path],
    shape: Shape,
    shaping: Sequence[Any] = (),
    label: str | None = None,
    columns: Sequence[str] = (),
) -> list[Unlabelled]:
    """Samples from image files, ``.npz`` and ``.npy`` files, tables, and folders of image files.

    Args:
        paths: Files and folders; their order is kept, and the files below a folder are sorted.
        shape: The shape of a sample of the network's input.
        shaping: How to crop and scale image files: the last argument of :func:`decode`, or nothing.
        label: Name of a table's column of labels, which is not read; by default one of the usual.
        columns: Names of a table's columns to read, in the network's order; by default all others.

    Raises:
        DataError: One is missing, damaged, or of another shape.
    """
    found: list[Unlabelled] = []
    names: list[str] = []
    pixels: list[Tensor] = []
    brightest = 0

    def flush() -> None:
        if names:
            found.append(Unlabelled(tuple(names), torch.stack(pixels), BYTE_SCALE, stored=False))
            names.clear()
            pixels.clear()

    for path in paths:
        for file in _files(path):
            if file.suffix.lower() in ARRAYS:
                flush()
                found.append(_array(file, shape))
            elif file.suffix.lower() in TABLES:
                flush()
                series = len(shape) == 2
                rows = read_rows(file, label=label, series=series, columns=columns)
                found.append(_unlabelled(file, torch.from_numpy(rows), 1.0, shape))
            elif not is_image(shape):
                raise DataError(
                    f"{file}: the network learned {in_words(shape)}, not images; give an .npz, "
                    ".npy, .csv or .parquet file"
                )
            else:
                decoded = decode(file, str(file), *shaping)
                brightest = max(brightest, decoded.brightest)
                image = torch.from_numpy(decoded.pixels)
                planes = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
                names.append(str(file))
                pixels.append(fitting(planes, str(file), shape))
    flush()
    check_brightness(brightest, "its images")
    return found


def _files(path: Path) -> Iterator[Path]:
    try:
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{one_line(str(path))} does not exist; give images or a folder")
            check_regular(path)
            yield path
            return
        tree = walk(path)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{one_line(str(path))} cannot be read ({wording(error)})") from None
    unread = [place for place in sorted(tree.files) if needs_heic(place[-1])]
    if unread:
        raise DataError(
            f"{path.joinpath(*unread[0])}: to read {len(unread):,} such files: pip install "
            "'nispa[heic]'; or move them away"
        )
    if not tree.images:
        raise DataError(f"{one_line(str(path))} holds no image file; give images or their folder")
    yield from map(Path, tree.images)


def fitting(planes: Tensor, name: str, shape: Shape) -> Tensor:
    """One image ``(channels, height, width)`` in the network's form, if nothing is lost."""
    channels, height, width = shape
    if tuple(planes.shape[1:]) != (height, width):
        raise DataError(
            f"{name}: {planes.shape[2]}×{planes.shape[1]} pixels, but the network learned images "
            f"of {width}×{height}; bring it to this size first"
        )
    if planes.shape[0] == channels:
        return planes
    if planes.shape[0] == 1:
        return planes.repeat(channels, 1, 1)
    if channels == 1 and bool((planes == planes[:1]).all()):
        return planes[:1]
    raise DataError(
        f"{name}: it is in colour, but the network learned grey images; turn it into grey first"
    )


def _array(path: Path, shape: Shape) -> Unlabelled:
    if path.suffix.lower() == ".npy":
        values = read_file(path)
    else:
        (values,) = read_members(path, lambda names: [_key(names, path)], MOST_BYTES)
    channels_first, series = None, len(shape) == 2
    if not is_image(shape) and values.shape == shape:  # a single row or series
        values = values[None]
    if is_image(shape):
        channels, height, width = shape
        if values.ndim == 2 and values.shape[1] == channels * height * width:
            values, channels_first = values.reshape(-1, *shape), True
        elif values.shape[1:] in ((channels, height, width), (height, width, channels)):
            channels_first = values.shape[1:] == shape
    elif values.shape[1:] in (shape, (1, 1, *shape)):
        channels_first = True
    images, scale = as_images(values, name=str(path), channels_first=channels_first, series=series)
    return _unlabelled(path, images, scale, shape)


def _unlabelled(path: Path, images: Tensor, scale: float, shape: Shape) -> Unlabelled:
    found = tuple(images.shape[1:])
    if holds_rows(found, shape):
        images = images.reshape(-1, *shape)
    elif found != shape:
        raise DataError(
            f"{path}: images of shape {found}, but the network learned {shape}"
            if is_image(found) and is_image(shape)
            else f"{path}: {in_words(found)}, but the network learned {in_words(shape)}"
        )
    return Unlabelled(tuple(f"{path}[{i}]" for i in range(len(images))), images, scale, stored=True)


def _key(names: Collection[str], path: Path) -> str:
    """The name of the array of images in an ``.npz`` file."""
    keys = [key for key in KEYS if key in names] or (list(names) if len(names) == 1 else [])
    if not keys:
        raise DataError(
            f"{path}: holds {', '.join(map(one_line, sorted(names)))}; the images must be called "
            f"{' or '.join(KEYS)}"
        )
    return keys[0]
