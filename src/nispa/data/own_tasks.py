"""Scenarios from a user's own arrays, one set per task."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from nispa.data.arrays import as_label_array, from_arrays, kind_of, longer, reach_of, shorter
from nispa.data.dataset import ImageData, sort_names
from nispa.data.scenarios import VALIDATION, Scenario, make_task, select_classes
from nispa.errors import DataWarning, ScenarioError


def from_tasks(
    tasks: Sequence[Sequence[Any]],
    *,
    seed: int = 0,
    validation: float = VALIDATION,
    shared_classes: bool | None = None,
    channels_first: bool | None = None,
    series: bool = False,
    name: str = "arrays",
    task_names: Sequence[str] | None = None,
) -> Scenario:
    """A scenario from a user's own list of tasks.

    Each task is ``(x_train, y_train)`` or ``(x_train, y_train, x_test, y_test)``; without test
    arrays the seed holds out a fifth of each class. See :func:`nispa.data.arrays.from_arrays` for
    the arrays. Outputs follow the sorted labels: tasks labelled 0, 1 and 2, 3 get the outputs 0, 1
    and 2, 3.

    Args:
        tasks: The tasks in order.
        seed: Determines the validation images, and the test images if none are given.
        validation: Share of each task's training images that becomes validation, rounded down.
        shared_classes: The meaning of a label that occurs in two tasks: True, one shared output;
            False, a separate output in each task; None, an error that asks.
        channels_first: See :func:`nispa.data.arrays.as_images`.
        series: See :func:`nispa.data.arrays.as_images`.
        name: The name of the scenario.
        task_names: Labels of the tasks; by default ``"task 0"``, ``"task 1"``, …

    Raises:
        DataError: Arrays cannot be used.
        ScenarioError: Tasks do not match, or one has a single class or no images.
    """
    if not tasks:
        raise ScenarioError("a scenario needs at least one task")
    parts = []
    for index, arrays in enumerate(tasks):
        if len(arrays) not in (2, 4):
            raise ScenarioError(
                f"task {index} has {len(arrays)} arrays; it must be (x_train, y_train) or "
                "(x_train, y_train, x_test, y_test)"
            )
        label = task_names[index] if task_names is not None else f"task {index}"
        layout: dict[str, Any] = {"channels_first": channels_first, "series": series}
        parts.append(from_arrays(*arrays, name=label, seed=seed, **layout))
        if parts[index].shape != parts[0].shape:
            raise ScenarioError(
                f"{label}: images of {parts[index].shape} but {parts[0].name} has "
                f"{parts[0].shape}; all tasks must share one shape"
            )
        _check_like_first(parts)
    kinds = {kind_of(as_label_array(arrays[1])) for arrays in tasks}
    if len(kinds) > 1 and shared_classes is not False:
        raise ScenarioError(
            "labels are whole numbers in some tasks and texts in others; use one kind, or pass "
            "shared_classes=False for separate outputs in each task"
        )
    tables, class_names = _number_outputs(parts, shared_classes)
    made = []
    for index, (part, outputs) in enumerate(zip(parts, tables, strict=True)):
        labels = range(part.classes)
        how = {"scale": part.scale}
        train = select_classes(part.train_images, part.train_labels, labels, outputs, **how)
        test = select_classes(part.test_images, part.test_labels, labels, outputs, **how)
        made.append(
            make_task(
                index,
                part.name,
                outputs,
                train,
                test,
                seed=seed,
                validation=validation,
                names=class_names,
            )
        )
    return Scenario(
        name=name,
        tasks=tuple(made),
        outputs=len(class_names),
        input_shape=parts[0].shape,
        class_names=class_names,
        identity=tuple(part.identity for part in parts),
        settings={
            "kind": "arrays",
            "seed": seed,
            "validation": validation,
            "shared_classes": bool(shared_classes),
        },
    )


def _check_like_first(parts: Sequence[ImageData]) -> None:
    """Warns if the newest task's images are in another range than those of the first."""
    reach, first = (reach_of(part.train_images) * part.scale for part in (parts[-1], parts[0]))
    text = (longer(reach, first) or shorter(reach, first)) if first else ""
    if text:
        warnings.warn(f"{parts[-1].name}: {text}", DataWarning, stacklevel=3)


def _number_outputs(
    parts: Sequence[ImageData], shared: bool | None
) -> tuple[list[list[int]], tuple[str, ...]]:
    """The output of each class of each task, and the names of the outputs."""
    if shared is False:
        tables: list[list[int]] = []
        names: list[str] = []
        for part in parts:
            tables.append(list(range(len(names), len(names) + part.classes)))
            names += part.class_names
        return tables, tuple(names)
    owner: dict[str, str] = {}
    for part in parts:
        for label in part.class_names:
            if label in owner and shared is None:
                raise ScenarioError(
                    f"label {label} occurs in {owner[label]} and in {part.name}; pass "
                    "shared_classes=True for one output, or False for one in each task"
                )
            owner[label] = part.name
    names = sort_names(owner)
    output_of = {label: output for output, label in enumerate(names)}
    return [[output_of[label] for label in part.class_names] for part in parts], tuple(names)
