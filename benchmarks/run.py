"""A whole run: seconds per million training samples, validation and rewiring included.

    python -m benchmarks.run efmnist --data DIR --preset paper --tasks 1 --threads 2

The dense peak of the machine (a large matrix product) is measured before and after, so that runs on
different machines or days can be scaled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.timing import gflops, in_turn, medians, product
from nispa.data.named import build_scenario
from nispa.kernels.dispatch import in_use
from nispa.methods.base import LearnReport
from nispa.methods.presets import resolve
from nispa.runs.runner import Experiment


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
    settings = resolve(
        given.method,
        given.preset,
        given.scenario,
        scenario.input_shape,
        outputs=scenario.outputs,
        tasks=len(scenario.tasks),
    )
    method = Experiment(scenario, settings, given.seed).method()

    before = _peak()
    samples, taken = 0, 0.0
    for task in scenario.tasks[: given.tasks]:
        started = time.perf_counter()
        learning = method.learn(task)
        while True:
            try:
                next(learning)
            except StopIteration as end:
                report: LearnReport = end.value
                break
        seconds = time.perf_counter() - started
        samples, taken = samples + report.samples_trained, taken + seconds
        print(f"task {task.index}: {report.phases} phases, {seconds:.1f} s", flush=True)
    after = _peak()
    print(f"{samples:,} training samples in {taken:.1f} s: {taken / samples * 1e6:.1f} s a million")
    print(f"dense peak {before:.0f} GFLOP/s before, {after:.0f} after, {given.threads} threads")
    kernels = in_use()
    print(f"kernels {kernels.name}: {kernels.reason}")


def _peak() -> float:
    return gflops(medians(in_turn({"peak": product()}, 9))["peak"])


if __name__ == "__main__":
    main()
