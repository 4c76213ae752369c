from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nispa.errors import FormatError, InputError, OutputError
from nispa.files import seal
from nispa.reading.store import summarise
from nispa.runs import record as results
from nispa.runs.costs import total_cost
from nispa.runs.folder import RunFolder, fresh_name
from nispa.runs.record import (
    ConnectionCount,
    Record,
    TaskEntry,
    UnitCount,
    as_rows,
    comparable,
    decode,
    encode,
    measured,
    now,
    read_record,
)
from tests.records import COSTS, five_tasks, priced, record

BYTES = encode(record())


def fields(value: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(value))
    return found


def test_the_file_holds_the_fields_that_readers_rely_on() -> None:
    found = fields(record())
    assert found["schema"] == "nispa-record/1"
    assert found["accuracy_matrix"] == [[0.75, 0.5], [0.625, 1.0]]
    assert found["metrics"]["forgetting"]["value"] == 0.125
    assert found["metrics"]["bwt"]["formula"] == "mean over j < T-1 of R[T-1, j] - R[j, j]"
    assert found["tasks"][1] == {
        "name": "2-3",
        "classes": [2, 3],
        "train": 259,
        "validation": 28,
        "test": 73,
    }
    assert found["per_task"][0]["stable_units"]["hidden2"] == {"stable": 6, "size": 30}
    assert found["per_task"][0]["connections"]["fc1"] == {
        "live": 512,
        "frozen": 128,
        "total": 2560,
        "owed": 0,
    }
    assert found["parameters"] == {"live": 652, "total": 2940}
    assert found["config"]["optimizer"] == {"name": "adam", "lr": 0.01}
    assert list(found)[:5] == ["schema", "version", "status", "started", "finished"]


@pytest.mark.parametrize("value", [record(), five_tasks(), record(per_task=[], metrics={})])
def test_a_record_reads_back_equal_and_gives_the_same_bytes(value: Record) -> None:
    assert decode(encode(value)) == value
    assert encode(decode(encode(value))) == encode(value)


def test_a_person_can_read_it() -> None:
    lines = BYTES.decode().splitlines()
    assert '  "accuracy_matrix": [[0.75, 0.5], [0.625, 1.0]],' in lines
    assert max(len(line) for line in lines) <= 110


def test_floats_keep_every_digit() -> None:
    third = 1 / 3
    value = record(accuracy_matrix=[[third, None], [np.float64(0.1), 1.0]])
    assert decode(encode(value)).accuracy_matrix[0][0] == third
    assert b"0.3333333333333333" in encode(value)
    assert b"0.1," in encode(value)


def test_as_rows_turns_nan_into_null() -> None:
    assert as_rows(np.array([[0.5, np.nan]])) == ((0.5, None),)
    assert as_rows([[0.5, None]]) == ((0.5, None),)


def test_measured_gives_each_number_its_formula() -> None:
    found = measured([[0.5, 0.25], [0.5, 1.0]], [0.5, 0.5])
    assert {name: metric.value for name, metric in found.items()} == {
        "acc": 0.75,
        "bwt": 0.0,
        "fwt": -0.25,
        "forgetting": 0.0,
    }
    assert all(metric.formula and metric.source for metric in found.values())


def test_records_are_immutable() -> None:
    value = record()
    with pytest.raises(ValidationError):
        value.seed = 1
    assert isinstance(value.accuracy_matrix, tuple)
    assert isinstance(value.tasks[0].classes, tuple)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": "0"},
        {"status": "done"},
        {"started": "yesterday"},
        {"finished": "2022-06-18T09:31:00+02:00"},
        {"accuracy_matrix": [[1.5, None]]},
        {"accuracy_matrix": [[float("nan"), None]]},
        {"accuracy_matrix": [[0.5]]},
        {"accuracy_matrix": [[0.5, 0.5]] * 3},
        {"accuracy_matrix_task_agnostic": [[0.5]]},
        {"config": {"lr": [float("nan")]}},
        {"config": {"lr": {"deep": float("inf")}}},
        {"config": {"path": Path("x")}},
        {"per_task": record().per_task * 2},
        {"schema": "nispa-record/2"},
        {"tasks": [], "accuracy_matrix": []},
        {"tasks": record().tasks * 501, "accuracy_matrix": []},
    ],
)
def test_what_is_no_record_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**({"metrics": {}} | change))


