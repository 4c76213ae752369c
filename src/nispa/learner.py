"""The way in from Python: a learner that takes arrays, predicts labels, and lives in one file.

The file is a safetensors file: tensors, and in its header a JSON text with everything else and a
SHA-256 over both. It is written whole or not at all; reading one executes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from nispa import tensorfile
from nispa.data.arrays import as_images, as_label_array, encode_labels
from nispa.data.scenarios import make_task
from nispa.devices import choose_device
from nispa.errors import (
    CapacityError,
    ConfigError,
    DataError,
    FormatError,
    InputError,
    NotLearnedError,
    ScenarioError,
)
from nispa.files import first_fault, write_atomic
from nispa.methods.base import Event, LearnReport, Method, MethodState, Problem
from nispa.pausing import FitBegin, FitPause
from nispa.presets import Settings, resolve, settings_of
from nispa.seeding import MAX_SEED
from nispa.tasks import Samples, TaskInfo
from nispa.training import EVALUATION_BATCH

FORMAT = "nispa-learner/1"


class Learner:
    """Learns tasks one after another from arrays.

    What a task adds is the setting ``incremental``. With ``"task"`` each task gets outputs of its
    own, so the same label may mean different things in different tasks. With ``"class"`` every task
    brings new labels, and a prediction chooses among all. With ``"domain"`` all tasks have the same
    labels.
    """

    def __init__(
        self,
        method: str = "nispa",
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        tasks: int | None = None,
        preset: str = "default",
        seed: int = 0,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        """A learner that has learned nothing yet.

        Args:
            method: Name of the method, such as ``"nispa"``.
            input_shape: Channels, height and width of an image.
            classes: Number of classes of all tasks that will ever come: the network's outputs.
            tasks: Number of tasks, for methods that must know it.
            preset: Named settings to start from.
            seed: From which everything random is derived.
            device: Where to compute: ``"cpu"`` or ``"cuda"``.
            settings: Settings of the network or the method, such as ``density=0.1``.

        Raises:
            UnknownNameError: No such method, preset or setting.
            ConfigError: A setting is out of range.
            DeviceError: The device is not there.
        """
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed={seed} must be a whole number in [0, 2^63); 0 is usual")
        if classes < 2:
            raise ConfigError(f"classes={classes} must be at least 2, the classes of one task")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ConfigError(
                f"input_shape={input_shape} must be (channels, height, width), such as (1, 28, 28)"
            )
        self.settings = resolve(
            method, preset, "", input_shape, settings, outputs=classes, tasks=tasks
        )
        self.seed = seed
        self.labels: list[list[Any]] = []
        problem = Problem(input_shape, classes, tasks)
        self.method = make_method(self.settings, problem, seed=seed, device=device)
        self.method.start()

    @property
    def tasks(self) -> list[TaskInfo]:
        """The tasks learned, in order."""
        return list(self.method.learned)

    def learn(
        self,
        images: ArrayLike,
        labels: ArrayLike,
        *,
        validation: float = 0.1,
        channels_first: bool | None = None,
        watch: Callable[[Event], None] | None = None,
    ) -> LearnReport:
        """Learns the next task. If anything fails, the learner is as it was before.

        Args:
            images: ``(n, height, width)``, ``(n, height, width, channels)``,
                ``(n, channels, height, width)`` or ``(n, features)``; uint8 (scaled by 1/255) or
                float (used as it is; [0, 1] is usual).
            labels: ``(n,)`` whole numbers or texts.
            validation: Share of the images that decides when to stop.
            channels_first: Which of the two image layouts, where it cannot be told.
            watch: Called with each event, for showing progress.

        Raises:
            DataError: The arrays cannot be used.
            CapacityError: The images have another shape, or the outputs do not suffice.
            ScenarioError: Too few classes or images.
        """
        samples, names, outputs = self._samples(images, labels, channels_first)
        task = make_task(
            len(self.tasks),
            f"task {len(self.tasks)}",
            outputs,
            samples,
            samples,
            seed=self.seed,
            validation=validation,
        )
        before, learned = self.method.state(), list(self.method.learned)
        learning = self.method.learn(task)
        try:
            while True:
                event = next(learning)
                if watch is not None and not isinstance(event, (FitBegin, FitPause)):
                    watch(event)
        except StopIteration as end:
            self.labels.append(names)
            report: LearnReport = end.value
            return report
        except BaseException:  # Ctrl-C, too, leaves the learner whole
            learning.close()
            self.method.learned = learned
            self.method.load_state(before)
            raise

    def predict(
        self, images: ArrayLike, task: int | None = None, *, channels_first: bool | None = None
    ) -> NDArray[Any]:
        """Labels of images, as given to ``learn``.

        Args:
            images: As in :meth:`learn`.
            task: Which task they belong to, from 0; None to choose among the labels of all tasks.
            channels_first: As in :meth:`learn`.

        Returns:
            ``(n,)`` labels.

        Raises:
            NotLearnedError: That task has not been learned, or the method must be told the task.
        """
        info = self._task(task)
        stored, scale = as_images(images, channels_first=channels_first)
        self._fits(stored)
        samples = Samples(stored, torch.zeros(len(stored), dtype=torch.int64), scale=scale)
        outputs = [
            self.method.predict(batch.to(self.method.device), info).cpu()
            for batch, _ in samples.batches(EVALUATION_BATCH)
        ]
        names = {
            output: name
            for learned, labels in zip(self.tasks, self.labels, strict=True)
            for output, name in zip(learned.classes, labels, strict=True)
        }
        return np.array([names[output] for output in torch.cat(outputs).tolist()])

    def accuracy(self, images: ArrayLike, labels: ArrayLike, task: int | None = None) -> float:
        """Fraction of ``images`` whose label :meth:`predict` names."""
        return float(np.mean(self.predict(images, task) == np.asarray(labels)))

    def save(self, path: str | Path) -> None:
        """Writes the learner to one file, whole or not at all.

        Raises:
            OutputError: It could not be written; an older file of that name is untouched.
        """
        write_atomic(path, encode(self.method, self.settings, self.labels))

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Learner:
        """The learner in a file, ready to predict and to learn on.

        Raises:
            InputError: There is no such file.
            FormatError: It is damaged, not a learner, or of a newer version.
        """
        learner = cls.__new__(cls)
        learner.method, learner.settings, labels = decode(Path(path), device)
        learner.seed = learner.method.seed
        learner.labels = labels
        return learner

    def _samples(
        self, images: ArrayLike, labels: ArrayLike, channels_first: bool | None
    ) -> tuple[Samples, list[Any], tuple[int, ...]]:
        """Images and labels of a task, the labels' names, and the outputs that they take."""
        stored, scale = as_images(images, channels_first=channels_first)
        self._fits(stored)
        given = as_label_array(labels)
        if len(given) != len(stored):
            raise DataError(f"{len(stored)} images but {len(given)} labels: one label per image")
        (encoded,), _ = encode_labels(given)
        names = np.unique(given).tolist()
        first = self._first_output(names)
        labelled = Samples(stored, encoded + first, scale=scale)
        return labelled, names, tuple(range(first, first + len(names)))

    def _first_output(self, names: list[Any]) -> int:
        """The first of the outputs that a task with these labels takes."""
        incremental, used = self.settings.config.incremental, self._outputs_used
        if incremental == "domain" and self.labels:
            if names != self.labels[0]:
                raise ScenarioError(
                    f"labels {names} are others than those of the tasks before, {self.labels[0]}; "
                    "with incremental='domain' all tasks share theirs"
                )
            return 0
        again = sorted({name for labels in self.labels for name in labels} & set(names))
        if incremental == "class" and again:
            raise ScenarioError(
                f"labels {again} were learned before; with incremental='class' every task brings "
                "new ones"
            )
        free = self.method.problem.outputs - used
        if len(names) > free:
            raise CapacityError(
                f"this task has {len(names)} classes, but only {free} of "
                f"{self.method.problem.outputs} outputs are free; build with more classes"
            )
        return used

    @property
    def _outputs_used(self) -> int:
        return 1 + max((label for task in self.tasks for label in task.classes), default=-1)

    def _fits(self, stored: Tensor) -> None:
        shape = tuple(stored.shape[1:])
        if shape != self.method.problem.input_shape:
            raise CapacityError(
                f"images of shape {shape} do not fit the network, which was built for "
                f"{self.method.problem.input_shape}"
            )

    def _task(self, task: int | None) -> TaskInfo | None:
        if task is None:
            return None
        if not 0 <= task < len(self.tasks):
            learned = f"0 to {len(self.tasks) - 1}" if self.tasks else "none yet"
            raise NotLearnedError(f"task={task} has not been learned; learned are: {learned}")
        return self.tasks[task]


