"""Words that mark the parts of a data set: training, test, validation.

They are those of the Hugging Face library: a word may occur anywhere in a file's name, delimited by
``-``, ``_``, ``.``, a space or digits, or be the name of a folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nispa.errors import DataError
from nispa.files import one_line

TRAIN, TEST, VALIDATION = "train", "test", "validation"

WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "test": TEST,
    "testing": TEST,
    "eval": TEST,
    "evaluation": TEST,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
}

HIDDEN = -1
"""The label of samples whose label is not published."""

KNOWN = "train, test or validation"


def part_of_folder(name: str) -> str:
    """The part that a folder's name marks; empty if none."""
    return WORDS.get(name.lower(), "")


def part_in_name(name: str) -> str:
    """The part that one of the words of a name marks, as in ``training_set``; empty if none."""
    parts = _parts(name)
    return parts.pop() if len(parts) == 1 else ""


def part_of_file(file: Path) -> str:
    """The part that a file's name, or else its folder's, marks; empty if none.

    Raises:
        DataError: Its name marks two parts.
    """
    parts = _parts(file.stem)
    if len(parts) > 1:
        raise DataError(
            f"{file}: its name stands for {' and '.join(sorted(parts))}; give it a name with one"
        )
    return parts.pop() if parts else part_of_folder(file.parent.name)


def _parts(name: str) -> set[str]:
    """The parts that the words of a name stand for."""
    words = re.split("[-._ 0-9]+", name.lower())
    return {WORDS[word] for word in words if word in WORDS}


def by_part(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by part; if no name marks one, all are for training.

    Raises:
        DataError: Some names mark a part and others do not, or no file is for training.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        found.setdefault(part_of_file(file), []).append(file)
    unknown = found.pop("", [])
    if unknown and found:
        raise unknown_part(unknown[0])
    if unknown:
        return {TRAIN: unknown}
    if TRAIN not in found:
        parts = " and ".join(sorted(found))
        raise DataError(
            f"{files[0].parent}: has {parts} but no training part; give the files of the whole "
            "data set names such as train-1 and test-1"
        )
    return found


def choose_test(parts: Collection[str], what: str = "images") -> tuple[str | None, list[str]]:
    """The part to test on, or None; and what a record says of the choice."""
    if TEST in parts:
        return TEST, [f"its validation {what} are not used"] if VALIDATION in parts else []
    if VALIDATION in parts:
        return VALIDATION, [f"its validation {what} serve as the test set"]
    return None, []


def choose_labelled_test(
    labels: Mapping[str, NDArray[Any]],
    name: str,
    what: str = "images",
    files: Mapping[str, Sequence[Path]] | None = None,
) -> tuple[str | None, list[str]]:
    """As :func:`choose_test`, but the labels of the test part may be hidden.

    Args:
        labels: Those of each part.
        name: What to call the data set in an error.
        what: What has the labels.
        files: The files of each part, if known.

    Raises:
        DataError: They are, and there is no other part to test on.
    """
    if TEST not in labels or HIDDEN in labels[TRAIN] or not (labels[TEST] == HIDDEN).all():
        return choose_test(labels, what)
    if VALIDATION in labels:
        why = f"its test labels are hidden, so its validation {what} serve as the test set"
        return VALIDATION, [why]
    hidden = files[TEST][0].name if files else "its test part"
    raise DataError(
        f"{name}: test label {HIDDEN} does not occur among the training labels: the labels of "
        f"{hidden} are hidden; move it away, and a fifth of each class is held out"
    )


def unknown_part(path: Path | str) -> DataError:
    """The error for a file or folder whose name marks no part."""
    return DataError(
        f"{one_line(str(path))}: its name does not say whether it is {KNOWN}, as those beside it "
        f"do; rename it, or move it away (words: {', '.join(WORDS)})"
    )
