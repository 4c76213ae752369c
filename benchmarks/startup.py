"""How long a fresh process takes to import the package, and to its first training step.

python -m benchmarks.startup
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.timing import medians

FIRST_STEP = """
import nispa
import torch
from nispa.network.models import NetworkConfig, build_network
from nispa.training.fit import Batch, OptimiserConfig, make_optimiser, network_step

network = build_network(NetworkConfig(), (1, 28, 28), 57, seed=0)
optimiser = make_optimiser(OptimiserConfig(), network.parameters())
step = network_step(network, torch.nn.functional.cross_entropy, optimiser)
labels = torch.zeros(128, dtype=torch.int64)
step(Batch(torch.rand(128, 1, 28, 28), labels, torch.arange(128), 1, 1))
"""

PROGRAMS = {
    "nothing": "",
    "import torch": "import torch",
    "import nispa": "import nispa",
    "import nispa, first training step of the MLP": FIRST_STEP,
}


def measure(runs: int = 5) -> dict[str, float]:
    """Median seconds from the start of a process to its end, by program, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(runs):
        for name, program in PROGRAMS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            seconds[name].append(time.perf_counter() - started)
    return medians(seconds)


if __name__ == "__main__":
    print(json.dumps(measure()))
