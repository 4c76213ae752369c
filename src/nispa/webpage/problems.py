"""The runs of a page by problem: groups stand side by side only if they learned the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nispa.files import one_line
from nispa.reading.groups import Group, Run, group_runs, labels, problem_of
from nispa.runs import metrics
from nispa.runs.record import Record


@dataclass
class Problem:
    """Groups that learned the same scenario from the same published data."""

    label: str
    groups: list[Group] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """One of its records, for what all of them share."""
        return self.groups[0].record

    @property
    def ranked(self) -> list[Group]:
        """The groups with a mean accuracy, best first."""
        known = [(group.estimate, group) for group in self.groups]
        means = [(-found.mean, group.number, group) for found, group in known if found]
        return [group for _, _, group in sorted(means, key=lambda entry: entry[:2])]


def problems_of(runs: Sequence[Run]) -> list[Problem]:
    """The problems that ``runs`` learned, those of one kind of tasks together."""
    problems: dict[str, Problem] = {}
    for group in group_runs(runs):
        record = group.record
        label = f"{one_line(record.scenario.name, 40)}, {record.incremental}-incremental"
        problems.setdefault(problem_of(record), Problem(label)).groups.append(group)
    found = list(problems.values())
    names = [problem.label for problem in found]
    for position, problem in enumerate(found):
        if names.count(names[position]) > 1:
            problem.label += f", variant {1 + names[:position].count(names[position])}"
        within = labels([group.record for group in problem.groups])
        problem.groups = [
            replace(group, label=label) for group, label in zip(problem.groups, within, strict=True)
        ]
    kinds = list(dict.fromkeys(problem.record.incremental for problem in found))
    return sorted(found, key=lambda problem: kinds.index(problem.record.incremental))


def told(record: Record) -> str:
    """Whether the main matrix was measured with the task told, in words."""
    return "told the task" if record.told else "not told the task"


def other_accuracy(run: Run) -> float | None:
    """Mean accuracy of the matrix that is not the main one; None if there is none."""
    record = run.record
    if record.accuracy_matrix_task_agnostic is None:
        return None
    other = record.accuracy_matrix_task_agnostic if record.told else record.accuracy_matrix
    return metrics.acc(other)
