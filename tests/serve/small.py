"""A small learner to serve, and what it is asked and taught."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import nispa
from nispa.serve.bodies import Lesson

NETWORK: dict[str, Any] = {"hidden": (16, 12), "density": 0.6, "batch_size": 8}
SETTINGS: dict[str, Any] = {**NETWORK, "epochs_per_phase": 5, "k": 6}


def examples(classes: tuple[int, ...], each: int = 20) -> tuple[NDArray[Any], list[int]]:
    """Images of 4x4: class k is bright in row k."""
    random = np.random.default_rng(classes)
    labels = np.repeat(classes, each)
    images = random.integers(0, 60, (len(labels), 4, 4), dtype=np.uint8)
    images[np.arange(len(labels)), labels % 4] += 190
    return images, labels.tolist()


def lesson(name: str, classes: tuple[int, ...]) -> Lesson:
    images, labels = examples(classes)
    return Lesson(name, images, labels, None)


@functools.cache
def learner(method: str) -> nispa.Learner:
    """A learner of one task, of the labels 0 and 1."""
    given = SETTINGS if method == "nispa" else {**NETWORK, "epochs": 10}
    made = nispa.Learner(method, input_shape=(1, 4, 4), classes=8, **given)
    made.learn(*examples((0, 1)), name="first", progress=False)
    assert made.accuracy(*examples((0, 1)), 0) == 1
    return made


def saved(path: Path, method: str = "nispa") -> Path:
    """That learner in a file."""
    learner(method).save(path)
    return path


def picture(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()