def test_counts_must_fit() -> None:
    with pytest.raises(ValidationError, match="stable=3 of 2"):
        UnitCount(stable=3, size=2)
    with pytest.raises(ValidationError, match="frozen=3"):
        ConnectionCount(live=2, frozen=3, total=4)
    with pytest.raises(ValidationError, match="live=5"):
        ConnectionCount(live=5, frozen=3, total=4)
    with pytest.raises(ValidationError):
        TaskEntry(name="a", classes=(0,), train=-1, validation=0, test=0)


def test_two_runs_compare_without_when_and_where() -> None:
    first = record()
    times = dict.fromkeys(("train_s", "eval_s", "train_cpu_s", "eval_cpu_s"), 9.0)
    slower = [task.model_copy(update=times | {"peak_bytes": 9}) for task in first.per_task]
    first = first.model_copy(update={"cost": total_cost(first.per_task)})
    elsewhere = record(
        cost=total_cost(slower),
        started="2030-01-01T00:00:00Z",
        finished=None,
        environment=first.environment.model_copy(update={"threads": 64}),
        per_task=slower,
    )
    assert encode(first) != encode(elsewhere)
    assert comparable(first) == comparable(elsewhere)
    for key in (b"started", b"finished", b"environment", b"train_s", b"eval_s", b"_cpu_s", b"peak"):
        assert key not in comparable(first)


def test_operations_are_compared() -> None:
    other = [{**COSTS[0], "operations": {**COSTS[0]["operations"], "forward": 4_000_001}}]
    assert comparable(priced()) != comparable(priced(costs=[*other, COSTS[1]]))


def test_records_of_before_have_no_costs() -> None:
    """A record as it was written before there were such fields is read as it is."""
    old = fields(record())
    assert old.pop("cost") is None
    new = ("live", "model_bytes", "operations", "inference_operations", "train_cpu_s")
    for task in old["per_task"]:
        for name in (*new, "eval_cpu_s", "peak_bytes"):
            assert task.pop(name) is None
    assert decode(json.dumps(old).encode()) == record()


@pytest.mark.parametrize("count", [-1, 1.5, True, 10**24 + 1])
def test_operations_that_are_no_count(count: float) -> None:
    changed = fields(priced())
    changed["per_task"][0]["operations"]["forward"] = count
    with pytest.raises(FormatError, match="operations"):
        decode(json.dumps(changed).encode())


@pytest.mark.parametrize(
    ("name", "most"), [("samples_trained", 10**15), ("peak_bytes", 10**15), ("train_s", 1e12)]
)
def test_more_than_was_ever_measured_is_damaged(name: str, most: float) -> None:
    changed = fields(priced())
    changed["per_task"][0][name] = most
    decode(json.dumps(changed).encode())
    changed["per_task"][0][name] = 2 * most
    with pytest.raises(FormatError, match=f"damaged.*{name}.*less than or equal to"):
        decode(json.dumps(changed).encode())


def test_totals_of_a_stranger_fit_a_table() -> None:
    changed = fields(priced())
    changed["per_task"][-1]["storage"] = {str(n): 10**15 for n in range(1_000)}
    changed["per_task"][0]["samples_trained"] = 10**15
    found = summarise(decode(json.dumps(changed).encode()))
    assert found["kept_bytes"] == 10**18 < 2**63
    changed["per_task"][-1]["storage"]["more"] = 1
    with pytest.raises(FormatError, match=r"storage.*at most 1000"):
        decode(json.dumps(changed).encode())


