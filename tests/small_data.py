"""What the commands of the documentation need: tiny data sets under the real names, and some runs.

The pictures are noise: commands are run to see that they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nispa.data.emnist import stored_names
from nispa.runs.folder import EVENTS
from nispa.runs.record import RECORD, Record, encode, measured

from .cli_calls import write_npz
from .data.makers import idx_bytes, image_bytes, labels, pixels, write_mnist
from .records import finetune, five_tasks, record

CLASSES = ("cat", "dog", "elk", "fox", "owl", "yak")
EVENT = '{"event":"epoch","task":0,"phase":1,"epoch":1,"loss":0.5,"samples":260,"seconds":0.1}\n'


def write_data_sets(folder: Path) -> Path:
    """MNIST, Fashion-MNIST, EMNIST balanced and CIFAR-10 with a dozen images of each class."""
    for name in ("mnist", "fashion-mnist"):
        write_mnist(folder / name, 200, 40, end="")
    write_emnist(folder / "emnist")
    cifar = folder / "cifar10"
    cifar.mkdir()
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    for seed, name in enumerate([*names, "test_batch.bin"]):
        rows = np.hstack([labels(40, 10)[:, None], pixels(40, 3072, seed=seed)])
        (cifar / name).write_bytes(rows.tobytes())
    return folder


def write_emnist(folder: Path) -> None:
    """The four files of EMNIST balanced, unpacked."""
    folder.mkdir()
    counts = (564, 564, 94, 94)
    for seed, (name, count) in enumerate(zip(stored_names("balanced"), counts, strict=True)):
        values = pixels(count, 28, 28, seed=seed) if "images" in name else labels(count, 47)
        (folder / name).write_bytes(idx_bytes(values))


def write_own_data(folder: Path) -> None:
    """Files of one's own under the names that pages use."""
    for seed, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for number, picture in enumerate(pixels(15, 8, 8, seed=seed), 1):
            (folder / "photos" / name / f"{number}.png").write_bytes(image_bytes(picture))
    for name in ("mine.npz", "photos.npz"):
        write_npz(folder / name, classes=6, side=8)
    for name in ("matrix.csv", "other.csv"):
        (folder / name).write_text("99.1,,\n90.0,98.0,\n85.5,91.0,97.0\n")


def write_runs(folder: Path) -> None:
    """Runs of three seeds of two methods on EFMNIST, and one on the digits with its events."""
    untold = five_tasks().accuracy_matrix
    more: dict[str, Any] = {
        "accuracy_matrix_task_agnostic": untold,
        "metrics_task_agnostic": measured(untold, [0.1] * 5),
    }
    for seed in range(3):
        nispa = five_tasks(seed=seed, preset="default", **more)
        write_run(folder / "runs" / f"efmnist-nispa-default-s{seed}", nispa)
        write_run(folder / "runs" / f"efmnist-finetune-s{seed}", finetune(seed=seed, **more))
    digits = folder / "runs" / "split-digits-nispa-default-s0"
    write_run(digits, record(seed=0, preset="default"))
    (digits / EVENTS).write_text(EVENT)
    for name in ("results", "more"):
        write_run(folder / name / "run", five_tasks(seed=7))


def write_run(folder: Path, value: Record) -> None:
    """A folder with a record."""
    folder.mkdir(parents=True)
    (folder / RECORD).write_bytes(encode(value))
