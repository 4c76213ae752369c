"""Joint training: a fresh network on all tasks so far, whose data are kept. The upper bound.

With each new task the network starts over and learns the union of all tasks' training images. Where
tasks add outputs of their own, each image is scored against the classes of its own task, as if each
task had a head; otherwise against all classes seen. Row i of the accuracy matrix is thus joint
training on tasks 0 to i, and the last row the usual upper bound.
It keeps every training and validation image, so its saved state grows with each task.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nispa.data.tasks import JoinedSamples, Samples, Task
from nispa.methods.base import Learning, draw_network
from nispa.methods.epochs import KeepConfig, learn_in_epochs
from nispa.methods.one_network import OneNetwork
from nispa.methods.parts import Network, TaskSamples


class Joint(OneNetwork):
    """Training from scratch on the data of all tasks seen."""

    name = "joint"
    config_class = KeepConfig
    carries = (Network(), TaskSamples("train", "memory"), TaskSamples("validation", "memory"))
    rehearses = True
    config: KeepConfig
    train: list[Samples]
    validation: list[Samples]

    def learn_task(self, task: Task) -> Learning:
        """Trains a fresh network on this task and all before."""
        self.network = draw_network(self, self.seed)
        self.train.append(task.train.to(self.device))
        self.validation.append(task.validation.to(self.device))
        tasks, everything = [*self.learned, task.info], self.competing(task)
        own_heads = self.config.incremental == "task"
        head = torch.full((self.problem.outputs,), -1, device=self.device)  # of each output
        for number, info in enumerate(tasks):
            head[list(info.classes)] = number

        def own_head(logits: Tensor, labels: Tensor) -> Tensor:
            others = head[labels].unsqueeze(1) != head.unsqueeze(0)
            return functional.cross_entropy(logits.masked_fill(others, -torch.inf), labels)

        accuracies = [
            self.validator(
                self.network, self.class_mask(info.classes) if own_heads else everything, samples
            )
            for info, samples in zip(tasks, self.validation, strict=True)
        ]

        def validate() -> float:
            sizes = [len(samples) for samples in self.validation]
            right = sum(
                (each() or 0.0) * size for each, size in zip(accuracies, sizes, strict=True)
            )
            return right / sum(sizes)

        return learn_in_epochs(
            self.network,
            own_head if own_heads else everything.loss,
            self.prepare(self.network, JoinedSamples(tuple(self.train))),
            validate,
            self.config,
            self.shuffle(task),
        )
