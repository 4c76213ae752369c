"""Runs as Markdown tables: the seeds of one method one by one, or methods side by side.

python -m benchmarks.table runs/efmnist-nispa-paper-s*
python -m benchmarks.table --side-by-side runs/efmnist-*
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from nispa.runs.costs import cost_of
from nispa.runs.record import Record, read_record


def final(record: Record) -> list[float]:
    """Accuracy on each task after the last one in per cent, as the scenario's kind counts it."""
    return [100 * value for value in record.main_matrix[-1] if value is not None]


def cost(record: Record) -> float:
    """Seconds per million training samples, validation and rewiring included."""
    return seconds(record) / sum(task.samples_trained for task in record.per_task) * 1e6


def seconds(record: Record) -> float:
    """Seconds of learning all tasks."""
    return sum(task.train_s for task in record.per_task)


def live(record: Record) -> int:
    """Live parameters after the last task."""
    assert record.parameters is not None  # of another tool's matrix nothing else is known, too
    return record.parameters.live


def stable(record: Record) -> str:
    """Stable units of each group after each task."""
    return " · ".join(
        ",".join(str(units.stable) for units in task.stable_units.values())
        for task in record.per_task
    )


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """Mean and standard deviation, or nothing where a value is not defined."""
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    mean = f"{statistics.fmean(found):.{digits}f}"
    if len(found) == 1 or not any(found):
        return mean
    return f"{mean} ({statistics.stdev(found):.{digits}f})"


def by_seed(records: Sequence[Record]) -> list[str]:
    """A row per seed and the mean."""
    names = " | ".join(task.name for task in records[0].tasks)
    lines = [
        f"| seed | {names} | mean | forgetting | phases | stable units after each task | s/M |"
    ]
    lines.append("|---" * (len(records[0].tasks) + 6) + "|")
    rows = [[*final(record), statistics.fmean(final(record))] for record in records]
    for record, row in zip(records, rows, strict=True):
        values = " | ".join(f"{value:.2f}" for value in row)
        phases = " ".join(str(task.phases) for task in record.per_task)
        forgetting = record.main_metrics["forgetting"].value
        lines.append(
            f"| {record.seed} | {values} | {forgetting} | {phases} | {stable(record)} | "
            f"{cost(record):.1f} |"
        )
    if len(records) > 1:
        means = " | ".join(spread(column) for column in zip(*rows, strict=True))
        lines.append(f"| mean (std) | {means} | | | | |")
    return lines


def side_by_side(groups: dict[str, list[Record]]) -> list[str]:
    """A row per group of runs: means over their seeds, standard deviations behind."""
    lines = [
        "| run | seeds | accuracy, % | told the task | not told | forgetting | "
        "live parameters | kept beside, kB | training, GFLOP | prediction, kFLOP | training, s |",
        "|---" * 11 + "|",
    ]
    for name, records in groups.items():
        told = [_percent(record, "acc", told=True) for record in records]
        untold = [_percent(record, "acc", told=False) for record in records]
        main = told if records[0].incremental == "task" else untold
        costs = [cost_of(record) for record in records]
        training = _mean([each.train_operations for each in costs], 1e9)
        prediction = _mean([each.inference_operations for each in costs], 1e3)
        kept = [sum(record.per_task[-1].storage.values()) / 1000 for record in records]
        lines.append(
            f"| {name} | {len(records)} | {spread(main)} | {spread(told)} | {spread(untold)} | "
            f"{spread(_forgetting(record) for record in records)} | "
            f"{statistics.fmean(map(live, records)):,.0f} | "
            f"{statistics.fmean(kept):,.0f} | {training} | {prediction} | "
            f"{spread(map(seconds, records), 0)} |"
        )
    return lines


def _mean(counts: Sequence[int | None], unit: float) -> str:
    """The mean of what was counted, or nothing where nothing was."""
    found = [count for count in counts if count is not None]
    return f"{statistics.fmean(found) / unit:,.0f}" if found else "–"


def _percent(record: Record, metric: str, *, told: bool) -> float | None:
    metrics = record.metrics if told else record.metrics_task_agnostic or {}
    value = metrics[metric].value if metric in metrics else None
    return None if value is None else 100 * value


def _forgetting(record: Record) -> float | None:
    value = record.main_metrics["forgetting"].value
    return None if value is None else 100 * value


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument(
        "--side-by-side", action="store_true", help="a row for runs that differ in the seed alone"
    )
    given = parser.parse_args()
    read = sorted(((run, read_record(run)) for run in given.runs), key=lambda pair: pair[1].seed)
    if not given.side_by_side:
        print("\n".join(by_seed([record for _, record in read])))
        return
    print("\n".join(side_by_side(groups(read))))


def groups(runs: Sequence[tuple[Path, Record]]) -> dict[str, list[Record]]:
    """Runs that differ in nothing but the seed, by the name that their folders share."""
    found: dict[str, dict[str, list[Record]]] = {}
    for run, record in sorted(runs, key=lambda pair: str(pair[0])):
        name = re.sub(r"-s\d+(-[0-9a-f]{8})?$", "", run.name)
        config = json.dumps(record.config, sort_keys=True)
        found.setdefault(name, {}).setdefault(config, []).append(record)
    return {
        name + (f", variant {number}" if len(variants) > 1 else ""): records
        for name, variants in found.items()
        for number, records in enumerate(variants.values(), 1)
    }


if __name__ == "__main__":
    main()
