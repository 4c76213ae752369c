"""The order in which jobs are started."""

from __future__ import annotations

from pathlib import Path

from nispa.sweep.jobs import Job, Outcome, Where
from nispa.sweep.turns import Turns

METHODS = ("stl", "nispa", "joint")


def job(method: str, seed: int) -> Job:
    return Job(
        title=f"{method} {seed}",
        scenario="split-digits",
        options={"classes_per_task": 2},
        method=method,
        preset="default",
        seed=seed,
        network={"hidden": (8, 8)},
        config={},
        key=f"{method}{seed}",
        folder=Path(f"{method}-{seed}"),
        where=Where(Path()),
    )


def taken(turns: Turns, count: int) -> list[str]:
    found = [turns.take() for _ in range(count)]
    return [each.title for each in found if each is not None]


def test_of_each_seed_the_longest_run_begins_first() -> None:
    turns = Turns(job(method, seed) for seed in (5, 3, 9) for method in METHODS)
    assert taken(turns, 3) == ["stl 5", "nispa 5", "joint 5"]
    for method, seconds in zip(METHODS, (2.0, 30.0, 9.0), strict=True):
        turns.ended(Outcome(job(method, 5), "done", seconds=seconds))
    assert taken(turns, 7) == ["nispa 3", "joint 3", "stl 3", "nispa 9", "joint 9", "stl 9"]


def test_what_is_not_known_begins_before_what_is() -> None:
    turns = Turns(job(method, seed) for seed in (0, 1) for method in METHODS)
    taken(turns, 3)
    turns.ended(Outcome(job("stl", 0), "done", seconds=100.0))
    turns.ended(Outcome(job("joint", 0), "failed", seconds=500.0))
    assert taken(turns, 3) == ["nispa 1", "joint 1", "stl 1"]
