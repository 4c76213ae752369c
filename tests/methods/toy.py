"""Toy tasks that every method can learn in a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nispa.base.config import build, describe
from nispa.base.seeding import stream
from nispa.data.tasks import Samples, Task
from nispa.methods import METHODS, method_class
from nispa.methods.base import Event, Learning, LearnReport, Method, Problem
from nispa.network.models import NetworkConfig
from nispa.training.pausing import FitBegin, FitPause

FREEZES = {name for name, method in METHODS.items() if method.forgets_nothing == "yes"}
"""Methods that must not forget anything."""

SIDE = 4
INPUT_SHAPE = (1, SIDE, SIDE)
CLASSES_EACH = 2


def toy_images(index: int, count: int, part: str) -> Samples:
    """Two easy classes: bright left or bright right, with noise and a shift per task."""
    generator = stream(7, "toy", index, part)
    labels = torch.arange(count) % CLASSES_EACH
    images = torch.randint(0, 60, (count, *INPUT_SHAPE), generator=generator)
    for label in range(CLASSES_EACH):
        column = (2 * label + index) % SIDE
        images[labels == label, :, :, column] += 160
    return Samples(images.to(torch.uint8), labels + index * CLASSES_EACH, scale=1 / 255)


def toy_task(index: int, count: int = 48) -> Task:
    """Task ``index`` with classes ``2 index`` and ``2 index + 1``."""
    classes = (index * CLASSES_EACH, index * CLASSES_EACH + 1)
    return Task(
        index,
        f"toy {index}",
        classes,
        toy_images(index, count, "train"),
        toy_images(index, 16, "validation"),
        toy_images(index, 32, "test"),
    )


def toy_domain(index: int, count: int = 48) -> Task:
    """Task ``index`` with classes 0 and 1: a toy task's images under the first one's labels."""
    task = toy_task(index, count)

    def relabelled(samples: Samples) -> Samples:
        return replace(samples, labels=samples.labels % CLASSES_EACH)

    return replace(
        task,
        classes=(0, 1),
        train=relabelled(task.train),
        validation=relabelled(task.validation),
        test=relabelled(task.test),
    )


def toy_problem(tasks: int = 3) -> Problem:
    """The problem of ``tasks`` toy tasks."""
    return Problem(INPUT_SHAPE, tasks * CLASSES_EACH, tasks)


NETWORKS: dict[str, dict[str, object]] = {
    "mlp": {"architecture": "mlp", "hidden": (16, 12), "density": 0.6},
    "convnet": {
        "architecture": "convnet",
        "channels": (4, 6),
        "fc": (8,),
        "density": 0.6,
    },
}


PHASES: dict[str, object] = {"epochs_per_phase": 4, "k": 6, "accuracy_drop": 5}
MEMORY: dict[str, object] = {"epochs": 20, "memory": 24}
DRAWN: dict[str, object] = {**MEMORY, "memory_batch": 8}
FAST: dict[str, dict[str, object]] = {
    "nispa": PHASES,
    "nispa-context": PHASES,
    **{key: {"epochs": 20, "strength": 1.0} for key in ("ewc", "ewc-online", "si")},
    **{key: {"epochs": 20, "strength": 0.01} for key in ("l2", "mas")},
    "hat": {"epochs": 20, "learning_rate": 0.2, "strength": 0.1, "rate_patience": None},
    "nispa-replay": {**PHASES, "memory": 24},
    "nice": {"epochs_per_phase": 4, "learning_rate": 0.03},
    "piggyback": {"epochs": 20, "mask_rate": 0.01},
    "spacenet": {"epochs": 20, "budget": (0.3,)},
    "supsup": {"epochs": 20, "learning_rate": 0.03},
    "rehearsal": MEMORY,
    "gem": MEMORY,
    "icarl": MEMORY,
    **dict.fromkeys(("er", "der", "derpp", "a-gem", "fdr"), DRAWN),
}


def toy_method(
    name: str,
    network: str = "mlp",
    *,
    seed: int = 0,
    tasks: int = 3,
    network_settings: dict[str, object] | None = None,
    device: torch.device | None = None,
    **settings: object,
) -> Method:
    """A method on a toy network, not started."""
    cls = method_class(name)
    fast: dict[str, object] = {"learning_rate": 0.01, "batch_size": 8}
    fast |= FAST.get(name, {"epochs": 20})
    return cls(
        toy_problem(tasks),
        build(NetworkConfig, NETWORKS[network] | (network_settings or {})),
        build(cls.config_class, fast | settings),
        seed=seed,
        device=device,
    )


def brief(name: str) -> dict[str, Any]:
    """Settings for tests to which it does not matter how well a task is learned."""
    known = {field.name for field in describe(method_class(name).config_class)}
    short = {"epochs": 2, "retrain_epochs": 1, "epochs_per_phase": 1, "max_phases": 3}
    return {key: value for key, value in short.items() if key in known}


def finish(learning: Learning) -> tuple[list[Event], LearnReport]:
    """Drives ``learn`` to its end."""
    events: list[Event] = []
    while True:
        try:
            event = next(learning)
        except StopIteration as end:
            return events, end.value
        if not isinstance(event, (FitBegin, FitPause)):
            events.append(event)


def accuracy_on(method: Method, task: Task) -> float:
    """Share of a task's test images predicted rightly, told the task."""
    images, labels = task.test.batch(slice(None))
    return float((method.predict(images, task.info) == labels).float().mean())


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit by bit."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
