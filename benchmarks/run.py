"""A whole run: seconds per million training samples, validation and rewiring included.

    python -m benchmarks.run efmnist --data DIR --preset paper --tasks 1 --threads 2

The dense peak of the machine (a large matrix product) is measured before and after, so that runs on
different machines or days can be scaled.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.timing import gflops, in_turn, medians, product
from nispa.data.named import build_scenario
from nispa.data.scenarios import Scenario
from nispa.data.tasks import Task
from nispa.kernels.dispatch import in_use
from nispa.methods.base import LearnReport, Method
from nispa.methods.presets import resolve
from nispa.runs.runner import Experiment


@dataclass
class Learned:
    """What learning took: training samples, seconds, and phases of each task."""

    samples: int = 0
    seconds: float = 0.0
    phases: list[int] = field(default_factory=list)


def main() -> None:
    """Prints a line per task and one for the run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenario")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", default="nispa")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, help="stop after so many tasks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scenario = build_scenario(given.scenario, seed=given.seed, folder=given.data)
    before = _peak()
    found = learn(scenario, given.method, given.preset, given.seed, given.tasks, show=True)
    after = _peak()
    print(
        f"{found.samples:,} training samples in {found.seconds:.1f} s: "
        f"{found.seconds / found.samples * 1e6:.1f} s a million"
    )
    print(f"dense peak {before:.0f} GFLOP/s before, {after:.0f} after, {given.threads} threads")
    kernels = in_use()
    print(f"kernels {kernels.name}: {kernels.reason}")


def learn(
    scenario: Scenario,
    name: str,
    preset: str,
    seed: int,
    tasks: int | None = None,
    *,
    show: bool = False,
) -> Learned:
    """Learns the first tasks of a scenario, all by default; shows a line for each."""
    settings = resolve(
        name,
        preset,
        scenario.settings["scenario"],
        scenario.input_shape,
        outputs=scenario.outputs,
        tasks=len(scenario.tasks),
    )
    method = Experiment(scenario, settings, seed).method()
    found = Learned()
    for task in scenario.tasks[:tasks]:
        started = time.perf_counter()
        report = report_of(method, task)
        seconds = time.perf_counter() - started
        found.samples += report.samples_trained
        found.seconds += seconds
        found.phases.append(report.phases)
        if show:
            print(f"task {task.index}: {report.phases} phases, {seconds:.1f} s", flush=True)
    return found


def report_of(method: Method, task: Task) -> LearnReport:
    """Learns a task to its end."""
    learning = method.learn(task)
    while True:
        try:
            next(learning)
        except StopIteration as end:
            report: LearnReport = end.value
            return report


def _peak() -> float:
    return gflops(medians(in_turn({"peak": product()}, 9))["peak"])


if __name__ == "__main__":
    main()
