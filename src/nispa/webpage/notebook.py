"""A run inline in a notebook: its matrix, capacity and connections. Needs no PyTorch."""

from __future__ import annotations

import html
import os
from pathlib import Path
from xml.etree.ElementTree import Element

from nispa.errors import InputError, needs
from nispa.reading.tables import render as as_tables
from nispa.runs.record import Record, read_record
from nispa.webpage import capacity
from nispa.webpage.details import accuracies, title
from nispa.webpage.document import head, stripes
from nispa.webpage.markup import add, render, tag
from nispa.webpage.network import connections, units

HEIGHT = "38rem"
COLUMNS = 100


class Shown:
    """A run as a notebook shows it; printed, it is the tables of ``nispa show``.

    Attributes:
        record: The run's record.
    """

    def __init__(self, record: Record) -> None:
        """The run of ``record``."""
        self.record = record

    def _repr_html_(self) -> str:
        """A frame of its own, so that its style and the notebook's do not meet; without scripts."""
        page = "<!doctype html>\n" + render(_page(self.record))
        return (
            f'<iframe title="{html.escape(title(self.record))}" sandbox="" '
            f'style="width:100%;height:{HEIGHT};border:0;resize:vertical" '
            f'srcdoc="{html.escape(page)}"></iframe>'
        )

    def __repr__(self) -> str:
        with needs("reports", "a run as text"):
            from rich.console import Console

        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - no path of ours
            console = Console(
                file=nowhere,
                width=COLUMNS,
                record=True,
                highlight=False,
                force_jupyter=False,  # else rich would show it a second time
            )
            console.print(as_tables(self.record, COLUMNS))
            return console.export_text().rstrip()


def _page(record: Record) -> Element:
    body = tag("body", stripes(), tag("p", tag("strong", title(record))), *accuracies(record, 1))
    if record.per_task:
        add(body, *units(record, 1), *capacity.section(record), *connections(record, 1))
    return tag("html", head(title(record)), body, lang="en")


def show(run: str | os.PathLike[str] | Record) -> Shown:
    """Shows a run in a notebook: matrix, capacity and connections.

    Put it on the last line of a cell. Where HTML is not shown, it is a table of text.

    Args:
        run: The folder of a run, its ``record.json``, or the record that a run returned.

    Raises:
        InputError: There is no record, or it cannot be read.
        FormatError: The record is damaged, not nispa's, or from a newer version.
    """
    if isinstance(run, Record):
        return Shown(run)
    if not isinstance(run, (str, os.PathLike)):
        raise InputError(
            f"run={type(run).__name__} must be the folder of a run or its record; a learner shows "
            "itself on the last line of a cell"
        )
    return Shown(read_record(Path(run)))
