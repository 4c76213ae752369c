"""What a run cost: sums over its tasks, and how costs are named and shown. No torch.

Records may come from strangers or from before there were such numbers: what is not known of every
task, or is no measurement any more, is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from nispa.runs.record import Cost, Record, TaskResult

MOST_COUNT = 2**63 - 1
MOST_OPERATIONS = 10**30


@dataclass(frozen=True)
class Kind:
    """One cost: what it is called, in which unit, and a short head for tables.

    ``unit`` is ``FLOP`` (operations), ``s``, ``B`` (bytes), or empty for a count.
    """

    label: str
    unit: str
    head: str

    @property
    def title(self) -> str:
        """Label and unit, as an axis carries them."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """A value with its unit in few letters, such as ``1.23 TFLOP``; ``-`` if not known."""
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
"""The costs of a run by their names in :class:`nispa.runs.record.Cost`, the main ones first."""


def scaled(value: float) -> str:
    """A number of three digits with a prefix of its unit (powers of 1000), such as ``1.23 T``."""
    for letter in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {letter}"
        value /= 1000
    return f"{value:.3g} E"


def cost_of(record: Record) -> Cost:
    """What a run cost so far, from what its record says of each task."""
    found = total_cost(record.per_task)
    if found.live is None and record.parameters is not None:
        return found.model_copy(update={"live": record.parameters.live})
    return found


def task_operations(task: TaskResult) -> int | None:
    """All floating-point operations of learning a task."""
    return None if task.operations is None else sum(task.operations.values())


def total_cost(tasks: Sequence[TaskResult]) -> Cost:
    """Sums over tasks, sizes after the last one, the highest peak."""
    if not tasks:
        return Cost()
    last = tasks[-1]
    return Cost(
        live=last.live,
        model_bytes=last.model_bytes,
        kept_bytes=_sum(last.storage.values(), MOST_COUNT),
        operations=_by_purpose(tasks),
        train_operations=_sum(map(task_operations, tasks), MOST_OPERATIONS),
        inference_operations=last.inference_operations,
        train_s=_seconds(task.train_s for task in tasks),
        train_cpu_s=_seconds(task.train_cpu_s for task in tasks),
        eval_s=_seconds(task.eval_s for task in tasks),
        eval_cpu_s=_seconds(task.eval_cpu_s for task in tasks),
        peak_bytes=_peak([task.peak_bytes for task in tasks]),
    )


def _by_purpose(tasks: Sequence[TaskResult]) -> dict[str, int] | None:
    """Operations of all tasks by what they were for, in the order in which they are met."""
    found: dict[str, int] = {}
    for task in tasks:
        if task.operations is None:
            return None
        for name, count in task.operations.items():
            found[name] = found.get(name, 0) + count
    return found if all(count <= MOST_OPERATIONS for count in found.values()) else None


def _sum(parts: Iterable[int | None], most: int) -> int | None:
    known = list(parts)
    if any(part is None for part in known):
        return None
    total = sum(part for part in known if part is not None)
    return total if total <= most else None


def _seconds(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    if any(part is None for part in known):
        return None
    total = sum(part for part in known if part is not None)
    return total if math.isfinite(total) else None


def _peak(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return max(known) if len(known) == len(parts) else None
