"""Checks arguments of the public Python functions.

NumPy's numbers, a device or a list are accepted like Python's own, since their meaning is clear.
Unclear ones (``seed=True``, ``classes=4.5``) are refused, before anything is learned that could not
be saved.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nispa.base.seeding import MAX_SEED
from nispa.base.shapes import Shape
from nispa.errors import ConfigError, InputError

MAX_SIZE = 2**31


def whole_number(name: str, value: Any, low: int, high: int, hint: str) -> int:
    """A whole number of any type, as an ``int``.

    Args:
        name: What to call it in an error.
        value: The argument.
        low: The smallest value allowed.
        high: The largest value allowed.
        hint: The range and the fix, for the error.

    Raises:
        ConfigError: It is not a whole number, or out of range.
    """
    if not _is_truth(value):
        try:
            number = operator.index(value)
        except TypeError:
            number = low - 1
        if low <= number <= high:
            return number
    raise ConfigError(f"{name}={_shown(value)} must be {hint}")


def seed_of(value: Any) -> int:
    """A seed, as an ``int``.

    Raises:
        ConfigError: It is not a whole number in [0, 2^63).
    """
    return whole_number("seed", value, 0, MAX_SEED, "a whole number in [0, 2^63); 0 is usual")


def share(name: str, value: Any, hint: str) -> float:
    """A number of any type in [0, 1), as a ``float``.

    Raises:
        ConfigError: It is not a number, or out of range.
    """
    try:
        number = math.nan if _is_truth(value) or isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if 0.0 <= number < 1.0:
        return number
    raise ConfigError(f"{name}={_shown(value)} must be a number in [0, 1); {hint}")


def name_of(kind: str, value: Any, usual: str) -> str:
    """A name of some ``kind``, such as the ``usual`` one.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, str):
        return value
    raise ConfigError(f"{kind}={_shown(value)} must be a name, such as {usual!r}")


def image_shape(value: Any) -> Shape:
    """The shape of one sample, as a tuple; ``n`` stands for ``(n,)``, rows of ``n`` features.

    Raises:
        ConfigError: It is not such a shape, or its channels seem to come last.
    """
    shown = _shown(value)
    usual = (
        "(channels, height, width), such as (1, 28, 28), (n,) for a table of n columns, "
        "(channels, length) for series, or (channels, depth, height, width) for volumes"
    )
    parts: list[Any]
    if isinstance(value, (str, bytes, dict, set)):
        parts = []
    elif isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1:
        parts = list(value)
    else:
        parts = [value]
    if not 1 <= len(parts) <= 4:
        raise ConfigError(f"input_shape={shown} must be {usual}")
    try:
        sizes = [whole_number("input_shape", part, 1, MAX_SIZE, "") for part in parts]
    except ConfigError:
        raise ConfigError(f"input_shape={shown} must be {usual}, in whole numbers from 1") from None
    if len(sizes) >= 3:
        first, second, last = sizes[0], sizes[1], sizes[-1]
        if (last == 3 and first > 4) or (last in (1, 3) and first == second > 1 and first != last):
            raise ConfigError(
                f"input_shape={shown} looks like channels last; pass {(last, *sizes[:-1])}"
            )
    if len(sizes) == 4 and sizes[1] == 1:
        raise ConfigError(
            f"input_shape={shown} is that of volumes one pixel deep; the shape of a single image "
            f"is {tuple(sizes[1:])}"
        )
    return tuple(sizes)


def path_of(value: Any) -> Path:
    """A path, as a ``Path``.

    Raises:
        InputError: It is not a path.
    """
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise InputError(f"{_shown(value)} is no path; pass the name of a file") from None


def _is_truth(value: Any) -> bool:
    """Whether a value is a boolean of any library, which Python would count as a number."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def _shown(value: Any) -> str:
    """A value on one line, shortened; NumPy's numbers appear as Python's."""
    if hasattr(value, "tolist") and getattr(value, "size", 0) in range(9):
        value = value.tolist()
    if isinstance(value, tuple):
        value = tuple(each.item() if hasattr(each, "item") else each for each in value)
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
