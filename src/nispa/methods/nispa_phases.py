"""What learning in NISPA's phases is told of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nispa.data.tasks import Task
from nispa.mechanism.rewire import Rewiring
from nispa.network.models import DataSet
from nispa.network.topology import Patterns, UnitSets
from nispa.training.fit import ClassMask, Step


@dataclass(frozen=True)
class Phases:
    """What :meth:`.Nispa.learn_in_phases` is told of a task.

    Attributes:
        task: The task.
        classes: The classes that compete while it is learned.
        train: Its training images.
        validation: Its validation images.
        step: From the number of a phase (from 1) and its optimiser to one update.
        validate: Returns the accuracy that chooses an epoch and ends the task.
        rewire: Drops and grows connections, given the units to keep, a source of randomness, and
            the sizes of gradients if the growth rule asks for them.
        restart: Draws plastic values again, given a seed.
    """

    task: Task
    classes: ClassMask
    train: DataSet
    validation: DataSet
    step: Callable[[int, torch.optim.Optimizer], Step]
    validate: Callable[[], float | None]
    rewire: Callable[[UnitSets, torch.Generator, Patterns | None], dict[str, Rewiring]]
    restart: Callable[[int], None]
