"""``nispa compact``: the network of a run as a file that needs no nispa."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import warnings_as_lines
from nispa.cli.options import PATH, model_option, whole_number
from nispa.cli.predict import MAX_TASK
from nispa.errors import InputError

if TYPE_CHECKING:
    from nispa.learner import Learner


def _numbers(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[int]:
    one = whole_number(1, MAX_TASK, f"[1, {MAX_TASK:,}]", "nispa show RUN numbers them")
    return [number for text in texts if (number := one(ctx, param, text)) is not None]


@click.command(
    short_help="Write a run's network to a file that needs no nispa.",
    epilog="\b\nExamples:\n  nispa compact runs/animals --to animals.onnx\n"
    "  nispa compact runs/animals --to small.onnx --task 2 --int8 --images photos/",
)
@click.argument("run", type=PATH, metavar="RUN")
@click.option(
    "--to", required=True, type=PATH, metavar="FILE", help="Ends in .onnx or .pt2 (torch.export)."
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    callback=_numbers,
    metavar="N",
    help="Only what this task needs, counted from 1; may be repeated.",
)
@click.option("--int8", is_flag=True, help="Round weights to 8 bits, a quarter of the size.")
@click.option(
    "--images",
    multiple=True,
    type=PATH,
    metavar="PATH",
    help="Check the file on these, as nispa predict takes them; may be repeated.",
)
@model_option("The function that the run was begun with, if it was: package.module:function.")
def compact(
    run: Path, to: Path, tasks: list[int], int8: bool, images: tuple[Path, ...], model: str | None
) -> None:
    """Write what predicts the tasks of RUN to a small file, checked against the run.

    RUN is the folder of a run, or a learner's file. The file holds the labels, the tasks, and how
    images are scaled; docs/howto/ship.md tells how to use it. ONNX needs pip install "nispa[onnx]".
    """
    from nispa.files import shown
    from nispa.learner import Learner

    with warnings_as_lines():
        learner = Learner.load(run, model=model)
    chosen = _chosen(learner, tasks)
    if sys.stderr.isatty():
        click.echo(f"writing and checking {shown(to)} …", err=True)
    told = learner.export(to, chosen, images=_read(learner, images), int8=int8)
    kind = f"{told.images:,} {'of the images given' if images else 'random images'}"
    click.echo(f"{shown(to)}: {told.size_bytes / 1000:,.0f} KB")
    if int8:
        click.echo(
            f"with rounded weights {100 * told.agreement:.2f} % of its predictions are the run's, "
            f"on {kind}"
        )
    else:
        click.echo(f"predicts as the run does, checked on {kind}")


def _chosen(learner: Learner, tasks: list[int]) -> list[int] | None:
    """The tasks as Python counts them; None for all."""
    learned = len(learner.tasks)
    for number in tasks:
        if number > learned:
            raise InputError(f"--task {number} is no learned task; learned are 1 to {learned}")
    return [number - 1 for number in tasks] or None


def _read(learner: Learner, paths: tuple[Path, ...]) -> Any:
    """The images, as a learner takes them; None if none are given."""
    if not paths:
        return None
    import numpy as np

    from nispa.data.unlabelled import read_unlabelled

    parts = read_unlabelled(
        paths, learner.method.problem.input_shape, columns=learner.columns or ()
    )
    kinds = {part.images.dtype for part in parts}
    if len(kinds) > 1:
        raise InputError("--images: some are bytes and some are floats; give one kind")
    return np.concatenate([part.images.numpy() for part in parts])
