"""Evens out features of unlike scales with what the first task shows.

Each channel of images and series, and each feature of tables, has a mean and a deviation over the
training samples of the first task. Every task, then and later, becomes ``(x - mean) / deviation``
with these same values: a later task changes nothing that was learned, and neither later tasks nor
validation and test samples are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nispa.base.shapes import Shape, is_row
from nispa.data.scenarios import Scenario
from nispa.data.tasks import Form, Samples, Task, form_of
from nispa.errors import DataError, FormatError, either

_VALUES = 1 << 22  # converted at a time


def statistics(samples: Samples) -> Form:
    """The form of samples that gives each channel or feature the mean 0 and the deviation 1.

    One that is the same in all samples keeps its scale. Samples are read in the order of the pool,
    without ``pixel_order``.
    """
    form = Form(samples.scale)
    width = samples.shape[-1 if is_row(samples.shape) else 0]

    size = max(1, _VALUES // math.prod(samples.shape))

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(samples), size):
            values = form(samples.in_pool(slice(start, start + size))).double()
            yield values.reshape(len(values), width, -1)

    count = len(samples) * (math.prod(samples.shape) // width)
    zeros = torch.zeros(width, dtype=torch.float64)
    mean = sum((values.sum((0, 2)) for values in parts()), zeros) / count
    spread = sum(((values - mean[:, None]).square().sum((0, 2)) for values in parts()), zeros)
    deviation = (spread / count).sqrt()
    # A sum of equal values is rounded, too, so that their deviation may not be quite 0.
    deviation[deviation <= 1e-9 * mean.abs()] = 1.0
    deviation[deviation == 0] = 1.0
    return Form(samples.scale, tuple(mean.tolist()), tuple(deviation.tolist()))


def prepared(task: Task, form: Form) -> Task:
    """The task with the mean and deviation of ``form`` in all its samples."""

    def change(samples: Samples) -> Samples:
        mean, std = _ordered(samples, form.mean), _ordered(samples, form.std)
        return replace(samples, mean=mean, std=std)

    return replace(
        task,
        train=change(task.train),
        validation=change(task.validation),
        test=change(task.test),
    )


def _ordered(samples: Samples, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Values per channel or feature, in the order in which the network reads a sample."""
    if values is None or samples.pixel_order is None or not is_row(samples.shape):
        return values  # the pixels of a channel stay in it
    return tuple(values[place] for place in samples.pixel_order.tolist())


def standardised(scenario: Scenario) -> Scenario:
    """The same tasks, standardised with the training samples of the first."""
    form = statistics(scenario.tasks[0].train)
    tasks = tuple(prepared(task, form) for task in scenario.tasks)
    return replace(scenario, tasks=tasks, settings={**scenario.settings, "standardise": True})


@dataclass(frozen=True)
class Inputs:
    """How a learner turns the samples that it is given into its network's input.

    Attributes:
        standardise: Whether the first task decides the mean and the deviation.
        forms: One for each task learned; empty if samples are used as they are.
    """

    standardise: bool = False
    forms: tuple[Form, ...] = ()

    def __bool__(self) -> bool:
        return self.standardise or any(form.mean or form.std for form in self.forms)

    def of(self, task: int | None, samples: Samples) -> Samples:
        """Samples as a task's own were prepared.

        Args:
            task: Its index; None if unknown, which only does if all were prepared alike.
            samples: As the caller gave them.

        Raises:
            DataError: The tasks were prepared in different ways.
        """
        if not self or not self.forms:
            return samples
        if task is None and len({(form.mean, form.std) for form in self.forms}) > 1:
            raise DataError(
                "the tasks come from data that were prepared in different ways; say which one with "
                f"{either('task=', '--task N')}"
            )
        form = self.forms[0 if task is None else task]
        scale = samples.scale
        if not samples.images.is_floating_point() and form.scale != 1.0:
            scale = form.scale  # whole numbers mean the same as in the training data
        return replace(samples, scale=scale, mean=form.mean, std=form.std)

    def with_task(self, task: Task) -> tuple[Inputs, Task]:
        """These inputs with one more task, and that task prepared as the one before.

        With ``standardise`` the first task is prepared by its own statistics.
        """
        if not self:
            return self, task
        form = self.forms[-1] if self.forms else statistics(task.train)
        made = replace(self, forms=(*self.forms, form))
        place = len(self.forms)
        return made, replace(
            task,
            train=made.of(place, task.train),
            validation=made.of(place, task.validation),
            test=made.of(place, task.test),
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; a form that several tasks share is kept once."""
        kinds = list(dict.fromkeys(self.forms))
        return {
            "standardise": self.standardise,
            "forms": [{"scale": f.scale, "mean": f.mean, "std": f.std} for f in kinds],
            "tasks": [kinds.index(form) for form in self.forms],
        }


UNCHANGED = Inputs()
"""Samples are used as they are."""


def inputs_from(values: Mapping[str, Any], tasks: int, shape: Shape) -> Inputs:
    """The inputs that :meth:`Inputs.as_json` gave.

    Args:
        values: JSON values; they may be anything.
        tasks: Number of tasks learned.
        shape: The shape of a sample.

    Raises:
        FormatError: They are no inputs of so many tasks of such samples.
    """
    try:
        kinds = [form_of(each, shape) for each in values["forms"]]
        forms = tuple(kinds[number] for number in values["tasks"] if number >= 0)
        standardise = values["standardise"]
        if type(standardise) is not bool or len(forms) != tasks or len(kinds) > tasks:
            raise ValueError(f"there must be one form for each of {tasks} tasks")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise FormatError(f"the preparation of inputs is damaged: {error}") from None
    return Inputs(standardise, forms)
