"""The whole sweep: every number and picture of docs/performance.md.

    python -m benchmarks.performance            # measures, writes JSON, then the page
    python -m benchmarks.performance --quick    # a few cases, three rounds; page beside the JSON
    python -m benchmarks.performance --from runs/performance.json   # the page alone

Each case runs in a process of its own, so that none inherits memory or threads. To see a machine
with AVX2 on one with more, into a table of its own:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 NISPA_KERNELS=avx2 \
        python -m benchmarks.performance --no-compile --out runs/avx2.json --page runs/avx2.md
    python -m benchmarks.performance --from runs/performance.json --also runs/avx2.json

What ``torch.compile`` makes with PyTorch held to AVX2 so gives no number or ends in an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, startup
from benchmarks.networks import NETS, Case, Net
from benchmarks.others import PACKAGES, installed, probes
from benchmarks.page import write_page
from benchmarks.step import command_line
from nispa.kernels.dispatch import in_use
from nispa.runs.recording import environment

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
VARIABLES = ("NISPA_KERNELS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_WAIT_POLICY")
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
STABLE: dict[Net, tuple[float, float]] = {"convnet": (0.1, 0.7), "mlp": (0.2, 0.9)}
"""Density, and share of stable units."""
ALTERNATIVES: dict[Net, tuple[float, ...]] = {"convnet": (0.1, 0.02), "mlp": (0.2, 0.05, 0.01)}
MEMORY_DENSITY = 0.1


def cases(threads: Sequence[int], *, quick: bool = False) -> list[Case]:
    """What is timed against masked PyTorch.

    Args:
        threads: Thread counts.
        quick: Three densities and three rounds.
    """
    rounds = 3 if quick else 9
    densities = DENSITIES[::2] if quick else DENSITIES
    found = []
    for count in threads:
        for net, (_, _, batch, _) in NETS.items():
            found += [
                Case(net, density, batch, threads=count, rounds=rounds) for density in densities
            ]
            density, stable = STABLE[net]
            found += [
                Case(net, density, batch, stable, cache, count, rounds) for cache in (True, False)
            ]
    return found


def alternatives(threads: int, *, quick: bool = False) -> list[Case]:
    """What is timed against everything else, too."""
    rounds = 3 if quick else 9
    return [
        Case(net, density, NETS[net][2], threads=threads, rounds=rounds)
        for net, densities in ALTERNATIVES.items()
        for density in densities[:1] + (() if quick else densities[1:])
    ]


def measure(threads: Sequence[int], *, quick: bool, compiling: bool) -> dict[str, Any]:
    """Runs everything; see ``page.py`` for what is made of it.

    Args:
        threads: Thread counts; the first is used where only one is.
        quick: Fewer cases and rounds.
        compiling: Whether to time what compiles, too.
    """
    rounds = 3 if quick else 9
    usual = threads[0]
    found: dict[str, Any] = describe() | {"quick": quick, "rounds": rounds}
    found["steps"] = [step(case) for case in cases(threads, quick=quick)]
    found["alternatives"] = [
        step(case, "--others", "--compile" if compiling else "--no-compile")
        for case in alternatives(usual, quick=quick)
    ]
    found["kernels_alone"] = [
        child("kernels", f"--threads={count}", f"--rounds={rounds}", "--json", threads=count)
        for count in threads
    ]
    wanted = (f"--density={MEMORY_DENSITY}", f"--threads={usual}")
    found["memory"] = [child("memory", what, *wanted, threads=usual) for what in memory.WHAT]
    found["startup"] = startup.measure()
    return found


def describe() -> dict[str, Any]:
    """What the numbers depend on."""
    here = environment()
    return {
        "nispa": here.nispa,
        "python": here.python,
        "torch": here.torch,
        "numpy": here.numpy,
        "cpu": here.cpu,
        "platform": here.platform,
        "kernels": dataclasses.asdict(in_use()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": {name: installed(name) for name in PACKAGES},
        "probes": probes(),
    }


def step(case: Case, *more: str) -> dict[str, Any]:
    """One case of ``step.py``."""
    return child("step", *command_line(case), "--json", *more, threads=case.threads)


def child(module: str, *arguments: str, threads: int) -> dict[str, Any]:
    """The JSON that a benchmark prints last, run in a process with so many threads.

    Raises:
        subprocess.CalledProcessError: It failed; what it said went to stderr.
    """
    started = time.perf_counter()
    print(f"{module} {' '.join(arguments)}", end="", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="a few cases, three rounds")
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: not with --quick"
    )
    made.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    made.add_argument("--out", type=Path, default=Path("runs/performance.json"))
    made.add_argument("--page", type=Path, help="default: in docs/; with --quick, beside --out")
    made.add_argument("--from", dest="measured", type=Path, help="measured before: only the page")
    made.add_argument("--also", type=Path, nargs="*", default=[], help="other instruction sets")
    return made


def main() -> None:
    """Measures, unless told not to, and writes the page."""
    given = parser().parse_args()
    if given.measured is None:
        threads = given.threads[:1] if given.quick else given.threads
        compiling = not given.quick if given.compile is None else given.compile
        results = measure(threads, quick=given.quick, compiling=compiling)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")
    else:
        results = json.loads(given.measured.read_text())
    page = given.page or (given.out.with_suffix(".md") if given.quick else PAGE)
    text = PAGE.read_text()  # elsewhere, too, the text around the tables is the same
    write_page(page, text, [results, *(json.loads(path.read_text()) for path in given.also)])
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