def make_method(settings: Settings, problem: Problem, *, seed: int, device: str) -> Method:
    """The method that ``settings`` name, on a device.

    Raises:
        DeviceError: The device is not there.
    """
    return settings.method_class(
        problem, settings.network, settings.config, seed=seed, device=choose_device(device)
    )


def encode(method: Method, settings: Settings, labels: list[list[Any]] | None = None) -> bytes:
    """The file of a method: the same state always gives the same bytes.

    Args:
        method: Between two tasks.
        settings: What it was built from.
        labels: The user's name of each class, task by task; None for class numbers.
    """
    state = method.state()
    if labels is None:
        labels = [list(task.classes) for task in method.learned]
    header = {
        "method": settings.method,
        "preset": settings.preset,
        "seed": method.seed,
        "problem": {
            "input_shape": list(method.problem.input_shape),
            "outputs": method.problem.outputs,
            "tasks": method.problem.tasks,
        },
        "config": settings.as_json(),
        "learned": [{"index": task.index, "classes": task.classes} for task in method.learned],
        "labels": labels,
        "values": state.values,
    }
    return tensorfile.encode(FORMAT, header, state.tensors)


def decode(path: Path, device: str = "cpu") -> tuple[Method, Settings, list[list[Any]]]:
    """The method in a file, its settings and the names of its classes.

    Raises:
        InputError: There is no such file.
        FormatError: It is damaged, not a learner, or of a newer version.
    """
    tensors, header = _read(path)
    try:
        settings = settings_of(
            header.method, header.preset, header.config.network, header.config.method
        )
    except InputError as error:
        raise FormatError(f"{path} has settings that this version does not know: {error}") from None
    shape = header.problem.input_shape
    problem = Problem(shape, header.problem.outputs, header.problem.tasks)
    if _units(settings, problem) * _BYTES_EACH > path.stat().st_size:
        raise FormatError(f"{path} is damaged: it is too small for the network it describes")
    method = make_method(settings, problem, seed=header.seed, device=device)
    method.learned = [TaskInfo(task.index, task.classes) for task in header.learned]
    try:
        method.load_state(MethodState(tensors, header.values))
    except InputError as error:
        raise FormatError(f"{path} is damaged: {error}") from None
    return method, settings, [list(names) for names in header.labels]


