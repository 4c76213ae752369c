"""Reads the images and labels that a caller passes to a learner, and warns about doubtful ones.

Learning, measuring and predicting all read through these functions, so the same array always means
the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.data.arrays import (
    MOST,
    Array,
    as_array,
    as_images,
    divisor_of,
    kind_of,
    labelled,
    longer,
    reach_of,
    shorter,
)
from nispa.data.tasks import Samples
from nispa.data.torch_dataset import split_images, split_pairs
from nispa.errors import CapacityError, DataError

Shape = tuple[int, int, int]

DARK = 25
"""The brightest byte of images that are dark overall."""


def read_labelled(
    images: Any, labels: Any, shape: Shape, *, channels_first: bool | None, bounded: bool
) -> tuple[Samples, Array]:
    """Images and labels, from arrays or from a PyTorch data set or loader of both.

    Args:
        images: See :func:`nispa.data.arrays.as_images`.
        labels: See :func:`nispa.data.arrays.as_label_array`; None if ``images`` includes them.
        shape: Channels, height and width of the network's input.
        channels_first: See :func:`nispa.data.arrays.as_images`.
        bounded: See :func:`nispa.data.arrays.as_images`.

    Returns:
        The images, all of class 0, and the labels unchanged.

    Raises:
        DataError: They cannot be used, or do not match.
        CapacityError: The images have another shape.
    """
    images, labels, first = split_pairs(images, labels)
    array = as_array(images, "images")
    stored, scale, given = labelled(
        array,
        labels,
        channels_first=_layout(array, shape, first if channels_first is None else channels_first),
        bounded=bounded,
    )
    return _samples(stored, scale, shape), given


def read_images(images: Any, shape: Shape, *, channels_first: bool | None) -> Samples:
    """Images to predict, or a single one; see :func:`read_labelled`."""
    images, first = split_images(images)
    array = as_array(images, "images")
    channels, height, width = shape
    single: set[tuple[int, ...]] = {(channels, height, width), (height, width, channels)}
    if channels == 1:  # then a further dimension counts images
        single = {(height, width)} if height > 1 else {(width,)}
    if array.shape in single:
        array = array[None]
    layout = _layout(array, shape, first if channels_first is None else channels_first)
    return _samples(*as_images(array, channels_first=layout, bounded=False), shape)


def _layout(array: Array, shape: Shape, channels_first: bool | None) -> bool | None:
    """Whether channels come first, if the network's shape tells."""
    if channels_first is not None or array.ndim != 4:
        return channels_first
    channels, height, width = shape
    first = array.shape[1:] == (channels, height, width)
    last = array.shape[1:] == (height, width, channels)
    return None if first == last else first


def _samples(stored: Tensor, scale: float, shape: Shape) -> Samples:
    """Samples without labels; refuses images that do not fit the network."""
    found = tuple(stored.shape[1:])
    if found != shape:
        fix = ""
        if found == (shape[2], *shape[:2]):
            fix = f"; channels come first: build it with input_shape={found}"
        elif found[:2] == (1, 1) and found[2] == math.prod(shape):
            fix = f"; pass images.reshape(-1, {', '.join(map(str, shape))})"
        raise CapacityError(
            f"images of shape {found} do not fit the network, which was built for {shape}{fix}"
        )
    return Samples(stored, torch.zeros(len(stored), dtype=torch.int64), scale=scale)


def reach(samples: Samples) -> float:
    """The largest absolute value of images, as the network sees them."""
    return reach_of(samples.images) * samples.scale


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
    if _is_table(samples) and top * samples.scale > MOST:
        return (
            f"the columns are used as they are, but reach {top:g}, and a network hardly learns "
            f"from such values; scale them, such as table / {divisor_of(top)}"
        )
    return further(samples, first) or shorter(reach(samples), first or 0.0)


def further(samples: Samples, first: float | None) -> str:
    """A warning if images reach further than those of the first task; else empty.

    Args:
        samples: Images of any task.
        first: The :func:`reach` of the first task; None if unknown.

    Raises:
        DataError: They are not a table, and clearly need the scaling of the first task.
    """
    here, table = reach(samples), _is_table(samples)
    if not first:
        if here <= MOST or table:
            return ""
        return (
            f"floats are used as they are, but these reach {here:g}; if the learner was taught "
            f"pixels in [0, 1], pass images / {divisor_of(here)}"
        )
    text = longer(here, first)
    if text and here > MOST and not table:
        raise DataError(text)
    return text


def _is_table(samples: Samples) -> bool:
    return samples.shape[:2] == (1, 1)


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
