"""Tasks that a method refuses before it learns them: the checks that all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nispa.data.tasks import Task, TaskInfo
from nispa.errors import CapacityError, ScenarioError, either

if TYPE_CHECKING:
    from nispa.methods.base import Method, Problem


def check_fit(task: Task, problem: Problem) -> None:
    """Whether a task's images and classes fit the network, and are enough to learn from.

    Raises:
        ScenarioError: It has one class, or no training or validation images.
        CapacityError: Its images or classes do not fit the network.
    """
    if task.train.shape != problem.input_shape:
        raise CapacityError(
            f"{task.title}: images of shape {task.train.shape} do not fit the network, "
            f"which was built for {problem.input_shape}; all tasks must share one shape"
        )
    if max(task.classes) >= problem.outputs:
        raise CapacityError(
            f"{task.title} has class {max(task.classes)}, but the network has outputs 0 to "
            f"{problem.outputs - 1}; build it with more classes"
        )
    if len(task.classes) < 2:
        raise ScenarioError(f"{task.title} has one class; a task needs at least two")
    for part in ("train", "validation"):
        if len(getattr(task, part)) == 0:
            raise ScenarioError(
                f"{task.title} has no {part} images, which decide when to stop; "
                "pass a validation share above 0, such as 0.1"
            )


def check_classes(method: Method, task: Task, earlier: Sequence[TaskInfo]) -> None:
    """Whether a task's classes are new, or the same again, as ``incremental`` demands.

    Raises:
        ScenarioError: They are not.
    """
    seen = {label for info in earlier for label in info.classes}
    again, incremental = sorted(seen & set(task.classes)), method.config.incremental
    if again and (incremental == "class" or not method.shares_classes):
        fix = (
            f"tasks that share their classes are learned with {_option('domain')}"
            if incremental == "class" and "domain" in method.incremental
            else "give each task outputs of its own"
        )
        raise ScenarioError(
            f"{task.title} has classes seen before ({', '.join(map(str, again))}), which "
            f"method '{method.name}' cannot learn again; {fix}"
        )
    if incremental == "domain" and earlier and set(task.classes) != seen:
        raise ScenarioError(
            f"{task.title} has other classes than the tasks before; with "
            f"{_option('domain')} all tasks share theirs; pass {_option('class')} for new ones"
        )


def _option(incremental: str) -> str:
    """How a user passes a value of ``incremental``, in Python or on the command line."""
    return either(f"incremental='{incremental}'", f"--incremental {incremental}")
