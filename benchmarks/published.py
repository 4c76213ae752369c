"""Whole runs beside the authors' published code, in turn: seconds per million training samples.

    git clone https://github.com/BurakGurbuz97/NISPA published
    python -m benchmarks.published efmnist --repository published --data DIR --threads 2
    python -m benchmarks.published split-cifar10 --repository published --data DIR --tasks 1 \
        --phases 1 --threads 2

The authors' files run unchanged, with the settings of their scripts. Their loader needs packages
that this benchmark does without: in its place the same images, classes and validation images are
handed over that nispa learns. Each ends a task where its own rule says, so they are compared by
samples trained; ``--phases`` ends tasks of the published code earlier. Validation, selection and
rewiring count; reading files does not. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import run
from nispa.data.named import build_scenario
from nispa.data.scenarios import Scenario
from nispa.data.tasks import Samples, Task

CHUNK = 1000
COMMON = {
    "experiment_name": "benchmark",
    "experiment_note": "",
    "optimizer": "adam",
    "recovery_perc": 0.75,
    "phase_epochs": 5,
    "reinit": 1,
    "grow": 1,
    "p_step_size": "cosine",
    "step_size_param": 30.0,
    "grow_init": "normal",
    "rewire_algo": "full_random",
    "multihead": 1,
    "mask_outputs": 1,
}
"""Options of the published program in all its scripts."""
OPTIONS: dict[str, dict[str, Any]] = {
    "efmnist": {"model": "mlp", "prune_perc": 80.0, "batch_size": 512, "learning_rate": 0.01},
    "split-cifar10": {
        "model": "conv", "prune_perc": 90.0, "batch_size": 128, "learning_rate": 0.002,
    },
}  # fmt: skip
"""Those of one script each."""


class LastPhaseError(Exception):
    """As many phases were trained as were asked for."""


class Split:
    """Samples of a task as the published code reads them: one after the other."""

    def __init__(self, task: Task, samples: Samples) -> None:
        self._task, self._samples = task, samples

    def get_classes(self) -> list[int]:
        """The outputs of the task."""
        return list(self._task.classes)

    def get_sample(self, number: int) -> Tensor:
        """One image."""
        return self._samples.batch(torch.tensor([number]))[0][0]

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        for images, labels in self._samples.batches(CHUNK):
            for image, label in zip(images, labels.tolist(), strict=True):
                yield image, label, 0


class TaskSet:
    """The training images of a task, from which the published code sets validation images aside."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def get_classes(self) -> list[int]:
        """Its outputs."""
        return list(self.task.classes)


def stand_ins(repository: Path) -> None:
    """Makes the published code importable without the package that loads its data."""
    loader = types.ModuleType("continuum")
    tasks = types.ModuleType("continuum.tasks")
    tasks.split_train_val = lambda given, val_split: (  # type: ignore[attr-defined]
        Split(given.task, given.task.train),
        Split(given.task, given.task.validation),
    )
    loader.tasks = tasks  # type: ignore[attr-defined]
    sys.modules.update({"continuum": loader, "continuum.tasks": tasks})
    sys.path.insert(0, str(repository / "NISPA"))


def published(
    scenario: Scenario, repository: Path, seed: int, tasks: int, phases: int | None
) -> dict[str, Any]:
    """Samples, seconds and phases of the published code."""
    stand_ins(repository.resolve())
    learner: Any = importlib.import_module("NISPA.learner")
    options = argparse.Namespace(**COMMON, **OPTIONS[scenario.settings["scenario"]], seed=seed)
    shape = scenario.input_shape
    inputs = shape[0] if options.model == "conv" else int(torch.tensor(shape).prod())
    samples, trained = 0, 0
    train = learner.training_CL

    def counted(
        network: Any, loss: Any, optimiser: Any, loader: Any, *rest: Any, **named: Any
    ) -> Any:
        nonlocal samples, trained
        if phases is not None and trained == phases:
            raise LastPhaseError
        trained += 1
        samples += options.phase_epochs * len(loader.dataset)
        return train(network, loss, optimiser, loader, *rest, **named)

    learner.training_CL = counted
    of_each: list[int] = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)  # it writes a log
        Path("logs").mkdir()
        tests = [Split(task, task.test) for task in scenario.tasks]
        made = learner.Learner(options, inputs, scenario.outputs, None, tests)
        started = time.perf_counter()
        for number, task in enumerate(scenario.tasks[:tasks]):
            trained = 0
            with contextlib.suppress(LastPhaseError):
                made.task_train(number, TaskSet(task), None)
            of_each.append(trained)
        seconds = time.perf_counter() - started
        os.chdir(before)
    return {"samples": samples, "seconds": seconds, "phases": of_each}


def one(given: argparse.Namespace) -> dict[str, Any]:
    """A run of one of the two."""
    torch.set_num_threads(given.threads)
    scenario = build_scenario(given.scenario, seed=given.seed, folder=given.data)
    tasks = given.tasks or len(scenario.tasks)
    if given.one == "published":
        return published(scenario, given.repository, given.seed, tasks, given.phases)
    found = run.learn(scenario, "nispa", "paper", given.seed, tasks)
    return {"samples": found.samples, "seconds": found.seconds, "phases": found.phases}


def main() -> None:
    """Prints a line for each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", choices=sorted(OPTIONS))
    parser.add_argument("--repository", type=Path, required=True, help="the authors' repository")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, help="stop after so many tasks")
    parser.add_argument("--phases", type=int, help="of a task of the published code, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", choices=("published", "nispa"), help="run only that, print JSON")
    given = parser.parse_args()
    if not (given.repository / "NISPA" / "NISPA" / "learner.py").is_file():
        parser.error(f"--repository {given.repository}: NISPA/NISPA/learner.py is not in it")
    if given.one:
        print(json.dumps(one(given)))
        return
    ratios = []
    for number in range(given.rounds):
        rates: dict[str, list[float]] = {"nispa": [], "published": []}
        for name in ("nispa", "published", "nispa"):
            found = _process(name)
            rate = found["seconds"] / found["samples"] * 1e6
            rates[name].append(rate)
            print(
                f"round {number}, {name}: {found['samples']:,} samples, {found['seconds']:.1f} s, "
                f"phases {found['phases']}: {rate:.2f} s a million",
                flush=True,
            )
        ratios.append(rates["published"][0] / statistics.fmean(rates["nispa"]))
    print(f"{statistics.median(ratios):.1f} times as fast, {given.threads} threads")


def _process(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.published", *sys.argv[1:], "--one", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
