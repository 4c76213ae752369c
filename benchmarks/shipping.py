"""Size, latency and accuracy of a learned network, in nispa and as a file for ONNX Runtime.

Latency is processor time, which other programs disturb least: of one thread, in the fastest of some
rounds.

python -m benchmarks.shipping mlp|convnet|resnet18|vit DATA
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nispa import Learner
from nispa.data.named import build_scenario
from nispa.data.scenarios import Scenario
from nispa.deploy.onnx_file import onnx_runner

PHASES: dict[str, Any] = {"epochs_per_phase": 1, "settle_epochs": 1}
BRIEF: dict[str, Any] = {**PHASES, "max_phases": 3}
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mlp": ("efmnist", 2_000, {"max_phases": 3, "architecture": "mlp"}),
    "convnet": ("split-fashion-mnist", 500, {**BRIEF, "architecture": "convnet"}),
    "resnet18": (
        "split-fashion-mnist",
        500,
        {**PHASES, "model": "resnet18", "arguments": ("width=16",)},
    ),
    "vit": (
        "split-fashion-mnist",
        500,
        {**BRIEF, "model": "vit-tiny", "arguments": ("width=96", "heads=12", "blocks=3")},
    ),
}
"""Scenario, training images of each task, settings."""

BATCHES = (1, 256)
TESTED = 500  # images of each task
ROUNDS = 15

Predict = Callable[[Any], Any]


def learned(name: str, data: Path) -> tuple[Learner, Scenario]:
    """A learner that learned briefly, and its scenario."""
    known, images, settings = NETWORKS[name]
    scenario = build_scenario(known, seed=0, folder=data)
    learner = Learner(
        "nispa", input_shape=scenario.input_shape, classes=scenario.outputs, seed=0, **settings
    )
    for task in scenario.tasks:
        pixels, labels = task.train.batch(torch.arange(min(images, len(task.train))))
        learner.learn(pixels.numpy(), labels.numpy())
    return learner, scenario


def accuracy(predict: Predict, tasks: list[dict[str, Any]], scenario: Scenario) -> float:
    """The mean accuracy over tasks, told the task, on the first test images of each."""
    shares = []
    for task in tasks:
        of = scenario.tasks[task["task"]].test
        pixels, labels = of.batch(torch.arange(min(TESTED, len(of))))
        best = predict(pixels.numpy())[:, task["outputs"]].argmax(1)
        shares.append(float((np.array(task["labels"])[best] == labels.numpy()).mean()))
    return float(np.mean(shares))


def measure(name: str, data: Path) -> list[dict[str, Any]]:
    """A row for each form of a network."""
    learner, scenario = learned(name, data)
    network = learner.method.network_for(learner.method.learned[0]).eval()
    every: list[dict[str, Any]] = [
        {"task": task.index, "outputs": list(task.classes), "labels": learner.labels[task.index]}
        for task in learner.method.learned
    ]
    forms: dict[str, tuple[int, Predict, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.safetensors")
        learner.save(file)

        @torch.no_grad()
        def own(images: Any) -> Any:
            return network(torch.from_numpy(images)).numpy()

        forms["learner"] = file.stat().st_size, own, every
        for title, tasks in (("all tasks", None), ("first task", 0)):
            for int8 in (False, True):
                written = Path(folder, "network.onnx")
                told = learner.export(written, tasks, int8=int8)
                content = written.read_bytes()
                known = [dict(task) for task in every[: None if tasks is None else 1]]
                for task in known if tasks is not None else ():
                    task["outputs"] = list(range(len(task["labels"])))
                forms[f"{title}{', int8' * int8}"] = told.size_bytes, onnx_runner(content), known
    rows: dict[str, dict[str, Any]] = {
        form: {
            "network": name,
            "form": form,
            "KB": size / 1000,
            "accuracy": accuracy(run, tasks, scenario),
        }
        for form, (size, run, tasks) in forms.items()
    }
    for batch in BATCHES:
        images = torch.rand(batch, *scenario.input_shape).numpy()
        for _ in range(ROUNDS):  # in turn
            for form, (_, run, _) in forms.items():
                began = time.process_time()
                run(images)
                took = 1000 * (time.process_time() - began)
                best = rows[form].get(f"ms of {batch}", took)
                rows[form][f"ms of {batch}"] = min(best, took)
    return list(rows.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for row in measure(sys.argv[1], Path(sys.argv[2])):
        print(json.dumps(row), flush=True)
