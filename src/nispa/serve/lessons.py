"""Tasks for a class to teach: digits, clothes where their data are at hand, and drawings.

All images are grey, 16x16, bright on dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.seeding import stream
from nispa.data.arrays import Array
from nispa.data.dataset import ImageData
from nispa.data.sources import load
from nispa.errors import DataError, InputError

SIDE = 16
MOST_EACH = 300  # training images of a class
TEST_EACH = 40
CLOTHES = "fashion-mnist"

FEWEST_DRAWN, MOST_DRAWN, MOST_KINDS = 2, 12, 5
MADE_EACH = 80
"""Training images of a class that are made from drawings."""


@dataclass(frozen=True)
class TaskToTeach:
    """A task.

    Attributes:
        key: What the page calls it.
        title: What people read.
        labels: Its labels.
        train: Images ``(n, 16, 16)`` uint8 and labels of them ``(n,)``.
        test: The same, never learned from.
    """

    key: str
    title: str
    labels: tuple[str, ...]
    train: tuple[Array, Array]
    test: tuple[Array, Array]

    @property
    def samples(self) -> list[Array]:
        """A test image of each label."""
        images, labels = self.test
        return [images[np.flatnonzero(labels == label)[0]] for label in self.labels]


def offered(folder: Path | None) -> list[TaskToTeach]:
    """The tasks that are there, in the order in which they teach most.

    Args:
        folder: Where data sets lie, or None.
    """
    tasks = []
    digits = load("digits", download=False)
    for turns, how in ((0, ""), (1, ", turned")):
        for first in (0, 5):
            tasks.append(_cut(f"digits {first} to {first + 4}{how}", digits, first, turns))
    if folder is not None:
        try:
            clothes = load(CLOTHES, folder=folder, download=False)
        except InputError:
            return tasks
        tasks += [
            _cut("tops: T-shirt to coat", clothes, 0, 0),
            _cut("sandals, shirts, shoes, bags, boots", clothes, 5, 0),
        ]
    return tasks


def _cut(title: str, data: ImageData, first: int, turns: int) -> TaskToTeach:
    """Five classes of a data set, from one on, turned by quarters."""
    names = data.class_names[first : first + 5]

    def part(images: Tensor, labels: Tensor, most: int) -> tuple[Array, Array]:
        places = torch.cat(
            [(labels == first + k).nonzero().flatten()[:most] for k in range(len(names))]
        )
        pixels = _fitted(images[places].float() * data.scale)
        turned = torch.rot90(pixels, turns, (1, 2))
        return turned.contiguous().numpy(), np.array(names)[labels[places].numpy() - first]

    key = title.replace(",", "").replace(":", "").replace(" ", "-")
    return TaskToTeach(
        key,
        title,
        tuple(names),
        part(data.train_images, data.train_labels, MOST_EACH),
        part(data.test_images, data.test_labels, TEST_EACH),
    )


def _fitted(images: Tensor) -> Tensor:
    """``(n, 1, height, width)`` in [0, 1] as ``(n, 16, 16)`` uint8."""
    if images.shape[2:] != (SIDE, SIDE):
        how = "area" if images.shape[2] > SIDE else "bilinear"
        images = functional.interpolate(images, (SIDE, SIDE), mode=how)
    return (images[:, 0] * 255).round().clamp(0, 255).byte()


def centred(drawing: Array) -> Array:
    """A drawing cut to what is drawn and scaled to the size of a digit, ``(16, 16)`` uint8.

    Raises:
        DataError: Nothing is drawn.
    """
    if drawing.shape != (SIDE, SIDE):
        raise DataError(f"a drawing must have {SIDE}x{SIDE} pixels, not {drawing.shape}")
    rows, columns = np.nonzero(drawing > 40)
    if not len(rows):
        raise DataError("nothing is drawn; draw something first")
    part = torch.from_numpy(
        drawing[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].copy()
    )
    height, width = part.shape
    side = max(height, width)
    square = torch.zeros(side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = part / 255
    found: Array = _fitted(square[None, None]).numpy()[0]
    return found


def drawn(key: str, name: str, drawings: Sequence[tuple[str, Sequence[Array]]]) -> TaskToTeach:
    """A task of what people drew; more images are made by turning, moving and scaling.

    Args:
        key: What the page calls it.
        name: What people read.
        drawings: For each label its drawings.

    Raises:
        DataError: They are too few, too many, or empty.
    """
    labels = [label for label, _ in drawings]
    if not 2 <= len(labels) <= MOST_KINDS or len(set(labels)) < len(labels):
        raise DataError(f"draw from 2 to {MOST_KINDS} kinds of characters with different names")
    if any(not 1 <= len(label) <= 20 or not label.isprintable() for label in labels):
        raise DataError("each kind needs a name of 1 to 20 characters")
    train, test = [], []
    for number, (label, given) in enumerate(drawings):
        if not FEWEST_DRAWN <= len(given) <= MOST_DRAWN:
            raise DataError(
                f"'{label}' has {len(given)} drawings; {FEWEST_DRAWN} to {MOST_DRAWN} are needed"
            )
        images = torch.from_numpy(np.stack([centred(each) for each in given]))
        train.append(_varied(images, MADE_EACH, f"{key} {number} train"))
        test.append(_varied(images, TEST_EACH // 2, f"{key} {number} test"))
    return TaskToTeach(
        key,
        name,
        tuple(labels),
        (np.concatenate(train), np.repeat(labels, MADE_EACH)),
        (np.concatenate(test), np.repeat(labels, TEST_EACH // 2)),
    )


def _varied(images: Tensor, count: int, purpose: str) -> Array:
    """Images made from a few by turning, moving and scaling a little, ``(count, 16, 16)``."""
    random = stream(0, "drawings", purpose)
    places = torch.arange(count) % len(images)
    angle = (torch.rand(count, generator=random) - 0.5) * math.radians(30)
    scale = 0.9 + 0.25 * torch.rand(count, generator=random)
    moved = (torch.rand(count, 2, generator=random) - 0.5) * 0.25
    cos, sin = angle.cos() * scale, angle.sin() * scale
    turn = torch.stack(
        [torch.stack([cos, -sin, moved[:, 0]], 1), torch.stack([sin, cos, moved[:, 1]], 1)], 1
    )
    source = images[places].float()[:, None] / 255
    grid = functional.affine_grid(turn, [count, 1, SIDE, SIDE], align_corners=False)
    made: Array = _fitted(functional.grid_sample(source, grid, align_corners=False)).numpy()
    return made
