from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nispa.runs.folder import RunFolder
from tests.cli_calls import Ended, call
from tests.records import priced, record

Capture = pytest.CaptureFixture[str]
Compare = Callable[..., Ended]


@pytest.fixture
def compared(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Calls ``nispa compare`` in a folder of runs, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def ask(*args: str | Path) -> Ended:
        return call(capsys, "compare", *args)

    return ask


def write(name: str, method: str, seed: int, acc: float, **changes: Any) -> str:
    rows = [[1.0, 0.5], [acc, acc]]
    made = record(**({"method": method, "seed": seed, "accuracy_matrix": rows} | changes))
    RunFolder.create(name, made)
    return name


def three_seeds() -> list[str]:
    values = {"er": (0.8, 0.82, 0.84), "ewc": (0.79, 0.8, 0.81)}
    return [
        write(f"{method}-s{seed}", method, seed, acc)
        for method, accuracies in values.items()
        for seed, acc in enumerate(accuracies)
    ]


def test_the_table(compared: Compare) -> None:
    ended = compared(*three_seeds())
    assert ended.code == 0
    found = [line.rstrip() for line in ended.out.splitlines()]
    assert found[:3] == [
        "accuracy (acc), %, told the task; higher is better",
        "mean over j of R[T-1, j] (Lopez-Paz and Ranzato 2017)",
        "",
    ]
    rows = [line.split() for line in found]
    assert ["group", "seeds", "mean", "sd", "95", "%", "from", "to"] in rows
    assert any(row[:4] == ["er", "3", "82.00", "2.00"] for row in rows)
    assert any(row[:4] == ["ewc", "3", "80.00", "1.00"] for row in rows)
    assert ["er", "minus"] in rows
    (pair,) = (row for row in rows if row[:3] == ["ewc", "3", "+2.00"])
    assert pair[5:] == ["2.00", "1.13", "0.250", "0.250", "0.250"]
    assert "2/2^3 = 0.25 > 0.05" in " ".join(ended.out.split())


def test_costs_stand_below_each_scenario(compared: Compare) -> None:
    """Means over seeds, from what records tell of each task; of old records less is known."""
    for seed in (0, 1):
        rows = [[1.0, 0.5], [0.5, 0.5]]
        made = priced(record(method="er", seed=seed, accuracy_matrix=rows))
        RunFolder.create(f"er-{seed}", made)
    write("si-0", "si", 0, 0.25)
    ended = compared("er-0", "er-1", "si-0")
    assert max(map(len, ended.out.splitlines())) <= 80
    rows_found = [line.split() for line in ended.out.splitlines()]
    assert ["group", "train", "op.", "op./sample", "train", "CPU", "train"] in rows_found
    assert ["er", "12", "MFLOP", "1.3", "kFLOP", "6", "s", "3.5", "s"] in rows_found
    assert ["si", "-", "-", "-", "3.5", "s"] in rows_found
    assert ["er", "652", "7.82", "kB", "1", "kB", "400", "MB", "1.5", "s"] in rows_found
    found = json.loads(compared("er-0", "er-1", "si-0", "--json").out)
    assert found["groups"][0]["costs"]["train_operations"] == 12_000_000
    assert found["groups"][1]["costs"]["peak_bytes"] is None


def test_equal_groups_show_no_nan(compared: Compare) -> None:
    names = [write(f"{m}-{s}", m, s, 0.5 + s / 10) for m in ("er", "si") for s in range(3)]
    ended = compared(*names)
    assert "nan" not in ended.out.lower()
    rows = [line.split() for line in ended.out.splitlines()]
    (pair,) = (row for row in rows if row[:1] == ["si"] and len(row) == 10)
    assert pair == ["si", "3", "0.00", "0.00", "0.00", "-", "-", "1.000", "1.000", "1.000"]


def test_one_seed_says_so(compared: Compare) -> None:
    ended = compared(write("a", "er", 0, 0.5), write("b", "si", 0, 0.5))
    assert ended.code == 0
    assert "One seed only, so no interval and no test: er, si" in ended.out
    ended = compared("a")
    assert "One group alone: nothing to compare it with." in ended.out


def test_json_has_everything(compared: Compare) -> None:
    ended = compared(*three_seeds(), "--json", "--baseline", "ewc", "--level", "0.2")
    found = json.loads(ended.out)
    assert (found["metric"], found["told"], found["level"]) == ("acc", True, 0.2)
    assert [group["label"] for group in found["groups"]] == ["er", "ewc"]
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"], pair["p"]) == ("er", "ewc", 0.25)
    assert pair["differences"] == [0.01, 0.02, 0.03]
    assert pair["interval"][0] < 0.02 < pair["interval"][1]
    assert any("least possible p" in note for note in found["warnings"])


def test_the_widest_numbers_and_labels_fit_80_columns(compared: Compare) -> None:
    names = []
    for seed in range(6):
        tiny = seed * 1e-9
        for width, acc in ((400, 1 - tiny), (100, tiny)):
            config = {"hidden": [width] * 3}
            name = f"{width}-s{seed}"
            names.append(write(name, "nispa-replay", seed, acc, config=config))
    for options, sign in ([], "+"), (["--metric", "forgetting"], "-"):
        ended = compared(*names, *options)
        found = ended.out.splitlines()
        assert max(map(len, found)) <= 80
        assert "…" not in ended.out
        (pair,) = (line for line in found if "large" in line)
        assert pair.split()[1:4] == ["6", f"{sign}100.00", f"{sign}100.00"]
        assert "nispa-replay hidden=400,400,400 minus" in found
        folded = "".join(line[:14].strip() for line in found[found.index(pair) :])
        assert folded.startswith("nispa-replayhidden=100,100,100")


def test_texts_of_strangers_are_no_markup(compared: Compare) -> None:
    bad = "[red]er\x1b[2J[/red]"
    ended = compared(write("a", bad, 0, 0.5), write("b", "si", 0, 0.5), write("c", bad, 1, 0.5))
    assert "\x1b" not in ended.out
    assert "[red]er?[2J" in ended.out


def test_runs_of_one_name_are_told_apart(compared: Compare) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        write(f"{folder}/run", "er", 0, 0.5)
    ended = compared("one/run", "two/run/record.json")
    said = " ".join(ended.out.split())
    assert "two/run is left out: it repeats seed 0 of one/run with the same value" in said


def test_a_folder_of_runs_stands_for_them(compared: Compare) -> None:
    Path("all").mkdir()
    for seed in (0, 1):
        write(f"all/er-{seed}", "er", seed, 0.5)
        write(f"all/si-{seed}", "si", seed, 0.75)
    write("more", "si", 2, 0.75)
    Path("all/bad").mkdir()
    Path("all/bad/record.json").write_text("{}")
    ended = compared("all", "more", "--json")
    assert ended.code == 0
    assert [(g["method"], g["seeds"]) for g in json.loads(ended.out)["groups"]] == [
        ("si", [0, 1, 2]),
        ("er", [0, 1]),
    ]
    assert ended.err.startswith("nispa: warning: left out: all/bad/record.json")
    assert compared("all/bad").code == 2
    Path("none").mkdir()
    assert "none holds no record.json" in compared("none").err


def test_kinds_stand_apart(compared: Compare) -> None:
    names = [write(f"er-{kind}", "er", 0, 0.5, incremental=kind) for kind in ("class", "task")]
    ended = compared(*names)
    titles = [line for line in ended.out.splitlines() if line.startswith("split-digits")]
    assert titles == ["split-digits, task-incremental", "split-digits, class-incremental"]
    assert "points" not in ended.out  # no differences


BAD: list[tuple[list[str], tuple[str, ...]]] = [
    ([], ("no runs given", "nispa compare runs/*")),
    (["nowhere"], ("nowhere holds no record.json", "pass the folder of a run")),
    (["er", "--metric", "acx"], ("unknown metric 'acx'", "did you mean 'acc'?")),
    (["er", "--baseline", "err"], ("unknown baseline 'err'", "did you mean 'er'?")),
    (["er", "--level", "2"], ("level=2 ", "[0.001, 0.5]", "0.05 is usual")),
    (["er", "--level", "nan"], ("level=nan", "[0.001, 0.5]")),
    (["er", "--level", "low"], ("--level=low", "[0.001, 0.5]")),
    (["er", "--untold"], ("none of 1 runs", "without telling the task")),
    (["er", "--basline", "er"], ("'--basline'", "did you mean '--baseline'?")),
]


@pytest.mark.parametrize(("args", "says"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_is_one_line(compared: Compare, args: list[str], says: tuple[str, ...]) -> None:
    write("er", "er", 0, 0.5)
    ended = compared(*args)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("nispa: error: ")
    assert ended.err.count("\n") == 1
    for words in says:
        assert words in ended.err


def test_a_damaged_record_is_one_line(compared: Compare) -> None:
    Path("bad").mkdir()
    Path("bad/record.json").write_text('{"schema": "nispa-record/1", "seed": ')
    ended = compared("bad")
    assert ended.code == 2
    assert "is damaged" in ended.err
    assert ended.err.count("\n") == 1
