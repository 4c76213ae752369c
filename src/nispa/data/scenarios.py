"""Scenarios: immutable sequences of tasks, the same from the same seed on every machine."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor

from nispa.base.arguments import seed_of
from nispa.base.config import plain
from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.base.shapes import Shape, is_row
from nispa.data.dataset import DataIdentity, ImageData, listed, share_of
from nispa.data.tasks import Samples, Task
from nispa.errors import ScenarioError

EFMNIST_GROUPS = (10, 13, 13, 11)
VALIDATION = 0.1
PLAIN_DRAW = 100
"""From this many training images per class on, validation images are drawn from all at once."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """A sequence of tasks to learn one after another.

    Attributes:
        name: Its name, such as ``"split-digits"``.
        tasks: The tasks in order.
        outputs: Network outputs that all tasks together need.
        input_shape: The shape of one sample.
        class_names: The name of each output, in order.
        identity: The data sets behind the tasks.
        settings: JSON values that, with the same data, rebuild the same scenario.
        columns: Names of the columns that samples were read from, if they come from a table.
    """

    name: str
    tasks: tuple[Task, ...]
    outputs: int
    input_shape: Shape
    class_names: tuple[str, ...]
    identity: tuple[DataIdentity, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settings = plain(self.settings)
        if "seed" in settings:
            settings["seed"] = seed_of(settings["seed"])
        object.__setattr__(self, "settings", settings)

    def __len__(self) -> int:
        return len(self.tasks)


def on_validation(scenario: Scenario) -> Scenario:
    """The same tasks with validation images in place of test images, for choosing settings.

    Raises:
        ScenarioError: A task has no validation images.
    """
    for task in scenario.tasks:
        if not len(task.validation):
            raise ScenarioError(
                f"{task.title} has no validation images to measure on; give a share of them, "
                "such as validation=0.1"
            )
    tasks = tuple(replace(task, test=task.validation) for task in scenario.tasks)
    return replace(scenario, tasks=tasks, settings={**scenario.settings, "measured": "validation"})


def make_task(
    index: int,
    name: str,
    classes: Sequence[int],
    train: Samples,
    test: Samples,
    *,
    seed: int,
    validation: float = VALIDATION,
    names: Sequence[str] | None = None,
) -> Task:
    """A task whose validation images are drawn once from its training images.

    If each class has at least :data:`PLAIN_DRAW` images, they are drawn from all at once. Otherwise
    they are drawn by class: each gives its share, at least one if there are enough for all, and
    keeps at least one image to learn from.

    Args:
        index: Position in the sequence, from 0; the draw depends only on it and on ``seed``.
        name: Short label.
        classes: The outputs that the task uses.
        train: Training images, with labels among ``classes``.
        test: Test images, with labels among ``classes``.
        seed: The seed of the scenario.
        validation: Share of the training images, [0, 1), rounded down; 0 for none.
        names: The name of each output, for the task's note; by default its number.

    Raises:
        ScenarioError: The task has a single class, a class without training images, or no
            validation or test images.
    """
    if len(classes) < 2:
        raise ScenarioError(
            f"task {index} ({name}) has {len(classes)} class; a task needs at least 2"
        )
    if not isinstance(validation, SupportsFloat) or not 0.0 <= float(validation) < 1.0:
        raise ScenarioError(f"validation={validation} must be in [0, 1); 0.1 is usual")
    for kind, samples in (("training", train), ("test", test)):
        if not len(samples):
            raise ScenarioError(f"task {index} ({name}) has no {kind} images")
    counts = torch.bincount(train.labels, minlength=max(classes) + 1)
    for output in classes:
        if not counts[output]:
            raise ScenarioError(
                f"task {index} ({name}) has no training images for output {output}; leave that "
                "class out or give images"
            )
    held = draw_validation(train.labels, validation, seed=seed, index=index)
    if validation and not held.any():
        raise ScenarioError(
            f"task {index} ({name}) has {len(train)} training images, so validation={validation} "
            "leaves it no validation image; give more images, a larger share, or 0 for none"
        )
    without = sorted(set(classes) - set(train.labels[held].tolist())) if validation else []
    return Task(
        index=index,
        name=name,
        classes=tuple(sorted(classes)),
        train=train.subset(torch.nonzero(~held).flatten()),
        validation=train.subset(torch.nonzero(held).flatten()),
        test=test,
        note=_without_validation(without, counts, names),
    )


def draw_validation(labels: Tensor, share: float, *, seed: int, index: int) -> Tensor:
    """Selects the training images that become validation images; see :func:`make_task`.

    Args:
        labels: Class of each image, ``(n,)`` int64.
        share: Share to select, [0, 1).
        seed: Seed of the draw.
        index: Position of the task, on which the draw depends as well.

    Returns:
        ``(n,)`` bool.
    """
    wanted = share_of(share, len(labels))
    order = torch.randperm(len(labels), generator=stream(seed, "validation", index))
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order[:wanted]] = True
    classes, counts = labels.unique(return_counts=True)
    kept = labels[~held].unique().numel() == classes.numel()
    seen = labels[held].unique().numel() == classes.numel() or wanted < classes.numel()
    if int(counts.min()) >= PLAIN_DRAW and kept and seen:
        return held
    held = torch.zeros(len(labels), dtype=torch.bool)
    quotas = _quotas(counts.tolist(), share, wanted)
    for label, quota in zip(classes.tolist(), quotas, strict=True):
        rows = torch.nonzero(labels == label).flatten()
        drawn = torch.randperm(len(rows), generator=stream(seed, "validation", index, label))
        held[rows[drawn[:quota]]] = True
    return held


def _quotas(counts: Sequence[int], share: float, wanted: int) -> list[int]:
    """The number to hold out of each class: ``wanted`` in all, if every class can keep one.

    First one of each class, larger classes first; then from the classes furthest below their share.
    """
    quotas = [0] * len(counts)
    open_ = [(False, -share * count, place) for place, count in enumerate(counts) if count > 1]
    heapq.heapify(open_)
    while open_ and wanted > 0:
        wanted -= 1
        _, _, place = heapq.heappop(open_)
        quotas[place] += 1
        if quotas[place] < counts[place] - 1:
            heapq.heappush(open_, (True, quotas[place] - share * counts[place], place))
    return quotas


def _without_validation(outputs: Sequence[int], counts: Tensor, names: Sequence[str] | None) -> str:
    """Names the classes with too few images to validate on; empty if there are none."""
    if not outputs:
        return ""
    known = [names[output] if names else str(output) for output in outputs]
    each = [f"{name} ({int(counts[output])})" for name, output in zip(known, outputs, strict=True)]
    return (
        f"too few training images for one to validate on: class {listed(each)}; give more images, "
        "or a larger share"
    )


def select_classes(
    images: Tensor, labels: Tensor, classes: Sequence[int], outputs: Sequence[int], **how: Any
) -> Samples:
    """The images of the given classes, labelled with their network outputs.

    Args:
        images: The pool, ``(n, *shape)``; shared, never copied.
        labels: The class of each image, ``(n,)`` int64.
        classes: The classes to select.
        outputs: The output for each of ``classes``.
        how: Further fields of :class:`~nispa.data.tasks.Samples`, such as ``scale``.
    """
    table = torch.full((int(labels.max()) + 1 if labels.numel() else 1,), -1, dtype=torch.int64)
    for label, output in zip(classes, outputs, strict=True):
        if label < table.numel():
            table[label] = output
    numbers = table[labels]
    rows = torch.nonzero(numbers >= 0).flatten()
    return Samples(images=images, labels=numbers[rows], rows=rows, **how)


def channel_statistics(images: Tensor, scale: float) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of each channel over scaled ``(n, channels, ...)`` samples.

    A constant channel gets the deviation 1.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    within = (0, *range(2, images.dim()))
    for start in range(0, images.shape[0], 4096):
        values = images[start : start + 4096].to(torch.float64) * scale
        total += values.sum(within)
        squares += values.square().sum(within)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-12] = 1.0
    return {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}


def preparation(data: ImageData, normalise: bool) -> dict[str, Any]:
    """The scale, mean and deviation that turn stored samples into network inputs.

    Mean and deviation are per channel for images, and per feature for tables (rows of floats).
    """
    how: dict[str, Any] = {"scale": data.scale}
    if not normalise:
        return how
    images, features = data.train_images, data.shape[-1]
    if not is_row(data.shape):
        return how | channel_statistics(images, data.scale)
    if images.is_floating_point():
        return how | channel_statistics(images.reshape(-1, features, 1, 1), data.scale)
    found = channel_statistics(images.reshape(-1, 1, 1, features), data.scale)
    return how | {name: values * features for name, values in found.items()}


def group_classes(
    count: int,
    *,
    classes_per_task: int,
    class_order: Literal["natural", "seeded"] = "natural",
    seed: int = 0,
) -> list[list[int]]:
    """Classes 0 to ``count`` - 1 in groups; the last group takes the rest.

    Args:
        count: Number of classes.
        classes_per_task: Size of a group, at least 2.
        class_order: ``natural`` keeps their order, ``seeded`` shuffles them by the seed.
        seed: For ``seeded``.

    Raises:
        ScenarioError: A group would have a single class.
    """
    if classes_per_task < 2:
        raise ScenarioError(f"classes_per_task={classes_per_task} must be at least 2")
    if class_order not in ("natural", "seeded"):
        raise ScenarioError(f"class_order={class_order} must be natural or seeded")
    order = list(range(count))
    if class_order == "seeded":
        order = torch.randperm(count, generator=stream(seed, "class order")).tolist()
    groups = [
        order[start : start + classes_per_task] for start in range(0, count, classes_per_task)
    ]
    if groups and len(groups[-1]) < 2:
        raise ScenarioError(
            f"{count} classes with classes_per_task={classes_per_task} leave a last task of one "
            "class; choose another number, or give the tasks themselves"
        )
    return groups


@usual_modes()
def split(
    data: ImageData,
    *,
    classes_per_task: int = 2,
    tasks: Sequence[Sequence[int]] | None = None,
    class_order: Literal["natural", "seeded"] = "natural",
    seed: int = 0,
    validation: float = VALIDATION,
    normalise: bool = False,
    name: str = "split",
    task_names: Sequence[str] | None = None,
) -> Scenario:
    """Cuts the classes of one data set into tasks.

    Outputs are numbered by rising class. If all classes are used, output and class are the same
    number; if ``tasks`` leaves some out, the others are renumbered without gaps.

    Args:
        data: The data set.
        classes_per_task: Classes per task; the last may have fewer, but not one.
        tasks: The classes of each task instead; classes may be left out, but not used twice.
        class_order: ``natural``, or ``seeded`` to shuffle the classes; ignored with ``tasks``.
        seed: Determines the class order and the validation images.
        validation: Share of each task's training images that becomes validation, rounded down.
        normalise: Subtract the mean and divide by the deviation of all training images.
        name: The name of the scenario.
        task_names: Labels of the tasks; by default their classes, such as ``"0-1"``.

    Raises:
        ScenarioError: A class is unknown or used twice, or a task has a single class or no images.
    """
    if tasks is None:
        groups = group_classes(
            data.classes, classes_per_task=classes_per_task, class_order=class_order, seed=seed
        )
    else:
        groups = [list(group) for group in tasks]
    _check_groups(data, groups)
    used = sorted(label for group in groups for label in group)
    output_of = {label: output for output, label in enumerate(used)}
    how = preparation(data, normalise)
    names = tuple(data.class_names[label] for label in used)
    made = []
    for index, group in enumerate(groups):
        outputs = [output_of[label] for label in group]
        train = select_classes(data.train_images, data.train_labels, group, outputs, **how)
        test = select_classes(data.test_images, data.test_labels, group, outputs, **how)
        label = task_names[index] if task_names is not None else _task_name(group)
        share: dict[str, Any] = {"validation": validation, "names": names}
        made.append(make_task(index, label, outputs, train, test, seed=seed, **share))
    return Scenario(
        name=name,
        tasks=tuple(made),
        outputs=len(used),
        input_shape=data.shape,
        class_names=names,
        identity=(data.identity,),
        settings={
            "kind": "split",
            "dataset": data.name,
            "tasks": groups,
            "seed": seed,
            "validation": validation,
            "normalise": normalise,
        },
        columns=data.columns,
    )


def _task_name(group: Sequence[int]) -> str:
    ordered = sorted(group)
    if ordered == list(range(ordered[0], ordered[0] + len(ordered))):
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(str(label) for label in ordered)


def _check_groups(data: ImageData, groups: Sequence[Sequence[int]]) -> None:
    if not groups:
        raise ScenarioError("a scenario needs at least one task")
    owner: dict[int, int] = {}
    for index, group in enumerate(groups):
        if len(group) < 2:
            raise ScenarioError(
                f"task {index} has {len(group)} class{'' if len(group) == 1 else 'es'}; a task "
                "needs at least 2"
            )
        for label in group:
            if not 0 <= label < data.classes:
                raise ScenarioError(
                    f"task {index}: class {label} is unknown; {data.name} has the classes 0 to "
                    f"{data.classes - 1}"
                )
            if label in owner:
                raise ScenarioError(
                    f"class {label} is in task {owner[label]} and in task {index}; each class "
                    "belongs to one task"
                )
            owner[label] = index


def efmnist(
    emnist: ImageData,
    fashion: ImageData,
    *,
    seed: int = 0,
    validation: float = VALIDATION,
    normalise: bool = False,
    class_order: Literal["natural", "seeded"] = "natural",
) -> Scenario:
    """EFMNIST: 10, 13, 13 and 11 classes of EMNIST balanced, then Fashion-MNIST.

    The outputs 0 to 46 are EMNIST's classes, 47 to 56 those of Fashion-MNIST.

    Args:
        emnist: EMNIST balanced.
        fashion: Fashion-MNIST.
        seed: Determines the validation images, and a seeded order.
        validation: As in :func:`split`.
        normalise: As in :func:`split`.
        class_order: ``natural`` is the published one: classes as numbered. With ``seeded`` EMNIST's
            classes are shuffled before they are cut, and so are the five tasks.

    Raises:
        ScenarioError: A data set has another number of classes, or the images differ in shape.

    Source: Gurbuz and Dovrolis, "NISPA", ICML 2022 (its first benchmark).
    """
    needed = sum(EFMNIST_GROUPS)
    for data, classes in ((emnist, needed), (fashion, 10)):
        if data.classes != classes:
            raise ScenarioError(
                f"efmnist needs {classes} classes, but {data.name} has {data.classes}"
            )
    if emnist.shape != fashion.shape:
        raise ScenarioError(
            f"efmnist: {emnist.name} has images of {emnist.shape} but {fashion.name} of "
            f"{fashion.shape}; both must share one shape"
        )
    order = list(range(needed))
    if class_order == "seeded":
        order = torch.randperm(needed, generator=stream(seed, "class order")).tolist()
    ends = list(itertools.accumulate(EFMNIST_GROUPS))
    parts = [
        (emnist, sorted(order[end - size : end]), 0)
        for end, size in zip(ends, EFMNIST_GROUPS, strict=True)
    ]
    parts.append((fashion, list(range(fashion.classes)), needed))
    if class_order == "seeded":
        places = torch.randperm(len(parts), generator=stream(seed, "task order")).tolist()
        parts = [parts[place] for place in places]
    made = []
    for index, (data, group, first) in enumerate(parts):
        outputs = [first + label for label in group]
        how = preparation(data, normalise)
        train = select_classes(data.train_images, data.train_labels, group, outputs, **how)
        test = select_classes(data.test_images, data.test_labels, group, outputs, **how)
        label = f"emnist {_task_name(group)}" if data is emnist else "fashion-mnist"
        made.append(make_task(index, label, outputs, train, test, seed=seed, validation=validation))
    return Scenario(
        name="efmnist",
        tasks=tuple(made),
        outputs=needed + fashion.classes,
        input_shape=emnist.shape,
        class_names=emnist.class_names + fashion.class_names,
        identity=(emnist.identity, fashion.identity),
        settings={
            "kind": "efmnist",
            "seed": seed,
            "validation": validation,
            "normalise": normalise,
        }
        | ({} if class_order == "natural" else {"class_order": class_order}),
    )
