"""Winning SubNetworks: each task picks the best part of one dense network by trained scores.

Kang, Mina, Madjid, Yoon, Hasegawa-Johnson, Hwang and Yoo, "Forget-free Continual Learning with
Winning Subnetworks", ICML 2022.

Every connection of the hidden layers has a weight w and a score s, both kept from task to task.
Task number t is learned so:

1. In each step and hidden layer the mask m is 1 for the share ``capacity`` of the connections with
   the largest abs(s), else 0. The network computes with w m.
2. With g the gradient of the loss by w m, the gradient of w is g m, and straight-through that of s
   is g w sign(s).
3. Both are updated together; weights that an earlier task owns are not, but their scores are.
4. At the end m is the mask of task t, and the weights in it belong to t, too: no later task changes
   them.

Task t is predicted with w m of its own mask. Owned weights are frozen, out of the optimiser's
reach, so the logits of a task stay the same, bit for bit, whatever is learned later.

The head has no scores, as in the paper, where each task has a classifier of its own: the
connections into a task's outputs, with these outputs' biases, are trained with the task and frozen
at its end.

Differences from the paper and from the published code:
- The published networks have no biases. Here hidden biases are trained with the first task and then
  frozen, in ``Subnetworks.own``.
- A connection into a convolution is a whole kernel with one score; the paper scores single weights.
  For Linear layers the two are the same.
- A layer's mask has exactly round(capacity n) of n connections, at least one; among equal scores
  the first count as larger. The published code takes a percentile, and every score equal to it.
- The published code sets the gradients of owned weights to 0, which suffices for Adam with moments
  that are new in each task, but not under weight decay.
- The published code halves the learning rate after 6 epochs without a better validation loss, and
  keeps the epoch with the best one. Here the best validation accuracy decides, and the learning
  rate stays or falls evenly (``decay``).
- The paper codes masks by Huffman's method; here they are coded by Deflate, which contains it.
- With a density below 1, connections outside the first pattern are never live, and the share is
  one of those inside.
"""

from __future__ import annotations

from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.epochs import KeepConfig
from nispa.methods.parts import ConnectionScores
from nispa.methods.subnetworks import Numbered, Subnetworks, chosen, largest, slope_by_size


@settings
class WsnConfig(KeepConfig):
    """Settings of Winning SubNetworks."""

    capacity: float = setting(
        0.5, "share of its connections that each hidden layer uses for a task", gt=0, le=1
    )


class Wsn(Subnetworks):
    """Task-incremental Winning SubNetworks.

    Attributes:
        weight_scores: Of each hidden connection, by layer, ``(live,)`` in order of position.
    """

    name = "wsn"
    forgets_nothing = "yes"
    published = "Kang et al., ICML 2022"
    config_class = WsnConfig
    carries = (*Subnetworks.carries, ConnectionScores("weight_scores", "importance"))
    config: WsnConfig
    weight_scores: dict[str, Tensor]

    def learn_task(self, task: Task) -> Learning:
        """Trains weights and scores together, then freezes what the mask holds."""
        numbered = Numbered(self.network, self.weight_scores)
        report = yield from self.train_masked(
            task, numbered, self.choose, slope_by_size, self.config
        )
        self.own(task, chosen(numbered, self.choose))
        self.weight_scores = {name: each.detach() for name, each in numbered.numbers.items()}
        return report

    def choose(self, scores: Tensor) -> Tensor:
        """The mask of a layer."""
        return largest(scores.abs(), self.config.capacity)
