"""Phases from a run's events. Events may come from anyone: what does not fit is ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nispa.runs.record import Count, Record, Share

MAX_PHASES = 5_000  # bounds the memory that a hostile file can take


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
    """The state at the end of a phase.

    Attributes:
        task: Its task, from 0.
        number: Its number within the task, from 1.
        accuracy: Accuracy on the validation images; None if not measured.
        tau: τ used to pick candidates; None if none were picked.
        units: Counts per group: stable units, candidates, all units.
        dropped: Connections dropped, over all layers; None if nothing was rewired.
        grown: Connections grown or revived, likewise.
        owed: Connections dropped without a place to grow, likewise.
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
    """The phases of a run in order; at most :data:`MAX_PHASES`.

    A task's last phase turns its candidates into stable units; that state is in the record.
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
            ends[end.task, end.phase] = end  # a resumed run repeats phases: the later one counts
    last = dict(sorted(ends))
    return tuple(
        _phase(end, record, final=last[task] == number)
        for (task, number), end in sorted(ends.items(), key=lambda item: item[0])
    )


def _phase(end: _PhaseEnd, record: Record, *, final: bool) -> Phase:
    rewired = end.dropped or end.grown or end.revived or end.ungrown
    return Phase(
        task=end.task,
        number=end.phase,
        accuracy=end.accuracy,
        tau=end.tau,
        units=_units(end, record, final=final),
        dropped=sum(end.dropped.values()) if rewired else None,
        grown=sum(end.grown.values()) + sum(end.revived.values()) if rewired else None,
        owed=sum(end.ungrown.values()) if rewired else None,
    )


def _units(end: _PhaseEnd, record: Record, *, final: bool) -> dict[str, tuple[int, int, int]]:
    tasks = record.per_task
    after = tasks[end.task].stable_units if end.task < len(tasks) else {}
    if final and after:
        return {group: (count.stable, 0, count.size) for group, count in after.items()}
    sizes = {group: unit.size for task in tasks for group, unit in task.stable_units.items()}
    before = tasks[end.task - 1].stable_units if 0 < end.task <= len(tasks) else {}
    units = {}
    for group, size in sizes.items():
        if group in end.kept:  # events count stable units and candidates together
            active = min(end.kept[group], size)
            stable = min(before[group].stable, active) if group in before else 0
            units[group] = (stable, active - stable, size)
    return units
