"""Joint training: a fresh network on all tasks so far, their data kept. The upper bound.

With each new task the network starts anew and learns the union of all tasks' training images. Where
tasks add outputs of their own, each image is scored against the classes of its own task, as if each
task had a head; otherwise against all classes seen. Row i of the accuracy matrix is thus joint
training on tasks 0 to i, and the last row the usual upper bound.
It keeps every training and validation image, so its saved state grows with each task.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.seeding import stream
from nispa.data.tasks import JoinedSamples, Samples, Task, pack, unpack
from nispa.errors import FormatError
from nispa.methods.base import Census, Learning, MethodState, count, draw_network
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.one_network import OneNetwork
from nispa.training.fit import accuracy


class Joint(OneNetwork):
    """Training from scratch on the data of all tasks seen."""

    name = "joint"
    config_class = KeepConfig
    rehearses = True
    config: KeepConfig

    def start(self) -> None:
        """A fresh network and no data."""
        super().start()
        self.train: list[Samples] = []
        self.validation: list[Samples] = []

    def learn_task(self, task: Task) -> Learning:
        """Trains a fresh network on this task and all before."""
        self.network = draw_network(self, self.seed)
        self.train.append(task.train.to(self.device))
        self.validation.append(task.validation.to(self.device))
        tasks = [*self.learned, task.info]
        everything = self.competing(task)
        head = torch.full((self.problem.outputs,), -1, device=self.device)
        for number, info in enumerate(tasks):
            head[list(info.classes)] = number

        def own_head(logits: Tensor, labels: Tensor) -> Tensor:
            others = head[labels].unsqueeze(1) != head.unsqueeze(0)
            return functional.cross_entropy(logits.masked_fill(others, -torch.inf), labels)

        told = self.config.incremental == "task"

        def validate() -> float:
            right = total = 0.0
            for info, samples in zip(tasks, self.validation, strict=True):
                classes = self._classes(info.classes) if told else everything
                share = accuracy(self.network, classes.predict, samples)
                right += (share or 0.0) * len(samples)
                total += len(samples)
            return right / total

        return learn_in_epochs(
            self.network,
            own_head if told else everything.loss,
            self.prepare(self.network, JoinedSamples(tuple(self.train))),
            validate,
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
        )

    def state(self) -> MethodState:
        """The network and all data seen."""
        state = super().state()
        for part, samples in (("train", self.train), ("validation", self.validation)):
            packed = [pack(each, f"{part}.{number}.") for number, each in enumerate(samples)]
            for tensors, _ in packed:
                state.tensors.update(tensors)
            state.values[part] = [values for _, values in packed]
        return state

    def census(self) -> Census:
        """Connections, and the data kept; see :class:`Method`."""
        kept = [pack(samples, "")[0] for samples in (*self.train, *self.validation)]
        size = sum(tensor.nbytes for tensors in kept for tensor in tensors.values())
        return count({"": self.network}, storage={"memory": size})

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        parts = [state.values.get(part) for part in ("train", "validation")]
        if not all(isinstance(part, list) for part in parts):
            raise FormatError("'train' and 'validation' must list the samples of each task")
        loaded: dict[str, list[Samples]] = {
            part: [
                unpack(state.tensors, values, f"{part}.{number}.").to(self.device)
                for number, values in enumerate(state.values[part])
            ]
            for part in ("train", "validation")
        }
        super().load_state(state)
        self.train, self.validation = loaded["train"], loaded["validation"]
