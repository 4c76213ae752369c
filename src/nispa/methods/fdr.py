"""FDR (function distance regularisation): keep the outputs for remembered images.

Benjamin et al. 2019, arXiv 1805.08289, hold a network near its earlier function instead of near its
earlier values. After each task, some of its images are stored together with the network's soft-max
outputs p_i for them. While a later task is learned, the loss of a batch is

    L + alpha / n sum_i | softmax(f(x_i)) - p_i |_2

over n samples drawn from memory: the mean Euclidean distance between output and record. The labels
of remembered samples are not used. A record never changes.

If tasks have outputs of their own, a sample's soft-max is over those of its task; otherwise over
those of all classes seen, and a class newer than a record has probability 0 in it.

Differences from the paper: it estimates an L2 distance of functions as the root of the mean squared
distance over its working memory; libraries use the mean of distances (Mammoth, after Buzzega et al.
2020, arXiv 2004.07211). Differences from that library: it takes two steps of the optimiser for each
batch, one for the loss and one for the distance, and ignores the distance's weight ``alpha``; its
soft-max is over all outputs, even those of later classes. Here the memory is shared equally among
all classes of all tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.parts import Network, SampleMemory
from nispa.methods.replay import Replay, ReplayConfig
from nispa.training.fit import EVALUATION_BATCH, Batch, Step, Term, Ways, gradient_of


@settings
class FdrConfig(ReplayConfig):
    """Settings of FDR."""

    alpha: float = setting(1.0, "weight of the distance between outputs", ge=0, hint="0: finetune")


class Fdr(Replay):
    """Plain training that keeps the outputs for remembered images."""

    name = "fdr"
    published = "Benjamin et al., ICLR 2019"
    config_class = FdrConfig
    carries = (Network(), SampleMemory("outputs"))
    balanced = True
    config: FdrConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains near the earlier function, then records the new one on images of the task."""
        train = self.prepare(self.network, task.train)
        report = yield from self.rehearse_by(self.step(task), task, train)
        self.remember(task)
        return report

    def step(self, task: Task) -> Step:
        """An update by the task's loss and the distance."""
        optimiser = self.fresh_optimiser()
        loss, heads = self.competing(task).loss, self.heads(task)

        ways: Ways = {}

        def step(batch: Batch) -> Tensor:
            terms = [Term(batch.images, batch.labels, loss)]
            if len(self.memory):
                old = self.recall(task, batch, self.config.memory_batch)
                head = heads[old.wanted[:, 1]]
                wanted = torch.stack([old.extras["outputs"], head.to(torch.float32)], dim=1)
                terms.append(Term(old.images, wanted, distance, self.config.alpha))
            value = gradient_of(self.network, terms, ways)
            optimiser.step()
            return value

        return step

    @torch.no_grad()
    def remember(self, task: Task) -> None:
        """Stores images of the task with their current outputs."""
        chance = stream(self.seed, "memory", task.index)
        new = self.memory.balance(task.train.to(self.device), task.index, chance)
        head = self.heads(task)[task.index]
        self.network.eval()
        for part in self.memory.batches(EVALUATION_BATCH, new):
            outputs = probabilities(self.network(part.images), head)
            self.memory.write("outputs", part.index, outputs)


def probabilities(logits: Tensor, head: Tensor) -> Tensor:
    """Soft-max over the outputs of a head, zero elsewhere.

    Args:
        logits: ``(n, outputs)``.
        head: ``(outputs,)`` or ``(n, outputs)`` bool.
    """
    return logits.masked_fill(~head, -torch.inf).softmax(dim=1)


def distance(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Euclidean distance between current and recorded probabilities.

    Args:
        logits: ``(n, outputs)``.
        wanted: ``(n, 2, outputs)`` float32: the record, and 1 for each output of the sample's head.
    """
    record, head = wanted.unbind(dim=1)
    # At distance 0, PyTorch's gradient of the norm is 0, which is a valid subgradient.
    moved: Tensor = torch.linalg.vector_norm(probabilities(logits, head > 0) - record, dim=1)
    return moved.mean()
