"""The picture of a run where it can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nispa.errors import installed

if TYPE_CHECKING:
    from nispa.runs.record import Record


def drawing() -> Callable[[Record], bytes] | None:
    """A function that draws the picture of a run; None where matplotlib is not installed."""
    if not installed("matplotlib"):
        return None
    from nispa.reading.plots import picture

    return picture
