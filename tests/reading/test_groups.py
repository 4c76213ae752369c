"""Runs are found and read, belong together by one rule, and give the same numbers everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nispa.errors import InputError
from nispa.reading.compare import compare
from nispa.reading.exports import as_latex
from nispa.reading.groups import (
    IMPORTED,
    MAX_SETTINGS,
    Run,
    find_folders,
    flatten,
    group_runs,
    key_of,
    problem_of,
    read_runs,
)
from nispa.reading.store import find_runs
from nispa.runs.folder import RunFolder
from nispa.runs.metrics import percent
from nispa.runs.record import DataEntry, Record, ScenarioEntry
from nispa.webpage import page
from nispa.webpage.problems import problems_of
from tests.records import record
from tests.webpages import Page


def accurate(value: float, **changes: Any) -> Record:
    """A run of two tasks with the accuracy ``value`` on both in the end."""
    return record(accuracy_matrix=[[value, None], [value, value]], **changes)


# --- The rule ------------------------------------------------------------------------------------


def drawn(seed: int, **options: Any) -> ScenarioEntry:
    """A scenario whose classes are drawn by the seed."""
    resolved = {"seed": seed, "tasks": [[seed, 2], [3, 4]]}
    settings: dict[str, Any] = {"seed": seed, "options": options, "resolved": resolved}
    return ScenarioEntry(name="split-digits", settings=settings)


def own(letter: str) -> list[DataEntry]:
    return [DataEntry(name="photos", canonical=None, sha256=letter * 64)]


CONFIG: dict[str, Any] = record().config
TOGETHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"seed": 1}, {"seed": 2}),
    ({"scenario": drawn(1, classes=2)}, {"scenario": drawn(2, classes=2)}),
    ({"config": {**CONFIG, "seed": 1}}, {"config": {**CONFIG, "seed": 2}}),
    ({"config": {"a": [{"seed": 1}]}}, {"config": {"a": [{"seed": 2}]}}),
    ({"data": own("1")}, {"data": own("2")}),
    ({"config": {IMPORTED: {"file": "1.csv"}}}, {"config": {IMPORTED: {"file": "2.csv"}}}),
    ({"version": "0.1.0"}, {"version": "0.2.0"}),
]
APART: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"method": "ewc"}),
    ({}, {"preset": None}),
    ({}, {"incremental": "class"}),
    ({}, {"config": {**CONFIG, "density": 0.5}}),
    ({"config": {"word": "x" * 500 + "a"}}, {"config": {"word": "x" * 500 + "b"}}),
    ({"scenario": drawn(1, classes=2)}, {"scenario": drawn(1, classes=5)}),
    ({}, {"data": [DataEntry(name="digits", canonical=True, sha256="1" * 64)]}),
    ({}, {"data": [DataEntry(name="digits", canonical=False, sha256="1" * 64)]}),
]


@pytest.mark.parametrize(("one", "other"), TOGETHER)
def test_what_the_seed_decides_does_not_split_a_group(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert key_of(record(**one)) == key_of(record(**other))


@pytest.mark.parametrize(("one", "other"), APART)
def test_everything_else_does(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = record(**one), record(**other)
    assert key_of(first) != key_of(second)
    assert len({group.label for group in group_runs([Run("a", first), Run("b", second)])}) == 2


def test_methods_and_settings_can_be_ranked_on_the_same_problem() -> None:
    assert problem_of(record()) == problem_of(record(method="ewc", preset=None, config={}))
    assert problem_of(record()) != problem_of(record(incremental="class"))


def test_seeds_that_draw_their_classes_are_averaged_everywhere() -> None:
    records = [accurate(0.5 + s / 10, seed=s, scenario=drawn(s, classes=2)) for s in range(3)]
    runs = [Run(f"run {seed}", each) for seed, each in enumerate(records)]
    (sample,) = compare(runs).groups
    (problem,) = problems_of(runs)
    assert sample.seeds == (0, 1, 2)
    assert [len(group.counted) for group in problem.groups] == [3]


def labelled(*changes: dict[str, Any]) -> list[str]:
    runs = [Run(f"run {k}", record(**each)) for k, each in enumerate(changes)]
    return [group.label for group in group_runs(runs)]


def test_labels_say_no_more_than_they_must() -> None:
    config = {"network": {"density": 0.2}, "method": {"seed": 1, "strength": 1}}
    other = {"network": {"density": 0.1}, "method": {"seed": 2, "strength": 1}}
    assert labelled(
        {"method": "er"},
        {"method": "ewc", "preset": None, "config": config},
        {"method": "ewc", "config": config},
        {"method": "ewc", "config": other},
        {"method": "si", "incremental": "class"},
        {"method": "si", "incremental": "domain"},
    ) == [
        "er",
        "ewc no preset",
        "ewc paper density=0.2",
        "ewc paper density=0.1",
        "si class-incremental",
        "si domain-incremental",
    ]


def test_settings_of_one_name_keep_their_paths() -> None:
    assert labelled(
        {"config": {"a": {"rate": 1, "hidden": [4, 5]}, "b": {"rate": 2}}},
        {"config": {"a": {"rate": 3, "hidden": [6]}, "b": {"rate": 4}}},
    ) == ["nispa a.rate=1 hidden=4,5 b.rate=2", "nispa a.rate=3 hidden=6 b.rate=4"]


def test_values_in_names_are_whole() -> None:
    values = ("[[0,1],[2,3]]", None, ["a", "b"])
    assert labelled(*({"config": {"tasks": value}} for value in values)) == [
        "nispa tasks=[[0,1],[2,3]]", "nispa tasks=none", "nispa tasks=a,b",
    ]  # fmt: skip


def test_labels_that_are_cut_stay_different() -> None:
    first, second = labelled(*({"config": {"word": "x" * 200 + end}} for end in "ab"))
    assert second == f"{first} #2"
    assert len(first) == 80


# --- The same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [(0.8, 0.9, 0.95), (0.99, 1.0, 1.0), (0.0, 0.01, 0.0, 0.02), (0.4, 0.4)]
)
def test_page_comparison_and_table_agree(tmp_path: Path, values: tuple[float, ...]) -> None:
    """Also where a seed was run twice, with another result: the first one counts."""
    for seed, value in enumerate(values):
        RunFolder.create(tmp_path / f"a{seed}", accurate(value, seed=seed))
    RunFolder.create(tmp_path / "b", accurate(0.1, seed=0))
    runs, faults = read_runs(find_folders([tmp_path], 100))
    assert faults == []
    (sample,) = compare(runs).groups
    (group,) = group_runs(runs)
    assert group.estimate is not None
    assert (group.estimate.mean, group.estimate.sd) == (sample.mean, sample.sd)
    assert group.estimate.interval == sample.interval
    assert sample.interval is not None
    assert sample.sd is not None
    mean, deviation, low, high = map(percent, (sample.mean, sample.sd, *sample.interval))
    text = Page(page(runs)).text
    assert f"{mean}{deviation}{low} to {high}" in text
    assert f"95 % interval {low} to {high}" in text
    rows = [row for row in find_runs([tmp_path]) if not row.folder.endswith("b")]
    assert rf"{mean} \pm {deviation}" in as_latex(rows).decode()


def test_settings_are_flat_and_bounded() -> None:
    assert flatten({"a": {"b": {"c": [1, None, "x"]}}, "d": True, "e": 2**70, "f": {}}) == {
        "a.b.c": "1,none,x",
        "d": True,
        "e": str(2**70),
        "f": "{}",
    }
    assert flatten({"a\x1b": "b\n" + "c" * 300}) == {"a?": "b?" + "c" * 195 + "..."}
    assert len(flatten({str(n): n for n in range(10_000)})) == MAX_SETTINGS


# --- Finding and reading -------------------------------------------------------------------------


def test_a_folder_stands_for_all_runs_below_it(tmp_path: Path) -> None:
    for name in ("b", "a", "sweep/c", ".hidden/d"):
        RunFolder.create(tmp_path / name, record())
    (tmp_path / "e").symlink_to(tmp_path / "sweep" / "c", target_is_directory=True)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = find_folders([tmp_path, tmp_path / "a" / "record.json"], 5)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a",
        "b",
        "e",
        "sweep/c",
        "a/record.json",
    ]
    with pytest.raises(InputError, match="5 runs are more than 3; pass fewer"):
        find_folders([tmp_path, tmp_path / "a"], 3)


def test_runs_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    for name in ("one/run", "two/run", "other"):
        RunFolder.create(tmp_path / name, record())
    runs, _ = read_runs(find_folders([tmp_path], 10))
    paths = [Run(str(tmp_path / name), record()).name for name in ("one/run", "two/run")]
    assert [run.name for run in runs] == [paths[0], "other", paths[1]]
    runs, _ = read_runs([tmp_path / "one" / "run"] * 2)
    assert [run.name for run in runs] == ["run", "run"]


def test_damaged_records_are_left_out_and_missing_ones_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", record())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text("{")
    runs, faults = read_runs(find_folders([tmp_path], 10))
    assert [run.name for run in runs] == ["a"]
    assert len(faults) == 1
    assert "torn/record.json is damaged" in faults[0]
    with pytest.raises(InputError, match="is damaged"):
        read_runs([tmp_path / "torn"])
    with pytest.raises(InputError, match=r"nowhere holds no record\.json"):
        read_runs([tmp_path / "a", tmp_path / "nowhere"])
