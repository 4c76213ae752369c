"""How far the defaults come on data without a benchmark, beside networks for one task each.

    python -m benchmarks.defaults --data DIR --workers 2 --json defaults.json

For each data set and seed: NISPA without any setting; a network for each task (``stl``, the same
network and the same training, but no settings of its own) at eight learning rates, of which the one
that is best on the test images counts, which favours it; and NISPA with the settings that such data
got before there were rules, those of the benchmark with the most similar images. Of a data set some
images a class are drawn by the seed for training; all its test images are used.

What is in the JSON file is not done again; each result is written there as it comes, so a run may
be cut off and taken up. With ``--device cuda`` all workers share the device.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch

from benchmarks.run import report_of
from nispa.base.seeding import stream
from nispa.data.dataset import ImageData
from nispa.data.scenarios import Scenario, split
from nispa.data.sources import load
from nispa.data.tasks import Task
from nispa.errors import DivergedError
from nispa.files import write_atomic
from nispa.methods.base import Method
from nispa.methods.presets import resolve
from nispa.methods.tuned import tuned
from nispa.runs.runner import Experiment
from nispa.training.fit import EVALUATION_BATCH

LEARNING_RATES = (0.001, 0.003, 0.0003, 0.002, 0.0001, 0.005, 0.01, 0.03)


@dataclass(frozen=True)
class Row:
    """A data set of the suite.

    Attributes:
        name: What the table calls it.
        data: The data set, by its name or by its folder below ``--data``.
        a_task: Classes of each task.
        images: Training images a class; None for all. Two numbers: of the first and of the last
            class, falling evenly as a ratio in between.
        classes: The classes taken, from the first to before the second number; None for all.
        before: The benchmark whose settings such data got.
        heavy: Whether it takes long without an accelerator.
    """

    name: str
    data: str
    a_task: int
    images: int | tuple[int, int] | None = None
    classes: tuple[int, int] | None = None
    before: str = "efmnist"
    heavy: bool = False


LETTERS: Mapping[str, Any] = {"data": "emnist-balanced", "classes": (10, 47)}
TINY: Mapping[str, Any] = {"data": "tiny-imagenet-32", "a_task": 5, "before": "cifar10"}
ROWS = (
    Row("letters, 15 a class, 20 a task", a_task=20, images=15, **LETTERS),
    Row("letters, 15 a class, 5 a task", a_task=5, images=15, **LETTERS),
    Row("letters, 50 a class, 20 a task", a_task=20, images=50, **LETTERS),
    Row("letters, 50 a class, 5 a task", a_task=5, images=50, **LETTERS),
    Row("letters, 200 a class, 20 a task", a_task=20, images=200, heavy=True, **LETTERS),
    Row("letters, 200 a class, 5 a task", a_task=5, images=200, heavy=True, **LETTERS),
    Row("letters, ten tasks", "emnist-balanced", 2, 50, (10, 30)),
    Row("letters, unbalanced 1:20", "emnist-balanced", 5, (200, 10), (10, 20)),
    Row("fashion, 30 a class", "fashion-mnist", 2, 30),
    Row("fashion, 100 a class", "fashion-mnist", 2, 100),
    Row("fashion, two tasks", "fashion-mnist", 5, 100),
    Row("digits", "digits", 2, before="digits"),
    Row("mnist", "mnist", 2, heavy=True),
    Row("cifar10, 100 a class", "cifar10", 2, 100, before="cifar10"),
    Row("cifar10", "cifar10", 2, before="cifar10", heavy=True),
    Row("tiny-imagenet, 50 a class", images=50, classes=(0, 25), **TINY),
    Row("tiny-imagenet, 500 a class", images=500, classes=(0, 25), heavy=True, **TINY),
    Row("tiny-imagenet, ten tasks", images=100, classes=(50, 100), heavy=True, **TINY),
)
SINGLE = tuple(f"stl {rate:g}" for rate in LEARNING_RATES)
CONTESTANTS = ("nispa", *SINGLE, "before")
"""In the order in which they are run, so that what is cut off early still says something."""


@dataclass(frozen=True)
class Job:
    """One run."""

    row: Row
    contestant: str
    seed: int
    folder: Path
    device: str

    @property
    def key(self) -> str:
        """What the JSON file calls it."""
        return f"{self.row.name} | {self.contestant} | {self.seed}"


@functools.cache
def whole(name: str, folder: Path) -> ImageData:
    """A data set as it is; decoded once in a process and those forked from it."""
    own = folder / name
    given = own if name == "tiny-imagenet-32" else name
    return load(given, folder=folder, download=False)


def part(data: ImageData, row: Row, seed: int) -> ImageData:
    """The classes of a row, and some training images of each, drawn by the seed."""
    first, last = row.classes or (0, data.classes)
    train, test = [], []
    for label in range(first, last):
        rows = torch.nonzero(data.train_labels == label).flatten()
        order = torch.randperm(len(rows), generator=stream(seed, "images of a class", label))
        train.append(rows[order[: images_of(row, label - first, last - first)]].sort().values)
        test.append(torch.nonzero(data.test_labels == label).flatten())
    chosen, measured = torch.cat(train), torch.cat(test)
    return replace(
        data,
        name=row.name,
        train_images=data.train_images[chosen],
        train_labels=data.train_labels[chosen] - first,
        test_images=data.test_images[measured],
        test_labels=data.test_labels[measured] - first,
        class_names=data.class_names[first:last],
    )


def images_of(row: Row, place: int, classes: int) -> int | None:
    """Training images of the class at ``place``; None for all."""
    if not isinstance(row.images, tuple):
        return row.images
    first, last = row.images
    return round(first * math.exp(math.log(last / first) * place / (classes - 1)))


def settings_of(job: Job) -> tuple[str, str, dict[str, Any]]:
    """Method, preset and settings of a contestant."""
    if job.contestant == "nispa":
        return "nispa", "default", {}
    if job.contestant == "before":
        name = job.row.before
        found = tuned("default", name, "nispa")
        return "nispa", name, {**found.network, **found.method}
    return "stl", "default", {"learning_rate": float(job.contestant.removeprefix("stl "))}


def do(job: Job) -> tuple[str, dict[str, Any]]:
    """Runs a job."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = part(whole(job.row.data, job.folder), job.row, job.seed)
    scenario = split(data, classes_per_task=job.row.a_task, seed=job.seed)
    try:
        found = learn(job, scenario)
    except DivergedError as error:
        found = {"accuracy": 0.0, "note": str(error)}
    return job.key, {**found, "seconds": round(time.perf_counter() - started, 1)}