_BYTES_EACH = 4
"""What a unit takes in a file at least: its bias."""


def _units(settings: Settings, problem: Problem) -> int:
    """Number of units that a network of these settings has at least."""
    network = settings.network
    hidden = network.hidden if network.architecture == "mlp" else (*network.channels, *network.fc)
    return sum(hidden) + problem.outputs


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


_Size = Annotated[int, Field(ge=1, le=2**31)]
_Class = Annotated[int, Field(ge=0, le=2**31)]
_Sizes = Annotated[tuple[_Size, _Size, _Size], Field(strict=False)]
_Classes = Annotated[tuple[_Class, ...], Field(strict=False)]


class _Problem(_Part):
    input_shape: _Sizes
    outputs: _Size
    tasks: _Size | None


class _Config(_Part):
    network: dict[str, Any]
    method: dict[str, Any]


class _Learned(_Part):
    index: _Class
    classes: _Classes


class _Header(_Part):
    """All of a learner but its tensors, as the file's header keeps it."""

    format: str
    nispa: str
    method: str
    preset: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    problem: _Problem
    config: _Config
    learned: list[_Learned]
    labels: list[list[int | str]]
    values: dict[str, Any]
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> _Header:
        if [len(task.classes) for task in self.learned] != [len(names) for names in self.labels]:
            raise ValueError("labels do not fit the classes learned")
        if any(label >= self.problem.outputs for task in self.learned for label in task.classes):
            raise ValueError("a class lies outside the outputs")
        return self


def _read(path: Path) -> tuple[dict[str, Tensor], _Header]:
    """Tensors and header of a learner's file, checked against their hash."""
    tensors, plain = tensorfile.read(path, FORMAT, "learner")
    try:
        return tensors, _Header.model_validate(plain)
    except ValidationError as error:
        raise FormatError(f"{path} is damaged: {first_fault(error)}") from None
