"""Permuted images: tasks with the same classes and another order of pixels (domain shift).

Each task permutes a share of the pixels: that many positions are drawn, and the pixels at them are
permuted at random. No pixel is lost or doubled, and a pixel's channels move together.

Differences from NISPA's published code: it draws positions with replacement and without a seed, and
all its tasks end up with the last task's images. Here each task has its own permutation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.base.shapes import Shape, is_row
from nispa.data.dataset import ImageData, share_of
from nispa.data.scenarios import VALIDATION, Scenario, make_task, preparation, select_classes
from nispa.errors import ScenarioError

MAX_TASKS = 10_000


def pixel_order(shape: Shape, share: float, *, seed: int, task: int) -> Tensor:
    """Index of the stored value that each input reads, int64 over the flattened sample.

    Args:
        shape: The shape of a sample. Steps of a series move with all channels, as pixels do.
        share: Share of the pixels to permute, [0, 1]; rounded down to whole pixels.
        seed: The seed of the scenario.
        task: Index of the task; each has its own permutation.
    """
    channels = 1 if is_row(shape) else shape[0]
    count = math.prod(shape) // channels
    generator = stream(seed, "pixel order", task)
    moved = torch.randperm(count, generator=generator)[: share_of(share, count)]
    order = torch.arange(count)
    order[moved] = moved[torch.randperm(moved.numel(), generator=generator)]
    planes = torch.arange(channels).unsqueeze(1) * count
    return (planes + order).flatten()


@usual_modes()
def permuted(
    data: ImageData,
    *,
    tasks: int = 10,
    share: float = 1.0,
    shares: Sequence[float] | None = None,
    shared_classes: bool = False,
    seed: int = 0,
    validation: float = VALIDATION,
    normalise: bool = False,
    name: str = "permuted",
) -> Scenario:
    """Tasks with all classes and images of ``data``, each with its own order of pixels.

    Args:
        data: The data set.
        tasks: Number of tasks; the first is not permuted.
        share: Share of the pixels that every later task permutes, [0, 1].
        shares: The share of each task, including the first, instead of ``tasks`` and ``share``.
        shared_classes: One set of outputs for all tasks; otherwise each task has its own.
        seed: Determines the permutations and the validation images.
        validation: Share of each task's training images that becomes validation, rounded down.
        normalise: Subtract the mean and divide by the deviation of all training images.
        name: The name of the scenario.

    Raises:
        ScenarioError: A share is outside [0, 1], or there are no tasks.
    """
    if shares is None:
        if tasks < 1:
            raise ScenarioError(f"tasks={tasks} must be at least 1")
        shares = [0.0] + [share] * (tasks - 1)
    if not shares:
        raise ScenarioError("shares is empty; give one share for each task, such as 0,0.5,1")
    if len(shares) > MAX_TASKS:
        raise ScenarioError(
            f"shares names {len(shares):,} tasks, more than {MAX_TASKS:,}; name fewer of them"
        )
    for each in (share, *shares):
        if not 0.0 <= each <= 1.0:
            raise ScenarioError(f"share={each} must be in [0, 1]; 1 moves every pixel")
    how = preparation(data, normalise)
    classes = list(range(data.classes))
    made = []
    for index, each in enumerate(shares):
        first = 0 if shared_classes else index * data.classes
        outputs = [first + label for label in classes]
        order = pixel_order(data.shape, each, seed=seed, task=index) if each else None
        kept: dict[str, Any] = how | {"pixel_order": order}
        if order is not None and is_row(data.shape) and "mean" in how:
            for key in ("mean", "std"):  # one per feature, so it moves with its feature
                kept[key] = tuple(how[key][place] for place in order.tolist())
        train = select_classes(data.train_images, data.train_labels, classes, outputs, **kept)
        test = select_classes(data.test_images, data.test_labels, classes, outputs, **kept)
        label = f"{each:.0%} permuted" if each else "as it is"
        made.append(make_task(index, label, outputs, train, test, seed=seed, validation=validation))
    repeats = 1 if shared_classes else len(shares)
    return Scenario(
        name=name,
        tasks=tuple(made),
        outputs=data.classes * repeats,
        input_shape=data.shape,
        class_names=data.class_names * repeats,
        identity=(data.identity,),
        settings={
            "kind": "permuted",
            "dataset": data.name,
            "shares": list(shares),
            "shared_classes": shared_classes,
            "seed": seed,
            "validation": validation,
            "normalise": normalise,
        },
        columns=data.columns,
    )
