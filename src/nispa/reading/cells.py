"""Text cells of CSV files that no spreadsheet runs as a formula.

Names of runs, tasks and classes may come from anyone. A text that a spreadsheet would read as a
formula gets an apostrophe in front, which it does not show (OWASP, "CSV Injection").
"""

from __future__ import annotations

import re

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
BLANK = ("\t", "\r", "\n")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def harmless(text: str, *, numbers: bool = False) -> str:
    """A text as the content of a cell.

    Args:
        text: The text.
        numbers: Whether one that reads as a number, such as -1, stays as it is.
    """
    if numbers and _NUMBER.fullmatch(text):
        return text
    return f"'{text}" if _is_formula(text) else text


def original(cell: str) -> str:
    """The text that :func:`harmless` made a cell of."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def _is_formula(text: str) -> bool:
    return text.startswith(BLANK) or text.lstrip().startswith(FORMULA)
