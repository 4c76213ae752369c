"""Methods that find out by themselves which task an image belongs to, and what they share.

Something scores the tasks, by whatever it knows of them; the outputs of the best one choose the
class. So that one soft-max covers all classes, a task's best class has the score of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nispa.data.tasks import TaskInfo
from nispa.errors import FormatError
from nispa.methods.base import Method, MethodState, Part
from nispa.methods.carried import take_tensors
from nispa.methods.context import Detector, make_detector
from nispa.network.reads import told_groups


class InfersTask(Method):
    """A method whose scores without a task cover all classes."""

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes; without a task, those of the highest score."""
        if task is not None:
            return super().predict(images, task)
        classes = torch.tensor(self.choices(None), device=images.device)
        return classes[self.scores(images, None).argmax(1)]


def scores_within(
    tasks: Tensor, logits: Tensor, learned: Sequence[TaskInfo], classes: Sequence[int]
) -> Tensor:
    """Scores of classes from those of tasks.

    Args:
        tasks: The score of each task, ``(batch, tasks)``.
        logits: ``(batch, outputs)``.
        learned: The tasks.
        classes: Their classes, in the order of the result.

    Returns:
        ``(batch, classes)``: each task's best class has its score, the others less.
    """
    place_of = {label: place for place, label in enumerate(classes)}
    scores = logits.new_zeros(len(logits), len(place_of))
    for place, info in enumerate(learned):
        z = logits[:, list(info.classes)]
        columns = [place_of[label] for label in info.classes]
        scores[:, columns] = tasks[:, place, None] + (z - z.amax(1, keepdim=True))
    return scores


class ContextPart(Part):
    """What is kept to tell tasks apart: a detector, or None; saved under ``memory.``."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> Detector | None:
        """One that knows no task."""
        network = parts["network"]
        return make_detector(method.config, network, told_groups(network))

    def save(self, value: Detector | None) -> MethodState:
        """Tensors alone."""
        kept = {} if value is None else value.state()
        return MethodState({f"memory.{name}": tensor for name, tensor in kept.items()}, {})

    def load(self, state: MethodState, method: Method, parts: Mapping[str, Any]) -> Detector | None:
        """One that knows the tasks learned."""
        found, detector = take_tensors(state, "memory."), self.first(method, parts)
        if detector is None:
            if found:
                raise FormatError("the saved method keeps what its setting 'context' does not need")
            return None
        detector.load(found, [info.classes for info in method.learned])
        return detector
