"""The names of a table's columns, and which of them holds the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nispa.data.dataset import MOST_NAMED, listed
from nispa.errors import DataError, either
from nispa.files import one_line

LABELS = ("fine_label", "label", "labels", "class", "target", "y")


def label_column(
    names: Sequence[str], wanted: str | None, where: str, *, features: bool = True
) -> str:
    """The name of the column of labels.

    Args:
        names: All columns.
        wanted: The user's name for it, or None to look for a usual one.
        where: The file, for the error.
        features: Whether all other columns are features, so that a wrong guess would be learned.

    Raises:
        DataError: There is no such column, or more than one that it may be.
    """
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{where}: has no column {wanted}; it has {listed(names)}")
        return wanted
    found = usual_label(names)
    usual = [each for each in dict.fromkeys(names) if each.lower() in LABELS]
    usual = [each for each in usual if each.lower() != "y"]  # often a coordinate
    if features and len(usual) > 1:
        raise DataError(
            f"{where}: {' and '.join(one_line(each, 40) for each in usual)} can each be the "
            "labels, and the others would be features: say which one with "
            f"{either('label=', '--label NAME')}, and take the others away"
        )
    if found is None:
        last = f" (the last is {one_line(names[-1], 40)})" if len(names) > MOST_NAMED else ""
        raise DataError(
            f"{where}: needs a column of labels called {', '.join(LABELS[:-1])} or {LABELS[-1]}; "
            f"it has {listed(names)}{last}: say which one with {either('label=', '--label NAME')}"
        )
    return found


def usual_label(names: Sequence[str]) -> str | None:
    """The column that is called as labels usually are, if there is one."""
    return next((each for usual in LABELS for each in names if each.lower() == usual), None)


def check_names(names: Sequence[str], where: str) -> None:
    """Refuses two columns of one name.

    Raises:
        DataError: There are.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns are called '{one_line(twice, 40)}'; rename one")
