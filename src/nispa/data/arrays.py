"""A user's own arrays: NumPy arrays, tensors, and any ``torch.utils.data.Dataset``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.data.dataset import BYTE_SCALE, ImageData, split_by_seed
from nispa.errors import DataError

CHANNELS = (1, 3)


def as_images(
    values: Any, *, name: str = "images", channels_first: bool | None = None
) -> tuple[Tensor, float]:
    """Images as ``(n, channels, height, width)``, and the scale that brings a pixel into [0, 1].

    Shapes: ``(n, features)`` becomes ``(n, 1, 1, features)``; ``(n, height, width)`` is grey;
    with four dimensions the one of size 1 or 3 is the channels, the second or the last. Where both
    or neither are, ``channels_first`` must say it.

    Types: uint8 stays and has the scale 1/255, bool becomes uint8 with the scale 1, floats become
    float32 and are used as they are.

    Args:
        values: A NumPy array, a tensor, or nested lists.
        name: What to call it in an error.
        channels_first: True for ``(n, channels, height, width)``, False for
            ``(n, height, width, channels)``, None to tell by the rule above.

    Raises:
        DataError: Another type or shape, or a value that is not finite.
    """
    pixels, scale = _pixels(_array(values, name), name)
    if pixels.ndim == 2:
        pixels = pixels[:, None, None, :]
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4:
        if channels_first is None:
            channels_first = _channels_first(pixels.shape, name)
        if not channels_first:
            pixels = pixels.transpose(0, 3, 1, 2)
    else:
        raise DataError(
            f"{name}: shape {pixels.shape} must be (n, features), (n, height, width), "
            "(n, height, width, channels) or (n, channels, height, width)"
        )
    if 0 in pixels.shape:
        raise DataError(f"{name}: shape {pixels.shape} is empty")
    # A copy: the caller may go on writing to the array, but samples never change.
    return torch.from_numpy(np.array(pixels, order="C")), scale


def _array(values: Any, name: str) -> np.ndarray[Any, Any]:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(f"{name}: rows of different length; all must share one shape") from None


def _pixels(array: np.ndarray[Any, Any], name: str) -> tuple[np.ndarray[Any, Any], float]:
    """The array as uint8 or float32, and its scale."""
    if array.dtype == np.uint8:
        return array, BYTE_SCALE
    if array.dtype == np.bool_:
        return array.astype(np.uint8), 1.0
    if array.dtype.kind != "f":
        raise DataError(
            f"{name}: type {array.dtype} must be uint8 (0 to 255, scaled by 1/255) or float "
            "(used as it is)"
        )
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not np.isfinite(floats).all():
        row = int(np.argwhere(~np.isfinite(floats))[0][0])
        raise DataError(f"{name}: image {row} has a value that is not a finite 32-bit float")
    return floats, 1.0


def _channels_first(shape: tuple[int, ...], name: str) -> bool:
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        why = "both its second and last" if first else "neither its second nor its last"
        raise DataError(
            f"{name}: shape {shape} is ambiguous, {why} dimension can be the channels (1 or 3); "
            "pass channels_first=True or False from Python"
        )
    return first


def as_label_array(values: Any, name: str = "labels") -> np.ndarray[Any, Any]:
    """Labels as a 1-dimensional array of int64 or of text.

    Raises:
        DataError: They are neither whole numbers nor texts, or have another shape.
    """
    array = _array(values, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name}: shape {array.shape} must be (n,), one label per image")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    if array.dtype.kind in "bi" or (array.dtype.kind == "u" and array.dtype.itemsize < 8):
        return array.astype(np.int64)
    if array.dtype.kind == "u" and (not array.size or array.max() < 2**63):
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        return array
    raise DataError(f"{name}: type {array.dtype} must be whole numbers or texts")


def encode_labels(*groups: np.ndarray[Any, Any]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels as 0 to classes - 1, in sorted order over all groups, and the names of the classes.

    Raises:
        DataError: Some are numbers and some texts.
    """
    if len({group.dtype.kind for group in groups}) > 1:
        raise DataError("labels: some are numbers and some are texts; use one kind")
    known, place = np.unique(np.concatenate(groups), return_inverse=True)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    encoded = [torch.from_numpy(part.astype(np.int64)) for part in np.split(place, ends)]
    return encoded, tuple(str(label) for label in known.tolist())


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    name: str = "arrays",
    seed: int = 0,
    channels_first: bool | None = None,
    source: str = "arrays",
) -> ImageData:
    """A data set from a user's own arrays; without a test set the seed holds out a fifth.

    Args:
        x_train: Images, see :func:`as_images`.
        y_train: Labels, ``(n,)``: any whole numbers or texts; they become 0, 1, … in sorted order.
        x_test: Test images, or None.
        y_test: Test labels, or None.
        name: The name of the data set.
        seed: Decides the test split where there is no test set.
        channels_first: See :func:`as_images`.
        source: What the arrays were read from, for the record.

    Raises:
        DataError: The arrays cannot be used, or do not fit together.
    """
    if (x_test is None) != (y_test is None):
        raise DataError(f"{name}: x_test and y_test must be given together")
    images, scale = as_images(x_train, name=f"{name}: x_train", channels_first=channels_first)
    labels = as_label_array(y_train, f"{name}: y_train")
    if x_test is None:
        (encoded,), names = encode_labels(labels)
        return split_by_seed(name, images, encoded, names, scale, seed=seed, source=source)
    tests, test_scale = as_images(x_test, name=f"{name}: x_test", channels_first=channels_first)
    if scale != test_scale:
        raise DataError(f"{name}: x_train and x_test have different types; use one")
    test_labels = as_label_array(y_test, f"{name}: y_test")
    (encoded, encoded_tests), names = encode_labels(labels, test_labels)
    unseen = sorted(set(encoded_tests.tolist()) - set(encoded.tolist()))
    if unseen:
        raise DataError(
            f"{name}: test label {names[unseen[0]]} does not occur among the training labels"
        )
    return ImageData(name, images, encoded, tests, encoded_tests, names, scale, source)
