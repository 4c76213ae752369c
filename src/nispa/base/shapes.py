"""Shapes of one sample: an image, a volume, a series, or a row of a table."""

from __future__ import annotations

import math

Shape = tuple[int, ...]
"""``(channels, height, width)``, ``(channels, depth, height, width)``, ``(channels, length)`` or
``(features,)``."""

MAX_SIDES = 8
"""Most dimensions of a sample in a file."""


def is_row(shape: Shape) -> bool:
    """Whether a sample is a row of features; older files hold its shape as (1, 1, features)."""
    return len(shape) == 1 or (len(shape) == 3 and shape[:2] == (1, 1))


def is_image(shape: Shape) -> bool:
    """Whether a sample has pixels in rows and columns."""
    return len(shape) == 3 and not is_row(shape)


def in_words(shape: Shape) -> str:
    """Samples of a shape in words, such as ``images of 28x28 pixels``."""
    if is_row(shape):
        return f"rows of {shape[-1]} features"
    if len(shape) == 2:
        return f"series of {shape[0]} channel{'s' * (shape[0] != 1)} and {shape[1]} steps"
    if len(shape) == 3:
        return f"images of {shape[1]}x{shape[2]} pixels"
    if len(shape) == 4:
        return f"volumes of {shape[1]}x{shape[2]}x{shape[3]} voxels"
    return f"samples of shape {shape}"


def holds_rows(found: Shape, wanted: Shape) -> bool:
    """Whether two shapes are those of the same rows of features, written in either way."""
    return is_row(found) and is_row(wanted) and math.prod(found) == math.prod(wanted)
