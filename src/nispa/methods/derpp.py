"""DER++: DER that also learns the labels of remembered samples.

Buzzega et al. 2020, arXiv 2004.07211, Algorithm 2. With the loss L of DER (der.py) and a second
draw M'' from the memory

    L++ = L + beta * mean over (x, y) in M'' of cross-entropy(h(x), y)

Differences from the paper and its code: those of DER. For a sample of M'' the same classes compete
as for the batch; with ``task``, those of its own task.
"""

from __future__ import annotations

from collections.abc import Callable

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.der import Der, DerConfig
from nispa.training.fit import Batch, Term


@settings
class DerppConfig(DerConfig):
    """Settings of DER++."""

    beta: float = setting(0.5, "weight of the cross-entropy of remembered samples", ge=0)


class Derpp(Der):
    """Dark experience replay with labels."""

    name = "derpp"
    published = "Buzzega et al., NeurIPS 2020"
    config_class = DerppConfig
    config: DerppConfig

    def held(self, task: Task) -> Callable[[Batch], list[Term]]:
        """From a batch to the terms that the memory adds to its loss while ``task`` is learned."""
        logits_held, old = super().held(task), self.rehearsed(task)

        def terms(batch: Batch) -> list[Term]:
            again = self.recall(task, batch, self.config.memory_batch, "second memory batch")
            if not len(again) or not self.config.beta:
                return logits_held(batch)
            labels = Term(again.images, again.wanted, old, self.config.beta)
            return [*logits_held(batch), labels]

        return terms
