"""How the samples of a run became its network's input: what its files keep of that."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from nispa.data.scenarios import Scenario
from nispa.data.standardise import UNCHANGED, Inputs, inputs_from
from nispa.data.tasks import Samples, Task
from nispa.errors import InputError
from nispa.methods.saving import Saved
from nispa.runs.folder import NETWORK
from nispa.runs.record import Record, read_record


def inputs_of(scenario: Scenario, learned: int) -> Inputs:
    """The preparation of the first tasks of a scenario, for the file of their network."""
    return Inputs(False, tuple(task.train.form for task in scenario.tasks[:learned]))


def recorded_inputs(path: Path, saved: Saved) -> tuple[Inputs, str]:
    """The preparation of a network's inputs, from its file or from the record beside it.

    Args:
        path: The file of the network.
        saved: Its content.

    Returns:
        The preparation; and a warning if the run prepared samples in a way that is not stored,
        otherwise an empty text.

    Raises:
        FormatError: The record is damaged.
    """
    record = None
    if path.name == NETWORK:
        with contextlib.suppress(InputError):
            record = read_record(path.parent)
    if record is None:
        return saved.inputs, ""
    settings = record.scenario.settings
    resolved = settings.get("resolved", settings)
    told = resolved if isinstance(resolved, dict) else {}
    inputs = saved.inputs or _from_record(record, saved)
    if told.get("kind") == "permuted":
        return inputs, "this run moved the pixels of each task: pass images in that order"
    if not inputs and told.get("normalise"):
        return inputs, (
            "this run normalised its images, and an older version did not keep how: pass images "
            "with the mean 0 and the deviation 1 that its training images got in each channel"
        )
    return inputs, ""


def _from_record(record: Record, saved: Saved) -> Inputs:
    """The preparation in a record, for a network file of before there was a place for it."""
    learned = len(saved.method.learned)
    forms = [entry.model_dump() for entry in record.inputs[:learned]]
    if len(forms) < learned or not any(form["mean"] or form["std"] for form in forms):
        return UNCHANGED
    values = {"standardise": False, "forms": forms, "tasks": list(range(learned))}
    return inputs_from(values, learned, saved.method.problem.input_shape)


def in_older_shape(scenario: Scenario) -> Scenario:
    """The same tasks with rows of features as (1, 1, features), as older runs hold them."""
    if len(scenario.input_shape) != 1:
        return scenario

    def change(samples: Samples) -> Samples:
        return replace(samples, images=samples.images[:, None, None])

    def changed(task: Task) -> Task:
        return replace(
            task,
            train=change(task.train),
            validation=change(task.validation),
            test=change(task.test),
        )

    return replace(
        scenario,
        tasks=tuple(changed(task) for task in scenario.tasks),
        input_shape=(1, 1, *scenario.input_shape),
    )