def test_two_runs_that_differ_in_one_bit_do_not_compare_equal() -> None:
    almost = record(accuracy_matrix=[[np.nextafter(0.75, 1), 0.5], [0.625, 1.0]])
    assert comparable(record()) != comparable(almost)
    assert comparable(record()) != comparable(record(seed=20))
    moved = record(
        config={"hidden": [40, 30], "optimizer": {"lr": 0.01, "name": "adam"}, "density": 0.2}
    )
    assert comparable(record()) == comparable(moved)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "is damaged"),
        (b"\x00" * 100, "is damaged"),
        (b"\xff\xfe{}", "is damaged"),
        (b"[" * 1_000_000, "is damaged.*recursion"),
        (b'{"schema":' * 100_000, "is damaged.*recursion"),
        (BYTES[:-10], "is damaged"),
        (b"[]", "is not a record of nispa"),
        (b"{}", "is not a record of nispa"),
        (b'{"schema": 1}', "is not a record of nispa"),
        (b'{"schema": "other/1"}', "is not a record of nispa.*other/1"),
        (b'{"schema": "nispa-record/0"}', "is not a record of nispa"),
        (b'{"schema": "\\u001b[2J"}', "is not a record of nispa"),
        (BYTES.replace(b"record/1", b"record/2"), "newer nispa.*pip install --upgrade nispa"),
        (BYTES.replace(b'"seed": 19', b'"seed": 1e3'), "is damaged: seed"),
        (BYTES.replace(b'"seed": 19', b'"seed": ' + b"9" * 5000), "is damaged"),
        (BYTES.replace(b'"density": 0.2', b'"density": NaN'), "is damaged: config"),
        (BYTES.replace(b'"density": 0.2', b'"density": 1e999'), "is damaged: config"),
        (BYTES.replace(b"0.75", b"75.0"), "is damaged: accuracy_matrix"),
        (BYTES.replace(b'"seed": 19', b'"x": 19'), "is damaged: seed"),
    ],
)
def test_a_bad_file_gets_one_clear_line(data: bytes, word: str) -> None:
    with pytest.raises(FormatError, match=word) as caught:
        decode(data)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300


@pytest.mark.parametrize(
    ("version", "shown"), [(b'"9.1"', "version 9.1,"), (b"7", "version unknown,")]
)
def test_a_newer_record_says_which_version_wrote_it(version: bytes, shown: str) -> None:
    newer = BYTES.replace(b"record/1", b"record/2").replace(b'"0.1.0"', version, 1)
    with pytest.raises(FormatError, match=rf"newer nispa \({shown} schema nispa-record/2"):
        decode(newer)


def test_any_change_is_noticed_unless_another_program_wrote_it_anew() -> None:
    changed = BYTES.replace(b"0.625, 1.0", b"0.875, 1.0", 1)
    with pytest.raises(FormatError, match=r"not match its checksum; .* delete its last entry"):
        decode(changed)
    assert decode(seal(changed)).accuracy_matrix[1][0] == 0.875
    assert decode(json.dumps(json.loads(changed)).encode()).accuracy_matrix[1][0] == 0.875
    assert decode(BYTES.replace(b"\n", b"\r\n")) == record()  # as git does for Windows


def test_a_sealed_record_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(BYTES)
    assert read_record(tmp_path, sealed=True) == record()
    (tmp_path / "record.json").write_text(json.dumps(json.loads(BYTES)))
    assert read_record(tmp_path) == record()
    with pytest.raises(FormatError, match=r"has no checksum.*start a new run"):
        read_record(tmp_path, sealed=True)


def test_fields_of_a_later_version_are_passed_over() -> None:
    data = seal(BYTES.replace(b'"seed": 19', b'"seed": 19, "colour": "blue"'))
    assert decode(data) == record()


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_gives_a_format_error_or_a_record(data: st.DataObject) -> None:
    content = bytearray(BYTES)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = decode(damaged)
    except FormatError:
        return
    assert decode(encode(found)) == found


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from([*fields(record())]),
)
def test_any_json_in_a_field_gives_a_format_error_or_a_record(value: Any, name: str) -> None:
    data = json.dumps(fields(record()) | {name: value}).encode()
    try:
        found = decode(data)
    except FormatError:
        return
    assert decode(encode(found)) == found


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    folder.write_record(record())
    assert folder.read_record() == record()
    assert read_record(tmp_path / "a" / "b") == record()
    assert read_record(tmp_path / "a" / "b" / "record.json") == record()
    assert [entry.name for entry in folder.path.iterdir()] == ["record.json"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path).path == tmp_path


