"""Fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Mlp(nn.Module):
    """Flatten, Linear and ReLU for each hidden size, then the head."""

    def __init__(
        self, shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (400, 400, 400)
    ) -> None:
        """An MLP for samples of any ``shape``, with the units of each ``hidden`` layer."""
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        self.count = len(hidden)
        for number in range(1, len(sizes)):
            self.add_module(f"fc{number}", nn.Linear(sizes[number - 1], sizes[number]))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of samples ``(batch, *shape)``."""
        x = x.flatten(1)
        for number in range(1, self.count + 1):
            x = self.get_submodule(f"fc{number}")(x).relu()
        logits: Tensor = self.head(x)
        return logits
