"""Words that mark the parts of a data set: training, test, validation.

They are those of the Hugging Face library: a word may occur anywhere in a file's name, delimited by
``-``, ``_``, ``.``, a space or digits, or be the name of a folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

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

KNOWN = "train, test or validation"


def part_of_folder(name: str) -> str:
    """The part that a folder's name marks; empty if none."""
    return WORDS.get(name.lower(), "")


def part_of_file(file: Path) -> str:
    """The part that a file's name, or else its folder's, marks; empty if none.

    Raises:
        DataError: Its name marks two parts.
    """
    words = re.split("[-._ 0-9]+", file.stem.lower())
    parts = {WORDS[word] for word in words if word in WORDS}
    if len(parts) > 1:
        raise DataError(
            f"{file}: its name stands for {' and '.join(sorted(parts))}; give it a name with one"
        )
    return parts.pop() if parts else part_of_folder(file.parent.name)


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


def unknown_part(path: Path | str) -> DataError:
    """The error for a file or folder whose name marks no part."""
    return DataError(
        f"{one_line(str(path))}: its name does not say whether it is {KNOWN}, as those beside it "
        f"do; rename it, or move it away (words: {', '.join(WORDS)})"
    )
