"""Reads PyTorch data sets and loaders of (image, label) into memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nispa.data.arrays import Array, as_array, from_arrays, is_picture
from nispa.data.dataset import ImageData
from nispa.errors import DataError


def from_torch(
    train: Any, test: Any = None, *, name: str = "", seed: int = 0, series: bool = False
) -> ImageData:
    """A data set from map-style PyTorch data sets; without ``test`` the seed holds out a fifth.

    An image may be a tensor ``(channels, height, width)``, ``(height, width)`` or ``(features,)``,
    an array ``(height, width, channels)``, ``(height, width)`` or ``(features,)``, or a Pillow
    image (read as 8-bit grey or RGB). A volume is ``(channels, depth, height, width)``. Bytes are
    scaled by 1/255, floats used unchanged. A random transform is applied once.

    Args:
        train: Has ``len()`` and yields ``(image, label)`` by index.
        test: As ``train``, or None.
        name: Name of the data set; by default that of its class.
        seed: Determines the test split if there is none.
        series: Whether samples are ``(channels, length)``, or ``(length,)`` of one channel.

    Raises:
        DataError: An item has another form, or the images differ in shape.
    """
    name = name or type(train).__name__
    arrays = [*_items(train, f"{name}: training", labelled=True, series=series)]
    if test is not None:
        arrays += _items(test, f"{name}: test", labelled=True, series=series)
    return from_arrays(
        *arrays,
        name=name,
        seed=seed,
        channels_first=True,
        source="torch.utils.data.Dataset",
        series=series,
    )


def split_images(values: Any, *, series: bool = False) -> tuple[Any, bool | None]:
    """The images of arrays, or of a PyTorch data set or loader, which may hold labels as well.

    Args:
        values: Images, or a PyTorch data set or loader of images or of ``(image, label)``.
        series: See :func:`from_torch`.

    Returns:
        Images; and True if they come from a data set and have the channels first, else None.

    Raises:
        DataError: An item of the data set has another form.
    """
    if isinstance(values, DataLoader):
        return _batches(values, labelled=False)[0], None
    if isinstance(values, Dataset):
        return _items(values, type(values).__name__, labelled=False, series=series)[0], True
    return values, None


def split_pairs(images: Any, labels: Any, *, series: bool = False) -> tuple[Any, Any, bool | None]:
    """Images and labels; see :func:`split_images`.

    Args:
        images: Images, or a PyTorch data set or loader of ``(image, label)``.
        labels: Their labels; None if ``images`` includes them.
        series: See :func:`from_torch`.

    Raises:
        DataError: There are no labels, or two sets of them.
    """
    if not isinstance(images, (DataLoader, Dataset)):
        if labels is None:
            raise DataError(
                "labels are missing: pass images and labels, or a PyTorch data set or loader of "
                "both"
            )
        return images, labels, None
    if labels is not None:
        raise DataError(
            f"labels are given twice: {type(images).__name__} has its own; leave labels out, or "
            "pass the images alone"
        )
    if isinstance(images, DataLoader):
        return *_batches(images, labelled=True), None
    return *_items(images, type(images).__name__, labelled=True, series=series), True


def _pair(item: Any, name: str, labelled: bool) -> tuple[Any, Any]:
    """The image and label of an item or batch; the label is None unless ``labelled``."""
    pair = isinstance(item, (tuple, list)) and len(item) > 0
    if labelled and pair and len(item) < 2:
        raise DataError(f"{name} must be (image, label), but has no label")
    if labelled and not pair:
        raise DataError(f"{name} must be (image, label), not {type(item).__name__}")
    return (item[0], item[1] if labelled else None) if pair else (item, None)


def _batches(loader: DataLoader[Any], *, labelled: bool) -> tuple[Array, Any]:
    """All batches of a loader, joined."""
    images: list[Array] = []
    labels: list[Array] = []
    for number, batch in enumerate(loader):
        name = f"DataLoader: batch {number}"
        part, label = _pair(batch, name, labelled)
        part = as_array(part, name)
        if part.ndim < 2 or (images and part.shape[1:] != images[0].shape[1:]):
            like = images[0].shape if images else "(n, channels, height, width)"
            raise DataError(
                f"{name} has images of shape {part.shape}, which is no batch like {like}"
            )
        images.append(part)
        if labelled:
            labels.append(as_array(label, f"{name}: labels"))
    if not images:
        raise DataError("DataLoader: it yields nothing")
    try:
        return np.concatenate(images), np.concatenate(labels) if labelled else None
    except ValueError:
        raise DataError("DataLoader: the labels of its batches differ in shape") from None


def _items(dataset: Any, name: str, *, labelled: bool, series: bool) -> tuple[Array, Any]:
    """All items of a map-style data set, stacked."""
    if isinstance(dataset, IterableDataset):
        raise DataError(f"{name} data has no length; pass a DataLoader of it")
    try:
        count = len(dataset)
    except TypeError:
        raise DataError(f"{name} data has no length; a map-style data set is needed") from None
    images: list[Array] = []
    labels: list[int | str] = []
    for index in range(count):
        where = f"{name} item {index}"
        image, label = _pair(dataset[index], where, labelled)
        image = _planes(image, where, series)
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise DataError(
                f"{where} is {image.dtype} {image.shape}, but item 0 is {images[0].dtype} "
                f"{images[0].shape}; all must share one shape and type"
            )
        images.append(image)
        if labelled:
            labels.append(_label(label, where))
    if not images:
        raise DataError(f"{name} data is empty")
    return np.stack(images), np.array(labels, dtype=object)


def _planes(image: Any, name: str, series: bool) -> Array:
    """One image as ``(channels, height, width)``; volumes, rows and series as they are."""
    if not isinstance(image, (Tensor, np.ndarray)) and not is_picture(image):
        raise DataError(f"{name}: {type(image).__name__} is no tensor, array or Pillow image")
    planes = as_array(image, name)
    if series:
        return planes
    if planes.ndim == 2:
        planes = planes[None]
    elif planes.ndim == 3 and not isinstance(image, Tensor):
        planes = np.moveaxis(planes, -1, 0)
    if planes.ndim not in (1, 3, 4):
        raise DataError(f"{name}: image of shape {planes.shape} must have 1 to 4 dimensions")
    return planes


def _label(label: Any, name: str) -> int | str:
    if isinstance(label, (Tensor, np.ndarray, np.generic)):
        label = label.tolist()
        while isinstance(label, list) and len(label) == 1:
            label = label[0]
    if isinstance(label, (int, str)):
        return label
    raise DataError(f"{name}: label {label!r} must be a whole number or a text")
