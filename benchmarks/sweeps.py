"""How much of two processors a sweep of small runs uses.

    python -m benchmarks.sweeps --runs 20 --rounds 3

The same runs with one worker and with several, in turn, each into a new folder, start and end of
the worker processes included. With w workers a sweep that lost nothing would take a w-th of the
time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from nispa.sweep.backends import sweep
from nispa.sweep.jobs import Job, Where, prepare
from nispa.sweep.local import Local
from nispa.sweep.plan import Cell


def jobs_of(out: Path, runs: int) -> list[Job]:
    """Small runs: NISPA on the 8x8 digits, a seed each."""
    cells = [Cell("split-digits", "nispa", "default", seed) for seed in range(runs)]
    return prepare(cells, Where(out))


def seconds(runs: int, workers: int) -> float:
    """Wall time of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(Path(folder), runs)
        started = time.perf_counter()
        outcomes = [each for each in sweep(jobs, Local(workers)) if each is not None]
        taken = time.perf_counter() - started
    failed = [each.problem for each in outcomes if each.status != "done"]
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed: {failed[0]}")
    return taken


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    alone, together = [], []
    for _ in range(given.rounds):
        alone.append(seconds(given.runs, 1))
        together.append(seconds(given.runs, given.workers))
        print(f"1 worker {alone[-1]:.1f} s, {given.workers} {together[-1]:.1f} s", flush=True)
    shares = [a / (given.workers * t) for a, t in zip(alone, together, strict=True)]
    share = 100 * statistics.median(shares)
    print(f"{given.runs} runs: {share:.0f} % of {given.workers} times one worker's throughput")


if __name__ == "__main__":
    main()
