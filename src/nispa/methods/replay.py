"""One network and a memory of earlier samples: what the methods that rehearse share.

The last epoch's values are kept: validation images are those of the new task alone, so an epoch
that is best on them is one that has forgotten most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import Census, Incremental, Learning, Method, MethodState, count
from nispa.methods.epochs import EpochsConfig, learn_by_steps
from nispa.methods.one_network import OneNetwork
from nispa.network.models import DataSet
from nispa.training.fit import Batch, Step, accuracy
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


def together(batch: Batch, task: Task, drawn: Remembered) -> tuple[Tensor, Tensor]:
    """A batch of ``task`` and remembered samples as one.

    Returns:
        Images ``(n, channels, height, width)``; class and task's place of each, ``(n, 2)``.
    """
    places = torch.full_like(batch.labels, task.index)
    wanted = torch.stack([batch.labels, places], 1)
    return torch.cat([batch.images, drawn.images]), torch.cat([wanted, drawn.wanted])


class Replay(OneNetwork):
    """One network with a memory; a method built on it writes ``learn_task``.

    Attributes:
        memory: Samples of earlier tasks, or also of the one that is learned.
        balanced: Whether the memory is shared among the classes of each task, so that it needs a
            sample for each even where tasks share their classes.
    """

    balanced: ClassVar[bool] = False
    config: MemoryConfig

    def start(self) -> None:
        """A fresh network and an empty memory."""
        super().start()
        self.memory = self.empty_memory()

    def extras(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of what is kept beside each sample, by name."""
        return {}

    def empty_memory(self) -> Memory:
        """A memory of the size that the settings say."""
        problem = self.problem
        return Memory(self.config.memory, problem.input_shape, self.device, self.extras())

    def check(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Whether the memory holds a sample of each class, too; see :class:`Method`."""
        super().check(task, earlier)
        classes = [info.classes for info in (*earlier, task.info)]
        needed = sum(map(len, classes)) if self.balanced else len(set().union(*classes))
        check_size(self.config.memory, needed, task)

    def train_by(self, step: Step, task: Task, train: DataSet) -> Learning:
        """Trains for all epochs and keeps the last."""
        classes = self.competing(task)
        validation = task.validation.to(self.device)
        return learn_by_steps(
            self.network,
            step,
            train,
            lambda: accuracy(self.network, classes.predict, validation),
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
            self.optimiser,
            "last",
            [Carried(self.memory.state, self._load_memory)],
        )

    def _load_memory(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        self.memory.load(tensors, values, self.problem.outputs)

    def recall(
        self, task: Task, batch: Batch, count: int, purpose: str = "memory batch"
    ) -> Remembered:
        """At most ``count`` samples from memory for one step; ``purpose`` names the draw."""
        generator = stream(self.seed, purpose, task.index, batch.epoch, batch.number)
        return self.memory.draw(count, generator)

    def state(self) -> MethodState:
        """The network and the memory."""
        return with_memory(super().state(), self.memory)

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        memory = self.empty_memory()
        load_memory(self, memory, state)
        super().load_state(state)
        self.memory = memory

    def census(self) -> Census:
        """Connections, and the bytes of the memory; see :class:`Method`."""
        return count({"": self.network}, storage={"memory": self.memory.bytes})


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


def with_memory(state: MethodState, memory: Memory) -> MethodState:
    """A state with that of a memory."""
    tensors, values = memory.state()
    return MethodState(state.tensors | tensors, state.values | {"memory": values})


def load_memory(method: Method, memory: Memory, state: MethodState) -> None:
    """Fills a memory from what :func:`with_memory` added to a state.

    Raises:
        FormatError: It does not fit the method, or holds what ``method.learned`` does not.
    """
    memory.load(state.tensors, state.values.get("memory"), method.problem.outputs)
    known = {(info.index, label) for info in method.learned for label in info.classes}
    if not known.issuperset(memory.groups()):
        raise FormatError("the saved memory has samples of tasks that were not learned")
