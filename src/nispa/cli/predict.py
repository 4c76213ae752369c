"""``nispa predict``: the classes of images by the network of a run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.options import whole_number
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
@click.argument("run", type=click.Path(readable=False, path_type=Path), metavar="RUN")
@click.argument(
    "images", nargs=-1, type=click.Path(readable=False, path_type=Path), metavar="IMAGES..."
)
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
    help="So many classes of each image, the likeliest first.",
)
@click.option("--csv", "as_csv", is_flag=True, help="As a table of comma-separated values.")
@click.option(
    "--device", default="cpu", metavar="NAME", show_default=True, help="As for nispa run."
)
def predict(
    run: Path, images: tuple[Path, ...], task: int | None, top: int, as_csv: bool, device: str
) -> None:
    """Predict the classes of IMAGES with the network in the folder RUN.

    IMAGES are image files, folders of them, or .npz and .npy files. They are prepared as those that
    the run learned from. The share beside a class says how sure the network is; it tends to be
    surer than it is right.
    """
    if not images:
        raise InputError(
            "no images given; pass files or a folder, such as: nispa predict RUN photos/"
        )
    from nispa.runs.prediction import Predictor

    found = Predictor(run, device).predict(images, task, top)
    if as_csv:
        _print_csv(found)
    else:
        _print(found)


def _print_csv(found: list[Prediction]) -> None:
    most = max(len(each.classes) for each in found)
    table = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{head}_{place}" for place in range(1, most + 1) for head in ("class", "share")]
    table.writerow(["image", *(heads if most > 1 else ("class", "share"))])
    for each in found:
        row = [each.name]
        for place, name in enumerate(each.classes):
            row += [name, f"{each.shares[place]:.6f}" if each.shares else ""]
        table.writerow(row)


def _print(found: list[Prediction]) -> None:
    from nispa.files import one_line

    width = min(60, max(len(one_line(each.name, 60)) for each in found))
    for each in found:
        parts = [
            one_line(name, 60) + (f" {100 * each.shares[place]:.1f} %" if each.shares else "")
            for place, name in enumerate(each.classes)
        ]
        click.echo(f"{one_line(each.name, 200):<{width}}  {', '.join(parts)}")
