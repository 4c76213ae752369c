"""A task that was learned in name alone says so."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nispa import Learner
from nispa.data.tasks import Samples
from nispa.methods.unlearned import unlearned

from .toy import toy_task


def telling(right: int) -> Any:
    """A method that tells the first images right and calls all others class 0."""
    asked: list[int] = []

    def predict(images: Tensor, task: object) -> Tensor:
        asked.extend(range(len(asked), len(asked) + len(images)))
        labels = images.flatten(1)[:, 0].long()
        return torch.where(torch.tensor(asked[-len(images) :]) < right, labels, 0)

    return SimpleNamespace(predict=predict, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("zeros", "ones", "right", "said"),
    [
        (50, 50, 0, "50.0 % of its training images are told right, and naming one class for all"),
        (50, 50, 60, ""),
        (90, 10, 0, "90.0 % of its training images"),
        (90, 10, 100, ""),
        (600, 600, 0, "% of its training images"),  # a thousand of them are asked
        (600, 600, 700, ""),
        (100, 0, 0, ""),
    ],
)
def test_chance_is_the_most_frequent_class(zeros: int, ones: int, right: int, said: str) -> None:
    labels = torch.tensor(([0, 1] * min(zeros, ones))[: 2 * ones] + [0] * (zeros - ones))
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    task = replace(toy_task(0), train=Samples(images, labels))
    found = unlearned(telling(right), task)
    assert said in found
    assert bool(found) == bool(said)


def test_a_learner_warns_of_a_network_that_is_stuck() -> None:
    labels = np.arange(64) % 2
    images = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    images[:, 0] += 4 * labels
    learns = Learner(input_shape=(8,), classes=4, method="finetune", density=1.0, epochs=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learns.learn(images, labels)
    stuck = Learner(
        input_shape=(8,), classes=4, method="finetune", hidden=(16,), epochs=2, learning_rate=100.0
    )
    with pytest.warns(UserWarning, match="was not learned: 50"):
        stuck.learn(images * 0, labels)
