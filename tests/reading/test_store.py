"""Runs are found, summarised, chosen and sorted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nispa.errors import InputError, UnknownNameError
from nispa.reading.groups import Value
from nispa.reading.store import COLUMNS, Row, arrange, choose, find_runs, summarise
from nispa.runs.folder import RunFolder
from nispa.runs.record import measured
from tests.records import priced, record

CONFIG = {"method": {"learning_rate": 0.01, "patience": None}, "network": {"hidden": [40, 30]}}


def make(folder: Path, **changes: Any) -> Path:
    RunFolder.create(folder, record(**({"config": CONFIG} | changes)))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs, one of them two levels deep."""
    make(tmp_path / "a", seed=0)
    make(tmp_path / "b", seed=1, method="ewc", preset=None)
    make(tmp_path / "deep" / "er" / "c", seed=10, method="ewc-online")
    return tmp_path


def seeds(runs: list[Row]) -> list[Any]:
    return [run.value("seed") for run in runs]


def columns(found: dict[str, Value], names: str) -> list[Value]:
    return [found[name] for name in names.split()]


def test_a_record_as_columns() -> None:
    found = summarise(record())
    # by hand, from [[0.75, 0.5], [0.625, 1.0]]: (0.625 + 1) / 2; 0.75 - 0.625; 0.5 - 1/2
    assert columns(found, "accuracy forgetting bwt fwt") == [0.8125, 0.125, -0.125, 0.0]
    assert columns(found, "train_s samples parameters kept_bytes") == [3.5, 24640, 652, 0]
    assert columns(found, "tasks learned canonical") == [2, 2, "yes"]
    assert columns(found, "train_operations train_cpu_s eval_s") == [None, None, 0.75]


def test_costs_as_columns() -> None:
    found = summarise(priced())
    assert columns(found, "train_operations inference_operations") == [12e6, 1304.0]
    assert columns(found, "train_cpu_s eval_s eval_cpu_s") == [6.0, 0.75, 1.5]
    sizes = columns(found, "parameters model_bytes kept_bytes peak_bytes")
    assert sizes == [652, 7824, 1000, 400_000_000]


def test_every_record_has_every_column_but_folder_and_problem() -> None:
    assert set(COLUMNS) == {*summarise(record()), "folder", "problem"}


def test_the_matrix_that_counts_decides() -> None:
    rows = [[0.5, 0.0], [0.25, 0.5]]
    changed = record(
        incremental="class",
        accuracy_matrix_task_agnostic=rows,
        metrics_task_agnostic=measured(rows),
    )
    assert summarise(changed)["accuracy"] == 0.375


def test_runs_are_found_in_nested_folders(root: Path) -> None:
    runs = find_runs([root])
    assert [(run.value("method"), run.value("seed")) for run in runs] == [
        ("ewc", 1),
        ("ewc-online", 10),
        ("nispa", 0),
    ]
    assert runs[1].folder == str(root / "deep" / "er" / "c")
    assert seeds(find_runs([root, root / "a", root / "deep" / ".."])) == [1, 10, 0]
    assert seeds(find_runs([root / "a"])) == [0]


def test_too_deep_hidden_and_linked_folders_are_passed_over(root: Path) -> None:
    make(root / ".hidden" / "x", seed=77)
    make(root / "/".join("12345678"), seed=8)
    make(root / "/".join("123456789"), seed=9)
    (root / "loop").symlink_to(root, target_is_directory=True)
    assert sorted(seeds(find_runs([root]))) == [0, 1, 8, 10]


