"""Runs as CSV, Parquet and LaTeX; matrices of other tools as runs."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nispa.errors import FormatError, InputError
from nispa.reading.cells import harmless
from nispa.reading.exports import LONG, as_csv, as_latex, as_parquet, escape_latex, long, wide
from nispa.reading.imports import imported_record, read_matrix
from nispa.reading.store import COLUMNS, Row, find_runs, summarise
from nispa.runs.folder import RunFolder
from nispa.runs.record import ScenarioEntry, decode, encode, measured
from tests.records import record

HALF = ScenarioEntry(name="s", settings={"classes_per_task": 1})
KINDS = {key: column.kind for key, column in COLUMNS.items()}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(seed: int = 0, accuracy: float | None = 0.5, **changes: Any) -> Row:
    """A row of the table, with a record on disk that has its method, preset and settings."""
    values: dict[str, Any] = {"status": "complete", "scenario": "s", "incremental": "task"}
    values |= {"method": "ewc", "seed": seed, "accuracy": accuracy, "forgetting": 0.0}
    settings = changes.pop("settings", {})
    values |= changes
    names = {"seed": seed, "method": values["method"], "preset": values.get("preset")}
    config = {key: {name: value} for key, (name, value) in nested(settings).items()}
    folder = Path(f"runs-{len(list(Path().iterdir()))}")
    scenario = ScenarioEntry(name=values["scenario"])
    RunFolder.create(folder, record(**names, config=config, scenario=scenario))
    return Row(str(folder), values, settings)


def nested(settings: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """``{"m.lr": 1}`` as ``{"m": ("lr", 1)}``: a setting in each section is enough here."""
    return {key.partition(".")[0]: (key.partition(".")[2], v) for key, v in settings.items()}


def read_csv(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode())))


def test_csv_reads_back_to_the_same_values() -> None:
    table = wide([run(3, 0.1 + 0.2, settings={"m.b": True})], ["seed", "accuracy", "preset", "m.b"])
    assert read_csv(as_csv(table)) == [
        ["seed", "accuracy", "preset", "m.b"],
        ["3", "0.30000000000000004", "", "true"],
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "\t1", "\n1"])
def test_no_text_becomes_a_formula(text: str) -> None:
    table = wide([run(method=text)], ["method"])
    assert read_csv(as_csv(table))[1] == [f"'{text}"]
    assert read_csv(as_csv({text: []}))[0] == [f"'{text}"]


def test_names_that_look_like_formulas_come_back_as_they_were(tmp_path: Path) -> None:
    names = ["=1+1", "'=1+1", "@home", "plain", "'quoted"]
    cells = [harmless(name) for name in names]
    rows = [cells, *(["0.5"] * 5 for _ in range(5))]
    (tmp_path / "own.csv").write_text("\n".join(",".join(row) for row in rows))
    found = read_matrix(tmp_path / "own.csv").names
    assert found == ("=1+1", "=1+1", "@home", "plain", "'quoted")


def test_negative_numbers_stay_numbers() -> None:
    assert read_csv(as_csv(wide([run(bwt=-0.5)], ["bwt"])))[1] == ["-0.5"]


def test_parquet_has_types_and_nulls() -> None:
    runs = [run(1, None, settings={"a": 1, "b": 1}), run(2, 0.5, settings={"a": 0.5, "b": "x"})]
    table = wide(runs, ["seed", "accuracy", "preset", "a", "b"])
    read = pq.read_table(io.BytesIO(as_parquet(table, KINDS)))
    assert [str(field.type) for field in read.schema] == [
        "int64",
        "double",
        "string",
        "double",
        "string",
    ]
    assert read.to_pylist() == [
        {"seed": 1, "accuracy": None, "preset": None, "a": 1.0, "b": "1"},
        {"seed": 2, "accuracy": 0.5, "preset": None, "a": 0.5, "b": "x"},
    ]


def test_the_long_form_has_a_row_per_measured_entry(tmp_path: Path) -> None:
    untold: list[list[float | None]] = [[0.25, None], [0.125, 0.5]]
    told = [[0.75, None], [0.625, None]]
    changed = record(
        accuracy_matrix=told,
        accuracy_matrix_task_agnostic=untold,
        metrics_task_agnostic=measured(untold),
    )
    RunFolder.create(tmp_path / "a", changed)
    (tmp_path / "gone").mkdir()
    runs = [*find_runs([tmp_path]), Row(str(tmp_path / "gone"), {"status": "complete"})]
    table, missed = long(runs)
    assert len(missed) == 1
    assert "gone holds no record.json" in missed[0]
    keys = ["task_learned", "name_learned", "task_measured", "name_measured"]
    keys += ["accuracy_told", "accuracy_untold"]
    assert list(zip(*(table[key] for key in keys), strict=True)) == [
        (0, "0-1", 0, "0-1", 0.75, 0.25),
        (1, "2-3", 0, "0-1", 0.625, 0.125),
        (1, "2-3", 1, "2-3", None, 0.5),
    ]
    read = pq.read_table(io.BytesIO(as_parquet(table, LONG)))
    assert read.column("seed").to_pylist() == [19, 19, 19]


# --- LaTeX ---------------------------------------------------------------------------------------


def rows(data: bytes) -> list[str]:
    return [line for line in data.decode().splitlines() if line.endswith(r"\\")]


def test_mean_and_spread_by_hand() -> None:
    # 0.5 and 0.75: mean 0.625, sample standard deviation 0.25 / sqrt(2) = 0.17678
    table = [run(0, 0.5), run(1, 0.75), run(0, 0.6, method="si", forgetting=0.25)]
    assert rows(as_latex(table)) == [
        r"Method & Seeds & Accuracy (\%) & Forgetting (\%) \\",
        r"ewc & 2 & $\mathbf{62.50} \pm 17.68$ & $\mathbf{0.00} \pm 0.00$ \\",
        r"si & 1 & $60.00$ & $25.00$ \\",
    ]


def test_operations_are_powers_of_ten() -> None:
    # (1.2e13 + 3.4e13) / 2; the deviation is 2.2e13 / sqrt(2)
    table = [run(0, train_operations=1.2e13), run(1, train_operations=3.4e13)]
    assert rows(as_latex(table, ["train_operations"]))[1] == (
        r"ewc & 2 & $2.3 \cdot 10^{13} \pm 1.56 \cdot 10^{13}$ \\"
    )


def test_blocks_presets_and_other_numbers() -> None:
    table = [
        run(0, 0.5, preset="paper", parameters=1234),
        run(0, 0.5, preset="paper", parameters=1000, method="si"),
        run(0, 0.4),
        run(0, None, scenario="t", parameters=7),
    ]
    assert rows(as_latex(table, ["accuracy", "parameters"])) == [
        r"Method & Seeds & Accuracy (\%) & Live parameters \\",
        r"\multicolumn{4}{l}{s, task-incremental} \\",
        r"ewc no preset & 1 & $40.00$ & -- \\",
        r"ewc paper & 1 & $\mathbf{50.00}$ & $1{,}234$ \\",
        r"si & 1 & $\mathbf{50.00}$ & $\mathbf{1{,}000}$ \\",
        r"\multicolumn{4}{l}{t, task-incremental} \\",
        r"ewc & 1 & -- & $7$ \\",
    ]


def test_tiny_values_are_not_shown_as_zero() -> None:
    assert r"$1 \cdot 10^{-7}$" in rows(as_latex([run(0, 0.5, forgetting=1e-9)]))[1]


def test_texts_are_no_commands() -> None:
    assert escape_latex("a_b&%$#{}~^\\") == (
        r"a\_b\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    # at the start of a row, [ and * would be read as options of the line before
    assert rows(as_latex([run(method="[2cm]")]))[1].startswith("{[}2cm{]} & ")
    assert rows(as_latex([run(method=r"\input{x}*")]))[1].startswith(
        r"\textbackslash{}input\{x\}{*} & "
    )


def test_a_mean_is_over_seeds_alone() -> None:
    with pytest.raises(InputError, match=r"two runs of ewc have seed 0: .*choose one$"):
        as_latex([run(0), run(0)])
    mixed = [run(0, settings={"m.lr": 0.1}), run(1, settings={"m.lr": 0.01})]
    assert [line[:16] for line in rows(as_latex(mixed))[1:]] == [
        "ewc lr=0.01 & 1 ",
        "ewc lr=0.1 & 1 &",
    ]
    imported = [run(n, settings={"imported.file": str(n)}) for n in range(2)]
    assert rows(as_latex(imported))[1].startswith("ewc & 2 &")


def test_other_data_or_tasks_are_not_averaged() -> None:
    first, second = run(0), run(1)
    changed = record(seed=1, method="ewc", preset=None, config={}, scenario=HALF)
    RunFolder(second.location).write_record(changed)
    assert [line.split(" & ")[1] for line in rows(as_latex([first, second]))[1:]] == ["1", "1"]


def test_tables_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="no complete run"):
        as_latex([])
    with pytest.raises(InputError, match="not of 'method'"):
        as_latex([run()], ["method"])


# --- Matrices of other tools ---------------------------------------------------------------------

LOWER = [[0.9, np.nan], [0.5, 0.8]]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


CSV = [
    ("0.9,\n0.5,0.8\n", ()),
    ("0.9\n0.5,0.8", ()),
    ("\ufeff90;NaN\n50;80\n", ()),
    ("a,b\n0.9,\n0.5,0.8\n", ("a", "b")),
    (",0,1\n0,0.9,\n1,0.5,0.8\n", ("0", "1")),
    ("after,a,b\n1,90,-\n2,50,80\n", ("a", "b")),
    ("\ta\tb\nfirst\t.9\tnull\nthen\t5e-1\t0.8\n", ("a", "b")),
]


@pytest.mark.parametrize(("text", "names"), CSV, ids=range(len(CSV)))
def test_csv_in_many_forms(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    given = read_matrix(write(tmp_path / "m.csv", text))
    np.testing.assert_array_equal(given.matrix, LOWER)
    assert given.names == names


def test_the_other_orientation(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "task,after a,after b\na,0.9,0.5\nb,,0.8\n")
    given = read_matrix(file, rows="task")
    np.testing.assert_array_equal(given.matrix, LOWER)
    assert given.names == ("a", "b")
    with pytest.raises(FormatError, match="rows='after' contradicts it; pass rows='task'"):
        read_matrix(file)


def test_zeros_the_wrong_way_round_are_remarked_on(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "0.9,0.5\n0,0.8\n")
    assert "pass rows='task'" in read_matrix(file).remarks[1]
    assert "kept as measured" in read_matrix(file, rows="task").remarks[1]


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "90,\n50,80\n")
    assert read_matrix(file).remarks == ("Values up to 90 were taken for per cent.",)
    file = write(tmp_path / "m.csv", "1,\n0.5,0.8\n")
    assert read_matrix(file).remarks == ("Values up to 1 were taken for fractions.",)


BAD_CSV = [
    ("", "holds no numbers"),
    ("a,b\n", "holds no numbers"),
    (",\n,\n", "holds no numbers"),
    ("nan,nan\nnan,nan", "every entry is missing"),
    ("x,0.9\n0.5,0.8", "holds 'x' where a number belongs"),
    ("0.9,\nx,0.8", "holds 'x' where a number belongs"),
    ("0.9,x\n0.5,0.8", "holds 'x' where a number belongs"),
    ("1.2,\n0.5,0.8", "holds 1.2, which is no accuracy"),
    ("-0.1,\n0.5,0.8", "holds -0.1"),
    ("101,\n50,80", "holds 101"),
    ("1e999,\n50,80", "holds inf"),
    ("0.9\n0.5\n0.1", "3 rows after a task and 1 tasks"),
    ("0.1," * 1500, "too large"),
    ('"' + "x" * 200_000, "not a CSV file"),
]


@pytest.mark.parametrize(("text", "says"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_csv_that_is_no_matrix(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read_matrix(write(tmp_path / "m.csv", text))


def test_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.asfortranarray(np.array(LOWER, dtype=np.float32)))
    np.testing.assert_allclose(read_matrix(tmp_path / "m.npy").matrix, LOWER, rtol=1e-6)
    np.savez(tmp_path / "one.npz", r=np.array([[90, 0], [50, 80]]))
    assert read_matrix(tmp_path / "one.npz").matrix[1, 0] == 0.5
    np.savez_compressed(tmp_path / "two.npz", r=np.array(LOWER), s=np.zeros(3))
    with pytest.raises(FormatError, match="holds the arrays r, s; choose one with array="):
        read_matrix(tmp_path / "two.npz")
    np.testing.assert_array_equal(read_matrix(tmp_path / "two.npz", array="r").matrix, LOWER)


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


BAD_NPY = [
    (b"", "not a readable NumPy file"),
    (b"PK\x03\x04rest", "not a readable NumPy file"),
    (b"\x93NUMPY\x09\x00", "not a readable NumPy file"),
    (npy("'<f8'", "(1000000, 1000000)"), "not a readable NumPy file"),
    (npy("'<f8'", "(2, 2)"), "not a readable NumPy file"),
    (npy("'<f8'", "(-1, 2)", b"\0" * 16), "not a readable NumPy file"),
    (npy("'|O'", "(2, 2)", b"cos\nsystem\n."), "allow_pickle=False"),
    (npy("'<f8'", "(4,)", b"\0" * 32), "shape"),
    (npy("'<f8'", "((1, 2)"), "not a readable NumPy file"),
    (npy("'<f8'", "{[]: 1}"), "not a readable NumPy file"),
    (npy("'<f8'", "(" * 5000), "not a readable NumPy file"),
    (npy("'<f8'", "-" * 9000 + "1"), "not a readable NumPy file"),
    (npy("'<c16'", "(1, 1)", b"\0" * 16), "type complex128"),
]


@pytest.mark.parametrize(("data", "says"), BAD_NPY, ids=range(len(BAD_NPY)))
def test_numpy_files_that_are_none(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "m.npy").write_bytes(data)
    with pytest.raises(FormatError, match=says):
        read_matrix(tmp_path / "m.npy")


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.npy", npy("'<f8'", "(2, 2)") + bytes(40 * 2**20))
    assert (tmp_path / "m.npz").stat().st_size < 2**20
    with pytest.raises(FormatError, match="when unpacked"):
        read_matrix(tmp_path / "m.npz")


def test_other_files_and_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "1")
    with pytest.raises(InputError, match="rows='columns' must be after"):
        read_matrix(file, rows="columns")
    with pytest.raises(FormatError, match="unknown ending; give a"):
        read_matrix(write(tmp_path / "m.pkl", "1"))


def test_an_imported_record_says_so_and_survives_the_disk(tmp_path: Path) -> None:
    given = read_matrix(write(tmp_path / "m.csv", "90,\n50,80\n"))
    made = imported_record(given, file="m.csv", tool="tool", method="ewc", seed=3, scenario="s")
    assert decode(encode(made)) == made
    assert made.method == "tool:ewc"
    assert {made.environment.device, made.environment.torch, made.environment.cpu} == {"imported"}
    assert made.notes[0].startswith("Imported from m.csv (tool, ewc), sha256 ")
    assert (made.started, made.finished, made.parameters, made.cost) == (None,) * 4
    assert (made.tasks[0].train, made.tasks[0].test, made.environment.threads) == (None,) * 3
    assert made.status == "complete"
    found = summarise(made)
    # by hand: (0.5 + 0.8) / 2, and 0.9 - 0.5
    assert found["accuracy"] == pytest.approx(0.65)
    assert found["forgetting"] == pytest.approx(0.4)
    unknown = [found[name] for name in ("parameters", "kept_bytes", "train_s", "samples")]
    assert unknown == [None] * 4


def test_a_matrix_without_the_task_told_is_the_other_one(tmp_path: Path) -> None:
    given = read_matrix(write(tmp_path / "m.csv", "0.9,\n0.5,0.8\n"))
    made = imported_record(given, file="m", tool="t", method="m", seed=0, incremental="class")
    assert made.accuracy_matrix == ()
    assert made.main_matrix == ((0.9, None), (0.5, 0.8))
    assert summarise(made)["accuracy"] == pytest.approx(0.65)


def test_a_matrix_that_ends_early_is_not_complete(tmp_path: Path) -> None:
    given = read_matrix(write(tmp_path / "m.csv", "0.9,0.1,0.1\n"))
    made = imported_record(given, file="m", tool="t", method="m", seed=0)
    assert made.status == "interrupted"
    assert summarise(made)["accuracy"] is None