def learn(job: Job, scenario: Scenario) -> dict[str, Any]:
    """Learns all tasks, then measures each, told the task."""
    name, preset, given = settings_of(job)
    settings = resolve(
        name,
        preset,
        "",
        scenario.input_shape,
        given,
        outputs=scenario.outputs,
        tasks=len(scenario.tasks),
    )
    method = Experiment(scenario, settings, job.seed, job.device).method()
    reports = [report_of(method, task) for task in scenario.tasks]
    accuracies = [measure(method, task) for task in scenario.tasks]
    return {
        "accuracy": mean(accuracies),
        "tasks": [round(each, 4) for each in accuracies],
        "phases": [report.phases for report in reports],
        "stops": [report.stop_reason for report in reports],
    }


def measure(method: Method, task: Task) -> float:
    """Share of a task's test images that are told rightly."""
    test = task.test.to(method.device)
    right = sum(
        int((method.predict(images, task.info) == labels).sum())
        for images, labels in test.batches(EVALUATION_BATCH)
    )
    return right / len(test)


def done(jobs: Sequence[Job], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of jobs as they come."""
    if workers == 1:
        yield from map(do, jobs)
        return
    for job in jobs:  # what processes forked from this one share
        whole(job.row.data, job.folder)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(do, jobs)


def table(results: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table.

    Of the learning rates that were run on the most seeds, a row shows the one that NISPA is
    furthest behind, on the seeds that both were run with. Numbers in brackets count seeds.
    """
    yield "| data | NISPA, % | single-task, % | its rate | best of | ratio, % | before, % |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        by_seed = [of_seed(results, row, seed) for seed in range(100)]
        pairs = {name: shared(by_seed, name) for name in SINGLE}
        seeds = max(len(own) for own, _ in pairs.values())
        if not seeds:
            continue
        ratios = {
            name: mean(own) / mean(other)
            for name, (own, other) in pairs.items()
            if len(own) == seeds
        }
        best = min(ratios, key=lambda name: ratios[name])
        mine, before = ([by[name] for by in by_seed if name in by] for name in ("nispa", "before"))
        yield (
            f"| {row.name} | {counted(mine)} | {counted(pairs[best][1])} | "
            f"{best.removeprefix('stl ')} | {len(ratios)} | {100 * ratios[best]:.1f} | "
            f"{counted(before) if before else '–'} |"
        )


def shared(by_seed: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Accuracies of NISPA and of another contestant on the seeds that have both."""
    both = [by for by in by_seed if {"nispa", name} <= by.keys()]
    return [by["nispa"] for by in both], [by[name] for by in both]


def counted(accuracies: Sequence[float]) -> str:
    """The mean in per cent and, in brackets, how many there are."""
    return f"{100 * mean(accuracies):.2f} ({len(accuracies)})"


def of_seed(results: Mapping[str, Mapping[str, Any]], row: Row, seed: int) -> dict[str, float]:
    """The accuracies of a row and seed, by contestant."""
    keys = {name: f"{row.name} | {name} | {seed}" for name in CONTESTANTS}
    return {name: results[key]["accuracy"] for name, key in keys.items() if key in results}


def main() -> None:
    """Prints a line per run and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NISPA_DATA", ".")))
    parser.add_argument("--rows", nargs="+", metavar="TEXT", help="rows whose name has this text")
    parser.add_argument("--heavy", choices=("yes", "no", "only"), default="yes")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where results are kept")
    parser.add_argument("--show", action="store_true", help="print the table and run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for row in ROWS
        if (given.heavy == "yes" or row.heavy == (given.heavy == "only"))
        and (not given.rows or any(text in row.name for text in given.rows))
    ]
    results: dict[str, Any] = {}
    if given.json and given.json.exists():
        results = json.loads(given.json.read_text())
    jobs = [
        Job(row, contestant, seed, given.data, given.device)
        for seed in given.seeds
        for contestant in given.contestants
        for row in rows
        if not given.show
    ]
    for key, found in done([job for job in jobs if job.key not in results], given.workers):
        results[key] = found
        print(f"{key}: {100 * found['accuracy']:.2f} % in {found['seconds']:.0f} s", flush=True)
        if given.json:
            write_atomic(given.json, json.dumps(results, indent=1).encode())
    print("\n".join(table(results, rows)))


if __name__ == "__main__":
    main()
