"""NISPA beside the bounds: five methods on split-digits, two seeds, one table.

Run it with ``python examples/compare.py``. To finish in seconds it trains for less than half
as long as the preset says; the records stay in the folder that it prints.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from nispa.data.named import build_scenario
from nispa.methods.presets import resolve
from nispa.runs.folder import fresh_name
from nispa.runs.metrics import percent
from nispa.runs.record import read_record
from nispa.runs.runner import Experiment, TaskEnd, run

METHODS = {
    "finetune": "lower bound: nothing holds the old tasks",
    "nispa": "one network, task after task",
    "stl-iso": "a network per task, together as large as NISPA's",
    "stl": "a network per task, each as large as NISPA's",
    "joint": "upper bound: all data at once",
}
SEEDS = (0, 1)
SHORT = {"nispa": {"epochs_per_phase": 2}}  # the others: 6 epochs

root = fresh_name("runs", "compare")
found: dict[str, list[Path]] = {}
for method in METHODS:
    for seed in SEEDS:
        scenario = build_scenario("split-digits", seed=seed)
        given = SHORT.get(method, {"epochs": 6})
        settings = resolve(method, "default", scenario.name, scenario.input_shape, given)
        folder = root / f"{method}-s{seed}"
        print(f"{method}, seed {seed}:", end="", flush=True)
        for event in run(Experiment(scenario, settings, seed), folder):
            if isinstance(event, TaskEnd):
                print(f" {percent(event.accuracies[-1])}", end="", flush=True)
        print()
        found.setdefault(method, []).append(folder)

print(f"\nmean of {len(SEEDS)} seeds, in %\n")
print(f"{'method':<10}{'accuracy':>10}{'forgetting':>12}  what it is")
for method, folders in found.items():
    records = [read_record(folder) for folder in folders]
    means = {}
    for name in ("acc", "forgetting"):
        values = [record.metrics[name].value for record in records]
        means[name] = percent(mean(value for value in values if value is not None))
    print(f"{method:<10}{means['acc']:>10}{means['forgetting']:>12}  {METHODS[method]}")
print(f"\nrecords: {root}")
