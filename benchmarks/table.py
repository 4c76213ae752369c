"""Runs of one scenario as a Markdown table, a row per seed and the mean.

python -m benchmarks.table runs/efmnist-nispa-paper-s*
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from nispa.results import Record, read_record


def row(record: Record) -> list[float]:
    """Final accuracy of each task in per cent, and their mean."""
    final = [100 * value for value in record.accuracy_matrix[-1] if value is not None]
    return [*final, statistics.fmean(final)]


def cost(record: Record) -> float:
    """Seconds per million training samples, validation and rewiring included."""
    seconds = sum(task.train_s for task in record.per_task)
    return seconds / sum(task.samples_trained for task in record.per_task) * 1e6


def stable(record: Record) -> str:
    """Stable units of each group after each task."""
    return " · ".join(
        ",".join(str(units.stable) for units in task.stable_units.values())
        for task in record.per_task
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    records = sorted((read_record(run) for run in parser.parse_args().runs), key=lambda r: r.seed)
    names = " | ".join(task.name for task in records[0].tasks)
    print(f"| seed | {names} | mean | forgetting | phases | stable units after each task | s/M |")
    print("|---" * (len(records[0].tasks) + 6) + "|")
    for record in records:
        values = " | ".join(f"{value:.2f}" for value in row(record))
        phases = " ".join(str(task.phases) for task in record.per_task)
        forgetting = record.metrics["forgetting"].value
        print(
            f"| {record.seed} | {values} | {forgetting} | {phases} | {stable(record)} | "
            f"{cost(record):.1f} |"
        )
    columns = list(zip(*(row(record) for record in records), strict=True))
    if len(records) > 1:
        means = " | ".join(
            f"{statistics.fmean(column):.2f} ({statistics.stdev(column):.2f})" for column in columns
        )
        print(f"| mean (std) | {means} | | | | |")


if __name__ == "__main__":
    main()
