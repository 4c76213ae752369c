"""Predicts the classes of new images with a run's network, prepared as the run's own images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nispa.data.intake import as_meant, further
from nispa.data.named import SCENARIOS, resolve_options
from nispa.data.permuted import pixel_order
from nispa.data.tasks import Samples, TaskInfo
from nispa.data.unlabelled import Unlabelled, read_unlabelled
from nispa.errors import ConfigError, DataWarning, InputError, NotLearnedError, either
from nispa.files import check_own, one_line
from nispa.methods.saving import read_learner
from nispa.runs.folder import NETWORK
from nispa.runs.record import InputEntry, Record, read_record
from nispa.training.fit import EVALUATION_BATCH


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of an image.

    Attributes:
        name: The image.
        classes: The likeliest classes, best first.
        shares: Soft-max of the scores of these classes: how sure the network is, not how often it
            is right. Empty if the method gives no scores.
    """

    name: str
    classes: tuple[str, ...]
    shares: tuple[float, ...]


class Predictor:
    """The network of a run, ready to predict."""

    def __init__(self, run: Path, device: str = "cpu") -> None:
        """Loads a run's record and network.

        Raises:
            InputError: One is missing, or no task is learned yet.
            FormatError: One is damaged.
        """
        self.record: Record = read_record(run)
        folder = run if run.is_dir() else run.parent
        if not self.record.per_task:
            raise NotLearnedError(f"{one_line(str(run))} has not learned a task yet")
        check_own(folder / NETWORK)
        saved = read_learner(folder / NETWORK, device)
        self.method, self._reach = saved.method, saved.reach
        labelled = {
            output: str(label)
            for task, names in zip(self.method.learned, saved.labels, strict=True)
            for output, label in zip(task.classes, names, strict=True)
        }
        self._names = labelled | dict(enumerate(self.record.class_names))

    def predict(
        self, paths: Sequence[Path], task: int | None = None, top: int = 1
    ) -> list[Prediction]:
        """Predicts the classes of images, in the order of the images.

        Args:
            paths: See ``nispa.data.unlabelled.read_unlabelled``.
            task: The task that they belong to, from 1; None to choose among all classes.
            top: Number of classes per image.

        Raises:
            InputError: An image cannot be used, or the run must be told the task.
        """
        info = self._task(task)
        options = self._options()
        shaping = getattr(options, "shaping", None)
        images = read_unlabelled(
            paths,
            self.method.problem.input_shape,
            () if shaping is None else (shaping(),),
            getattr(options, "label", None),
            self.record.columns,
        )
        predictions: list[Prediction] = []
        for part in images:
            samples = self._prepared(part, info)
            for start in range(0, len(samples), EVALUATION_BATCH):
                batch, _ = samples.batch(slice(start, start + EVALUATION_BATCH))
                names = part.names[start : start + EVALUATION_BATCH]
                predictions += self._batch(batch.to(self.method.device), names, info, top)
        return predictions

    def _batch(
        self, images: Tensor, names: Sequence[str], info: TaskInfo | None, top: int
    ) -> list[Prediction]:
        choices = self.method.choices(info)
        if not self.method.has_scores:
            if top > 1:
                raise ConfigError(
                    f"method '{self.record.method}' gives one class for each image, no others; "
                    f"leave out {either('top', '--top')}"
                )
            labels = self.method.predict(images, info).tolist()
            return [
                Prediction(name, (self._names.get(label, str(label)),), ())
                for name, label in zip(names, labels, strict=True)
            ]
        shares = self.method.scores(images, info).double().softmax(1)
        best = shares.topk(min(top, len(choices)), dim=1)
        return [
            Prediction(name, tuple(self._names[choices[place]] for place in places), tuple(values))
            for name, places, values in zip(
                names, best.indices.tolist(), best.values.tolist(), strict=True
            )
        ]

    def _task(self, task: int | None) -> TaskInfo | None:
        learned = self.method.learned
        if task is not None:
            if not 1 <= task <= len(learned):
                raise NotLearnedError(
                    f"{either('task', '--task')}={task} is no learned task; {self._known()}"
                )
            return learned[task - 1]
        if len(learned) == 1:
            return learned[0]
        told = self.record.incremental == "task" or not self.method.task_agnostic
        if told:
            raise NotLearnedError(
                "this run learned to be told the task of an image; pass "
                f"{either('task=', '--task N')}, {self._known()}"
            )
        return None

    def _known(self) -> str:
        """The learned tasks by number and name, at most ten of them."""
        count = len(self.method.learned)
        tasks = [
            f"{n + 1} ({one_line(self.record.title_of(n), 30)})" for n in range(min(count, 10))
        ]
        return f"learned are {', '.join(tasks)}{f' to {count}' if count > 10 else ''}"

    # --- Preparing images as the run did ---------------------------------------------------------

    def _options(self) -> Any:
        """The options of the run's scenario, if it has any: how to shape images, for example."""
        known, options = SCENARIOS.get(self.record.scenario.name), self.record.scenario_options
        if known is None or options is None:
            return None
        options.pop("augment", None)  # a setting of the method since; images to predict never vary
        return resolve_options(known, options)

    def _prepared(self, part: Unlabelled, info: TaskInfo | None) -> Samples:
        how = self._input(info)
        scale = part.scale
        if part.stored and not part.images.is_floating_point() and how.scale != 1.0:
            scale = how.scale  # integers mean the same as in the training arrays
        samples = Samples(
            part.images,
            torch.zeros(len(part.images), dtype=torch.int64),
            scale=scale,
            pixel_order=self._order(info),
            mean=how.mean,
            std=how.std,
        )
        if not part.stored:
            return samples
        samples = as_meant(samples, self._reach)
        if text := further(samples, self._reach):
            warnings.warn(text, DataWarning, stacklevel=3)
        return samples

    def _input(self, info: TaskInfo | None) -> InputEntry:
        inputs = self.record.inputs
        if not inputs:
            if self._resolved().get("normalise"):
                raise InputError(
                    "the run subtracted a mean that its record, of an older version, does not "
                    "hold, so images cannot be prepared in the same way; start a new run"
                )
            return InputEntry(scale=1.0)
        if info is not None:
            return inputs[info.index]
        if len(set(inputs)) > 1:
            raise InputError(
                "the tasks of this run come from data that were prepared in different ways; pass "
                f"{either('task=', '--task N')}, {self._known()}"
            )
        return inputs[0]

    def _order(self, info: TaskInfo | None) -> Tensor | None:
        """The pixel order of a task that permutes its pixels; None for other tasks."""
        resolved = self._resolved()
        if resolved.get("kind") != "permuted":
            return None
        if info is None:
            raise InputError(
                "each task of this run has its own order of pixels; pass "
                f"{either('task=', '--task N')}, {self._known()}"
            )
        shares, seed = resolved.get("shares"), resolved.get("seed")
        try:
            share = shares[info.index]  # type: ignore[index]
            shape = self.method.problem.input_shape
            return pixel_order(shape, share, seed=seed, task=info.index) if share else None  # type: ignore[arg-type]
        except (TypeError, ValueError, IndexError):
            raise InputError("the record does not say how pixels were permuted") from None

    def _resolved(self) -> dict[str, Any]:
        settings = self.record.scenario.settings
        resolved = settings.get("resolved", settings)
        return resolved if isinstance(resolved, dict) else {}
