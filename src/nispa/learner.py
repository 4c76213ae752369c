"""The entry point for Python: learns from arrays, predicts labels, saves to one file."""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
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
from nispa.base.shapes import Shape
from nispa.data.arrays import encode_labels, kind_of
from nispa.data.intake import check_known, doubt_of_task, further, reach, read_images, read_labelled
from nispa.data.scenarios import make_task
from nispa.data.standardise import Inputs
from nispa.data.tasks import Samples, TaskInfo
from nispa.deploy.export import Exported, export
from nispa.errors import (
    CapacityError,
    ConfigError,
    DataWarning,
    DivergedError,
    NotLearnedError,
    ScenarioError,
)
from nispa.files import write_atomic
from nispa.methods.base import Event, LearnReport, Problem
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
from nispa.network.backbone import enter
from nispa.network.models import OWN
from nispa.network.own import Values
from nispa.network.sparsify import own_model, shape_of_example
from nispa.runs import capacity
from nispa.runs.folder import locate_network
from nispa.runs.inputs import recorded_inputs
from nispa.training.fit import EVALUATION_BATCH
from nispa.training.pausing import FitBegin, FitPause

__all__ = ["FORMAT", "MAX_TASKS", "Learner", "decode", "encode", "make_method"]


class Learner:
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
        with usual_modes():
            self.method = make_method(self.settings, problem, seed=self.seed, device=device)
            self.method.start()

    @property
    def tasks(self) -> list[TaskInfo]:
        """The tasks learned, in order."""
        return list(self.method.learned)

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
            _warn(doubt_of_task(samples, self._reach) if plain else self._doubt(samples))
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
            _warn(task.note)
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
        self._reach = reach(samples) if self._reach is None else self._reach
        text = capacity.warning(units, self.method.census().stable)
        if text and self._outputs_used < self.method.problem.outputs:  # else no task can follow
            warnings.warn(text, stacklevel=2)
        return report

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
        assert info is not None
        with usual_modes():
            return self.method.forget(info, dry_run=dry_run)

    def predict(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[Any]:
        """Predicts labels, of the kind given to ``learn``.

        If a method predicts a class outside the task (as the published soft-max of the preset
        ``paper`` allows), the best class of the task is returned instead.

        Args:
            images: As in :meth:`learn`, or a single image of the learner's shape.
            task: The task they belong to, counted from 0 (the command line counts from 1); None to
                choose among the labels of all tasks.
            channels_first: As in :meth:`learn`.

        Returns:
            ``(n,)`` labels.

        Raises:
            NotLearnedError: The task has not been learned, or the method must be told one.
        """
        info = self._task(task)
        with usual_modes():
            samples = read_images(images, self._shape, channels_first=channels_first)
            _warn(self._doubt(samples))
            return self._predict(self._prepared(samples, info), info)

    def predict_proba(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[np.float64]:
        """The soft-max of the method's scores, one column per label of :meth:`classes_of`.

        These are not calibrated probabilities: networks tend to be overconfident.

        Args:
            images: As in :meth:`predict`.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`learn`.

        Returns:
            ``(n, classes)``; each row sums to 1.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method has no scores.
        """
        info = self._task(task)
        with usual_modes():
            samples = read_images(images, self._shape, channels_first=channels_first)
            _warn(self._doubt(samples))
            scores = self._scores(samples, info)
            if not bool(scores.isfinite().all()):
                raise DivergedError("the scores of these images are not finite")
            shares: NDArray[np.float64] = scores.double().softmax(1).numpy()
            return shares

    def scores(
        self, images: Any, task: SupportsIndex | None = None, *, channels_first: bool | None = None
    ) -> NDArray[np.float32]:
        """The method's scores, in most methods the network's logits, as in :meth:`predict_proba`.

        Of a method that forgets nothing they stay the same, bit for bit, whatever is learned later.

        Args:
            images: As in :meth:`predict`.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`learn`.

        Returns:
            ``(n, classes)``.

        Raises:
            NotLearnedError: As in :meth:`predict`.
            ConfigError: The method has no scores.
        """
        info = self._task(task)
        with usual_modes():
            samples = read_images(images, self._shape, channels_first=channels_first)
            _warn(self._doubt(samples))
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
            images: As in :meth:`learn`.
            labels: As in :meth:`learn`; each must be a label that a prediction can return.
            task: As in :meth:`predict`.
            channels_first: As in :meth:`learn`.

        Raises:
            DataError: Images and labels do not match, or a label was not learned.
            NotLearnedError: As in :meth:`predict`.
        """
        info = self._task(task)
        with usual_modes():
            samples, given = read_labelled(
                images, labels, self._shape, channels_first=channels_first, bounded=False
            )
            _warn(self._doubt(samples))
            check_known(given, self.classes_of(task), "" if info is None else f" in task {task}")
            predicted = self._predict(self._prepared(samples, info), info)
            return float(np.mean(predicted == given))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the learner to one file, whole or not at all.

        Raises:
            OutputError: It could not be written; an older file of that name is untouched.
        """
        where = path_of(path)
        with usual_modes():
            content = encode(
                self.method, self.settings, self.labels, self._reach, self._inputs, self.task_names
            )
        write_atomic(where, content)

    def export(
        self,
        path: str | os.PathLike[str],
        tasks: SupportsIndex | Iterable[SupportsIndex] | None = None,
        *,
        images: Any = None,
    ) -> Exported:
        """Writes the network of some tasks to a file that needs no nispa, and checks it.

        The file has what :func:`nispa.deploy.compact.compact` keeps, with scaling, labels and
        tasks as metadata. It takes any number of images. Before it is kept, its logits are held
        against the learner's.

        Args:
            path: ``net.onnx`` for ONNX, ``net.pt2`` for ``torch.export``.
            tasks: A task, or some, counted from 0; None for all.
            images: As in :meth:`predict`, to check the file on; None for random ones.

        Raises:
            NotLearnedError: A task has not been learned.
            ConfigError: The learner cannot be compacted, the file's ending is another one, or a
                package is missing.
            ExportError: The file does not compute what the learner does.
            OutputError: It could not be written; an older file of that name is untouched.
        """
        return export(self, path, tasks, images, self._reach)

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
        _warn(doubt)
        learner.method, learner.settings = saved.method, saved.settings
        learner.labels, learner._reach, learner._inputs = saved.labels, saved.reach, inputs
        learner.task_names = list(saved.names)
        learner.seed = saved.method.seed
        return learner

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

    # Inputs.

    def _samples(
        self, images: Any, labels: Any, channels_first: bool | None
    ) -> tuple[Samples, list[Any], tuple[int, ...]]:
        """Samples of a task, its distinct labels, and the outputs they use."""
        samples, given = read_labelled(
            images,
            labels,
            self._shape,
            channels_first=channels_first,
            bounded=not self._inputs.standardise,
        )
        (encoded,), _ = encode_labels(given)
        names = np.unique(given).tolist()
        first = self._first_output(names, kind_of(given))
        samples = replace(samples, labels=encoded + first)
        return samples, names, tuple(range(first, first + len(names)))

    def _first_output(self, names: list[Any], kind: str) -> int:
        """The first output for a task with these labels."""
        incremental, used = self.settings.config.incremental, self._outputs_used
        before = [name for labels in self.labels for name in labels]
        earlier = kind_of(np.array(before[:1])) if before else kind
        if incremental != "task" and kind != earlier:
            raise ScenarioError(
                f"the labels are {kind}, those of earlier tasks {earlier}; with "
                f"incremental='{incremental}' use one kind"
            )
        if incremental == "domain" and self.labels:
            if names != self.labels[0]:
                raise ScenarioError(
                    f"labels {names} differ from {self.labels[0]} of the earlier tasks; with "
                    "incremental='domain' all tasks have the same labels"
                )
            return 0
        again = sorted(set(before) & set(names))
        if incremental == "class" and again:
            raise ScenarioError(
                f"labels {again} were learned before; with incremental='class' every task needs "
                "new ones"
            )
        free = self.method.problem.outputs - used
        if len(names) > free:
            raise CapacityError(
                f"this task has {len(names)} classes, but only {free} of "
                f"{self.method.problem.outputs} outputs are free; build with more classes"
            )
        return used

    # Outputs.

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

    def _scores(self, samples: Samples, info: TaskInfo | None) -> Tensor:
        """The method's scores of samples as they were given, ``(n, classes)``."""
        batches = self._batches(self._prepared(samples, info))
        return torch.cat([self.method.scores(batch, info).cpu() for batch in batches])

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


def _warn(text: str) -> None:
    """Warns, unless ``text`` is empty, at the line that called the learner's method."""
    if text:
        warnings.warn(text, DataWarning, stacklevel=3)
