"""Records to test reports with; the numbers are made up, their shape is that of real runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nispa.runs.costs import total_cost
from nispa.runs.record import (
    ConnectionCount,
    DataEntry,
    Environment,
    MetricValue,
    Parameters,
    Record,
    ScenarioEntry,
    TaskEntry,
    TaskResult,
    UnitCount,
    measured,
)

ENVIRONMENT = Environment(
    nispa="0.1.0",
    python="3.12.4",
    torch="2.13.0+cpu",
    numpy="2.1.0",
    cpu="Example CPU",
    threads=2,
    device="cpu",
    platform="Linux-x86_64",
    kernels="reference",
)
SUBSET = DataEntry(
    name="emnist-balanced",
    canonical=False,
    sha256="ab" * 32,
    note="112,800 of 131,600 images: a subset",
)
FASHION = DataEntry(name="fashion-mnist", canonical=True, sha256="cd" * 32)


def record(**changes: Any) -> Record:
    """Two tasks, one of which lost an eighth; any field can be changed."""
    rows = [[0.75, 0.5], [0.625, 1.0]]
    values: dict[str, Any] = {
        "version": "0.1.0",
        "status": "complete",
        "started": "2022-06-18T09:30:00Z",
        "finished": "2022-06-18T09:31:00Z",
        "scenario": ScenarioEntry(name="split-digits", settings={"classes_per_task": 2}),
        "data": [DataEntry(name="digits", canonical=True, sha256="0" * 64)],
        "method": "nispa",
        "preset": "paper",
        "seed": 19,
        "config": {"density": 0.2, "optimizer": {"name": "adam", "lr": 0.01}, "hidden": [40, 30]},
        "tasks": [
            TaskEntry(name="0-1", classes=(0, 1), train=260, validation=28, test=72),
            TaskEntry(name="2-3", classes=(2, 3), train=259, validation=28, test=73),
        ],
        "accuracy_matrix": rows,
        "metrics": measured(rows, [0.5, 0.5]),
        "per_task": [
            TaskResult(
                phases=7,
                samples_trained=9100,
                train_s=1.5,
                eval_s=0.25,
                tau=0.9045,
                stop_reason="accuracy fell",
                stable_units={
                    "hidden1": UnitCount(stable=10, size=40),
                    "hidden2": UnitCount(stable=6, size=30),
                },
                connections={
                    "fc1": ConnectionCount(live=512, frozen=128, total=2560),
                    "head": ConnectionCount(live=60, frozen=12, total=300),
                },
            ),
            TaskResult(
                phases=12,
                samples_trained=15540,
                train_s=2.0,
                eval_s=0.5,
                tau=0.05,
                stop_reason="schedule ended",
                stable_units={
                    "hidden1": UnitCount(stable=20, size=40),
                    "hidden2": UnitCount(stable=30, size=30),
                },
                connections={
                    "fc1": ConnectionCount(live=512, frozen=256, total=2560),
                    "head": ConnectionCount(live=60, frozen=24, total=300),
                },
            ),
        ],
        "parameters": Parameters(live=652, total=2940),
        "environment": ENVIRONMENT,
    }
    values |= changes
    if "accuracy_matrix" in changes and "metrics" not in changes:
        chance = [1 / max(1, len(task.classes)) for task in values["tasks"]]
        values["metrics"] = measured(values["accuracy_matrix"], chance)
    return Record(**values)


COSTS: tuple[dict[str, Any], ...] = (
    {
        "live": 650,
        "model_bytes": 7_800,
        "operations": {"forward": 4_000_000, "weight_gradients": 2_000_000, "updates": 600_000},
        "inference_operations": 1_300,
        "train_cpu_s": 2.5,
        "eval_cpu_s": 0.5,
        "peak_bytes": 400_000_000,
    },
    {
        "live": 652,
        "model_bytes": 7_824,
        "operations": {"forward": 4_000_000, "replay": 1_400_000},
        "inference_operations": 1_304,
        "train_cpu_s": 3.5,
        "eval_cpu_s": 1.0,
        "peak_bytes": 300_000_000,
    },
)
"""What the two tasks of :func:`record` cost, made up: 6.6 and 5.4 million operations."""


def priced(base: Record | None = None, costs: Sequence[dict[str, Any]] = COSTS) -> Record:
    """A record whose tasks tell what they cost; of more tasks than costs, the last one holds on."""
    base = record() if base is None else base
    per_task = [
        task.model_copy(update={"storage": {"memory": 1_000}, **costs[min(k, len(costs) - 1)]})
        for k, task in enumerate(base.per_task)
    ]
    return base.model_copy(update={"per_task": tuple(per_task), "cost": total_cost(per_task)})


def _lower(learned: list[float], loss: float) -> list[list[float | None]]:
    """A lower triangle in which each later task takes the share ``loss`` of what was left."""
    return [
        [learned[j] * (1 - loss) ** (i - j) if j <= i else None for j in range(len(learned))]
        for i in range(len(learned))
    ]


def five_tasks(**changes: Any) -> Record:
    """NISPA on five tasks of uneven size, on data that are not the canonical ones."""
    classes = [range(10), range(10, 23), range(23, 36), range(36, 47), range(47, 57)]
    sizes = [(21600, 2400, 1000), (15591, 1732, 1300), (17487, 1943, 1300), (15348, 1705, 1100)]
    sizes.append((54000, 6000, 10000))
    names = ["emnist-0", "emnist-1", "emnist-2", "emnist-3", "fashion-mnist"]
    tasks = [
        TaskEntry(name=name, classes=tuple(group), train=size[0], validation=size[1], test=size[2])
        for name, group, size in zip(names, classes, sizes, strict=True)
    ]
    stable = [(205, 240, 172), (300, 348, 302), (343, 391, 353), (374, 399, 371), (386, 399, 393)]
    values: dict[str, Any] = {
        "scenario": ScenarioEntry(name="efmnist"),
        "data": [SUBSET, FASHION],
        "seed": 0,
        "tasks": tasks,
        "accuracy_matrix": _lower([0.972, 0.8969, 0.9369, 0.8809, 0.8301], 0.0),
        "per_task": [
            TaskResult(
                phases=phases,
                samples_trained=phases * 5 * (task.train or 0),
                train_s=phases * 4.0,
                eval_s=0.5,
                tau=tau,
                stop_reason="accuracy fell",
                stable_units={
                    f"hidden{k + 1}": UnitCount(stable=count, size=400)
                    for k, count in enumerate(counts)
                },
                connections={
                    name: ConnectionCount(
                        live=total // 5, frozen=counts[0] * total // 2500, total=total
                    )
                    for name, total in (
                        ("fc1", 313600),
                        ("fc2", 160000),
                        ("fc3", 160000),
                        ("head", 22800),
                    )
                },
            )
            for phases, task, tau, counts in zip(
                (7, 8, 13, 15, 6), tasks, (0.93, 0.9, 0.7, 0.6, 0.95), stable, strict=True
            )
        ],
        "parameters": Parameters(live=132537, total=657657),
    }
    return record(**(values | changes))


def twenty_tasks(loss: float = 0.0, **changes: Any) -> Record:
    """Twenty tasks of five classes on a ConvNet with five hidden groups."""
    tasks = [
        TaskEntry(
            name="-".join(str(k * 5 + c) for c in range(5)),
            classes=tuple(k * 5 + c for c in range(5)),
            train=2250,
            validation=250,
            test=500,
        )
        for k in range(20)
    ]
    learned = [(70 + (k * 37) % 23) / 100 for k in range(20)]
    sizes = {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 128, "fc1": 1024}
    values: dict[str, Any] = {
        "scenario": ScenarioEntry(name="split-cifar100"),
        "data": [DataEntry(name="cifar100", canonical=True, sha256="ef" * 32)],
        "seed": 31415,
        "tasks": tasks,
        "accuracy_matrix": _lower(learned, loss),
        "per_task": [
            TaskResult(
                phases=5 + k % 9,
                samples_trained=2250 * 5 * (5 + k % 9),
                train_s=61.5 + k,
                eval_s=0.5,
                tau=0.5 + k / 50,
                stop_reason="accuracy fell",
                stable_units={
                    name: UnitCount(stable=int(size * (1 - 0.9 ** (k + 1 + n))), size=size)
                    for n, (name, size) in enumerate(sizes.items())
                },
            )
            for k in range(20)
        ],
        "parameters": Parameters(live=860_000, total=8_600_000),
    }
    return record(**(values | changes))


def finetune(**changes: Any) -> Record:
    """Plain fine-tuning on five tasks: no phases, no stable units, much forgotten."""
    base = five_tasks()
    values: dict[str, Any] = {
        "scenario": base.scenario,
        "data": base.data,
        "method": "finetune",
        "preset": None,
        "tasks": base.tasks,
        "accuracy_matrix": _lower([0.98, 0.9, 0.94, 0.9, 0.87], 0.3),
        "per_task": [
            TaskResult(phases=1, samples_trained=10 * (task.train or 0), train_s=3.0, eval_s=0.5)
            for task in base.tasks
        ],
        "parameters": Parameters(live=657657, total=657657),
    }
    return record(**(values | changes))


def without_metrics(value: Record) -> Record:
    """The same record with every metric undefined."""
    metrics = {
        name: MetricValue(value=None, formula=metric.formula, source=metric.source)
        for name, metric in value.metrics.items()
    }
    return value.model_copy(update={"metrics": metrics})
