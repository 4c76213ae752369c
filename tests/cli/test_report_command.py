"""``nispa report``: pages of runs, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from nispa.cli.exits import Commands
from nispa.cli.report import report
from nispa.runs.folder import EVENTS, RunFolder
from nispa.runs.record import RECORD, Record, encode
from nispa.webpage import MARK
from tests.cli_calls import Ended
from tests.records import five_tasks, record

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: Capture, *args: str | Path) -> Ended:
    """Calls the command in a group as the program's own."""
    cli = click.Group.__new__(Commands)
    Commands.__init__(cli, name="nispa", commands=[report])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        cli.main(args=["report", *map(str, args)], prog_name="nispa")
    out, err = capsys.readouterr()
    return Ended(ending.value.code, out, err)


def write(path: str, value: Record, events: str = "") -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    (folder / RECORD).write_bytes(encode(value))
    if events:
        (folder / EVENTS).write_text(events)
    return folder


def test_one_run_and_many(capsys: Capture) -> None:
    write("runs/a", five_tasks())
    write("runs/b", five_tasks(seed=1))
    Path("runs/empty").mkdir()
    ended = call(capsys, "runs/a")
    assert (ended.code, ended.out, ended.err) == (0, "Report: report.html\n", "")
    text = Path("report.html").read_text(encoding="utf-8")
    assert text.startswith(MARK)
    assert 'id="run-1"' in text
    assert call(capsys, "runs", "runs/b/record.json", "--out", "all.html").code == 0
    text = Path("all.html").read_text(encoding="utf-8")
    assert all(name in text for name in ("1. a", "2. b", "3. b"))
    assert "1. empty" not in text


def test_an_earlier_report_is_replaced_and_nothing_else(capsys: Capture) -> None:
    folder = write("a", record())
    assert call(capsys, folder).code == 0
    first = Path("report.html").read_bytes()
    write("b", five_tasks())
    assert call(capsys, "b").code == 0
    assert Path("report.html").read_bytes() != first
    before = (folder / RECORD).read_bytes()
    ended = call(capsys, folder, "--out", folder / RECORD)
    assert ended.code == 2
    assert "no report of nispa; choose another name" in ended.err
    assert (folder / RECORD).read_bytes() == before


def test_events_make_phases(capsys: Capture) -> None:
    lines = [
        f'{{"event":"phase_end","task":0,"phase":{k},"accuracy":0.9,"tau":0.75,'
        f'"kept":{{"hidden1":25}},"dropped":{{"fc1":4}}}}\n'
        for k in (1, 2, 3)
    ]
    write("a", record(), "".join(lines))
    assert call(capsys, "a").code == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "Phases as a table" in text
    assert "0.750" in text


def test_damaged_events_are_noted(capsys: Capture) -> None:
    write("a", record(), "no json\nmore\n")
    assert call(capsys, "a").code == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "Its events are left out: a/events.jsonl, line 1, is damaged" in text


def test_records_that_cannot_be_read_are_left_out_and_named(capsys: Capture) -> None:
    """In a folder or named one by one, as a shell's pattern does."""
    for name in ("a", "b"):
        write(f"runs/{name}", five_tasks())
    whole = Path("runs/a", RECORD).read_bytes()
    for name, data in (("cut", whole[:900]), ("newer", b'{"schema": "nispa-record/99"}')):
        Path("runs", name).mkdir()
        Path("runs", name, RECORD).write_bytes(data)
    for args in (["runs"], sorted(Path("runs").iterdir())):
        ended = call(capsys, *args)
        assert (ended.code, ended.out) == (0, "Report: report.html\n")
        cut, newer = ended.err.splitlines()
        assert "left out: " in cut
        assert "runs/cut/record.json is damaged" in cut
        assert "runs/newer/record.json was written by a newer nispa" in newer
        text = Path("report.html").read_text(encoding="utf-8")
        assert "1. a" in text
        assert "2. b" in text
        assert "runs/cut/record.json is damaged" in text
        assert "runs/newer/record.json was written by a newer nispa" in text
        Path("report.html").unlink()


BAD = [
    ([], ("Missing argument", "RUNS", "--help")),
    (["nowhere"], ("nowhere holds no record.json", "pass the folder of a run")),
    (["good", "nowhere"], ("nowhere holds no record.json",)),
    (["good", "empty"], ("empty holds no record.json",)),
    (["bad"], ("bad/record.json is damaged",)),
    (["newer"], ("newer nispa", "pip install --upgrade nispa")),
    (["x" * 5_000], ("xxx",)),
    (["good"] * 1_001, ("1,001 runs are more than 1,000", "pass fewer")),
    (["good", "--out", "empty"], ("--out=empty", "choose another name")),
    (["good", "--out", "nowhere/x.html"], ("nowhere/x.html", "the folder does not exist")),
    (["good", "--out", "mine.html"], ("--out=mine.html", "choose another name")),
    (["good", "--ot", "x"], ("'--ot'", "did you mean '--out'?")),
]


@pytest.mark.parametrize(("args", "says"), BAD, ids=[" ".join(a)[:30] or "none" for a, _ in BAD])
def test_bad_input(capsys: Capture, home: Path, args: list[str], says: tuple[str, ...]) -> None:
    write("good", record())
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad", RECORD).write_text('{"schema": "nispa-record/1", ')
    Path("newer").mkdir()
    Path("newer", RECORD).write_text('{"schema": "nispa-record/99"}')
    Path("mine.html").write_text("<p>mine")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    ended = call(capsys, *args)
    assert ended.code == 2, ended
    assert ended.err.startswith("nispa: error: ")
    assert ended.err.count("\n") == 1
    for words in says:
        assert words in ended.err
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_folder_of_runs_is_read_in_order(capsys: Capture) -> None:
    for name in ("c", "a", "b"):
        assert RunFolder(write(f"runs/{name}", record())).path.is_dir()
    assert call(capsys, "runs").code == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert text.index("1. a") < text.index("2. b") < text.index("3. c")
