"""Reads a CSV file as an Arrow table."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nispa.data.archives import check_regular
from nispa.data.dataset import listed
from nispa.data.label_column import check_names, usual_label
from nispa.errors import DataError, needs
from nispa.files import wording

DELIMITERS = ",;\t|"
HEAD_BYTES = 1 << 22
MOST_BYTES = (1 << 31) - 2  # it is read at once, since all rows determine the types
WHOLE = re.compile(r"\s*[-+]?(0|[1-9][0-9]*)([.]0+)?\s*")
DECIMAL = re.compile(r"\s*[-+]?[0-9]*[.]?[0-9]+\s*")
FRACTION = re.compile(r".*[.]0*[1-9].*")


def parse_csv(file: Path, label: str | None = None) -> Any:
    """The Arrow table in a CSV file; see :func:`nispa.data.tables.read_csv`."""
    with needs("data", "reading CSV files"):
        import pyarrow
        from pyarrow import csv
    lines = _first_lines(file)
    if len(lines) < 2:
        raise DataError(f"{file}: needs a line of names and lines of values")
    delimiter = max(DELIMITERS, key=lines[0].count)
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise DataError(f"{file}: {size:,} bytes are more than {MOST_BYTES:,}; save it as Parquet")
    point = _decimal_point(lines[1:], delimiter)

    def read(**convert: Any) -> Any:
        return csv.read_csv(
            file,
            read_options=csv.ReadOptions(block_size=size + 1),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(decimal_point=point, **convert),
        )

    try:
        table = read()
        names = table.column_names
        column = label if label in names else usual_label(names)
        # Labels once more, as text: numbers would make one class of 01 and 1.
        as_text = {column: pyarrow.string()}
        texts = read(include_columns=[column], column_types=as_text) if column else None
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{file}: not a readable CSV file ({wording(error)})") from None
    if sum(_is_number(each) for each in names) > len(names) // 2:
        raise DataError(
            f"{file}: its first line holds values ({listed(names)}), but should name the columns; "
            "add such a line"
        )
    check_names(names, str(file))
    if texts is None:
        return table
    labels = _labels_of_texts(texts[column].to_pylist(), point, csv.ConvertOptions().null_values)
    return table.set_column(names.index(column), column, pyarrow.array(labels))


def _first_lines(file: Path) -> list[str]:
    """The lines that a CSV file begins with, without empty ones."""
    check_regular(file)
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, len(head) < HEAD_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: is not in UTF-8 (byte {error.start} is {head[error.start]:#04x}); save it in "
            "that encoding"
        ) from None
    return [line for line in text.splitlines() if line.strip()]


def _decimal_point(lines: Sequence[str], delimiter: str) -> str:
    """A comma if more values have one than a point."""
    if delimiter == ",":
        return "."
    cells = [cell.strip(' "') for line in lines for cell in line.split(delimiter)]
    commas, points = (
        sum(re.fullmatch(rf"[-+]?[0-9]*{point}[0-9]+", cell) is not None for cell in cells)
        for point in (",", "[.]")
    )
    return "," if commas > points else "."


def _labels_of_texts(texts: Sequence[str], point: str, nulls: Collection[str]) -> list[Any]:
    """Labels as they stand in a CSV file: whole numbers if all are, else texts; None if missing.

    Args:
        texts: The column.
        point: The decimal point.
        nulls: What stands for a missing number.
    """
    missing = {"", *nulls}
    numbers = [None if text.strip() in missing else text.replace(point, ".") for text in texts]
    known = [number for number in numbers if number is not None]
    if known and all(map(WHOLE.fullmatch, known)):
        return [number and int(number.partition(".")[0]) for number in numbers]
    if known and all(map(DECIMAL.fullmatch, known)) and any(map(FRACTION.fullmatch, known)):
        return [number and float(number) for number in numbers]  # refused as labels
    given = [text for text in texts if text.strip()]
    truths = all(text.lower() in ("true", "false") for text in given)
    return [(text.lower() if truths else text) if text.strip() else None for text in texts]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?[0-9]*[.,]?[0-9]+([eE][-+]?[0-9]+)?\s*", text) is not None
