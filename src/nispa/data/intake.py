"""Reads the images and labels that a caller passes to a learner, and warns about doubtful ones.

Learning, measuring and predicting all read through these functions, so the same array always means
the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.base.shapes import Shape, holds_rows, is_image
from nispa.data.arrays import (
    MOST,
    UNLIKE,
    Array,
    as_array,
    as_images,
    divisor_of,
    is_picture,
    kind_of,
    labelled,
    longer,
    reach_of,
    shorter,
)
from nispa.data.dataset import BYTE_SCALE
from nispa.data.tasks import Samples
from nispa.data.torch_dataset import split_images, split_pairs
from nispa.errors import CapacityError, DataError, either

DARK = 25
"""The brightest byte of images that are dark overall."""


def read_labelled(
    images: Any,
    labels: Any,
    shape: Shape,
    *,
    channels_first: bool | None,
    bounded: bool,
    first: float | None,
) -> tuple[Samples, Array]:
    """Images and labels, from arrays or from a PyTorch data set or loader of both.

    Args:
        images: See :func:`nispa.data.arrays.as_images`.
        labels: See :func:`nispa.data.arrays.as_label_array`; None if ``images`` includes them.
        shape: The shape of a sample of the network's input.
        channels_first: See :func:`nispa.data.arrays.as_images`.
        bounded: See :func:`nispa.data.arrays.as_images`.
        first: See :func:`as_meant`.

    Returns:
        The images, all of class 0, and the labels unchanged.

    Raises:
        DataError: They cannot be used, or do not match.
        CapacityError: The images have another shape.
    """
    series = len(shape) == 2
    images, labels, layout = split_pairs(images, labels, series=series)
    array = as_array(images, "images")
    stored, scale, given = labelled(
        array,
        labels,
        channels_first=_layout(array, shape, layout if channels_first is None else channels_first),
        bounded=bounded,
        series=series,
    )
    return as_meant(_samples(stored, scale, shape), first), given


def read_images(
    images: Any, shape: Shape, *, channels_first: bool | None, first: float | None
) -> Samples:
    """Images to predict, or a single one; see :func:`read_labelled`."""
    series = len(shape) == 2
    images, layout = split_images(images, series=series)
    array = as_array(images, "images")
    if array.shape in _single(shape) or is_picture(images):
        array = array[None]
    layout = _layout(array, shape, layout if channels_first is None else channels_first)
    how: dict[str, Any] = {"channels_first": layout, "bounded": False, "series": series}
    return as_meant(_samples(*as_images(array, **how), shape), first)


def _single(shape: Shape) -> set[Shape]:
    """The shapes of an array that holds one sample."""
    if len(shape) != 3:
        return {shape}
    channels, height, width = shape
    if channels == 1:  # then a further dimension counts images
        return {(height, width)} if height > 1 else {(width,)}
    return {shape, (height, width, channels)}


def _layout(array: Array, shape: Shape, channels_first: bool | None) -> bool | None:
    """Whether channels come first, if the network's shape tells."""
    if channels_first is not None or array.ndim not in (4, 5):
        return channels_first
    if len(shape) == 1:
        shape = (1, 1, *shape)
    first = array.shape[1:] == shape
    last = array.shape[1:] == (*shape[1:], shape[0])
    return None if first == last else first


def _samples(stored: Tensor, scale: float, shape: Shape) -> Samples:
    """Samples without labels; refuses those that do not fit the network."""
    found = tuple(stored.shape[1:])
    if holds_rows(found, shape):
        stored = stored.reshape(-1, *shape)
    elif found != shape:
        fix = ""
        if len(shape) == len(found) == 3 and found == (shape[2], *shape[:2]):
            fix = f"; channels come first: build it with input_shape={found}"
        elif found == shape[1:]:
            fix = f"; input_shape is that of a single image: build it with input_shape={found}"
        elif math.prod(found) == math.prod(shape):
            sizes = ", ".join(map(str, shape))
            fix = f"; if they hold the same in the same order, pass images.reshape(-1, {sizes})"
        raise CapacityError(
            f"images of shape {found} do not fit the network, which was built for {shape}{fix}"
        )
    return Samples(stored, torch.zeros(len(stored), dtype=torch.int64), scale=scale)