def test_what_cannot_be_read_is_listed_with_its_reason(root: Path) -> None:
    (root / "torn").mkdir()
    (root / "torn" / "record.json").write_text('{"schema": "nis')
    (root / "other").mkdir()
    (root / "other" / "record.json").write_text('{"schema": "other/1"}')
    (root / "link").mkdir()
    (root / "link" / "record.json").symlink_to(root / "nowhere")
    (root / "folder" / "record.json").mkdir(parents=True)
    runs = find_runs([root])
    assert seeds(runs)[:3] == [1, 10, 0]
    told = {Path(run.location).name: str(run.value("problem")) for run in runs[3:]}
    assert {run.value("status") for run in runs[3:]} == {"unreadable"}
    assert "is damaged" in told["torn"]
    assert "is not a record of nispa" in told["other"]
    assert "is a link" in told["link"]
    assert "not a regular file" in told["folder"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no: the folder does not exist; pass the folder"):
        find_runs([tmp_path / "no"])


def test_a_record_that_does_not_match_its_checksum_is_listed_as_damaged(root: Path) -> None:
    file = root / "a" / "record.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 7'))
    (row,) = (row for row in find_runs([root]) if row.location.endswith("a"))
    assert row.value("status") == "unreadable"
    assert "does not match its checksum" in str(row.value("problem"))


def test_a_record_without_a_schema_is_not_nispas(root: Path) -> None:
    file = root / "a" / "record.json"
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps({key: content[key] for key in content if key != "schema"}))
    (row,) = (row for row in find_runs([root]) if row.location.endswith("a"))
    assert "is not a record of nispa" in str(row.value("problem"))


def test_listing_writes_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    find_runs([root])
    assert sorted(root.rglob("*")) == before


# --- Choosing and sorting ------------------------------------------------------------------------

CHOSEN = [
    ("method=ewc", [1]),
    ("method=ewc*", [1, 10]),
    ("method!=ewc*", [0]),
    ("method==ewc", [1]),
    ("seed=1", [1]),
    ("seed>1", [10]),
    ("seed >= 1", [1, 10]),
    ("seed<=1", [1, 0]),
    ("accuracy=81.25%", [1, 10, 0]),
    ("accuracy<0.8125", []),
    ("accuracy>80%", [1, 10, 0]),
    ("preset=none", [1]),
    ("preset!=paper", [1]),
    ("preset>a", [10, 0]),
    ("forgetting!=none", [1, 10, 0]),
    ("method.learning_rate=1e-2", [1, 10, 0]),
    ("method.learning_rate<0.01", []),
    ("method.patience=none", [1, 10, 0]),
    ("method.patience>0", []),
    ("network.hidden=40,*", [1, 10, 0]),
    ("started<2022-06-19", [1, 10, 0]),
    ("folder=*/deep/*", [10]),
]


@pytest.mark.parametrize(("condition", "expected"), CHOSEN, ids=[text for text, _ in CHOSEN])
def test_conditions(root: Path, condition: str, expected: list[int]) -> None:
    assert seeds(choose(find_runs([root]), [condition])) == expected


def test_all_conditions_must_hold(root: Path) -> None:
    assert seeds(choose(find_runs([root]), ["method=ewc*", "seed>1"])) == [10]


REFUSED = [
    ("metod=x", r"unknown column or setting 'metod'; did you mean 'method'\? Known: accuracy, "),
    ("learning_rate=1", "did you mean 'method.learning_rate'"),
    ("method", "^method must be KEY=VALUE, such as 'method=ewc"),
    ("accuracy>90", "accuracy is a fraction in .* write 0.9 or 90%"),
    ("seed=many", "seed=many: seed is a number"),
    ("seed<none", "seed is a number"),
    ("accuracy>nan", "accuracy is a number"),
]


@pytest.mark.parametrize(("condition", "says"), REFUSED, ids=[text for text, _ in REFUSED])
def test_conditions_that_mean_nothing(root: Path, condition: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(find_runs([root]), [condition])


def test_sorting_keeps_what_is_not_known_last(root: Path) -> None:
    runs = find_runs([root])
    assert seeds(arrange(runs, "seed")) == [0, 1, 10]
    assert seeds(arrange(runs, "-seed")) == [10, 1, 0]
    assert seeds(arrange(runs, "preset"))[-1] == 1
    assert seeds(arrange(runs, "-preset"))[-1] == 1
    with pytest.raises(UnknownNameError, match="did you mean 'seed'"):
        arrange(runs, "-sed")


def test_sorting_numbers_and_texts_together() -> None:
    values: list[Value] = ["b", 2, True, "a"]
    runs = [Row(str(n), {}, {"k": v}) for n, v in enumerate(values)]
    assert [run.location for run in arrange(runs, "k")] == ["2", "1", "3", "0"]
