"""Whether old answers changed: logits of fixed images, before and after a task is learned.

The images are random ones, always the same for a shape of samples, and some of the examples of each
task taught while the server runs. What is compared is each logit of each earlier task, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nispa.base.seeding import stream
from nispa.base.shapes import Shape, is_image
from nispa.data.arrays import Array
from nispa.errors import NotLearnedError
from nispa.learner import Learner

RANDOM = 256
"""Random images."""

EXAMPLES = 64
"""Examples kept of each task taught, at most."""


@dataclass(frozen=True)
class Compared:
    """Old answers held against new ones.

    Attributes:
        tasks: Number of earlier tasks.
        images: Images that each of them was asked about.
        values: Logits (or, of methods without any, labels) compared.
        changed: How many of them differ in any bit.
        changed_labels: How many images get another label.
    """

    tasks: int
    images: int
    values: int
    changed: int
    changed_labels: int

    @property
    def unchanged(self) -> bool:
        """Whether every value is the same, bit for bit."""
        return self.changed == 0

    def as_json(self) -> dict[str, Any]:
        """For the reply to whoever taught the task."""
        return {
            "unchanged": self.unchanged,
            "tasks": self.tasks,
            "probe_images": self.images,
            "logits_compared": self.values,
            "logits_changed": self.changed,
            "labels_changed": self.changed_labels,
            "how": "torch.equal of the logits of every earlier task on the probe images, between "
            "the learner that answers and the new one as read back from its bytes",
        }


def random_images(shape: Shape) -> Array:
    """Random samples of a shape: bytes for images, floats in [0, 1) for others."""
    drawn = torch.rand(RANDOM, *shape, generator=stream(0, "probes"))
    return (drawn * 256).byte().numpy() if is_image(shape) else drawn.numpy()


@dataclass(frozen=True)
class Probes:
    """The images that old answers are checked on.

    Attributes:
        sets: Arrays of images, and whether their channels come first.
    """

    sets: tuple[tuple[Array, bool | None], ...]

    @classmethod
    def of_shape(cls, shape: Shape) -> Probes:
        """Random images alone."""
        return cls(((random_images(shape), True if is_image(shape) else None),))

    def with_examples(self, images: Array, channels_first: bool | None) -> Probes:
        """These and some examples of a task, evenly spread."""
        places = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).round().astype(int)
        return Probes((*self.sets, (np.array(images[places]), channels_first)))

    def answers(self, learner: Learner) -> dict[int, torch.Tensor]:
        """For each task that can be predicted its scores, or without scores its labels."""
        found = {}
        for task in range(len(learner.tasks)):
            try:
                learner.classes_of(task)
            except NotLearnedError:  # it was forgotten on purpose
                continue
            found[task] = torch.cat([self._ask(learner, task, *each) for each in self.sets])
        return found

    @staticmethod
    def _ask(learner: Learner, task: int, images: Array, first: bool | None) -> torch.Tensor:
        if learner.method.has_scores:
            return torch.from_numpy(learner.scores(images, task, channels_first=first))
        names = {name: place for place, name in enumerate(learner.classes_of(task))}
        labels = learner.predict(images, task, channels_first=first)
        return torch.tensor([names[label] for label in labels.tolist()])[:, None]

    def compare(self, before: dict[int, torch.Tensor], learner: Learner) -> Compared:
        """Answers of earlier tasks, held against those of a learner that has learned one more."""
        after = self.answers(learner)
        values = changed = labels = 0
        for task, old in before.items():
            new = after.get(task)
            values += old.numel()
            if new is None or new.shape != old.shape:
                changed, labels = changed + old.numel(), labels + len(old)
            elif not torch.equal(old, new):
                changed += int((old != new).sum())
                labels += int((_best(old) != _best(new)).sum())
        images = sum(len(images) for images, _ in self.sets)
        return Compared(len(before), images, values, changed, labels)


def _best(answers: torch.Tensor) -> torch.Tensor:
    return answers.argmax(1) if answers.shape[1] > 1 else answers[:, 0]
