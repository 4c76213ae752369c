"""One network and a memory of earlier samples: what the methods that rehearse share.

The last epoch's values stay. The validation images belong to the new task alone, so the epoch that
is best on them is one that has forgotten most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError
from nispa.methods.base import Incremental, Learning, Part
from nispa.methods.epochs import EpochsConfig
from nispa.methods.one_network import OneNetwork
from nispa.methods.parts import Network, SampleMemory
from nispa.network.models import DataSet
from nispa.training.fit import Batch, Step
from nispa.training.memory import Memory, Remembered
from nispa.training.pausing import Carried


@settings
class MemoryConfig(EpochsConfig):
    """Settings of methods that keep samples of earlier tasks."""

    incremental: Incremental = setting(
        "class",
        "what a task adds: outputs of its own, new classes among all seen, or other images of the "
        "same classes",
    )
    memory: int = setting(
        1000,
        "samples kept, of all tasks together",
        ge=1,
        le=10_000_000,
        aliases=("memory_size", "buffer_size"),
        hint="1000 is usual; finetune keeps none",
    )


@settings
class ReplayConfig(MemoryConfig):
    """Settings of methods that draw a batch from memory at each step."""

    memory_batch: int = setting(
        128, "samples drawn from memory per step, at most", ge=1, le=10_000_000
    )


class Replay(OneNetwork):
    """One network with a memory; a subclass writes ``learn_task``.

    Attributes:
        memory: Samples of earlier tasks, for some methods also of the one being learned.
        balanced: Whether the memory is shared among the classes of each task, so that it needs a
            sample for each even where tasks share their classes.
    """

    carries: ClassVar[tuple[Part, ...]] = (Network(), SampleMemory())
    balanced: ClassVar[bool] = False
    config: MemoryConfig
    memory: Memory

    def check(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Checks also that the memory has room for a sample of each class."""
        super().check(task, earlier)
        classes = [info.classes for info in (*earlier, task.info)]
        needed = sum(map(len, classes)) if self.balanced else len(set().union(*classes))
        check_size(self.config.memory, needed, task)

    def rehearse_by(self, step: Step, task: Task, train: DataSet) -> Learning:
        """Trains with a step that may change the memory; the last epoch's values stay."""

        def load(tensors: Mapping[str, Tensor], values: Any) -> None:
            self.memory.load(tensors, values, self.problem.outputs)

        return self.train_by(step, task, train, "last", carried=[Carried(self.memory.state, load)])

    def recall(
        self, task: Task, batch: Batch, count: int, purpose: str = "memory batch"
    ) -> Remembered:
        """At most ``count`` samples from memory for one step; ``purpose`` names the stream."""
        generator = stream(self.seed, purpose, task.index, batch.epoch, batch.number)
        return self.memory.draw(count, generator)


def with_remembered(batch: Batch, task: Task, drawn: Remembered) -> tuple[Tensor, Tensor]:
    """A batch of ``task`` followed by remembered samples.

    Returns:
        Images ``(n, channels, height, width)``; class and task of each, ``(n, 2)``.
    """
    tasks = torch.full_like(batch.labels, task.index)
    wanted = torch.stack([batch.labels, tasks], 1)
    return torch.cat([batch.images, drawn.images]), torch.cat([wanted, drawn.wanted])


def check_size(size: int, needed: int, task: Task) -> None:
    """Refuses a memory without a sample for each class.

    Raises:
        ConfigError: It has room for fewer than ``needed`` samples, the classes up to ``task``.
    """
    if size < needed:
        raise ConfigError(
            f"memory={size} must be at least {needed}, one sample for each class up to task "
            f"{task.name}; pass a larger memory, such as {20 * needed}"
        )
