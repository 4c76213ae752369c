"""Classes of new images by the network of a run, prepared as the run prepared its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nispa.data.named import SCENARIOS, resolve_options
from nispa.data.permuted import pixel_order
from nispa.data.unlabelled import Unlabelled, read_unlabelled
from nispa.errors import ConfigError, InputError, NotLearnedError, either
from nispa.files import check_own, one_line
from nispa.methods.saving import decode
from nispa.methods.base import Method
from nispa.runs.record import InputEntry, Record, read_record
from nispa.runs.folder import NETWORK
from nispa.data.tasks import Samples, TaskInfo
from nispa.training.fit import EVALUATION_BATCH


@dataclass(frozen=True)
class Prediction:
    """What an image shows.

    Attributes:
        name: The image.
        classes: The likeliest classes, the best first.
        shares: Soft-max of the network's scores for each of them: how sure it is, which is not how
            often it is right. Empty where the method gives no scores.
    """

    name: str
    classes: tuple[str, ...]
    shares: tuple[float, ...]


class Predictor:
    """A run that is ready to predict."""

    def __init__(self, run: Path, device: str = "cpu") -> None:
        """Reads a run's record and network.

        Raises:
            InputError: There is none, or no task is learned yet.
            FormatError: One of them is damaged.
        """
        self.record: Record = read_record(run)
        folder = run if run.is_dir() else run.parent
        if not self.record.per_task:
            raise NotLearnedError(f"{one_line(str(run))} has not learned a task yet")
        check_own(folder / NETWORK)
        self.method, _, labels = decode(folder / NETWORK, device)
        names = {
            output: str(label)
            for task, each in zip(self.method.learned, labels, strict=True)
            for output, label in zip(task.classes, each, strict=True)
        }
        self._names = names | dict(enumerate(self.record.class_names))

    def predict(
        self, paths: Sequence[Path], task: int | None = None, top: int = 1
    ) -> list[Prediction]:
        """The classes of images, in their order.

        Args:
            paths: See ``nispa.data.unlabelled.read_unlabelled``.
            task: Which task they belong to, from 1; None to choose among all classes.
            top: How many classes of each.

        Raises:
            InputError: An image cannot be used, or the run must be told the task.
        """
        info = self._task(task)
        images = read_unlabelled(paths, self.method.problem.input_shape, self._shaping())
        found: list[Prediction] = []
        for part in images:
            samples = self._prepared(part, info)
            for start in range(0, len(samples), EVALUATION_BATCH):
                batch, _ = samples.batch(slice(start, start + EVALUATION_BATCH))
                names = part.names[start : start + EVALUATION_BATCH]
                found += self._of(batch.to(self.method.device), names, info, top)
        return found

    def _of(
        self, images: Tensor, names: Sequence[str], info: TaskInfo | None, top: int
    ) -> list[Prediction]:
        choices = self.method.choices(info)
        if type(self.method).scores is Method.scores:  # classes alone
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
        """The tasks learned, by number and name."""
        count = len(self.method.learned)
        each = [f"{n + 1} ({one_line(self.record.title_of(n), 30)})" for n in range(min(count, 10))]
        return f"learned are {', '.join(each)}{f' to {count}' if count > 10 else ''}"

    # --- As the run saw its images ---------------------------------------------------------------

    def _shaping(self) -> tuple[Any, ...]:
        """What the run did to image files, where its scenario has options for that."""
        call = self.record.scenario.settings
        known, given = SCENARIOS.get(str(call.get("scenario"))), call.get("options")
        if known is None or not isinstance(given, dict):
            return ()
        options = resolve_options(
            known,
            {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
                if value is not None
            },
        )
        shaping = getattr(options, "shaping", None)
        return () if shaping is None else (shaping(),)

    def _prepared(self, part: Unlabelled, info: TaskInfo | None) -> Samples:
        how = self._input(info)
        scale = part.scale
        if part.stored and not part.images.is_floating_point() and how.scale != 1.0:
            scale = how.scale  # bytes mean what they did in the training arrays
        return Samples(
            part.images,
            torch.zeros(len(part.images), dtype=torch.int64),
            scale=scale,
            pixel_order=self._order(info),
            mean=how.mean,
            std=how.std,
        )

    def _input(self, info: TaskInfo | None) -> InputEntry:
        kept = self.record.inputs
        resolved = self._resolved()
        if not kept:
            if resolved.get("normalise"):
                raise InputError(
                    "the run subtracted a mean that its record, of an older version, does not "
                    "keep; images cannot be brought into the same form: learn it anew"
                )
            return InputEntry(scale=1.0)
        if info is not None:
            return kept[info.index]
        if len(set(kept)) > 1:
            raise InputError(
                "the tasks of this run come from data that were prepared in different ways; pass "
                f"{either('task=', '--task N')}, {self._known()}"
            )
        return kept[0]

    def _order(self, info: TaskInfo | None) -> Tensor | None:
        """The order of pixels in tasks that permute them."""
        resolved = self._resolved()
        if resolved.get("kind") != "permuted":
            return None
        if info is None:
            raise InputError(
                "each task of this run has its pixels in an order of its own; pass "
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
