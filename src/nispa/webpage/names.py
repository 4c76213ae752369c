"""Names of tasks and classes on the page, at lengths that fit."""

from __future__ import annotations

from nispa.files import one_line
from nispa.runs.record import Record

MAX_CLASSES = 100


def classes_of(record: Record, index: int) -> list[str]:
    """The classes of a task by name; by number in records without names."""
    return [one_line(name, 40) for name in record.classes_of(index)[:MAX_CLASSES]]


def task_name(record: Record, index: int) -> str:
    """A task's name, short enough for an axis."""
    return one_line(record.title_of(index), 14)


def task_label(record: Record, index: int) -> str:
    """A task's number, from 1, and its name."""
    return f"{index + 1} {one_line(record.title_of(index), 24)}"
