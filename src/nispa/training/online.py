"""Online accuracy: how well a network predicts images before it learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nispa.network.operations import purpose
from nispa.training.pausing import Carried
from nispa.training.steps import Batch, Step


class Online:
    """Counts the images of a first epoch that are told right just before their step.

    Attributes:
        right: How many were, an int64 scalar.
        seen: Of how many.
    """

    def __init__(
        self, network: nn.Module, predict: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        """Counts nothing yet.

        Args:
            network: From a batch's images to logits.
            predict: From logits to classes.
            device: Where they are computed.
        """
        self._network, self._predict = network, predict
        self.right, self.seen = torch.zeros((), dtype=torch.int64, device=device), 0

    def around(self, step: Step) -> Step:
        """A step that counts first."""

        def counting(batch: Batch) -> Tensor:
            if batch.epoch == 1:
                # As predictions are made: dropout is off, and a batch norm takes no statistics.
                self._network.eval()
                with torch.no_grad(), purpose("validation"):
                    found = self._predict(self._network(batch.images))
                    self.right += (found == batch.labels).sum()
                self._network.train()
                self.seen += len(batch)
            return step(batch)

        return counting

    @property
    def accuracy(self) -> float | None:
        """The share told right; None if nothing was counted."""
        return int(self.right) / self.seen if self.seen else None

    @property
    def carried(self) -> Carried:
        """For a fit that is interrupted and resumed."""

        def load(_: Mapping[str, Tensor], values: Any) -> None:
            right, seen = values["right"], values["seen"]
            if type(right) is not int or type(seen) is not int or not 0 <= right <= seen:
                raise ValueError(f"the online accuracy is {right!r} of {seen!r}")
            self.right.fill_(right)
            self.seen = seen

        return Carried(lambda: ({}, {"right": int(self.right), "seen": self.seen}), load)
