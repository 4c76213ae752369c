"""Learners that have learned toy tasks, for what is compacted and exported."""

from __future__ import annotations

from typing import Any

from nispa import Learner
from tests.methods.toy import FAST, NETWORKS, toy_images

FIRST_NAMES = ("left", "right")


def toy_learner(method: str, network: str = "mlp", tasks: int = 2, **values: Any) -> Learner:
    """A learner of some toy tasks."""
    settings: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 8, **NETWORKS[network]}
    settings |= FAST.get(method, {"epochs": 8}) | values
    if method == "nispa":
        settings |= {"max_phases": 3}
    made = Learner(method, input_shape=(1, 4, 4), classes=6, tasks=3, seed=3, **settings)
    for index in range(tasks):
        samples = toy_images(index, 48, "train")
        labels = [FIRST_NAMES[int(label) % 2] + str(index) for label in samples.labels]
        made.learn(samples.images.numpy(), labels)
    return made
