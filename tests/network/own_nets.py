"""A user's own module that tests change, and what they ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nispa import Learner, sparsify

SHAPE = (1, 6, 6)
EXAMPLE = torch.zeros(2, *SHAPE)
IMAGES = np.random.default_rng(0).random((40, *SHAPE), dtype=np.float32)
LABELS = np.arange(40) % 4
BRIEF: dict[str, Any] = {
    "max_phases": 3, "settle_epochs": 0, "settle_fresh": False, "epochs_per_phase": 1,
}  # fmt: skip


class Net(nn.Module):
    """Two convolutions and a norm, which other classes take apart."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(1, 8, 3, padding=1), norm or nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.more()

    def more(self) -> None:
        """What a class adds."""

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.norm(self.a(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def assert_same(model: nn.Module, logits: Callable[[Any], Tensor] = lambda result: result) -> None:
    """The sparse module is the model itself where nothing is sparse, in training, too."""
    images = torch.randn(5, *SHAPE)
    model.eval()
    for training in (False, True):
        network = sparsify(model, EXAMPLE, density=1.0, values="model").train(training)
        wanted = logits(model.train(training)(images))
        torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)
        model.eval()


def learned(method: str, model: nn.Module, tasks: int = 1, **values: Any) -> Learner:
    brief = dict(BRIEF) if method == "nispa" else {"epochs": 1}
    made = Learner(
        method, model=model, input_shape=SHAPE, classes=4, density=0.5, **brief, **values
    )
    for task in range(tasks):
        chosen = task == LABELS // 2
        made.learn(IMAGES[chosen], LABELS[chosen])
    return made
