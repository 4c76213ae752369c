"""Tasks that were learned in name alone: a network may get stuck at chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nispa.training.fit import EVALUATION_BATCH

if TYPE_CHECKING:
    from nispa.data.tasks import Task
    from nispa.methods.base import Method

ASKED = 1000
"""How many training images are asked at most."""


def unlearned(method: Method, task: Task) -> str:
    """A sentence if a task's images are told no better than by always naming the same class.

    Training images are asked, which a network that has learned anything tells better.

    Args:
        method: It has just learned the task.
        task: The task.
    """
    # At random, since they may lie by class, or in turns.
    some = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:ASKED]
    images = task.train.subset(some).to(method.device)
    right = sum(
        int((method.predict(part, task.info) == labels).sum())
        for part, labels in images.batches(EVALUATION_BATCH)
    )
    count, most = len(images), int(torch.bincount(images.labels).max())
    if right > most or most == count:  # of one class there is nothing to tell
        return ""
    return (
        f"{task.title} was not learned: {100 * right / count:.1f} % of its training images are "
        f"told right, and naming one class for all gives {100 * most / count:.1f} %; pass a "
        "smaller learning_rate, more connections (density) or wider layers"
    )
