"""The 1,797 real 8×8 digits that ship with scikit-learn (UCI "Optical Recognition of Digits")."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nispa.data.dataset import ImageData, hold_out
from nispa.errors import needs

SPLIT_SEED = 0
SHA256 = "3b7fa0174ec69290e6652ff16d235368ca5c634f32af01bb41243582e8208b80"
"""Of scikit-learn 1.9's digits in this split."""


def load_digits() -> ImageData:
    """Digits as uint8 0 to 16, ``(n, 1, 8, 8)``; a fifth of each class is the test set.

    The test set is the same for every seed of a run, so that results can be compared.
    """
    table = _table()
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    names = tuple(str(digit) for digit in range(10))
    train, test = hold_out(labels, seed=SPLIT_SEED, name="digits", class_names=names)
    data = ImageData(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=names,
        scale=1.0 / 16.0,
        source="scikit-learn",
        note="the test set is a fixed fifth of each class: scikit-learn has no split",
    )
    if data.identity.sha256 == SHA256:
        return replace(data, canonical=True)
    return replace(data, note=f"not the digits of scikit-learn 1.9; {data.note}")


def _table() -> NDArray[Any]:
    """For each digit 64 pixels and the label.

    The file is read where scikit-learn lies, since importing that takes a second.
    """
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets/data/digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    with needs("sklearn", "the data set digits"):
        from sklearn import datasets

    bunch = datasets.load_digits()
    return np.column_stack([bunch.data, bunch.target])
