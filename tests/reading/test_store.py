"""Runs are found, summarised, kept in an index that nobody has to trust, chosen and sorted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nispa.errors import InputError, UnknownNameError
from nispa.files import seal
from nispa.reading import store
from nispa.reading.store import INDEX, Run, Summary, arrange, choose, find_runs, flatten, summarise
from nispa.runs.folder import RunFolder
from nispa.runs.record import measured, read_record
from tests.records import priced, record

CONFIG = {"method": {"learning_rate": 0.01, "patience": None}, "network": {"hidden": [40, 30]}}


@pytest.fixture(autouse=True)
def _indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WORTH_AN_INDEX", 2)


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


def seeds(runs: list[Run]) -> list[Any]:
    return [run.summary.seed for run in runs]


def test_a_record_as_columns() -> None:
    summary = summarise(record())
    # by hand, from [[0.75, 0.5], [0.625, 1.0]]: (0.625 + 1) / 2; 0.75 - 0.625; 0.5 - 1/2
    assert (summary.accuracy, summary.forgetting, summary.bwt) == (0.8125, 0.125, -0.125)
    assert summary.fwt == 0.0
    assert (summary.train_s, summary.samples, summary.parameters) == (3.5, 24640, 652)
    assert (summary.tasks, summary.learned, summary.canonical) == (2, 2, "yes")
    assert summary.kept_bytes == 0
    assert (summary.train_operations, summary.train_cpu_s, summary.eval_s) == (None, None, 0.75)


def test_costs_as_columns() -> None:
    summary = summarise(priced())
    assert (summary.train_operations, summary.inference_operations) == (12e6, 1304.0)
    assert (summary.train_cpu_s, summary.eval_s, summary.eval_cpu_s) == (6.0, 0.75, 1.5)
    sizes = (summary.parameters, summary.model_bytes, summary.kept_bytes, summary.peak_bytes)
    assert sizes == (652, 7824, 1000, 400_000_000)


def test_every_column_but_the_folder_is_in_the_summary() -> None:
    assert set(store.COLUMNS) == {*Summary.model_fields, "folder"}


def test_the_matrix_that_counts_decides() -> None:
    rows = [[0.5, 0.0], [0.25, 0.5]]
    changed = record(
        incremental="class",
        accuracy_matrix_task_agnostic=rows,
        metrics_task_agnostic=measured(rows),
    )
    assert summarise(changed).accuracy == 0.375


def test_sums_that_no_table_holds_are_not_known() -> None:
    task = record().per_task[0].model_copy(update={"storage": {"a": 2**63 - 1, "b": 1}})
    assert summarise(record(per_task=[task])).kept_bytes is None


def test_settings_are_flat_and_bounded() -> None:
    assert flatten({"a": {"b": {"c": [1, None, "x"]}}, "d": True, "e": 2**70, "f": {}}) == {
        "a.b.c": "1,none,x",
        "d": True,
        "e": str(2**70),
        "f": "{}",
    }
    assert flatten({"a\x1b": "b\n" + "c" * 300}) == {"a?": "b?" + "c" * 195 + "..."}
    assert len(flatten({str(n): n for n in range(10_000)})) == store.MAX_SETTINGS


def test_runs_are_found_in_nested_folders(root: Path) -> None:
    runs = find_runs([root])
    assert [(run.summary.method, run.summary.seed) for run in runs] == [
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
    told = {Path(run.location).name: run.summary.problem or "" for run in runs[3:]}
    assert {run.summary.status for run in runs[3:]} == {"unreadable"}
    assert "is damaged" in told["torn"]
    assert "is not a record of nispa" in told["other"]
    assert "is a link" in told["link"]
    assert "not a regular file" in told["folder"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no: the folder does not exist; pass the folder"):
        find_runs([tmp_path / "no"])


# --- The index -----------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose records were read."""
    seen: list[str] = []

    def note(path: str) -> Any:
        seen.append(Path(path).name)
        return read_record(path)

    monkeypatch.setattr(store, "read_record", note)
    return seen


def test_the_index_saves_reading_and_tells_the_same(root: Path, reads: list[str]) -> None:
    first = find_runs([root])
    assert sorted(reads) == ["a", "b", "c"]
    reads.clear()
    second = find_runs([root])
    assert reads == []
    assert second == first
    # 1, 1.0 and true are equal in Python and different in a table
    assert [type(run.value("method.learning_rate")) for run in second] == [float] * 3


def test_values_that_are_equal_keep_their_kinds(tmp_path: Path) -> None:
    for number, value in enumerate((1, 1.0, True)):
        make(tmp_path / str(number), seed=number, config={"x": value})
    find_runs([tmp_path])
    assert [repr(run.value("x")) for run in find_runs([tmp_path])] == ["1", "1.0", "True"]


def test_only_what_changed_is_read_anew(root: Path, reads: list[str]) -> None:
    find_runs([root])
    reads.clear()
    RunFolder(root / "a").write_record(record(seed=5))
    assert seeds(find_runs([root])) == [1, 10, 5]
    assert reads == ["a"]


