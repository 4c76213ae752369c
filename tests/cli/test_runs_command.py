"""``nispa runs``, ``nispa export`` and ``nispa import`` on the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nispa.reading import store
from nispa.runs.folder import RunFolder
from nispa.runs.record import read_record
from tests.cli_calls import call
from tests.records import priced, record

Capture = pytest.CaptureFixture[str]
CONFIG = {"method": {"learning_rate": 0.01}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three runs in ./runs, one of them stopped early."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    make("a", seed=0)
    make("b", seed=1)
    make("c", seed=2, method="ewc", status="interrupted")
    return home


def make(name: str, **changes: Any) -> None:
    RunFolder.create(Path("runs") / name, record(**({"config": CONFIG} | changes)))


def test_a_line_per_run(capsys: Capture) -> None:
    ended = call(capsys, "runs", "--columns", "method,seed,accuracy,parameters,preset,folder")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "method  seed  accuracy  parameters  preset  folder",
        "ewc        2    81.25%         652  paper   runs/c",
        "nispa      0    81.25%         652  paper   runs/a",
        "nispa      1    81.25%         652  paper   runs/b",
    ]


def test_the_usual_columns(capsys: Capture) -> None:
    head = call(capsys, "runs").out.split("\n")[0].split()
    assert head == [
        *("scenario", "method", "preset", "seed", "status", "incremental", "accuracy"),
        *("forgetting", "parameters", "kept_bytes", "train_operations", "train_s", "started"),
        "folder",
    ]


def test_costs_of_runs(capsys: Capture) -> None:
    RunFolder.create(Path("runs/costly"), priced())
    args = ["--where", "train_operations>1e6", "--columns"]
    out = call(capsys, "runs", *args, "train_operations,inference_operations,peak_bytes").out
    assert out.splitlines()[1].split() == ["1.2e+07", "1.3e+03", "400,000,000"]


def test_chosen_sorted_and_cut(capsys: Capture) -> None:
    args = ["--where", "method=nis*", "--sort", "-seed", "--limit", "1", "--columns", "seed"]
    assert call(capsys, "runs", *args).out.splitlines() == ["seed", "   1", "1 of 3 runs"]
    assert call(capsys, "runs", "--where", "seed>9").out == "0 of 3 runs\n"


def test_json_has_everything(capsys: Capture) -> None:
    runs = json.loads(call(capsys, "runs", "--json", "--where", "seed=2").out)
    assert len(runs) == 1
    assert set(runs[0]) == {*store.COLUMNS, "settings"}
    assert runs[0]["accuracy"] == 0.8125
    assert runs[0]["settings"] == {"method.learning_rate": 0.01}
    runs = json.loads(call(capsys, "runs", "--json", "--columns", "seed").out)
    assert runs == [{"seed": 2}, {"seed": 0}, {"seed": 1}]
    assert json.loads(call(capsys, "runs", "--json", "--where", "seed>9").out) == []


def test_damaged_and_foreign_records_stop_nothing(capsys: Capture) -> None:
    (Path("runs") / "a" / "record.json").write_text("{")
    Path("runs", "x\x1b[31m").mkdir()
    Path("runs", "x\x1b[31m", "record.json").write_text('{"schema": "else"}')
    ended = call(capsys, "runs", "--columns", "seed,status")
    assert ended.code == 0
    assert "\x1b" not in ended.out
    lines = ended.out.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["2", "interrupted"],
        ["1", "complete"],
        ["-", "unreadable"],
        ["-", "unreadable"],
    ]
    assert lines[5].startswith("unreadable: runs/a/record.json is damaged")
    assert lines[6].startswith("unreadable: runs/x?[31m/record.json is not a record of nispa")
    assert call(capsys, "runs", "--where", "status=complete", "--columns", "seed").out == (
        "seed\n   1\n1 of 4 runs\n"
    )


def test_an_empty_folder_has_no_runs(capsys: Capture, home: Path) -> None:
    (home / "empty").mkdir()
    ended = call(capsys, "runs", "empty", "--where", "method.x=1", "--sort", "seed")
    assert (ended.code, ended.out) == (0, "0 of 0 runs\n")


BAD = [
    (["runs", "nowhere"], ("nowhere", "does not exist", "pass the folder")),
    (["runs", "runs/a/record.json"], ("record.json", "pass the folder")),
    (["runs", "--where", "metod=x"], ("'metod'", "did you mean 'method'?", "Known: accuracy")),
    (["runs", "--where", "seed"], ("--where seed must be KEY=VALUE",)),
    (["runs", "--where", "accuracy>90"], ("accuracy>90", "0.9 or 90%")),
    (["runs", "--sort", "acuracy"], ("'acuracy'", "did you mean 'accuracy'?")),
    (["runs", "--columns", "seed,lr"], ("'lr'", "Known: ")),
    (["runs", "--columns", ","], ("--columns=,", "leave it out")),
    (["runs", "--limit", "0"], ("--limit=0", "[1, 2^31]")),
    (["export"], ("--to", "nispa export --help")),
    (["export", "--to", "x.xlsx"], ("x.xlsx", "use .csv, .parquet or .tex")),
    (["export", "--to", "no/x.csv"], ("cannot write no/x.csv", "does not exist")),
    (["export", "--to", "x.tex", "--long"], ("--long", "leave it out")),
    (["export", "--to", "x.csv", "--where", "seed>9"], ("none of 3 runs",)),
    (["export", "--to", "x.tex", "--where", "method=ewc"], ("no complete run",)),
    (["import", "m.csv"], ("--name", "nispa import --help")),
]


@pytest.mark.parametrize(("args", "says"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input(capsys: Capture, home: Path, args: list[str], says: tuple[str, ...]) -> None:
    before = sorted(home.rglob("*"))
    ended = call(capsys, *args)
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("nispa: error: ")
    for words in says:
        assert words in last
    assert sorted(home.rglob("*")) == before


def test_export_to_each_kind_of_file(capsys: Capture) -> None:
    assert call(capsys, "export", "--to", "x.csv").out == "3 rows to x.csv\n"
    with Path("x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["2", "0", "1"]
    assert set(rows[0]) == set(store.COLUMNS)
    args = ["--columns", "seed,method.learning_rate", "--where", "method=nispa"]
    assert call(capsys, "export", "--to", "x.parquet", *args).code == 0
    assert pq.read_table("x.parquet").to_pydict() == {
        "seed": [0, 1],
        "method.learning_rate": [0.01, 0.01],
    }
    assert call(capsys, "export", "--to", "long.csv", "--long").out == "12 rows to long.csv\n"
    ended = call(capsys, "export", "--to", "x.tex", "--by", "density")  # as in scripts of before
    assert ended.out == "2 runs to x.tex\n"
    assert ended.err == "1 run that is not complete was left out\n"
    assert r"nispa & 2 & $81.25 \pm 0.00$ & $12.50 \pm 0.00$ \\" in Path("x.tex").read_text()


IMPORT = ["--name", "other tool", "--method", "ewc", "--seed", "3"]


def test_an_import_stands_in_the_same_table(capsys: Capture) -> None:
    Path("m.csv").write_text("90,\n50,80\n")
    ended = call(capsys, "import", "m.csv", *IMPORT, "--scenario", "split-digits")
    folder = "runs/split-digits-other-tool-ewc-s3"
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "Values up to 90 were taken for per cent.",
        f"2 tasks, complete: {folder}",
    ]
    args = ["--where", "scenario=split-digits", "--where", "device=imported"]
    out = call(capsys, "runs", *args, "--columns", "method,seed,accuracy,parameters,folder").out
    assert out.splitlines()[1].split() == ["other", "tool:ewc", "3", "65.00%", "-", folder]
    assert call(capsys, "show", folder).code == 0


def test_import_transposed_from_an_archive(capsys: Capture) -> None:
    np.savez("m.npz", r=np.array([[0.9, 0.5], [np.nan, 0.8]]), other=np.zeros(2))
    args = ["m.npz", *IMPORT, "--array", "r", "--out", "here", "--incremental", "class"]
    assert call(capsys, "import", *args).code == 2
    assert not Path("here").exists()
    assert call(capsys, "import", *args, "--rows", "task").code == 0
    assert read_record("here").main_matrix == ((0.9, None), (0.5, 0.8))


BAD_IMPORT = [
    (["no.csv", *IMPORT], ("no.csv", "no such file")),
    (["m.csv", *IMPORT, "--rows", "columns"], ("--rows columns", "after")),
    (["m.csv", *IMPORT, "--seed", "-1"], ("--seed=-1", "[0, 2^63)")),
    (["m.csv", *IMPORT, "--name", " "], ("--name= ", "1 to 100 letters")),
    (["m.csv", *IMPORT, "--incremental", "tasks"], ("'tasks'", "did you mean 'task'?")),
    (["m.csv", *IMPORT, "--out", "runs/a"], ("runs/a already holds a run",)),
    (["runs", *IMPORT], ("runs is not a regular file",)),
]


@pytest.mark.parametrize(("args", "says"), BAD_IMPORT, ids=[" ".join(a) for a, _ in BAD_IMPORT])
def test_bad_imports(capsys: Capture, home: Path, args: list[str], says: tuple[str, ...]) -> None:
    Path("m.csv").write_text("90,\n50,80\n")
    before = sorted(home.rglob("*"))
    ended = call(capsys, "import", *args)
    assert ended.code == 2
    assert ended.err.startswith("nispa: error: ")
    assert ended.err.count("\n") == 1
    for words in says:
        assert words in ended.err
    assert sorted(home.rglob("*")) == before


def test_no_torch_is_imported(home: Path) -> None:
    code = (
        "import sys\nfrom nispa.cli.runs import export, runs\n"
        "runs.main([], standalone_mode=False)\n"
        "export.main(['--to', 'x.parquet'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=home, check=True, capture_output=True)
