"""``nispa predict``: classes of images, predicted by the network of a run."""

from __future__ import annotations

import csv
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.options import PATH, device_option, model_option, whole_number
from nispa.errors import InputError

if TYPE_CHECKING:
    from nispa.runs.prediction import Prediction

MAX_TOP = 1000
MAX_TASK = 100_000


@click.command(
    short_help="Predict the classes of images.",
    epilog="\b\nExamples:\n  nispa predict runs/animals photos/*.jpg --task 2\n"
    "  nispa predict runs/animals photos/ --top 3 --csv > found.csv",
)
@click.argument("run", type=PATH, metavar="RUN")
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
    """Predict the classes of IMAGES with the network in the folder RUN.

    IMAGES are image files, folders of them, or .npz and .npy files; for a run on a table or on
    series also .csv and .parquet files, which must have the run's columns. They are prepared like
    those that the run learned from. The share beside a class says how sure the network is, which
    is usually more than how often it is right.
    """
    del model  # known from here on
    if not images:
        raise InputError(
            "no images given; pass files or a folder, such as: nispa predict RUN photos/"
        )
    from nispa.runs.prediction import Predictor

    predictions = Predictor(run, device).predict(images, task, top)
    if as_csv:
        _print_csv(predictions)
    else:
        _print(predictions)


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
