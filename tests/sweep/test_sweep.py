"""Sweeps: each run once, whatever stops, fails or dies meanwhile."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nispa.cli.sweep import plans, seeds_given
from nispa.errors import BusyError, ConfigError, InputError
from nispa.runs.folder import RunFolder, held
from nispa.runs.record import comparable, read_record
from nispa.sweep import backends
from nispa.sweep.backends import make_backend
from nispa.sweep.base import Outcomes
from nispa.sweep.jobs import Job, Outcome, Where, done_before, execute, key_of, prepare
from nispa.sweep.kinds import check_kinds
from nispa.sweep.local import Local
from nispa.sweep.plan import Cell, read_plan
from tests.cli_calls import NISPA, call, spawn
from tests.cli_calls import SMALL as SMALL_RUN

Capture = pytest.CaptureFixture[str]
SMALL = {"hidden": [12, 12], "epochs": 1, "batch_size": 64}
TWO_TASKS = [[0, 1], [2, 3]]
ARGS = [f"--set={pair}" for pair in ("hidden=12,12", "epochs=1", "batch_size=64")]
ARGS.append(f"--set=tasks={TWO_TASKS}")


def cell(method: str = "finetune", seed: int = 0, **given: object) -> Cell:
    return Cell("split-digits", method, "default", seed, {**SMALL, **given})


def small_nispa(seed: int = 0, **given: object) -> Cell:
    settings = {"hidden": [12, 12], "e": 5, "max_phases": 3, "batch_size": 16}
    return Cell("split-digits", "nispa", "default", seed, {**settings, **given})


def jobs_of(out: Path, cells: Sequence[Cell]) -> list[Job]:
    return prepare(cells, Where(out))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# --- Keys ----------------------------------------------------------------------------------------


def test_a_record_has_the_key_of_its_job(out: Path) -> None:
    (job,) = jobs_of(out, [cell()])
    assert not done_before(job)
    assert execute(job).status == "done"
    assert key_of(read_record(job.folder)) == job.key
    assert done_before(job)


def test_what_decides_a_result_decides_the_key(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        cell(),
        cell(seed=1),
        cell(method="joint"),
        cell(learning_rate=0.5),
        cell(hidden=[12, 13]),
        cell(classes_per_task=5),
    ]
    keys = {job.key for job in jobs_of(out, cells)}
    assert len(keys) == len(cells)
    usual = cell(density=0.2)
    assert {job.key for job in jobs_of(out, [usual])} <= keys
    monkeypatch.setattr("nispa.sweep.jobs.code_of", lambda _: "0" * 64)
    assert not {job.key for job in jobs_of(out, [cell()])} & keys


def test_cells_that_come_to_the_same_are_one_job(out: Path) -> None:
    assert len(jobs_of(out, [cell(), cell(density=0.2), cell(density="0.2")])) == 1


# --- One kind ------------------------------------------------------------------------------------


def kinds(out: Path, *cells: Cell) -> list[object]:
    return [job.config["incremental"] for job in jobs_of(out, cells)]


def test_methods_of_two_kinds_are_not_swept_in_silence(out: Path) -> None:
    plain = {"hidden": [12]}
    cells = [Cell("split-digits", name, "default", 0, plain) for name in ("nispa", "er", "ewc")]
    with pytest.raises(ConfigError, match="ewc, nispa task-incremental") as error:
        prepare(cells, Where(out))
    assert "er class-incremental" in str(error.value)
    assert "incremental='task'" in str(error.value)
    told = [replace(each, given={**plain, "incremental": "task"}) for each in cells]
    assert kinds(out, *told) == ["task"] * 3


def test_two_kinds_may_be_asked_for(out: Path) -> None:
    both = [cell("finetune", incremental=kind) for kind in ("task", "class")]
    assert kinds(out, *both) == ["task", "class"]
    with pytest.raises(ConfigError, match="cannot be compared"):
        kinds(out, cell("joint"), *both)  # of joint nobody said it


def test_kinds_without_a_common_one_are_told(out: Path) -> None:
    with pytest.raises(ConfigError, match="use a sweep for each"):
        kinds(out, cell("packnet"), cell("icarl"))


def test_scenarios_need_not_share_a_kind(out: Path) -> None:
    other = Cell("efmnist", "er", "default", 0, {"hidden": [12]})
    check_kinds([cell("finetune"), other])
    with pytest.raises(ConfigError, match="runs of split-digits"):
        check_kinds([cell("finetune"), cell("er"), other])


@pytest.mark.parametrize("name", plans())
def test_the_plans_that_come_along_have_one_kind(name: str) -> None:
    check_kinds(read_plan(plans()[name]).cells())


def test_another_code_is_another_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs_of(out, [cell()])
    assert execute(job).status == "done"
    monkeypatch.setattr("nispa.sweep.jobs.code_of", lambda _: "0" * 64)
    (other,) = jobs_of(out, [cell()])
    assert other.folder != job.folder
    assert not done_before(other)


def test_code_that_changes_under_a_sweep_is_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs_of(out, [cell()])
    monkeypatch.setattr("nispa.sweep.jobs.code_of", lambda _: "0" * 64)
    outcome = execute(job)
    assert outcome.status == "failed"
    assert "not those that the sweep was begun with" in outcome.problem
    assert not job.folder.exists()


def test_all_is_checked_before_anything_starts(out: Path) -> None:
    bad = [
        (cell(method="nispy"), "unknown method 'nispy'"),
        (cell(density=7), "density=7"),
        (cell(dataset="nothing-such"), "nothing-such"),
        (cell(shares=[0.5]), "'shares' is no option of scenario split-digits"),
        (small_nispa(incremental="class"), "cannot learn with incremental=class"),
        (Cell("split-nothing", "nispa", "default", 0), "unknown scenario 'split-nothing'"),
    ]
    for each, says in bad:
        with pytest.raises(InputError) as refused:
            jobs_of(out, [cell(), each])
        assert says in str(refused.value)
        assert f"(in the run: {each.title})" in str(refused.value)
    assert not out.exists()


# --- One job -------------------------------------------------------------------------------------


def test_a_job_goes_on_where_it_was_stopped(out: Path, tmp_path: Path) -> None:
    (job,) = jobs_of(out, [cell(epochs=3)])
    asked = iter([None] * 4)

    def stopping() -> BaseException | None:
        return next(asked, KeyboardInterrupt())

    assert execute(job, stopping).status == "stopped"
    left = read_record(job.folder)
    assert left.status == "interrupted"
    assert len(left.per_task) < 5
    assert execute(job).status == "done"
    (undisturbed,) = jobs_of(tmp_path / "other", [cell(epochs=3)])
    assert execute(undisturbed).status == "done"
    assert comparable(read_record(job.folder)) == comparable(read_record(undisturbed.folder))


def test_a_done_job_is_not_done_again(out: Path) -> None:
    (job,) = jobs_of(out, [cell()])
    execute(job)
    before = (job.folder / "record.json").stat()
    assert execute(job).status == "done"
    after = (job.folder / "record.json").stat()  # when it was last read is nobody's business
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_folder_with_another_run_is_left_alone(out: Path) -> None:
    first, second = jobs_of(out, [cell(), cell(seed=1)])
    execute(first)
    outcome = execute(replace(second, folder=first.folder))
    assert outcome.status == "failed"
    assert "holds another run" in outcome.problem
    assert done_before(first)


def test_unforeseen_faults_are_told_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*args: object, **more: object) -> None:
        raise ZeroDivisionError("a fault")

    (job,) = jobs_of(out, [cell()])
    monkeypatch.setattr("nispa.sweep.jobs.run", fault)
    outcome = execute(job)
    assert (outcome.status, outcome.problem) == ("failed", "ZeroDivisionError: a fault")
    assert "Traceback" in outcome.details


# --- Two at once ---------------------------------------------------------------------------------

HOLD = """
import sys, time
from nispa.runs.folder import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder ``out / "run"``."""
    command = [NISPA[0], "-c", HOLD, str(out / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_kept_for_one_process(
    out: Path, holder: subprocess.Popen[str], capsys: Capture
) -> None:
    with pytest.raises(BusyError, match="another process is at work on"), held(out / "run"):
        pass
    ended = call(capsys, "run", "split-digits", "--out", out / "run", *SMALL_RUN)
    assert ended.code == 2
    assert "another process is at work on" in ended.err
    assert "Traceback" not in ended.err


def test_a_dead_process_holds_nothing(out: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(out / "run"):
        pass


def test_waiting_ends_with_the_other(out: Path, holder: subprocess.Popen[str]) -> None:
    (job,) = jobs_of(out, [cell()])
    job = replace(job, folder=out / "run")
    assert execute(job).status == "busy"
    holder.kill()
    assert execute(job, wait=True).status == "done"


def test_an_empty_folder_does_not_stay(out: Path) -> None:
    with held(out / "a" / "b"):
        assert (out / "a" / "b").is_dir()
    assert not out.exists()
    with held(out):
        with held(out):  # the holder may ask again
            pass
        RunFolder(out).append_event({"event": "x"})
    assert [path.name for path in out.iterdir()] == ["events.jsonl"]


# --- Many ----------------------------------------------------------------------------------------


def test_a_pool_does_all_and_tells_what_failed(out: Path) -> None:
    jobs = jobs_of(out, [cell(seed=seed, tasks=TWO_TASKS) for seed in range(4)])
    (jobs[2].folder / "record.json").mkdir(parents=True)
    outcomes = [each for each in Local(2).run(jobs) if each is not None]
    assert {each.job.key for each in outcomes} == {job.key for job in jobs}
    states = {each.job.key: each for each in outcomes}
    assert [states[job.key].status for job in jobs] == ["done", "done", "failed", "done"]
    assert "record.json is not a regular file" in states[jobs[2].key].problem
    assert [done_before(job) for job in jobs] == [True, True, False, True]
    alone = replace(jobs[0], folder=out / "alone")
    execute(alone)
    assert comparable(read_record(jobs[0].folder)) == comparable(read_record(alone.folder))


def test_busy_jobs_come_last_and_are_waited_for(out: Path) -> None:
    jobs = jobs_of(out, [cell(), cell(seed=1)])
    calls: list[tuple[list[Job], bool]] = []

    class Made:
        workers = 1

        def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
            calls.append((list(jobs), wait))
            for job in jobs:
                yield None
                yield Outcome(job, "done" if wait or job.seed else "busy")

    ended = [each for each in backends.sweep(jobs, Made()) if each is not None]
    assert [each.job.seed for each in ended] == [1, 0]
    assert calls == [(jobs, False), (jobs[:1], True)]


@pytest.mark.ci
def test_a_worker_that_dies_takes_no_result_with_it(out: Path) -> None:
    jobs = jobs_of(out, [small_nispa(), small_nispa(seed=1)])
    running = Local(2).run(jobs)
    killed = False
    ended: list[Outcome] = []
    for outcome in running:
        if outcome is not None:
            ended.append(outcome)
        elif not killed and any((job.folder / "events.jsonl").exists() for job in jobs):
            multiprocessing.active_children()[-1].kill()
            killed = True
    assert killed
    assert [each.status for each in ended] == ["done", "done"]
    alone = replace(jobs[1], folder=out / "alone")
    execute(alone)
    assert comparable(read_record(jobs[1].folder)) == comparable(read_record(alone.folder))


def test_backends_that_cannot_be_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend=cloud must be one of local, ray, slurm"):
        make_backend("cloud", 1, 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "nispa.sweep.slurm", raising=False)
    with pytest.raises(InputError, match=r"needs the package submitit,.*nispa\[slurm\]"):
        make_backend("slurm", 1, 1)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("NISPA_DATA", raising=False)
    return home


@pytest.mark.ci
def test_a_sweep_is_done_once(home: Path, capsys: Capture) -> None:
    args = ["sweep", "split-digits", "--method", "finetune", "--method", "joint", "--seeds", "0,1"]
    args += [*ARGS, "--grid", "density=0.4,0.6", "--workers", "2"]
    listed = call(capsys, *args, "--dry-run")
    assert listed.code == 0
    assert listed.out.count("to do") == 8
    assert list(home.iterdir()) == []
    ended = call(capsys, *args)
    assert ended.code == 0, ended
    assert "8 runs, 0 of them done before, 2 at a time" in ended.out
    assert "[8/8] " in ended.out
    folder = home / "runs" / "sweep-split-digits"
    assert len(list(folder.glob("*/record.json"))) == 8
    assert sum("±" in line for line in ended.out.splitlines()) == 4
    again = call(capsys, *args)
    assert again.code == 0
    assert "8 runs, 8 of them done before" in again.out
    assert call(capsys, *args, "--dry-run").out.count("to do") == 0


def test_a_failed_run_is_listed_and_stops_nothing(home: Path, capsys: Capture) -> None:
    (home / "plan.toml").write_text(
        'scenario = "split-digits"\nmethod = "finetune"\n'
        "set = { hidden = [12], epochs = 1 }\ngrid = { learning_rate = [0.02, 0.01] }\n"
    )
    listed = call(capsys, "sweep", "plan.toml", "--dry-run").out.splitlines()
    folder = home / "runs" / "sweep-plan"
    (folder / listed[0].split()[-1]).mkdir(parents=True)
    (folder / listed[0].split()[-1] / "record.json").write_text("{}")
    ended = call(capsys, "sweep", "plan.toml", "--workers", "1")
    assert ended.code == 1
    assert "1 of 2 runs failed" in ended.err
    title = "split-digits, finetune, preset default, learning_rate=0.02, seed 0"
    assert f"failed: {title}: " in ended.err
    assert "Traceback" not in ended.err
    states = [read_record(folder / line.split()[-1]).status for line in listed[1:2]]
    assert states == ["complete"]
    assert (folder / listed[0].split()[-1] / "record.json").read_text() == "{}"


@pytest.mark.ci
def test_ctrl_c_keeps_what_is_done(home: Path) -> None:
    args = ["sweep", "split-digits", "--seeds", "0,1,2,3", "--workers", "2", *ARGS[:1]]
    with spawn(*args, cwd=home) as process:
        folder = home / "runs" / "sweep-split-digits"
        deadline = time.monotonic() + 120
        while not list(folder.glob("*/events.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.startswith("nispa: interrupted: ")
    assert "of 4 runs are done in" in err
    assert "the same command goes on" in err
    states = {read_record(path.parent).status for path in folder.glob("*/record.json")}
    assert states <= {"interrupted", "complete"}
    assert "interrupted" in states
    assert not list(folder.glob("*/.nispa*"))


@pytest.mark.ci
def test_two_sweeps_in_one_folder_share_the_work(home: Path) -> None:
    args = ["sweep", "split-digits", "--seeds", "0,1,2", "--workers", "1", *SMALL_RUN]
    args.append(f"--set=tasks={TWO_TASKS}")
    with spawn(*args, cwd=home) as first, spawn(*args, cwd=home) as second:
        ended = [process.communicate(timeout=300) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ended
    folders = list((home / "runs" / "sweep-split-digits").glob("*/record.json"))
    assert len(folders) == 3
    for path in folders:
        folder = RunFolder(path.parent)
        assert folder.read_record().status == "complete"
        events = folder.read_events()
        begun = [(each["task"], each["phase"]) for each in events if each["event"] == "phase_start"]
        assert len(begun) == len(set(begun))  # nobody learned beside the other


def test_reproduce_writes_a_report(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = home / "small.toml"
    plan.write_text(
        'about = "small"\nscenario = "split-digits"\nseed = [0, 1]\n'
        'method = ["finetune", "joint"]\n'
        "set = { hidden = [12], epochs = 1 }\n"
    )
    monkeypatch.setattr(sys.modules["nispa.cli.sweep"], "plans", lambda: {"small": plan})
    ended = call(capsys, "reproduce", "small", "--method", "finetune", "--seeds", "5")
    assert ended.code == 0, ended
    folder = home / "runs" / "reproduce-small"
    assert [read_record(path.parent).seed for path in folder.glob("*/record.json")] == [5]
    assert "finetune" in (folder / "report.html").read_text()
    assert "report.html" in ended.out


def test_seeds_may_be_ranges() -> None:
    assert seeds_given("0-4") == (0, 1, 2, 3, 4)
    assert seeds_given("0, 1,5-7") == (0, 1, 5, 6, 7)
    assert seeds_given("3-3") == (3,)
    assert seeds_given(None) == ()
    for wrong in ("4-0", "0-", "-4", "0-1-2", "a-b", "1.5", "", f"0-{2**63}"):
        with pytest.raises(ConfigError, match="must be whole numbers"):
            seeds_given(wrong)
    for many in ("0-100000", "5,0-99999", f"0-{2**63 - 1}"):
        with pytest.raises(ConfigError, match="more than 100,000"):
            seeds_given(many)


def test_bad_calls_are_refused(home: Path, capsys: Capture) -> None:
    (home / "plan.toml").write_text('scenario = "split-digits"')
    bad: list[tuple[list[str], str]] = [
        (["sweep"], "no plan and no scenario"),
        (["sweep", "split-nothing"], "unknown scenario 'split-nothing'"),
        (["sweep", "plan.toml", "split-digits"], "pass either one plan or scenarios"),
        (["sweep", "plan.toml", "--method", "er"], "belong in the plan"),
        (["sweep", "other.toml"], "cannot read other.toml"),
        (["sweep", "split-digits", "--seeds", "1,x"], "--seeds=1,x must be whole numbers"),
        (["sweep", "split-digits", "--seeds", "1,1"], "seed holds 1 twice"),
        (["sweep", "split-digits", "--grid", "density"], "must be KEY=V1,V2"),
        (["sweep", "split-digits", "--grid", "density=0.1,5"], "density=5"),
        (["sweep", "split-digits", "--grid", "densty=0.1"], "did you mean 'density'"),
        (["sweep", "split-digits", "--backend", "cloud"], "backend=cloud must be one of"),
        (["sweep", "split-digits", "--workers", "0"], "--workers=0"),
        (["sweep", "split-digits", "--device", "tpu"], "tpu"),
        (["reproduce", "efmnis"], "unknown plan 'efmnis'"),
        (["reproduce", "efmnist", "--method", "gem"], "unknown method of this plan 'gem'"),
    ]
    for args, says in bad:
        ended = call(capsys, *args)
        assert ended.code == 2, (args, ended)
        assert ended.err.startswith("nispa: error: ")
        assert ended.err.count("\n") == 1
        assert says in ended.err, (args, ended.err)
        assert sorted(path.name for path in home.iterdir()) == ["plan.toml"]
