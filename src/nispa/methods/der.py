"""DER: keep the logits of remembered samples near those stored with them.

Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline",
arXiv 2004.07211, Algorithm 1. The memory is a reservoir of samples x with logits z. For each batch
(X, Y), with M' drawn from the memory, each sample at most once

    L = cross-entropy(h(X), Y) + alpha * mean over (x, z) in M' of |h(x) - z|^2 / outputs
    theta <- theta - rate * gradient of L
    every x of X is offered to the reservoir with z = h(x) from before that update

Differences from the paper and its code:
- The paper writes the squared distance; its code divides by the number of outputs, and its values
  of alpha belong to the code.
- The cross-entropy is over the classes seen so far (``class``) or those of the sample's own task
  (``task``); the published one is over all classes, later ones included. The logits that are held
  are those of all outputs, as published.
- New images vary as ``augment`` says, remembered ones never.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.parts import Network, SampleMemory
from nispa.methods.replay import Replay, ReplayConfig
from nispa.training.fit import Batch, Term, gradient_of


@settings
class DerConfig(ReplayConfig):
    """Settings of DER."""

    alpha: float = setting(0.5, "weight of the distance from stored logits", ge=0)


class Der(Replay):
    """Dark experience replay."""

    name = "der"
    published = "Buzzega et al., NeurIPS 2020"
    config_class = DerConfig
    carries = (Network(), SampleMemory("logits"))
    config: DerConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and the memory, which takes up the task's samples as they pass."""
        train = task.train.to(self.device)
        new, held = self.competing(task).loss, self.held(task)
        optimiser = self.fresh_optimiser()

        def step(batch: Batch) -> Tensor:
            before: list[Tensor] = []  # logits of the batch, part by part

            def learned(logits: Tensor, labels: Tensor) -> Tensor:
                before.append(logits.detach().clone())
                return new(logits, labels)

            terms = [Term(batch.images, batch.labels, learned), *held(batch)]
            loss = gradient_of(self.network, terms)
            optimiser.step()
            generator = stream(self.seed, "reservoir", task.index, batch.epoch, batch.number)
            self.memory.offer(train, batch.index, task.index, generator, logits=torch.cat(before))
            return loss

        return self.rehearse_by(step, task, self.prepare(self.network, train))

    def held(self, task: Task) -> Callable[[Batch], list[Term]]:
        """From a batch to the terms that the memory adds to its loss while ``task`` is learned."""

        def terms(batch: Batch) -> list[Term]:
            drawn = self.recall(task, batch, self.config.memory_batch)
            if not len(drawn) or not self.config.alpha:
                return []
            logits = drawn.extras["logits"]
            return [Term(drawn.images, logits, functional.mse_loss, self.config.alpha)]

        return terms