def as_meant(samples: Samples, first: float | None) -> Samples:
    """Whole numbers with the meaning that values of the first task had.

    If those went beyond 1, they were no pixels in [0, 1], so bytes are values, too.

    Args:
        samples: As they were given.
        first: The :func:`reach` of the first task; None if unknown.
    """
    if first is not None and first > 1.0 and samples.scale == BYTE_SCALE:
        return replace(samples, scale=1.0)
    return samples


def reach(samples: Samples) -> float:
    """The largest absolute value of images, as the network sees them."""
    return reach_of(samples.in_pool(slice(None))) * samples.scale


def doubt_of_task(samples: Samples, first: float | None) -> str:
    """A warning if a task can hardly be learned from these images; else empty.

    Args:
        samples: The images of a task.
        first: The :func:`reach` of the first task, or None if this is the first.

    Raises:
        DataError: See :func:`further`.
    """
    top = reach_of(samples.images)
    if samples.images.dtype == torch.uint8 and samples.scale != 1.0 and 0 < top <= DARK:
        return (
            f"the brightest pixel is {top:.0f} of 255, so the network sees values up to "
            f"{top * samples.scale:.2g}; if none can be brighter, pass floats: images / {top:.0f}"
        )
    if text := unscaled(samples):
        return text
    return further(samples, first) or shorter(reach(samples), first or 0.0)


def unscaled(samples: Samples) -> str:
    """A warning if the values of a table or of series are too large to learn from; else empty."""
    top = reach_of(samples.images)
    if is_image(samples.shape) or top * samples.scale <= MOST:
        return ""
    return (
        f"the columns are used as they are, but reach {top:g}, and a network hardly learns from "
        f"such values; pass {either('standardise=True', '--standardise')}, or scale them"
    )


def further(samples: Samples, first: float | None, *, scaled: bool = False) -> str:
    """A warning if images reach further than those of the first task; else empty.

    Args:
        samples: Images of any task.
        first: The :func:`reach` of the first task; None if unknown.
        scaled: Whether the learner evens out any range by the deviation of its first task.

    Raises:
        DataError: They are images, and clearly need the scaling of the first task.
    """
    here, image = reach(samples), is_image(samples.shape)
    if samples.scale == here == BYTE_SCALE and here * UNLIKE < (first or 0.0):
        return (
            "whole numbers are pixels from 0 to 255, but none of these is above 1; if 1 was the "
            "brightest of the first task, pass images.astype(float)"
        )
    if not first:
        if here <= MOST or not image or scaled:
            return ""
        return (
            f"floats are used as they are, but these reach {here:g}; if the learner was taught "
            f"pixels in [0, 1], pass images / {divisor_of(here)}"
        )
    text = longer(here, first)
    if text and here > MOST and image:
        raise DataError(text)
    return text


def check_known(given: Array, names: list[Any], where: str) -> None:
    """Refuses labels that no prediction can return, since they would all count as wrong.

    Args:
        given: Labels, ``(n,)``.
        names: Labels that a prediction can return.
        where: Where they were learned, such as ``" in task 0"``.

    Raises:
        DataError: A label is of another kind, or not among ``names``.
    """
    if (given.dtype.kind == "U") not in {isinstance(name, str) for name in names}:
        raise DataError(
            f"the labels are {kind_of(given)}, such as {given[0].item()!r}, but those learned"
            f"{where} are {kind_of(np.array(names))}, such as {names[0]!r}"
        )
    foreign = sorted(set(given.tolist()) - set(names))
    if foreign:
        shown = ", ".join(map(repr, foreign[:5])) + (", …" if len(foreign) > 5 else "")
        raise DataError(
            f"labels {shown} were not learned{where}, so no prediction can name them; measure on "
            "images of the classes learned"
        )


def ordered(names: list[Any], given: Sequence[Any]) -> list[Any]:
    """Labels in the order in which a caller lists them.

    Raises:
        DataError: The list has others, or one of them twice.
    """
    listed = np.asarray(given).tolist()
    order = listed if isinstance(listed, list) else [listed]
    if len(order) != len(names) or any(name not in order for name in names):
        raise DataError(
            f"classes={order} must list the labels of the examples, each once, in the order of the "
            f"model's outputs; the labels are {names}"
        )
    return order
