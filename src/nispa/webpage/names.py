"""What tasks and classes are called on the page: by names where the record has them."""

from __future__ import annotations

import re

from nispa.files import one_line
from nispa.runs.record import Record

MAX_CLASSES = 100
NUMBERS = re.compile(r"\d+(-\d+|(,\d+)*)")  # what a task is called after the numbers of its classes


def classes_of(record: Record, index: int) -> list[str]:
    """The classes of a task by name, or by number where the record has no names."""
    named = getattr(record, "class_names", None) or ()
    return [
        one_line(named[label], 40) if label < len(named) else str(label)
        for label in record.tasks[index].classes[:MAX_CLASSES]
    ]


def task_name(record: Record, index: int, most: int = 14) -> str:
    """A task's name; the names of its classes where it is called after their numbers alone."""
    name = record.tasks[index].name
    classes = classes_of(record, index)
    if NUMBERS.fullmatch(name) and not all(each.isdigit() for each in classes):
        name = ", ".join(classes)
    return one_line(name, most)


def task_label(record: Record, index: int) -> str:
    """A task's number, from 1, and its name."""
    return f"{index + 1} {task_name(record, index, 24)}"
