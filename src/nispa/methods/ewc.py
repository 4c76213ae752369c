"""EWC (elastic weight consolidation): held where the Fisher information of earlier tasks is high.

Kirkpatrick et al. 2017, arXiv 1612.00796. After task t, with N samples x_n of its training set,

    F_t,i   = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2,  y_n = argmax_y p(y | x_n)
    penalty = strength * sum_t sum_i F_t,i (theta_i - theta_t,i)^2

where theta_t are the values after task t and y_n is the model's own choice among the outputs that
compete while the task is learned. Gradients are squared sample by sample, never over a batch.

The terms of all tasks are kept as one, which is the same function of theta: squares around two
anchors add up to one square around their weighted mean, plus a constant,

    F (theta - m)^2 + f (theta - a)^2
        = (F + f) (theta - m')^2 + F f / (F + f) (a - m)^2,  m' = m + f / (F + f) (a - m).

So time and memory do not grow with the number of tasks.

Differences from the paper: no factor of one half (``strength`` is half the paper's lambda). The
true Fisher information is an expectation over the model's labels; this one takes only the likeliest
label, as in the published comparison.
Differences from the published comparison: it stores every term separately, and keeps the last epoch
(``keep=last``); by default, the best one is kept here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.regularised import (
    Regularised,
    RegularisedConfig,
    Values,
    copies,
    gradients_of,
    zeros,
)
from nispa.network.models import DataSet
from nispa.training.fit import batch_gradients


@settings
class EwcConfig(RegularisedConfig):
    """Settings of EWC."""

    strength: float = setting(
        10_000.0, "weight of the penalty", ge=0, aliases=("lambda", "reg_coef"), hint="0: finetune"
    )
    samples: int | None = setting(
        1000, "training images that the Fisher information is measured on; none for all", ge=1
    )


class Ewc(Regularised):
    """A sum of penalties, one per task."""

    name = "ewc"
    published = "Kirkpatrick et al., PNAS 2017"
    config_class = EwcConfig
    config: EwcConfig

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task, then measures its Fisher information."""
        train = self.prepare(self.network, task.train)
        report = yield from self.train(task, train)
        self.add_term(self.fisher(task, train))
        return report

    def add_term(self, fisher: Values) -> None:
        """Merges the penalty around the current values with those of earlier tasks."""
        values = copies(self.plastic())
        if not self.importance:
            self.hold(fisher)
            return
        importance, anchor, offset = {}, {}, self.offset
        for name, before in self.importance.items():  # F, f, m and a of the module's text
            total = before + fisher[name]
            share = torch.where(total > 0, fisher[name] / total, 0.0)
            moved = values[name] - self.anchor[name]
            offset += float((before * share * moved.square()).sum())
            anchor[name] = torch.lerp(self.anchor[name], values[name], share)
            importance[name] = total
        self.hold(importance, anchor, offset)

    def fisher(self, task: Task, train: DataSet) -> Values:
        """Diagonal of the Fisher information, estimated on ``samples`` images of the task."""
        classes = self.competing(task)

        def own_choice(logits: Tensor, labels: Tensor) -> Tensor:
            del labels
            return classes.loss(logits, classes.predict(logits.detach()))

        self.network.eval()  # a batch of one has no statistics
        gradients = batch_gradients(self.network, own_choice)
        values = self.plastic()
        total = zeros(values)
        chosen = torch.randperm(len(train), generator=stream(self.seed, "fisher", task.index))
        chosen = chosen[: self.config.samples].to(self.device)
        for index in chosen.split(1):
            gradients(*train.batch(index))
            gradient = gradients_of(values.values())
            torch._foreach_addcmul_(list(total.values()), gradient, gradient, value=1 / len(chosen))
        return total
