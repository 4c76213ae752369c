"""What a run did, as entries of its record: its first form, a task's result, the record with it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nispa import __version__
from nispa.runs.capacity import warning
from nispa.runs.costs import total_cost
from nispa.data.scenarios import Scenario
from nispa.methods.defaults import sentence
from nispa.base.devices import choose_device
from nispa.errors import NotLearnedError
from nispa.runs.identity import code_digest
from nispa.kernels.dispatch import in_use
from nispa.methods.base import LearnReport, Method, Problem, derive
from nispa.network.models import NetworkSpec
from nispa.network.operations import Ledger, counting
from nispa.methods.presets import Settings
from nispa.runs.record import (
    ConnectionCount,
    DataEntry,
    Environment,
    InputEntry,
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
from nispa.data.tasks import Task
from nispa.runs.usage import Spent, peak_bytes


def first_record(scenario: Scenario, settings: Settings, method: Method) -> Record:
    """The record of a run that begins, with a method that has learned nothing yet."""
    census = method.census()
    return Record(
        version=__version__,
        status="running",
        started=now(),
        scenario=ScenarioEntry(name=scenario.name, settings=dict(scenario.settings)),
        data=tuple(
            DataEntry(
                name=data.name,
                canonical=data.canonical,
                sha256=data.sha256,
                source=data.source,
                note=data.note,
            )
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
        # Names of folders need not be text; what cannot be written becomes a question mark.
        class_names=tuple(name.encode(errors="replace").decode() for name in scenario.class_names),
        inputs=tuple(
            InputEntry(scale=task.train.scale, mean=task.train.mean, std=task.train.std)
            for task in scenario.tasks
        ),
        accuracy_matrix_task_agnostic=() if method.task_agnostic else None,
        parameters=Parameters(live=census.live, total=census.total),
        environment=environment(method.device),
        code=code_digest(),
        notes=_notes(scenario, method),
    )


def _derived(scenario: Scenario, settings: Settings) -> tuple[dict[str, Any], ...]:
    """What follows the data, for each task; nothing where no setting does."""
    if not settings.config.derived:
        return ()
    problem = Problem(scenario.input_shape, scenario.outputs, len(scenario.tasks))
    infos = [task.info for task in scenario.tasks]
    rehearses = settings.method_class.rehearses
    return tuple(
        derive(settings.config, settings.network, problem, task, infos[: task.index], rehearses)
        for task in scenario.tasks
    )


def derived_line(scenario: Scenario, settings: Settings) -> str:
    """What follows the data in one line; empty where no setting does."""
    tasks = _derived(scenario, settings)
    if not tasks:
        return ""
    network = NetworkSpec(settings.network, scenario.input_shape, scenario.outputs)
    return sentence(network.describe(), tasks)


def _notes(scenario: Scenario, method: Method) -> tuple[str, ...]:
    notes = [f"task {task.name}: {task.note}" for task in scenario.tasks if task.note]
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
    """What a task came to, once it is learned and measured.

    Args:
        method: What learned it, as it stands now.
        task: The task.
        report: What learning it reported.
        training: Time that it took.
        evaluation: Time that measuring took.
        ledger: Operations of it.
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
        inference_operations=_inference(method, task),
        train_cpu_s=training.cpu_s,
        eval_cpu_s=evaluation.cpu_s,
        peak_bytes=peak_bytes(),
    )


def with_task(
    record: Record,
    method: Method,
    result: TaskResult,
    row: list[float | None],
    agnostic: list[float | None],
) -> Record:
    """The record with one more task."""
    census = method.census()
    chance = [1.0 / len(task.classes) for task in record.tasks]
    matrix = (*record.accuracy_matrix, *as_rows([row]))
    per_task = (*record.per_task, result)
    changes: dict[str, Any] = {
        "accuracy_matrix": matrix,
        "metrics": measured(matrix, chance),
        "per_task": per_task,
        "cost": total_cost(per_task),
        "parameters": Parameters(live=census.live, total=census.total),
    }
    if record.accuracy_matrix_task_agnostic is not None:
        both = (*record.accuracy_matrix_task_agnostic, *as_rows([agnostic]))
        changes["accuracy_matrix_task_agnostic"] = both
        changes["metrics_task_agnostic"] = measured(both)
    return record.model_copy(update=changes)


def filling(record: Record) -> str:
    """Whether the network became full, or nearly so, with the last task; "" where nothing is new.

    It is no matter after the last task of all.
    """
    done = len(record.per_task)
    if done == len(record.tasks):
        return ""

    def units(task: int) -> dict[str, tuple[int, int]]:
        counts = record.per_task[task].stable_units if task >= 0 else {}
        return {name: (count.stable, count.size) for name, count in counts.items()}

    text = warning(units(done - 2), units(done - 1))
    return f"after task {done} of {len(record.tasks)} {text}" if text else ""


def task_end(record: Record, task: int) -> dict[str, Any]:
    """The event that a task is learned; metrics are those of the tasks so far."""
    result = record.per_task[task]
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


def _inference(method: Method, task: Task) -> int | None:
    """Operations of predicting one sample of a task, in the way that counts; None if not known.

    It is predicted by itself, after all tasks were measured: what a method computes once, such as
    means of exemplars, is then there.
    """
    told = method.config.incremental == "task" or not method.task_agnostic
    images, _ = task.test.to(method.device).batch(slice(0, 1))
    ledger = Ledger()
    try:
        with counting(ledger):
            method.predict(images, task.info if told else None)
    except NotLearnedError:
        return None
    found = ledger.known()
    return None if found is None else sum(found.values())


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
    """The processor's model, as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return platform.processor() or platform.machine()
