"""Phases from a run's events, which are read without trust: what does not fit is passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nispa.runs.record import Count, Record, Share

MAX_PHASES = 5_000  # a stranger's events must not fill the memory


class _PhaseEnd(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    task: Count
    phase: Count
    accuracy: Share | None = None
    tau: Share | None = None
    kept: dict[str, Count] = Field(default_factory=dict)
    dropped: dict[str, Count] = Field(default_factory=dict)
    revived: dict[str, Count] = Field(default_factory=dict)
    grown: dict[str, Count] = Field(default_factory=dict)
    ungrown: dict[str, Count] = Field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """What one phase ended with.

    Attributes:
        task: Its task, from 0.
        number: Its number within the task, from 1.
        accuracy: Accuracy on the validation images; None where not measured.
        tau: τ that the candidates were picked with; None where none were.
        units: Per group, units that are stable, candidates and all units.
        dropped: Connections dropped, over all layers; None where no rewiring followed.
        grown: Connections grown or revived, likewise.
        owed: Connections that found no place to grow, likewise.
    """

    task: int
    number: int
    accuracy: float | None
    tau: float | None
    units: Mapping[str, tuple[int, int, int]]
    dropped: int | None = None
    grown: int | None = None
    owed: int | None = None


def phases_of(events: Iterable[Mapping[str, Any]], record: Record) -> tuple[Phase, ...]:
    """The phases of a run; at most :data:`MAX_PHASES`.

    After a task's last phase its candidates are stable: that state is taken from the record.
    """
    ends: dict[tuple[int, int], _PhaseEnd] = {}
    for event in events:
        if event.get("event") != "phase_end" or len(ends) >= MAX_PHASES:
            continue
        try:
            end = _PhaseEnd.model_validate(event)
        except ValidationError:
            continue
        if end.task < len(record.tasks):
            ends[end.task, end.phase] = end  # of a run that was resumed: the later one
    last = dict(sorted(ends))
    return tuple(
        _phase(end, record, final=last[task] == number)
        for (task, number), end in sorted(ends.items(), key=lambda item: item[0])
    )


def _phase(end: _PhaseEnd, record: Record, *, final: bool) -> Phase:
    layers = end.dropped or end.grown or end.revived or end.ungrown
    return Phase(
        task=end.task,
        number=end.phase,
        accuracy=end.accuracy,
        tau=end.tau,
        units=_units(end, record, final=final),
        dropped=sum(end.dropped.values()) if layers else None,
        grown=sum(end.grown.values()) + sum(end.revived.values()) if layers else None,
        owed=sum(end.ungrown.values()) if layers else None,
    )


def _units(end: _PhaseEnd, record: Record, *, final: bool) -> dict[str, tuple[int, int, int]]:
    done = record.per_task
    after = done[end.task].stable_units if end.task < len(done) else {}
    if final and after:
        return {group: (count.stable, 0, count.size) for group, count in after.items()}
    sizes = {group: unit.size for task in done for group, unit in task.stable_units.items()}
    before = done[end.task - 1].stable_units if 0 < end.task <= len(done) else {}
    units = {}
    for group, size in sizes.items():
        if group in end.kept:
            kept = min(end.kept[group], size)
            stable = min(before[group].stable, kept) if group in before else 0
            units[group] = (stable, kept - stable, size)
    return units