def test_same_size_and_time_in_place_is_seen(root: Path, reads: list[str]) -> None:
    find_runs([root])
    reads.clear()
    file = root / "a" / "record.json"
    before = file.stat()
    with file.open("r+b") as handle:  # in place: the inode stays
        data = seal(handle.read().replace(b'"seed": 0', b'"seed": 7'))
        handle.seek(0)
        handle.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert seeds(find_runs([root])) == [1, 10, 7]
    assert reads == ["a"]


def test_vanished_runs_leave(root: Path) -> None:
    make(root / "d", seed=3)
    find_runs([root])
    (root / "a" / "record.json").unlink()
    assert seeds(find_runs([root])) == [1, 10, 3]
    assert set(json.loads((root / INDEX).read_bytes())["runs"]) == {"b", "d", "deep/er/c"}


def test_few_runs_leave_no_index(tmp_path: Path) -> None:
    make(tmp_path / "a")
    find_runs([tmp_path])
    assert not (tmp_path / INDEX).exists()


DAMAGED = [
    b"",
    b"\xff",
    b"[" * 100_000,
    b"{}",
    b'{"version": 2, "names": [], "values": [], "tables": [], "runs": {}}',
    b'{"names": [], "values": [], "tables": [[]], "runs": {}}',
    b'{"names": [["a"]], "values": [], "tables": [[0, 0]], "runs": {}}',
    b'{"names": [["a"]], "values": [1], "tables": [[0]], "runs": {}}',
    b'{"names": [], "values": [1e999], "tables": [], "runs": {}}',
    b'{"names": [], "values": [], "tables": [], "runs": {"a": {"mark": "", "settings": 0, '
    b'"summary": {"status": "complete"}}}}',
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_index_is_rebuilt(root: Path, data: bytes) -> None:
    find_runs([root])
    good = (root / INDEX).read_bytes()
    (root / INDEX).write_bytes(seal(data))
    assert seeds(find_runs([root])) == [1, 10, 0]
    assert json.loads((root / INDEX).read_bytes()) == json.loads(good)


@pytest.mark.parametrize("change", ["flipped", "unsealed"])
def test_a_changed_index_is_not_read(root: Path, reads: list[str], change: str) -> None:
    find_runs([root])
    good = (root / INDEX).read_bytes()
    changed = good.replace(b"0.8125", b"0.8126")
    assert changed != good
    if change == "unsealed":
        changed = json.dumps(json.loads(changed)).encode()
    (root / INDEX).write_bytes(changed)
    reads.clear()
    assert {run.summary.accuracy for run in find_runs([root])} == {0.8125}
    assert len(reads) == 3
    assert (root / INDEX).read_bytes() == good


def test_a_false_index_is_not_believed(root: Path) -> None:
    find_runs([root])
    index = json.loads((root / INDEX).read_bytes())
    for entry in index["runs"].values():
        entry["summary"]["accuracy"] = 0.99
        entry["mark"] = ".".join([*entry["mark"].split(".")[:3], "1"])  # the time nobody can set
    index["runs"]["../../etc"] = index["runs"]["a"]
    (root / INDEX).write_bytes(seal(json.dumps(index).encode()))
    runs = find_runs([root])
    assert len(runs) == 3
    assert {run.summary.accuracy for run in runs} == {0.8125}


@pytest.mark.parametrize("letter", ["\x1b", "\n", "\u202e", "\x9b"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_index_brings_no_control_characters(root: Path, letter: str, ascii_only: bool) -> None:
    find_runs([root])
    index = json.loads((root / INDEX).read_bytes())
    index["runs"]["a"]["summary"]["method"] = f"x{letter}"
    (root / INDEX).write_bytes(seal(json.dumps(index, ensure_ascii=ascii_only).encode()))
    assert [run.summary.method for run in find_runs([root])] == ["ewc", "ewc-online", "nispa"]


def test_backslashes_and_quotes_in_names_do_not_spoil_the_index(
    root: Path, reads: list[str]
) -> None:
    make(root / "d", method='back\\nslash"quote é', seed=4)
    find_runs([root])
    reads.clear()
    assert next(run.summary.method for run in find_runs([root])) == 'back\\nslash"quote é'
    assert reads == []


def test_a_folder_that_takes_no_index_works_without(root: Path) -> None:
    (root / INDEX).mkdir()
    assert seeds(find_runs([root])) == [1, 10, 0]
    assert [path.name for path in root.glob(".nispa*")] == [INDEX]


def test_a_linked_index_is_replaced_and_its_target_left_alone(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (root / INDEX).symlink_to(target)
    find_runs([root])
    assert target.read_text() == "mine"
    assert not (root / INDEX).is_symlink()


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
    values: list[store.Value] = ["b", 2, True, "a"]
    runs = [Run(str(n), Summary(status="x"), {"k": v}) for n, v in enumerate(values)]
    assert [run.location for run in arrange(runs, "k")] == ["2", "1", "3", "0"]
