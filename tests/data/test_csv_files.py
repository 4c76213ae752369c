"""CSV files as spreadsheets, databases and scripts write them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from nispa.data.parquet import read_rows
from nispa.data.sources import load
from nispa.errors import DataError
from tests.data.test_own_files import csv
from tests.data.test_pictures import write


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "1", "2"], ("01", "1", "2")),
        (["1e2", "100", "2"], ("100", "1e2", "2")),
        (["1e5", "2e5"], ("1e5", "2e5")),
        (["2", "10", "-3"], ("-3", "2", "10")),
        (["1.0", "0.0"], ("0", "1")),
        (["True", "false"], ("false", "true")),
        (["True", "False", "maybe"], ("False", "True", "maybe")),
        (["NA", "EU"], ("EU", "NA")),
    ],
)
def test_labels_mean_what_stands_there(
    tmp_path: Path, labels: list[str], names: tuple[str, ...]
) -> None:
    rows = [f"{n},{label}" for n in range(6) for label in labels]
    assert load(csv(tmp_path / "a.csv", "a,label", *rows)).class_names == names


@pytest.mark.parametrize(
    "labels", [["a", "b", ""], ["a", "b", " "], ["0", "1", ""], ["0", "1", "NaN"]]
)
def test_a_missing_label_is_no_class(tmp_path: Path, labels: list[str]) -> None:
    rows = [f"{n},{label}" for n in range(4) for label in labels]
    with pytest.raises(DataError, match="row 2 has no label"):
        load(csv(tmp_path / "a.csv", "a,label", *rows))
    if labels[2] == "":
        empty = pa.table({"a": [1.0, 2.0, 3.0], "label": labels})
        with pytest.raises(DataError, match="row 2 has no label"):
            load(write(tmp_path / "a.parquet", empty))


@pytest.mark.parametrize("names", ["a,target,label", "a,Class,LABEL", "a,labels,class"])
def test_two_columns_that_may_be_the_labels(tmp_path: Path, names: str) -> None:
    path = csv(tmp_path / "a.csv", names, *(f"{n},{n % 2},{n % 2}" for n in range(9)))
    with pytest.raises(DataError, match="can each be the labels"):
        load(path)
    assert load(path, label=names.split(",")[2]).shape == (2,)


def test_y_may_be_a_coordinate(tmp_path: Path) -> None:
    rows = [f"{n},{n + 1},{n % 2}" for n in range(9)]
    assert load(csv(tmp_path / "a.csv", "x,y,label", *rows)).columns == ("x", "y")


@pytest.mark.parametrize("first", [True, False])
def test_all_rows_tell_the_decimal_comma(tmp_path: Path, first: bool) -> None:
    rows = [f"{n},5;{'bc'[n % 2]}" for n in range(9)]
    rows = ["4;b", "3;c", *rows] if first else [*rows, "4;b", "3;c"]
    data = load(csv(tmp_path / "a.csv", "a;label", *rows))
    assert 8.5 in data.train_images.flatten().tolist() + data.test_images.flatten().tolist()
    points = [f"{n}.5;class {n % 2},0" for n in range(9)]
    assert load(csv(tmp_path / "b.csv", "a;label", *points)).class_names == (
        "class 0,0",
        "class 1,0",
    )


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    for name, text in (("a", "größe,label\n1,0\n2,1\n"), ("b", "a,label\n1,ä\n2,b\n")):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(text.encode(encoding))
        for read in (load, read_rows):
            with pytest.raises(DataError, match="is not in UTF-8"):
                read(path)


def test_a_csv_file_without_names_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="should name the columns"):
        load(csv(tmp_path / "a.csv", "0,0", "1,1", "2,0"))


def test_names_of_several_lines(tmp_path: Path) -> None:
    rows = [f"{n},{'01' if n % 2 else '1'}" for n in range(9)]
    data = load(csv(tmp_path / "a.csv", '"weight', ' in kg",label', *rows))
    assert (data.shape, data.class_names) == ((1,), ("01", "1"))


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_hidden_labels_of_a_test_table(tmp_path: Path, end: str) -> None:
    def put(name: str, labels: list[int]) -> None:
        table = pa.table({"a": list(range(len(labels))), "label": labels})
        rows = (f"{n},{label}" for n, label in enumerate(labels))
        path = tmp_path / f"{name}.{end}"
        write(path, table) if end == "parquet" else csv(path, "a,label", *rows)

    put("train", [0, 1] * 8)
    put("test", [-1] * 4)
    with pytest.raises(DataError, match="are hidden; move it away"):
        load(tmp_path)
    put("validation", [0, 1, 0])
    data = load(tmp_path)
    assert (len(data.test_labels), data.note.count("labels are hidden")) == (3, 1)


# Parquet tables, which are read by the same functions.


def test_unusable_tables_of_columns(tmp_path: Path) -> None:
    empty = pa.table({"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())})
    twice = pa.table([[1, 2], [3, 4], [0, 1]], names=["a", "a", "label"])
    for table, reason in ((empty, "has no rows"), (twice, "two columns are called 'a'")):
        path = write(tmp_path / "a.parquet", table)
        for read in (load, read_rows):
            with pytest.raises(DataError, match=reason):
                read(path)


def test_columns_of_decimals(tmp_path: Path) -> None:
    prices = [Decimal(n) / 4 for n in range(10)]
    table = pa.table({"price": prices, "label": [0, 1] * 5})
    assert 2.25 in read_rows(write(tmp_path / "a.parquet", table))


def test_differences_that_floats_cannot_hold(tmp_path: Path) -> None:
    rows = [f"{1_700_000_000 + 60 * n},{n % 2}" for n in range(9)]
    with pytest.raises(DataError, match=r"time: reaches 1.7e.09 .* subtract its mean"):
        load(csv(tmp_path / "a.csv", "time,label", *rows))
    days = [f"{1_700_000_000 + 86_400 * n},{n % 2}" for n in range(9)]
    assert load(csv(tmp_path / "b.csv", "time,label", *days)).shape == (1,)
