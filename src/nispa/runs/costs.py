"""What a run cost: totals over its tasks, their names and units. No PyTorch here.

A total is None if an older record lacks it for some task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from nispa.runs.record import Cost, Record, TaskResult

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Kind:
    """The name of a cost, its unit, and a short heading for tables.

    ``unit`` is ``FLOP`` (operations), ``s``, ``B`` (bytes), or empty for a count.
    """

    label: str
    unit: str
    head: str

    @property
    def title(self) -> str:
        """Label and unit, for an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """A short text with unit, such as ``1.23 TFLOP``; ``-`` if unknown."""
        if value is None:
            return "-"
        if self.unit == "s":
            return f"{value:,.1f} s" if value >= 10 else f"{value:.3g} s"
        if not self.unit:
            return f"{value:,.0f}"
        return scaled(value) + self.unit


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "train_operations": Kind("training operations", "FLOP", "train op."),
        "inference_operations": Kind("inference operations of one sample", "FLOP", "op./sample"),
        "train_cpu_s": Kind("CPU seconds of training", "s", "train CPU"),
        "train_s": Kind("seconds of training", "s", "train"),
        "eval_cpu_s": Kind("CPU seconds of evaluation", "s", "eval CPU"),
        "eval_s": Kind("seconds of evaluation", "s", "eval"),
        "live": Kind("live parameters", "", "parameters"),
        "model_bytes": Kind("bytes of the model", "B", "model"),
        "kept_bytes": Kind("bytes kept beside the model", "B", "kept"),
        "peak_bytes": Kind("peak resident memory", "B", "peak memory"),
    }
)
"""The costs of a run by their names in :class:`nispa.runs.record.Cost`, most important first."""


def scaled(value: float) -> str:
    """Three digits and a unit prefix (powers of 1000), such as ``1.23 T``."""
    for letter in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {letter}"
        value /= 1000
    return f"{value:.3g} E"


def cost_of(record: Record) -> Cost:
    """What a run cost so far, from the tasks in its record."""
    cost = total_cost(record.per_task)
    if cost.live is None and record.parameters is not None:
        return cost.model_copy(update={"live": record.parameters.live})
    return cost


def task_operations(task: TaskResult) -> int | None:
    """Floating-point operations of learning a task; None if unknown."""
    return None if task.operations is None else sum(task.operations.values())


def total_cost(tasks: Sequence[TaskResult]) -> Cost:
    """Sums over tasks, sizes after the last one, the highest peak."""
    if not tasks:
        return Cost()
    last = tasks[-1]
    known = [task.peak_bytes for task in tasks if task.peak_bytes is not None]
    return Cost(
        live=last.live,
        model_bytes=last.model_bytes,
        kept_bytes=_sum(last.storage.values()),
        operations=_by_purpose(tasks),
        train_operations=_sum(map(task_operations, tasks)),
        inference_operations=last.inference_operations,
        train_s=sum(task.train_s for task in tasks),
        train_cpu_s=_sum(task.train_cpu_s for task in tasks),
        eval_s=sum(task.eval_s for task in tasks),
        eval_cpu_s=_sum(task.eval_cpu_s for task in tasks),
        peak_bytes=max(known) if len(known) == len(tasks) else None,
    )


def _by_purpose(tasks: Sequence[TaskResult]) -> dict[str, int] | None:
    """Operations of all tasks by purpose, in order of first appearance; None if unknown."""
    sums: dict[str, int] = {}
    for task in tasks:
        if task.operations is None:
            return None
        for name, count in task.operations.items():
            sums[name] = sums.get(name, 0) + count
    return sums


def _sum(parts: Iterable[Number | None]) -> Number | None:
    """The sum; None if a part is unknown."""
    every = list(parts)
    known = [part for part in every if part is not None]
    total: Number = sum(known)
    return total if len(known) == len(every) else None
