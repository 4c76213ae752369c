"""Builds the entries of a run's record: the first record, a task's result, the record with it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nispa import __version__
from nispa.base.devices import choose_device
from nispa.data.intake import unscaled
from nispa.data.scenarios import Scenario
from nispa.data.tasks import Task
from nispa.errors import NotLearnedError
from nispa.kernels.dispatch import in_use
from nispa.methods.base import LearnReport, Method, Problem, derive
from nispa.methods.defaults import sentence
from nispa.methods.presets import Settings
from nispa.network.models import NetworkSpec
from nispa.network.operations import Ledger, counting
from nispa.runs.capacity import growth, units_after, warning
from nispa.runs.costs import total_cost
from nispa.runs.identity import code_of
from nispa.runs.record import (
    ConnectionCount,
    DataEntry,
    Environment,
    InputEntry,
    MetricValue,
    Parameters,
    Record,
    ScenarioEntry,
    TaskEntry,
    TaskResult,
    UnitCount,
    as_rows,
    measured,
    now,
)
from nispa.runs.usage import Spent, peak_bytes

MOST_COLUMNS = 10_000
"""Most names of columns that a record holds."""


def first_record(scenario: Scenario, settings: Settings, method: Method) -> Record:
    """The record of a run whose method has not learned a task yet."""
    census = method.census()
    return Record(
        version=__version__,
        status="running",
        started=now(),
        scenario=ScenarioEntry(name=scenario.name, settings=dict(scenario.settings)),
        data=tuple(
            DataEntry(**{name: getattr(data, name) for name in DataEntry.model_fields})
            for data in scenario.identity
        ),
        method=settings.method,
        preset=settings.preset,
        seed=method.seed,
        incremental=settings.config.incremental,
        config=settings.as_json(),
        derived=_derived(scenario, settings),
        tasks=tuple(
            TaskEntry(
                name=task.name,
                classes=task.classes,
                train=len(task.train),
                validation=len(task.validation),
                test=len(task.test),
            )
            for task in scenario.tasks
        ),
        # Folder names may hold bytes that are not text; those become question marks.
        class_names=tuple(name.encode(errors="replace").decode() for name in scenario.class_names),
        input_shape=scenario.input_shape,
        columns=scenario.columns if len(scenario.columns) <= MOST_COLUMNS else (),
        inputs=tuple(
            InputEntry(scale=task.train.scale, mean=task.train.mean, std=task.train.std)
            for task in scenario.tasks
        ),
        accuracy_matrix_task_agnostic=() if method.task_agnostic else None,
        parameters=Parameters(live=census.live, total=census.total),
        environment=environment(method.device),
        code=code_of(settings.network.architecture),
        notes=_first_notes(scenario, method),
    )


def _derived(scenario: Scenario, settings: Settings) -> tuple[dict[str, Any], ...]:
    """Settings derived from the data, for each task; empty if none is."""
    if not settings.config.derived:
        return ()
    problem = Problem(scenario.input_shape, scenario.outputs, len(scenario.tasks))
    infos = [task.info for task in scenario.tasks]
    method = settings.method_class
    return tuple(
        derive(
            settings.config,
            settings.network,
            problem,
            task,
            infos[: task.index],
            method.rehearses,
            method.own_heads,
        )
        for task in scenario.tasks
    )


def derived_line(scenario: Scenario, settings: Settings) -> str:
    """Settings derived from the data, in one line; empty if none is."""
    tasks = _derived(scenario, settings)
    if not tasks:
        return ""
    network = NetworkSpec(settings.network, scenario.input_shape, scenario.outputs)
    return sentence(network.describe(), tasks)


def _first_notes(scenario: Scenario, method: Method) -> tuple[str, ...]:
    notes = [f"task {task.name}: {task.note}" for task in scenario.tasks if task.note]
    first = scenario.tasks[0].train
    if first.mean is None and (doubt := unscaled(first)):
        notes.append(doubt)
    if scenario.settings.get("measured") == "validation":
        notes.insert(0, "accuracies were measured on validation images")
    if method.unreached:
        names = [scenario.class_names[output] for output in method.unreached[:10]]
        more = f" and {len(method.unreached) - 10} more" if len(method.unreached) > 10 else ""
        notes.append(
            f"the network began without a path from the input to {len(method.unreached)} of "
            f"{scenario.outputs} outputs (classes {', '.join(names)}{more}): at "
            f"density={method.network_config.density:g} it is too sparse, or its layers too small"
        )
    return tuple(notes)


def task_result(
    method: Method,
    task: Task,
    report: LearnReport,
    training: Spent,
    evaluation: Spent,
    ledger: Ledger,
) -> TaskResult:
    """The record's entry for a task.

    Args:
        method: The method after the task.
        task: The task.
        report: What ``learn`` returned.
        training: Time of learning.
        evaluation: Time of measuring.
        ledger: Operations counted while learning.
    """
    census = method.census()
    return TaskResult(
        phases=report.phases,
        samples_trained=report.samples_trained,
        train_s=training.wall_s,
        eval_s=evaluation.wall_s,
        tau=report.tau,
        stop_reason=report.stop_reason,
        stable_units={
            group: UnitCount(stable=stable, size=size)
            for group, (stable, size) in census.stable.items()
        },
        connections={
            layer: ConnectionCount(
                live=live, frozen=frozen, total=total, owed=census.owed.get(layer, 0)
            )
            for layer, (live, frozen, total) in census.connections.items()
        },
        storage=dict(census.storage),
        live=census.live,
        model_bytes=census.model_bytes,
        operations=ledger.known(),
        inference_operations=_inference_operations(method, task),
        train_cpu_s=training.cpu_s,
        eval_cpu_s=evaluation.cpu_s,
        peak_bytes=peak_bytes(),
        online_accuracy=report.online_accuracy,
    )


def with_task(
    record: Record,
    method: Method,
    result: TaskResult,
    told: list[float | None],
    untold: list[float | None],
    note: str = "",
) -> Record:
    """Returns the record with one more task, and notes if it failed, or filled the network.

    Args:
        record: The record before the task.
        method: The method after it.
        result: The task's entry.
        told: Accuracy on each task, the method being told which; None where not measured.
        untold: The same without being told.
        note: A remark about the task; empty for none.
    """
    census = method.census()
    chance = [1.0 / len(task.classes) for task in record.tasks]
    matrix = (*record.accuracy_matrix, *as_rows([told]))
    per_task = (*record.per_task, result)
    changes: dict[str, Any] = {
        "accuracy_matrix": matrix,
        "metrics": measured(matrix, chance),
        "per_task": per_task,
        "cost": total_cost(per_task),
        "parameters": Parameters(live=census.live, total=census.total),
    }
    if record.accuracy_matrix_task_agnostic is not None:
        both = (*record.accuracy_matrix_task_agnostic, *as_rows([untold]))
        changes["accuracy_matrix_task_agnostic"] = both
        changes["metrics_task_agnostic"] = measured(both)
    online = online_accuracy(per_task)
    for name in ("metrics", "metrics_task_agnostic") if online else ():
        if name in changes:
            changes[name] = {**changes[name], "online": online}
    longer = record.model_copy(update=changes)
    notes = [text for text in (note, growth_note(longer), capacity_note(longer)) if text]
    return longer.model_copy(update={"notes": (*record.notes, *notes)}) if notes else longer


def online_accuracy(per_task: Sequence[TaskResult]) -> MetricValue | None:
    """The mean online accuracy of tasks; None unless it was measured for all."""
    found = [task.online_accuracy for task in per_task]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(found):
        return None
    return MetricValue(
        value=sum(known) / len(known),
        formula="mean over tasks of the share of training images told right just before they are "
        "first learned",
        source="Dohare et al. 2024",
    )


def growth_note(record: Record) -> str:
    """A note if the network grew before the last task."""
    units = [units_after(result) for result in record.per_task[-2:]]
    text = growth(units[0], units[1]) if len(units) == 2 else ""
    return f"before task {len(record.per_task)} of {len(record.tasks)} {text}" if text else ""


def capacity_note(record: Record) -> str:
    """A note if the last task made the network full, or nearly so, and more tasks follow.

    Where the network grows when it is full, there is none.
    """
    done = len(record.per_task)
    method = record.config.get("method")
    grows = isinstance(method, dict) and method.get("grow_when_full")
    if done == len(record.tasks) or grows:
        return ""
    units = [units_after(result) for result in record.per_task[-2:]]
    text = warning(units[-2] if done > 1 else {}, units[-1])
    return f"after task {done} of {len(record.tasks)} {text}" if text else ""


def class_labels(record: Record, method: Method) -> list[list[Any]]:
    """Names of the learned classes, a list per task; as integers if all names are integers."""
    names: list[Any] = list(record.class_names)
    if all(name.isascii() and name.isdecimal() and name == str(int(name)) for name in names):
        names = [int(name) for name in names]
    names += range(len(names), method.problem.outputs)  # records of older versions have no names
    return [[names[output] for output in task.classes] for task in method.learned]


def task_end(record: Record) -> dict[str, Any]:
    """The event that the record's last task is learned, with metrics over the tasks so far."""
    task, result = len(record.per_task) - 1, record.per_task[-1]
    rows = [row[: task + 1] for row in record.main_matrix]
    metrics = measured(rows)
    return {
        "event": "task_end",
        "task": task,
        "accuracies": rows[-1],
        "mean_accuracy": metrics["acc"].value,
        "forgetting": metrics["forgetting"].value,
        "stable": {group: count.stable for group, count in result.stable_units.items()},
        "live": sum(layer.live for layer in result.connections.values()),
        "frozen": sum(layer.frozen for layer in result.connections.values()),
    }


def _inference_operations(method: Method, task: Task) -> int | None:
    """Operations of predicting one test sample the way the main matrix does; None if unknown.

    Call it after all tasks were measured: by then a method has computed what it computes once,
    such as class means.
    """
    told = method.config.incremental == "task" or not method.task_agnostic
    images, _ = task.test.to(method.device).batch(slice(0, 1))
    ledger = Ledger()
    try:
        with counting(ledger):
            method.predict(images, task.info if told else None)
    except NotLearnedError:
        return None
    operations = ledger.known()
    return None if operations is None else sum(operations.values())


def environment(device: torch.device | None = None) -> Environment:
    """Versions, processor, threads, device and kernels of this process."""
    device = device or choose_device("cpu")
    name = str(device)
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return Environment(
        nispa=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        cpu=_processor(),
        threads=torch.get_num_threads(),
        device=name,
        platform=platform.platform(),
        kernels=in_use().name,
    )


def _processor() -> str:
    """The processor's model name and number of cores."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return platform.processor() or platform.machine()
