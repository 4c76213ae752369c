"""What a learner answers: classes, probabilities, accuracy, from what it has learned."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nispa.base.arguments import whole_number
from nispa.base.modes import usual_modes
from nispa.base.shapes import Shape
from nispa.data.columns import columns_of, in_order
from nispa.data.intake import check_known, further, reach, read_images, read_labelled
from nispa.data.standardise import Inputs
from nispa.data.tasks import Samples, TaskInfo
from nispa.errors import ConfigError, DataWarning, DivergedError, NotLearnedError
from nispa.methods.base import Method
from nispa.methods.presets import Settings
from nispa.training.fit import EVALUATION_BATCH

MAX_TOP = 1000
"""Labels of one image."""


class PredictsClasses:
    """Predicts the labels of the tasks that a method has learned.

    Tasks count from 0 here: the first one learned is ``task=0``. The command line counts from 1.

    Attributes:
        method: It learns and predicts, in numbers of outputs.
        settings: Its settings.
        labels: The user's name of each class, task by task.
    """

    method: Method
    settings: Settings
    labels: list[list[Any]]
    _inputs: Inputs
    _reach: float | None  # the largest absolute value in the images of the first task
    _columns: tuple[str, ...] | None  # of the tables learned, if they were data frames

    @property
    def tasks(self) -> list[TaskInfo]:
        """The tasks learned, in order."""
        return list(self.method.learned)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of the data frames learned, in order; None if they had none."""
        return self._columns

    def predict(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[Any]:
        """Predicts labels, of the kind given to ``learn``.

        If a method predicts a class outside the task (as the published soft-max of the preset
        ``paper`` allows), the best class of the task is returned instead.

        Args:
            images: As in :meth:`.Learner.learn`, or a single image of the learner's shape.
            task: The task they belong to, counted from 0 (the command line counts from 1); None to
                choose among the labels of all tasks.
            channels_first: As in :meth:`.Learner.learn`.

        Returns:
            ``(n,)`` labels.

        Raises:
            NotLearnedError: The task has not been learned, or the method must be told one.
        """
        info = self._task(task)
        with usual_modes():
            samples = self._read(images, channels_first)
            return self._predict(self._prepared(samples, info), info)

    def predict_proba(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[np.float64]:
        """The soft-max of the method's scores, one column per label of :meth:`classes_of`.

        These are not calibrated probabilities: networks tend to be overconfident.

        Args:
            images: As in :meth:`predict`.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`.Learner.learn`.

        Returns:
            ``(n, classes)``; each row sums to 1.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method has no scores.
        """
        info = self._task(task)
        with usual_modes():
            return self._shares(self._read(images, channels_first), info)

    def ranked(
        self,
        images: Any,
        task: SupportsIndex | None = None,
        top: int = 1,
        *,
        channels_first: bool | None = None,
    ) -> list[list[tuple[Any, float | None]]]:
        """The likeliest labels of each image, the likeliest first, each with its probability.

        Args:
            images: As in :meth:`predict`.
            task: As in :meth:`predict`.
            top: How many labels.
            channels_first: As in :meth:`.Learner.learn`.

        Returns:
            For each image at most ``top`` labels; the probabilities of :meth:`predict_proba`, or
            None if the method has no scores.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method has no scores, and more than one label is wanted.
        """
        top = whole_number("top", top, 1, MAX_TOP, "1 is the likeliest label alone")
        info = self._task(task)
        with usual_modes():
            samples = self._read(images, channels_first)
            if not self.method.has_scores:
                if top > 1:
                    raise ConfigError(
                        f"method '{self.settings.method}' gives one class for each image, no "
                        f"others, so top={top} must be 1"
                    )
                found = self._predict(self._prepared(samples, info), info).tolist()
                return [[(label, None)] for label in found]
            shares, labels = self._shares(samples, info), self.classes_of(task)
        order = (-shares).argsort(1, kind="stable")[:, :top].tolist()
        return [
            [(labels[place], float(row[place])) for place in best]
            for row, best in zip(shares, order, strict=True)
        ]

    def scores(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[np.float32]:
        """The method's scores, in most methods the network's logits, as in :meth:`predict_proba`.

        Of a method that forgets nothing they stay the same, bit for bit, whatever is learned later.

        Args:
            images: As in :meth:`predict`.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`.Learner.learn`.

        Returns:
            ``(n, classes)``.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method has no scores.
        """
        info = self._task(task)
        with usual_modes():
            samples = self._read(images, channels_first)
            values: NDArray[np.float32] = self._scores(samples, info).numpy()
            return values

    def classes_of(self, task: SupportsIndex | None = None) -> list[Any]:
        """The labels that a prediction can return, in the order of the network's outputs.

        Without a task these are the labels of all tasks; a label that two tasks with separate
        outputs share is listed twice.

        Raises:
            NotLearnedError: The task has not been learned, or the method must be told one.
        """
        names = self._names()
        return [names[output] for output in self.method.choices(self._task(task))]

    def accuracy(
        self,
        images: Any,
        labels: Any = None,
        task: SupportsIndex | None = None,
        *,
        channels_first: bool | None = None,
    ) -> float:
        """The fraction of ``images`` that :meth:`predict` labels correctly.

        Args:
            images: As in :meth:`.Learner.learn`.
            labels: As in :meth:`.Learner.learn`; each must be a label that a prediction can return.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`.Learner.learn`.

        Raises:
            DataError: Images and labels do not match, or a label was not learned.
            NotLearnedError: As in :meth:`predict`.
        """
        info = self._task(task)
        with usual_modes():
            samples, given = read_labelled(
                in_order(images, self._columns),
                labels,
                self._shape,
                channels_first=channels_first,
                bounded=False,
                first=self._reach,
            )
            warn(self._doubt(samples))
            check_known(given, self.classes_of(task), "" if info is None else f" in task {task}")
            predicted = self._predict(self._prepared(samples, info), info)
            return float(np.mean(predicted == given))

    def __repr__(self) -> str:
        facts = self._facts()
        stable = facts.get("stable units", "")
        stable = stable and f", {stable} of units stable"
        return (
            f"<nispa.Learner {facts['method']}: input_shape={facts['input_shape']}, "
            f"tasks={facts['tasks']}, {facts['classes']} classes{stable}>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        return f"<table><caption>nispa.Learner</caption>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """The learner's properties, as names and texts."""
        problem, units = self.method.problem, self.method.census().stable.values()
        facts = {
            "method": f"{self.settings.method} (incremental={self.settings.config.incremental!r})",
            "input_shape": str(problem.input_shape),
            "tasks": str(len(self.tasks)),
            "classes": f"{self._outputs_used} of {problem.outputs}",
        }
        if size := sum(count for _, count in units):
            facts["stable units"] = f"{100 * sum(stable for stable, _ in units) / size:.0f} %"
        return facts

    # Inputs and outputs.

    def _predict(self, samples: Samples, info: TaskInfo | None) -> NDArray[Any]:
        """The labels that the method predicts."""
        names, choices = self._names(), self.method.choices(info)
        allowed = torch.tensor(choices)
        outputs = []
        for batch in self._batches(samples):
            predicted = self.method.predict(batch, info).cpu()
            outside = ~torch.isin(predicted, allowed)
            if outside.any():
                scores = self.method.scores(batch, info).cpu()
                predicted[outside] = allowed[scores[outside].argmax(1)]
            outputs.append(predicted)
        labels = [names[output] for output in torch.cat(outputs).tolist()]
        unlike = len({isinstance(names[output], str) for output in choices}) > 1
        return np.array(labels, dtype=object if unlike else None)

    def _read(self, images: Any, channels_first: bool | None) -> Samples:
        """Samples as given; warns, at the user's line, if they are unlike those learned."""
        samples = read_images(
            in_order(images, self._columns),
            self._shape,
            channels_first=channels_first,
            first=self._reach,
        )
        warn(self._doubt(samples), further=1)
        return samples

    def _shares(self, samples: Samples, info: TaskInfo | None) -> NDArray[np.float64]:
        """The soft-max of the scores of samples as they were given, ``(n, classes)``."""
        scores = self._scores(samples, info)
        if not bool(scores.isfinite().all()):
            raise DivergedError("the scores of these images are not finite")
        shares: NDArray[np.float64] = scores.double().softmax(1).numpy()
        return shares

    def _scores(self, samples: Samples, info: TaskInfo | None) -> Tensor:
        """The method's scores of samples as they were given, ``(n, classes)``."""
        batches = self._batches(self._prepared(samples, info))
        return torch.cat([self.method.scores(batch, info).cpu() for batch in batches])

    def _take_note(self, images: Any, samples: Samples) -> None:
        """Remembers of the first task what later ones and predictions are held against."""
        if self._reach is None:
            self._reach = reach(samples)
        if self._columns is None:
            self._columns = columns_of(images)

    def _prepared(self, samples: Samples, info: TaskInfo | None) -> Samples:
        """Samples as those of their task were prepared."""
        return self._inputs.of(None if info is None else info.index, samples)

    def _doubt(self, samples: Samples) -> str:
        """A warning if samples reach further than those of the first task; else empty."""
        return further(samples, self._reach, scaled=self._inputs.standardise)

    def _batches(self, samples: Samples) -> Iterator[Tensor]:
        """Images in batches, on the method's device."""
        for batch, _ in samples.batches(EVALUATION_BATCH):
            yield batch.to(self.method.device)

    def _names(self) -> dict[int, Any]:
        """The user's label for each output in use."""
        return {
            output: name
            for learned, labels in zip(self.tasks, self.labels, strict=True)
            for output, name in zip(learned.classes, labels, strict=True)
        }

    @property
    def _shape(self) -> Shape:
        return self.method.problem.input_shape

    @property
    def _outputs_used(self) -> int:
        return 1 + max((label for task in self.tasks for label in task.classes), default=-1)

    def _task(self, task: SupportsIndex | None) -> TaskInfo | None:
        if task is None:
            return None
        try:
            place = whole_number("task", task, 0, len(self.tasks) - 1, "")
        except ConfigError:
            learned = f"0 to {len(self.tasks) - 1}" if self.tasks else "none yet"
            raise NotLearnedError(
                f"task={task!r} has not been learned; learned are: {learned}"
            ) from None
        return self.tasks[place]


def warn(text: str, further: int = 0) -> None:
    """Warns, unless ``text`` is empty, at the line that called the learner's method.

    Args:
        text: The warning.
        further: Calls between that method and this function.
    """
    if text:
        warnings.warn(text, DataWarning, stacklevel=3 + further)
