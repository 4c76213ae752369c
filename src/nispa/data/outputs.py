"""Which outputs of a network the labels of a new task take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nispa.data.arrays import kind_of
from nispa.errors import CapacityError, ScenarioError


def first_output(
    names: list[Any],
    kind: str,
    learned: Sequence[list[Any]],
    incremental: str,
    *,
    used: int,
    outputs: int,
) -> int:
    """The first output for a task.

    Args:
        names: Its labels, each once.
        kind: Their kind, see :func:`.kind_of`.
        learned: The labels of each task before.
        incremental: What a task adds: ``"task"``, ``"class"`` or ``"domain"``.
        used: How many outputs are taken.
        outputs: How many there are.

    Raises:
        ScenarioError: The labels do not suit ``incremental``.
        CapacityError: Too few outputs are left.
    """
    before = [name for labels in learned for name in labels]
    earlier = kind_of(np.array(before[:1])) if before else kind
    if incremental != "task" and kind != earlier:
        raise ScenarioError(
            f"the labels are {kind}, those of earlier tasks {earlier}; with "
            f"incremental='{incremental}' use one kind"
        )
    if incremental == "domain" and learned:
        if names != learned[0]:
            raise ScenarioError(
                f"labels {names} differ from {learned[0]} of the earlier tasks; with "
                "incremental='domain' all tasks have the same labels"
            )
        return 0
    again = sorted(set(before) & set(names))
    if incremental == "class" and again:
        raise ScenarioError(
            f"labels {again} were learned before; with incremental='class' every task needs "
            "new ones"
        )
    free = outputs - used
    if len(names) > free:
        raise CapacityError(
            f"this task has {len(names)} classes, but only {free} of {outputs} outputs are free; "
            "build with more classes"
        )
    return used
