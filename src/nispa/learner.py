"""The entry point for Python: learns from arrays, predicts labels, saves to one file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from nispa.base.arguments import (
    MAX_SIZE,
    image_shape,
    name_of,
    path_of,
    seed_of,
    share,
    whole_number,
)
from nispa.base.modes import usual_modes
from nispa.data.arrays import encode_labels, kind_of
from nispa.data.columns import in_order
from nispa.data.intake import doubt_of_task, ordered, read_labelled
from nispa.data.outputs import first_output
from nispa.data.scenarios import make_task
from nispa.data.standardise import Inputs
from nispa.data.tasks import Samples, Task
from nispa.deploy.export import Exported, export
from nispa.errors import (
    CapacityError,
    ConfigError,
)
from nispa.files import write_atomic
from nispa.methods.base import Adoption, Event, LearnReport, Problem
from nispa.methods.presets import resolve
from nispa.methods.progress import Progress
from nispa.methods.saving import (
    FORMAT,
    MAX_TASKS,
    Saved,
    check_task_name,
    decode,
    encode,
    make_method,
    read_learner,
)
from nispa.methods.unlearned import unlearned
from nispa.network.backbone import enter
from nispa.network.models import OWN
from nispa.network.own import Values
from nispa.network.sparsify import own_model, shape_of_example
from nispa.predicting import PredictsClasses, warn
from nispa.runs import capacity
from nispa.runs.folder import locate_network
from nispa.runs.inputs import recorded_inputs
from nispa.training.pausing import FitBegin, FitPause

__all__ = ["FORMAT", "MAX_TASKS", "Learner", "decode", "encode", "make_method"]


class Learner(PredictsClasses):
    """Learns tasks one after another from arrays.

    The setting ``incremental`` says what a task adds. With ``"task"`` each task gets its own
    outputs, so a label may have different meanings in different tasks. With ``"class"`` every task
    brings new labels, and a prediction chooses among all. With ``"domain"`` all tasks have the same
    labels.

    Tasks count from 0 here: the first one learned is ``task=0``. The command line counts from 1.
    """

    def __init__(
        self,
        method: str = "nispa",
        *,
        input_shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
        classes: SupportsIndex,
        model: str | torch.nn.Module | None = None,
        example_input: Tensor | None = None,
        values: Values = "draw",
        tasks: SupportsIndex | None = None,
        preset: str = "default",
        seed: SupportsIndex = 0,
        device: str | torch.device = "cpu",
        standardise: bool = False,
        **settings: Any,
    ) -> None:
        """A new learner, without any task.

        Args:
            method: Name of the method, such as ``"nispa"``.
            input_shape: Channels, height and width of an image; ``(n,)`` for a table of n columns;
                ``(channels, length)`` for series.
            classes: Number of classes of all tasks that will ever come: the network's outputs.
            model: A network by name, such as ``"resnet18"``; a function that builds one, as
                ``"package.module:function"``; or a module of your own, with ``classes`` logits. It
                is copied. By default the network follows the data.
            example_input: What a module of your own takes, in place of ``input_shape``: samples
                first, their number and values do not matter.
            values: First values of a module's connections: ``"draw"`` for new ones, ``"model"`` for
                its own.
            tasks: Number of tasks, for methods that need to know it.
            preset: Named settings to start from.
            seed: Determines everything random.
            device: Where to compute: ``"cpu"`` or ``"cuda"``.
            standardise: Whether to subtract the mean of each feature (or channel) and divide by its
                deviation, both over the training images of the first task.
            settings: Settings of the network or the method, such as ``density=0.1``.

        Raises:
            UnknownNameError: No such method, preset or setting.
            ConfigError: A setting is out of range or of the wrong type.
            GraphError: The module cannot be made sparse.
            IsolationError: Units of the module depend on others by a way that is hidden.
            DeviceError: The device is not available.
        """
        self.seed = seed_of(seed)
        outputs = whole_number(
            "classes", classes, 2, MAX_SIZE, "at least 2, the classes of one task, in whole numbers"
        )
        planned = None
        if tasks is not None:
            planned = whole_number(
                "tasks", tasks, 1, MAX_SIZE, "a whole number from 1, or None if it is not known"
            )
        if input_shape is None:
            input_shape = shape_of_example(example_input)
        shape = image_shape(input_shape)
        own = own_model(model, example_input, shape, outputs, values)
        if model is not None:
            named = settings.setdefault("architecture", OWN if own else model)
            if named != (OWN if own else model):
                raise ConfigError(f"model and architecture={named} are the same; leave one out")
        problem = Problem(shape, outputs, planned, own)
        self.settings = resolve(
            name_of("method", method, "nispa"),
            name_of("preset", preset, "default"),
            "",
            problem.input_shape,
            settings,
            outputs=outputs,
            tasks=planned,
        )
        if not isinstance(standardise, bool):
            raise ConfigError(f"standardise={standardise!r} must be True or False")
        self.labels: list[list[Any]] = []
        self.task_names: list[str] = []
        self._inputs = Inputs(standardise)
        self._reach: float | None = None
        self._columns: tuple[str, ...] | None = None
        with usual_modes():
            self.method = make_method(self.settings, problem, seed=self.seed, device=device)
            self.method.start()

    def learn(
        self,
        images: Any,
        labels: Any = None,
        *,
        validation: SupportsFloat = 0.1,
        channels_first: bool | None = None,
        watch: Callable[[Event], None] | None = None,
        progress: bool | None = None,
        name: str = "",
    ) -> LearnReport:
        """Learns the next task. If anything fails, the learner is unchanged.

        Args:
            images: ``(n, height, width)``, ``(n, height, width, channels)``,
                ``(n, channels, height, width)``, ``(n, features)`` or ``(n, channels, length)``: an
                array, a tensor, a data frame; or a PyTorch data set or loader of images and labels.
                Whole numbers are pixels from 0 to 255 and are scaled by 1/255; floats, tables and
                series are used unchanged ([0, 1] is usual), unless the learner standardises.
            labels: ``(n,)`` whole numbers or texts; leave it out if ``images`` includes them.
            validation: Share of the images that decides when to stop.
            channels_first: The image layout, if ``input_shape`` fits both.
            watch: Called with each event of learning.
            progress: Whether to show a progress line; by default in a terminal or notebook, if
                learning takes longer than about a second.
            name: What to call the task, kept in ``task_names`` and in the file.

        Raises:
            DataError: The arrays cannot be used.
            CapacityError: The images have another shape, or too few outputs are left.
            ScenarioError: Too few classes or images.
            DivergedError: The loss is no longer finite.
        """
        if len(self.tasks) >= MAX_TASKS:
            raise CapacityError(
                f"{MAX_TASKS:,} tasks are learned, the most there can be; make a new learner"
            )
        held = share("validation", validation, "0.1 is usual")
        if watch is not None and not callable(watch):
            raise ConfigError("watch must be a function of one argument, the event")
        check_task_name(name)
        with usual_modes():
            samples, names, outputs = self._samples(images, labels, channels_first)
            plain = not self._inputs
            warn(doubt_of_task(samples, self._reach) if plain else self._doubt(samples))
            index = len(self.tasks)
            known = ("",) * outputs[0] + tuple(map(str, names))
            task = make_task(
                index,
                f"task {index}",
                outputs,
                samples,
                samples,
                seed=self.seed,
                validation=held,
                names=known,
            )
            warn(task.note)
            inputs, task = self._inputs.with_task(task)
            before, learned = self.method.state(), list(self.method.learned)
            units = self.method.census().stable
            named = self.labels
        learning = self.method.learn(task)
        title = f"task {index}"
        try:
            with Progress(title, progress) as line:
                while True:
                    event: Event | FitBegin | FitPause | None = None
                    with usual_modes():
                        try:
                            event = next(learning)
                        except StopIteration as end:
                            report: LearnReport = end.value
                    if event is None:
                        self._warn(task, units)  # first: warnings may be errors
                        self.labels, self._inputs = [*named, names], inputs
                        self.task_names = [*self.task_names, name]
                        line.end(report)
                        break
                    line.update(event)
                    if watch is not None and not isinstance(event, (FitBegin, FitPause)):
                        watch(event)
        except BaseException:  # including Ctrl-C: restore the learner
            with usual_modes():
                learning.close()
                self.method.learned, self.labels = learned, named
                self.method.load_state(before)
            raise
        self._take_note(images, samples)
        return report

    def adopt(
        self,
        images: Any,
        labels: Any = None,
        *,
        classes: Sequence[Any] | None = None,
        channels_first: bool | None = None,
    ) -> Adoption:
        """Makes a trained network the first task, without training. If it fails, nothing changes.

        The learner must come from the trained module and its values: ``model=...``,
        ``values="model"`` and, to keep all its connections, ``density=1.0``. Of its units as few
        are kept as hold its accuracy on the examples, but for ``accuracy_drop`` points (``margin``
        of CLNP). What they compute never changes again; later tasks learn with the others.

        Args:
            images: A few examples of each class, as in :meth:`learn`, as the module takes them.
            labels: As in :meth:`learn`.
            classes: The labels in the order of the module's outputs, from the first output on; by
                default in their own order.
            channels_first: As in :meth:`learn`.

        Returns:
            The accuracy on the examples before and after, and the units that are kept.

        Raises:
            ConfigError: The method cannot adopt, the learner has no trained module or has learned
                already, or the accuracy cannot be held.
            DataError: The arrays cannot be used, or ``classes`` are not those of the labels.
        """
        if self._inputs:
            raise ConfigError("adopt takes images as the model does; leave standardise out")
        with usual_modes():
            samples, names, outputs = self._samples(images, labels, channels_first)
            if classes is not None:
                order = ordered(names, classes)
                places = torch.tensor([order.index(name) for name in names])
                samples, names = replace(samples, labels=places[samples.labels]), order
            task = Task(0, "task 0", outputs, samples, samples, samples)
            before, learned = self.method.state(), list(self.method.learned)
            try:
                adoption = self.method.adopt(task)
                text = capacity.state(adoption.units)
                if text and self._outputs_used < self.method.problem.outputs:
                    warnings.warn(f"{text}, or a larger accuracy_drop or margin", stacklevel=2)
            except BaseException:
                self.method.learned = learned
                self.method.load_state(before)
                raise
        self.labels, self.task_names = [names], [""]
        self._take_note(images, samples)
        return adoption

    def forget(self, task: SupportsIndex, *, dry_run: bool = False) -> dict[str, int]:
        """Gives up a task on purpose, so that units it alone needs can learn something else.

        Every other task predicts exactly what it did. The task keeps its number, but can no longer
        be predicted; its outputs stay taken.

        Args:
            task: The task, counted from 0.
            dry_run: Whether only to say how many units that would be.

        Returns:
            How many units of each layer become plastic.

        Raises:
            ConfigError: The method cannot forget a task on purpose; ``nispa`` can.
            NotLearnedError: The task has not been learned, or was forgotten.
        """
        info = self._task(task)
        if info is None:
            raise ConfigError("task=None must be the number of a task, counted from 0")
        with usual_modes():
            return self.method.forget(info, dry_run=dry_run)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the learner to one file, whole or not at all.

        Raises:
            OutputError: It could not be written; an older file of that name is untouched.
        """
        where = path_of(path)
        with usual_modes():
            content = encode(
                self.method,
                self.settings,
                self.labels,
                self._reach,
                self._inputs,
                self.task_names,
                self._columns,
            )
        write_atomic(where, content)

    def export(
        self,
        path: str | os.PathLike[str],
        tasks: SupportsIndex | Iterable[SupportsIndex] | None = None,
        *,
        images: Any = None,
        int8: bool = False,
    ) -> Exported:
        """Writes the network of some tasks to a file that needs no nispa, and checks it.

        The file has what :func:`nispa.deploy.compact.compact` keeps, with scaling, labels and
        tasks as metadata. It takes any number of images. Before it is kept, its logits are held
        against the learner's.

        Args:
            path: ``net.onnx`` for ONNX, ``net.pt2`` for ``torch.export``.
            tasks: A task, or some, counted from 0; None for all.
            images: To check the file on, as :meth:`~nispa.predicting.PredictsClasses.predict` takes
                them; None for random ones.
            int8: Whether to round weights to 8 bits, a quarter of the size. What is returned tells
                the share of predictions that stay; pass ``images`` to know it of yours.

        Raises:
            NotLearnedError: A task has not been learned.
            ConfigError: The learner cannot be compacted, the file's ending is another one, or a
                package is missing.
            ExportError: The file does not compute what the learner does.
            OutputError: It could not be written; an older file of that name is untouched.
        """
        return export(self, path, tasks, images, self._reach, int8)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        model: str | torch.nn.Module | None = None,
    ) -> Learner:
        """Loads a learner from a file or a run's folder, to predict and to learn further tasks.

        Pass it images as the run read them: a mean and a deviation are in the file. Warns if the
        run prepared its images in a way that is not stored.

        Args:
            path: The file, or a run's folder.
            device: Where to compute.
            model: What a learner of your own module or function was made with: the module, built
                the same way (its values do not matter), or the function's name.

        Raises:
            GraphError: The module is another one.
            InputError: There is no such file.
            FormatError: It is damaged, not a learner, or from a newer version.
        """
        where = locate_network(path_of(path))
        learner = cls.__new__(cls)
        with usual_modes():
            if isinstance(model, str):
                enter(model)
            module = None if isinstance(model, str) else model
            saved: Saved = read_learner(where, device, module)
        inputs, doubt = recorded_inputs(where, saved)
        warn(doubt)
        learner.method, learner.settings = saved.method, saved.settings
        learner.labels, learner._reach, learner._inputs = saved.labels, saved.reach, inputs
        learner.task_names = list(saved.names)
        learner.seed, learner._columns = saved.method.seed, saved.columns
        return learner

    def _warn(self, task: Task, before: capacity.Units) -> None:
        """Warns at the caller of :meth:`learn` if its task failed, or leaves others little room."""
        with usual_modes():
            failed = unlearned(self.method, task)
        if failed:
            warnings.warn(failed, stacklevel=3)
        text = capacity.warning(before, self.method.census().stable)
        # Nothing to warn of where the network will grow, or where no task can follow.
        grows = getattr(self.settings.config, "grow_when_full", 0.0)
        if text and not grows and self._outputs_used < self.method.problem.outputs:
            warnings.warn(text, stacklevel=3)

    # Inputs.

    def _samples(
        self, images: Any, labels: Any, channels_first: bool | None
    ) -> tuple[Samples, list[Any], tuple[int, ...]]:
        """Samples of a task, its distinct labels, and the outputs they use."""
        samples, given = read_labelled(
            in_order(images, self._columns),
            labels,
            self._shape,
            channels_first=channels_first,
            bounded=not self._inputs.standardise,
            first=self._reach,
        )
        (encoded,), _ = encode_labels(given)
        names = np.unique(given).tolist()
        first = first_output(
            names,
            kind_of(given),
            self.labels,
            self.settings.config.incremental,
            used=self._outputs_used,
            outputs=self.method.problem.outputs,
        )
        samples = replace(samples, labels=encoded + first)
        return samples, names, tuple(range(first, first + len(names)))
