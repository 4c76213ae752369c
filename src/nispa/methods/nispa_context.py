"""NISPA-Context: NISPA that finds out by itself which task an image belongs to.

Learning is NISPA's (nispa.py), bit for bit, and so is a prediction that is told the task. Without
the task, something tells it first; then the outputs of that task choose the class:

    task(x) = arg max of s_k(x) over the tasks k,   class(x) = arg max of its outputs.

================  ==================================================================================
context           s_k(x)
================  ==================================================================================
``activations``   log P(k), from bits of stable units of some samples of each class (context.py)
``statistics``    log P(k), from the mean and covariance of all training images' features; no
                  sample is kept (context.py)
``entropy``       - H(soft-max of task k's outputs): the head that is surest
``energy``        log of the sum of exp of task k's outputs: the head with the highest ones
================  ==================================================================================

The last two need nothing that is kept: they are baselines. The scores of classes are

    s_k(x) + z_c(x) - max of z over the outputs of task k,    for class c of task k with output z_c,

so that the best class of each task has the score of its task.

Logits of learned classes never change, as in NISPA. What is said of the task may: each task that is
learned is one more to choose from, and the models that tell tasks apart are made anew.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.methods.base import Adoption, Incremental, Learning, Method, Part
from nispa.methods.context import ContextConfig, Detector
from nispa.methods.inferring import ContextPart, InfersTask, scores_within
from nispa.methods.nispa import Nispa
from nispa.methods.nispa_config import NispaConfig


@settings
class NispaContextConfig(ContextConfig, NispaConfig):
    """Settings of NISPA-Context: those of NISPA and of what tells tasks apart."""

    incremental: Incremental = setting("class", "what a task adds: new classes among all seen")


class NispaContext(InfersTask, Nispa):
    """Class-incremental NISPA without replay.

    Attributes:
        context: What tells tasks apart; None where the outputs alone do.
    """

    name = "nispa-context"
    config_class = NispaContextConfig
    carries: ClassVar[tuple[Part, ...]] = (*Nispa.carries, ContextPart("context", "memory"))
    incremental: ClassVar[tuple[Incremental, ...]] = ("class", "task")
    own_heads = True
    published = "context detection: Gurbuz et al., CVPR 2024"
    forget = Method.forget  # what tells tasks apart knows the task, too
    config: NispaContextConfig
    context: Detector | None

    @classmethod
    def stores_samples(cls) -> bool:
        """No: at most bits of what stable units make of some samples."""
        return False

    def learn_task(self, task: Task) -> Learning:
        """Learns as NISPA does; then what tells tasks apart takes up the task."""
        report = yield from super().learn_task(task)
        self._take_up(task)
        return report

    def adopt(self, task: Task) -> Adoption:
        """Adopts as NISPA does; what tells tasks apart learns from the examples."""
        adoption = super().adopt(task)
        self._take_up(task)
        return adoption

    def _take_up(self, task: Task) -> None:
        if self.context is not None:
            generator = stream(self.seed, "context", task.index)
            self.context.learn(self.network, task, self.stable, generator)

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Scores of classes; without a task float64, and each task's best class has its score."""
        if task is not None:
            return super().scores(images, task)
        logits: Tensor = self.network.eval()(images).double()
        tasks = self.task_scores(images, logits)
        return scores_within(tasks, logits, self.learned, self.choices(None))

    def task_scores(self, images: Tensor, logits: Tensor) -> Tensor:
        """The score of each task learned, ``(batch, tasks)`` float64.

        Args:
            images: ``(batch, channels, height, width)`` float32.
            logits: What the network makes of them, ``(batch, outputs)`` float64.
        """
        if self.context is not None:
            return self.context.log_posterior(self.network, images).to(logits.device)
        heads = [logits[:, list(info.classes)] for info in self.learned]
        if self.config.context == "energy":
            return torch.stack([head.logsumexp(1) for head in heads], 1)
        logs = [head.log_softmax(1) for head in heads]
        return torch.stack([(log.exp() * log).sum(1) for log in logs], 1)
