"""A learning rate that falls each time the validation accuracy has stopped rising."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plateau:
    """Divides the learning rate after some epochs without a better validation accuracy.

    The rate follows from the accuracies so far, so a fit that is resumed needs no other state.

    Attributes:
        rate: Learning rate of the first epoch.
        patience: Epochs without a better accuracy after which it is divided; then they are counted
            anew.
        factor: What it is divided by.
        lowest: Training ends instead where a division would lead below this rate.
    """

    rate: float
    patience: int
    factor: float
    lowest: float

    def rate_after(self, accuracies: Sequence[float | None]) -> float | None:
        """The rate of the next epoch, or None if training is over.

        Args:
            accuracies: Validation accuracy of each epoch so far; one that is unknown counts as
                better.
        """
        rate, best, waited = self.rate, -math.inf, 0
        for accuracy in accuracies:
            if accuracy is None or accuracy > best:
                best, waited = -math.inf if accuracy is None else accuracy, 0
                continue
            waited += 1
            if waited == self.patience:
                rate, waited = rate / self.factor, 0
                if rate < self.lowest:
                    return None
        return rate