@pytest.mark.parametrize("name", ["record.json", "events.jsonl", "progress.csv", "run.png"])
def test_a_folder_with_a_run_in_it_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"already holds a run \({name}\).*choose another"):
        RunFolder.create(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_checking_creates_nothing(tmp_path: Path) -> None:
    RunFolder.check(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="file is not a folder; choose another"):
            RunFolder.create(path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="link is not a folder"):
        RunFolder.create(tmp_path / "link")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_not_writable_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        RunFolder.create(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_folder_can_have(tmp_path: Path) -> None:
    for name in ("nul\0", "x" * 300, "ok/" + "x" * 300):
        with pytest.raises(OutputError, match="cannot") as caught:
            RunFolder.create(tmp_path / name)
        assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []  # "ok" was made, and taken back


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_real_file_system_that_takes_no_folder() -> None:
    with pytest.raises(OutputError, match="cannot"):
        RunFolder.create("/proc/nispa-run")


def test_a_record_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_record(record())
    with pytest.raises(FormatError, match="accuracy_matrix"):
        folder.write_record(record().model_copy(update={"accuracy_matrix": ((2.0, 0.0),)}))
    assert folder.read_record() == record()


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "record.json"):
        with pytest.raises(InputError, match=r"holds no record\.json|absent"):
            read_record(path)
    (tmp_path / "record.json").mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        read_record(tmp_path)


def test_a_record_of_another_size_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record.json").write_bytes(BYTES)
    monkeypatch.setattr(results, "MAX_RECORD_BYTES", len(BYTES) - 1)
    with pytest.raises(FormatError, match="larger than"):
        read_record(tmp_path)


def test_events_come_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.append_event({"event": "epoch", "task": 0, "accuracy": 0.5, "text": "a\nb ü"})
    folder.append_event({"event": "phase", "task": 0, "tau": None})
    assert folder.read_events() == [
        {"event": "epoch", "task": 0, "accuracy": 0.5, "text": "a\nb ü"},
        {"event": "phase", "task": 0, "tau": None},
    ]
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 2


def test_a_torn_last_event_is_passed_over_and_then_replaced(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.append_event({"n": 1})
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"n": 2, "acc')
    assert folder.read_events() == [{"n": 1}]
    folder.append_event({"n": 3})
    assert folder.read_events() == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"", b"\xff", b"\x00"])
def test_a_damaged_event_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    folder = RunFolder.create(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n')
    with pytest.raises(FormatError, match="line 2, is damaged"):
        folder.read_events()


def test_cutting_keeps_lines_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    first = b'{"task": 0, "x":  1.50, "y": "\\u00fc"}\n{"task": "?"}\n{"task": null}\n'
    file.write_bytes(first + b'{"task": 1}\n{"task": 0.5}\n{"task": 0, "to')
    RunFolder(tmp_path).cut_events(1)
    assert file.read_bytes() == first + b'{"task": 0.5}\n'
    file.write_bytes(b"{\n" + first)
    with pytest.raises(FormatError, match=r"line 1, is damaged.*delete the file to go on without"):
        RunFolder(tmp_path).cut_events(1)


def test_an_event_that_is_not_json_is_not_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_event({"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_missing_events_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events\.jsonl"):
        RunFolder(tmp_path).read_events()


def test_fresh_names_count_on(tmp_path: Path) -> None:
    assert fresh_name(tmp_path, "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").write_bytes(b"")
    assert fresh_name(tmp_path, "run") == tmp_path / "run-3"
    assert not (tmp_path / "run-3").exists()


def test_now_is_an_instant_that_records_take() -> None:
    assert record(finished=now()).finished is not None


def test_records_are_read_without_torch() -> None:
    code = "import sys, nispa.runs.record, nispa.runs.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_full_matrices_of_the_most_tasks_can_be_read() -> None:
    longest = "0.00010000000000000002, "  # no float in [0, 1] takes more digits than these
    assert 2 * results.MAX_TASKS**2 * len(longest) < 0.8 * results.MAX_RECORD_BYTES


def test_classes_are_called_by_name_where_names_are_kept() -> None:
    old = record()
    assert old.class_names == ()
    assert old.classes_of(1) == [str(number) for number in old.tasks[1].classes]
    names = ("bird", "cat", "dog")  # the last output has none
    named = record(class_names=names)
    assert decode(encode(named)).class_names == names
    assert named.classes_of(0) == ["bird", "cat"]
    assert named.classes_of(1) == ["dog", "3"]
    assert [named.title_of(task) for task in (0, 1)] == ["bird, cat", "dog, 3"]
    numbers = record(class_names=("7", "8", "9", "0"))
    assert numbers.title_of(0) == numbers.tasks[0].name
    tasks = [{**task.model_dump(), "name": "pets"} for task in named.tasks]
    assert record(class_names=names, tasks=tasks).title_of(0) == "pets"
