"""Learns your own arrays, task after task, without forgetting; saves, loads, learns on.

Run it with ``python examples/quickstart.py``. It needs nothing but nispa: the images are the 1,797
handwritten digits that ship with scikit-learn, 8x8 pixels with values from 0 to 16.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from nispa import Learner
from nispa.runs.metrics import forgetting, percent

# Images are float arrays in [0, 1], or uint8; labels are whole numbers or texts.
digits = load_digits()
images, labels = digits.images / 16, digits.target
train, test = slice(0, 1400), slice(1400, None)


def arrays_of(task: int, part: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and labels of one task: the digits 2 task and 2 task + 1."""
    chosen = labels[part] // 2 == task
    return images[part][chosen], labels[part][chosen]


# Ten classes now and room for ten more: each task takes a share of the units, by its share of the
# classes. Settings are passed by name, as one is here; `nispa list settings` shows them all.
learner = Learner(input_shape=(1, 8, 8), classes=20, epochs_per_phase=3)
matrix = np.full((5, 5), np.nan)  # row: after which task; column: accuracy on which task
for task in range(5):
    report = learner.learn(*arrays_of(task, train))
    for old in range(task + 1):
        matrix[task, old] = learner.accuracy(*arrays_of(old, test), task=old)
    shown = "  ".join(percent(value) for value in matrix[task, : task + 1])
    print(f"learned task {task} in {report.phases} phases; accuracy on each task (%): {shown}")
print(f"forgetting {percent(forgetting(matrix))}")

# Told the task, a learner chooses among its classes; otherwise among all classes learned.
unseen, truth = arrays_of(3, test)
print(f"predicts {learner.predict(unseen[:8], task=3)}, in truth {truth[:8]}")

# One file holds all of it. Here, or in another process, the learner goes on where it was.
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.safetensors"
    learner.save(file)
    learner = Learner.load(file)

# A sixth task, with other labels for all the images.
parity = np.where(labels % 2, "odd", "even")
learner.learn(images[train], parity[train])
print(f"learned task 5, odd or even: {percent(learner.accuracy(images[test], parity[test], 5))} %")
again = [learner.accuracy(*arrays_of(task, test), task=task) for task in range(5)]
assert again == list(matrix[-1]), "the first five tasks changed"
print("the first five tasks are exactly as they were")
