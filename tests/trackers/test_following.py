"""What trackers are told: each point once, whatever happens to the run or to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nispa.errors import OutputError
from nispa.runs.curve import Point
from nispa.runs.folder import TRACKERS, RunFolder
from nispa.runs.runner import TaskEnd, run
from nispa.trackers import following, tracked
from tests.runs.test_resume import experiment, finish
from tests.trackers.runs import Fake, broken_run, content, follow, points_of, read_record


def essence(points: list[Point]) -> list[object]:
    """Points without times."""
    return [(p.number, p.kind, p.step, p.task, p.phase, p.epoch, dict(p.values)) for p in points]


def test_a_tracker_is_told_every_point_once(tmp_path: Path) -> None:
    fake = Fake()
    said: list[str] = []
    running = run(experiment("nispa"), tmp_path / "run")
    finish(tracked(running, [fake], tmp_path / "run", tell=said.append))
    assert fake.points == points_of(tmp_path / "run")
    assert {point.kind for point in fake.points} == {"epoch", "phase", "task"}
    assert (fake.known, fake.ends, said) == ([None], ["complete"], ["fake: in memory"])
    assert [name for name in fake.points[-1].values if name.startswith("test/")] == [
        "test/task0",
        "test/task1",
        "test/mean",
        "test/forgetting",
    ]


def test_trackers_change_nothing(tmp_path: Path) -> None:
    follow(tmp_path / "with", Fake())
    finish(run(experiment("nispa"), tmp_path / "without"))
    assert content(tmp_path / "with") == content(tmp_path / "without")
    assert (tmp_path / "with" / TRACKERS).is_file()
    assert not (tmp_path / "without" / TRACKERS).exists()


@pytest.mark.parametrize("moments", [(1,), (3, 9, 20), (11, 11, 11)])
def test_a_run_that_is_resumed_goes_on_with_its_curve(
    tmp_path: Path, moments: tuple[int, ...]
) -> None:
    whole, fake = tmp_path / "whole", Fake()
    follow(whole)
    broken_run(tmp_path / "run", moments, fake)
    assert follow(tmp_path / "run", fake) == []
    assert essence(fake.points) == essence(points_of(whole))
    assert fake.known == [None, *["id-of-fake"] * len(moments)]
    assert fake.ends == [*["failed"] * len(moments), "complete"]


def test_a_tracker_that_comes_late_is_told_what_was(tmp_path: Path) -> None:
    early, late = Fake("early"), Fake("late")
    broken_run(tmp_path / "run", (40,), early)
    assert read_record(tmp_path / "run").per_task  # a task is over and will not be told again
    follow(tmp_path / "run", late)
    assert late.points == points_of(tmp_path / "run")
    assert late.known == [None]
    kept = following.read_state(tmp_path / "run")
    assert kept["late"].points == len(late.points)
    assert kept["early"].points == len(early.points)


@pytest.mark.parametrize("call", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_left_out(tmp_path: Path, call: str) -> None:
    bad, good = Fake("bad", fails=call, at=4), Fake("good")
    warnings = follow(tmp_path / "run", bad, good)
    assert warnings == ["bad is left out from here on: the network is gone"]
    assert len(bad.points) == {"begin": 0, "log": 4, "end": len(good.points)}[call]
    assert good.points == points_of(tmp_path / "run")
    assert read_record(tmp_path / "run").status == "complete"
    finish(run(experiment("nispa"), tmp_path / "without"))
    assert content(tmp_path / "run") == content(tmp_path / "without")


def test_what_a_tracker_failed_to_take_is_sent_when_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake(fails="log", at=3)
    broken_run(tmp_path / "run", (20,), fake)
    assert caplog.messages == ["fake is left out from here on: the network is gone"]
    assert following.read_state(tmp_path / "run")["fake"].points == 3
    fake.fails = ""
    follow(tmp_path / "run", fake)
    assert [point.number for point in fake.points] == list(range(len(points_of(tmp_path / "run"))))


def test_a_point_counts_before_it_is_sent(tmp_path: Path) -> None:
    """A process that dies while it sends loses that point and sends none twice."""
    fake = Fake(fails="log", at=3, error=SystemExit())
    running = tracked(run(experiment("finetune"), tmp_path), [fake], tmp_path)
    with pytest.raises(SystemExit):
        finish(running)
    assert following.read_state(tmp_path)["fake"].points == 4


DAMAGED = ["[]", '{"fake": 3}', '{"fake": {"id": "../x", "points": 0}}', "{" * 70_000]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:20])
def test_a_damaged_state_costs_the_tracker(tmp_path: Path, text: str) -> None:
    fake = Fake()
    broken_run(tmp_path / "run", (5,))
    (tmp_path / "run" / TRACKERS).write_text(text)
    (warning,) = follow(tmp_path / "run", fake)
    assert "fake is left out from here on: " in warning
    assert "trackers.json" in warning
    assert (tmp_path / "run" / TRACKERS).read_text() == text
    assert fake.points == []


def test_events_that_cannot_be_read_cost_the_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(sending: following.Sending) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(following.Sending, "_new_lines", gone)
    warnings = follow(tmp_path / "run", Fake("one"), Fake("two"))
    assert warnings == ["trackers are left out from here on: events.jsonl: the disk is gone"]
    assert read_record(tmp_path / "run").status == "complete"


def test_a_run_that_is_left_ends_for_trackers_too(tmp_path: Path) -> None:
    fake = Fake()
    running = tracked(run(experiment("nispa"), tmp_path), [fake], tmp_path)
    for event in running:
        if isinstance(event, TaskEnd):
            break
    running.close()
    assert fake.ends == ["interrupted"]
    assert fake.points[-1].kind == "task"


def test_a_run_that_is_refused_is_not_opened(tmp_path: Path) -> None:
    fake = Fake()
    (tmp_path / "record.json").write_text("mine")
    with pytest.raises(OutputError, match="already holds a run"):
        finish(tracked(run(experiment("nispa"), tmp_path), [fake], tmp_path))
    assert (fake.known, fake.ends) == ([], [])


def test_a_folder_with_a_state_is_not_taken_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / TRACKERS).write_text("{}")
    with pytest.raises(OutputError, match=r"already holds a run \(trackers.json\)"):
        RunFolder.check(tmp_path)
