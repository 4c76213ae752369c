"""Any ``torch.utils.data.Dataset`` that yields (image, label), read into memory once."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nispa.data.arrays import from_arrays
from nispa.data.dataset import ImageData
from nispa.errors import DataError


def from_torch(train: Any, test: Any = None, *, name: str = "", seed: int = 0) -> ImageData:
    """A data set from map-style PyTorch data sets; without ``test`` the seed holds out a fifth.

    An image may be a tensor ``(channels, height, width)`` or ``(height, width)``, an array
    ``(height, width, channels)`` or ``(height, width)``, or a Pillow image (read as 8-bit grey or
    RGB). Bytes are scaled by 1/255, floats used as they are. A random transform is drawn once.

    Args:
        train: Has ``len()`` and yields ``(image, label)`` by index.
        test: As ``train``, or None.
        name: Name of the data set; by default that of its class.
        seed: Decides the test split where there is none.

    Raises:
        DataError: An item is something else, or the images differ in shape.
    """
    name = name or type(train).__name__
    arrays = [*_read(train, f"{name}: training")]
    if test is not None:
        arrays += _read(test, f"{name}: test")
    return from_arrays(
        *arrays, name=name, seed=seed, channels_first=True, source="torch.utils.data.Dataset"
    )


def _read(dataset: Any, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        count = len(dataset)
    except TypeError:
        raise DataError(f"{name} data has no length; a map-style data set is needed") from None
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int | str] = []
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise DataError(
                f"{name} item {index} must be (image, label), not {type(item).__name__}"
            )
        image = _planes(item[0], f"{name} item {index}")
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise DataError(
                f"{name} item {index} is {image.dtype} {image.shape}, but item 0 is "
                f"{images[0].dtype} {images[0].shape}; all must share one shape and type"
            )
        images.append(image)
        labels.append(_label(item[1], f"{name} item {index}"))
    if not images:
        raise DataError(f"{name} data is empty")
    return np.stack(images), np.array(labels)


def _planes(image: Any, name: str) -> np.ndarray[Any, Any]:
    """One image as ``(channels, height, width)``."""
    if isinstance(image, Tensor):
        planes = image.detach().cpu().numpy()
        planes = planes[None] if planes.ndim == 2 else planes
    else:
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        if not isinstance(image, np.ndarray):
            raise DataError(f"{name}: {type(image).__name__} is no tensor, array or Pillow image")
        planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    if planes.ndim != 3:
        raise DataError(f"{name}: image of shape {planes.shape} must have 2 or 3 dimensions")
    return planes


def _label(label: Any, name: str) -> int | str:
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and np.ndim(label) == 0:
        label = label.item()
    if isinstance(label, (int, str)):
        return label
    raise DataError(f"{name}: label {label!r} must be a whole number or a text")
