"""FDR (function distance regularisation): on remembered images, outputs stay what they were.

Benjamin et al. 2019, arXiv 1805.08289, hold a network near the function that it was, in place of
near its values. When a task has been learned, some of its images are remembered together with the
network's soft-max outputs p_i for them. While a later task is learned, the loss of a batch is

    L + alpha / n sum_i | softmax(f(x_i)) - p_i |_2

over n samples drawn from memory: the mean of the Euclidean distance between output and record. The
labels of remembered samples are not used. A record stays as it was made.

Where tasks have outputs of their own, a sample's soft-max goes over those of its task; otherwise
over those of all classes seen, and a class that came after a record has probability 0 in it.

Differences from the paper: it estimates an L2 distance of functions as the root of the mean squared
distance over its working memory; the mean of distances is how libraries know the method (Mammoth,
after Buzzega et al. 2020, arXiv 2004.07211). Differences from that library: it takes two steps of
the optimiser for each batch, one for the loss and one for the distance, whose weight ``alpha`` it
reads and does not use; its soft-max goes over all outputs, those of classes to come included. Here
the memory is shared equally among all classes of all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.replay import Replay, ReplayConfig
from nispa.training.fit import EVALUATION_BATCH, Batch, Step, Term, Ways, gradient_of


@settings
class FdrConfig(ReplayConfig):
    """Settings of FDR."""

    alpha: float = setting(1.0, "weight of the distance between outputs", ge=0, hint="0: finetune")


class Fdr(Replay):
    """Plain training, with outputs on remembered images held."""

    name = "fdr"
    config_class = FdrConfig
    balanced = True
    config: FdrConfig

    def extras(self) -> Mapping[str, tuple[int, ...]]:
        """Probabilities of all outputs, for each sample."""
        return {"outputs": (self.problem.outputs,)}

    def learn_task(self, task: Task) -> Learning:
        """Trains near the function that was, then records what it has become."""
        train = self.prepare(self.network, task.train)
        report = yield from self.train_by(self.step(task), task, train)
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
        """Takes images of the task into memory, with the outputs for them as they are now."""
        chance = stream(self.seed, "memory", task.index)
        new = self.memory.balance(task.train.to(self.device), task.index, chance)
        head = self.heads(task)[task.index]
        self.network.eval()
        for part in self.memory.batches(EVALUATION_BATCH, new):
            outputs = probabilities(self.network(part.images), head)
            self.memory.write("outputs", part.index, outputs)

    def heads(self, task: Task) -> Tensor:
        """What a sample's soft-max goes over, by the place of its task, ``(places, outputs)``."""
        infos = [*self.learned, task.info]
        everything = {label for info in infos for label in info.classes}
        own = self.config.incremental == "task"
        heads = torch.zeros(
            max(info.index for info in infos) + 1, self.problem.outputs, dtype=torch.bool
        )
        for info in infos:
            heads[info.index, sorted(info.classes if own else everything)] = True
        return heads.to(self.device)


def probabilities(logits: Tensor, head: Tensor) -> Tensor:
    """Soft-max over the outputs of a head, zero elsewhere.

    Args:
        logits: ``(n, outputs)``.
        head: ``(outputs,)`` or ``(n, outputs)`` bool.
    """
    return logits.masked_fill(~head, -torch.inf).softmax(dim=1)


def distance(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Euclidean distance between the probabilities now and those of a record.

    Args:
        logits: ``(n, outputs)``.
        wanted: ``(n, 2, outputs)`` float32: the record, and 1 for each output of the sample's head.
    """
    record, head = wanted.unbind(dim=1)
    # Of a distance of 0 PyTorch takes the gradient 0, which is among the right ones.
    moved: Tensor = torch.linalg.vector_norm(probabilities(logits, head > 0) - record, dim=1)
    return moved.mean()
