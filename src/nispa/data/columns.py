"""The names of a data frame's columns: the same columns mean the same, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nispa.errors import DataError
from nispa.files import one_line

MOST_SHOWN = 5


def columns_of(values: Any) -> tuple[str, ...] | None:
    """The names of a data frame's columns, if it is one and all are texts."""
    names = getattr(values, "columns", None)
    if names is None or not hasattr(values, "dtypes"):
        return None
    found = tuple(names)
    return found if found and all(isinstance(name, str) for name in found) else None


def in_order(values: Any, known: Sequence[str] | None) -> Any:
    """A data frame with its columns in the order that was learned; anything else as it is.

    Args:
        values: Anything array-like.
        known: The names of the columns that were learned; None if they had none.

    Raises:
        DataError: It has other columns.
    """
    found = columns_of(values)
    if known is None or found is None or found == tuple(known):
        return values
    lacking = [name for name in known if name not in found]
    foreign = [name for name in found if name not in known]
    if lacking or foreign or len(found) != len(known):
        parts = [f"{what} {_shown(names)}" for what, names in
                 (("lacks", lacking), ("adds", foreign)) if names]  # fmt: skip
        raise DataError(
            f"images: the table {' and '.join(parts) or 'has a column twice'}; give it the columns "
            f"that were learned: {_shown(known)}"
        )
    return values[list(known)]


def _shown(names: Sequence[str]) -> str:
    more = ", …" if len(names) > MOST_SHOWN else ""
    return one_line(", ".join(names[:MOST_SHOWN]), 200) + more
