"""``nispa predict``: classes of images, predicted by the network of a run or by a learner."""

from __future__ import annotations

import csv
import glob
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.exits import warnings_as_lines
from nispa.cli.options import PATH, device_option, model_option, whole_number
from nispa.errors import DataError, InputError, NotLearnedError

if TYPE_CHECKING:
    from nispa.runs.prediction import Prediction

MAX_TOP = 1000
MAX_TASK = 100_000
STDIN = Path("-")
MAX_NAMES = 10_000_000  # bytes of names of files on standard input


@click.command(
    short_help="Predict the classes of images.",
    epilog="\b\nExamples:\n  nispa predict runs/animals photos/*.jpg --task 2\n"
    "  nispa predict runs/animals photos/ --top 3 --csv > found.csv\n"
    "  find photos -name '*.jpg' | nispa predict animals.safetensors -",
)
@click.argument("run", type=PATH, metavar="RUN-OR-LEARNER")
@click.argument("images", nargs=-1, type=PATH, metavar="IMAGES...")
@click.option(
    "--task",
    callback=whole_number(1, MAX_TASK, f"[1, {MAX_TASK:,}]", "nispa show RUN numbers them"),
    metavar="N",
    help="The task that the images belong to, from 1; needed where the run was told the task.",
)
@click.option(
    "--top",
    callback=whole_number(1, MAX_TOP, f"[1, {MAX_TOP:,}]", "1 is the default"),
    default="1",
    metavar="K",
    show_default=True,
    help="Number of classes per image, the likeliest first.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@model_option("The function that the run was begun with, if it was: package.module:function.")
@device_option("As for nispa run.")
def predict(
    run: Path,
    images: tuple[Path, ...],
    task: int | None,
    top: int,
    as_csv: bool,
    model: str | None,
    device: str,
) -> None:
    """Predict the classes of IMAGES with a run's network, or with a file that Learner.save wrote.

    IMAGES are image files, folders of them, or .npz and .npy files; for a network of tables or
    series also .csv and .parquet files, which must have its columns. A pattern such as '*.png' may
    be quoted, and - stands for names of files on standard input, one in a line. Images are prepared
    like those that the run learned from; a learner takes them as they are. The share beside a class
    says how sure the network is, which is usually more than how often it is right.
    """
    if not images:
        raise InputError(
            "no images given; pass files or a folder, such as: nispa predict RUN photos/"
        )
    from nispa.runs.prediction import Predictor
    from nispa.runs.record import RECORD

    paths = list(_expanded(images))
    if not paths:
        raise InputError("standard input names no file; give one in a line")
    with warnings_as_lines():
        if run.is_file() and run.name != RECORD:
            predictions = _by_learner(run, device, model, paths, task, top)
        else:  # its network knows the name of its module, which --model has made known
            predictions = Predictor(run, device).predict(paths, task, top)
    if as_csv:
        _print_csv(predictions)
    else:
        _print(predictions)


def _expanded(images: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, by a pattern or on standard input, too."""
    for path in images:
        if path == STDIN:
            given = sys.stdin.read(MAX_NAMES + 1)
            if len(given) > MAX_NAMES:
                raise DataError(
                    f"standard input has more than {MAX_NAMES:,} characters of names; pass a folder"
                )
            yield from (Path(line) for line in given.splitlines() if line.strip())
        elif not path.exists() and glob.has_magic(str(path)):
            found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - it may be absolute
            if not found:
                raise DataError(f"no file is named like {path}")
            yield from map(Path, found)
        else:
            yield path


def _by_learner(
    file: Path, device: str, model: str | None, paths: Sequence[Path], task: int | None, top: int
) -> list[Prediction]:
    """What a learner answers. It knows the labels it was given, and nothing of how to crop."""
    from nispa.data.unlabelled import read_unlabelled
    from nispa.files import shown
    from nispa.learner import Learner
    from nispa.runs.prediction import Prediction

    learner = Learner.load(file, device=device, model=model)
    count, told = len(learner.tasks), learner.settings.config.incremental == "task"
    if task is not None and task > count:
        raise NotLearnedError(f"--task={task} is no learned task; {shown(file)} has {count}")
    if task is None and count > 1 and (told or not learner.method.task_agnostic):
        raise NotLearnedError(
            f"this learner must be told the task of an image; pass --task N, from 1 to {count}"
        )
    place = task - 1 if task is not None else (0 if count == 1 else None)
    predictions = []
    shape = learner.method.problem.input_shape
    for part in read_unlabelled(paths, shape, columns=learner.columns or ()):
        ranked = learner.ranked(part.images.numpy(), place, top)
        for name, best in zip(part.names, ranked, strict=True):
            shares = tuple(share for _, share in best if share is not None)
            predictions.append(Prediction(name, tuple(str(label) for label, _ in best), shares))
    return predictions


def _print_csv(predictions: list[Prediction]) -> None:
    from nispa.reading.cells import harmless

    most = max(len(prediction.classes) for prediction in predictions)
    table = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{head}_{place}" for place in range(1, most + 1) for head in ("class", "share")]
    table.writerow(["image", *(heads if most > 1 else ("class", "share"))])
    for prediction in predictions:
        shares = [f"{share:.6f}" for share in prediction.shares] or [""] * most
        classes = (harmless(name, numbers=True) for name in prediction.classes)
        cells = zip(classes, shares, strict=False)
        table.writerow([harmless(prediction.name), *itertools.chain.from_iterable(cells)])


def _print(predictions: list[Prediction]) -> None:
    from nispa.files import one_line

    width = min(60, max(len(one_line(prediction.name, 60)) for prediction in predictions))
    for prediction in predictions:
        shares = [f" {100 * share:.1f} %" for share in prediction.shares]
        parts = itertools.zip_longest(
            (one_line(name, 60) for name in prediction.classes), shares, fillvalue=""
        )
        click.echo(f"{one_line(prediction.name, 200):<{width}}  {', '.join(map(''.join, parts))}")
