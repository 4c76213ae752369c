"""The shapes of samples that a backbone takes."""

from __future__ import annotations

from collections.abc import Sequence


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: The shape is another one.
    """
    if len(shape) != 3:
        raise ValueError(
            f"{name} takes images of shape (channels, height, width), such as (3, 32, 32), not "
            f"{tuple(shape)}; use 'mlp' for tables, 'conv1d' for series"
        )
    channels, height, width = shape
    return channels, height, width


def series_shape(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Channels and length.

    Raises:
        ValueError: The shape is another one.
    """
    if len(shape) != 2:
        raise ValueError(
            f"{name} takes series of shape (channels, length), such as (9, 128), not {tuple(shape)}"
        )
    channels, length = shape
    return channels, length
