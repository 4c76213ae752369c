"""Runs a scenario: feeds its tasks to a method, measures it, and writes each result down.

``run`` and ``resume`` are generators of events, as ``learn`` is. After every task the record, the
network and the picture on disk are complete as far as the run has come. Within a task checkpoints
hold what was learned so far, so that ``resume`` loses at most the time since the last of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nispa.base.openmp  # noqa: F401 - before anything imports PyTorch
from nispa.base.arguments import path_of, seed_of
from nispa.base.modes import in_usual_modes
from nispa.data.intake import reach
from nispa.data.scenarios import Scenario
from nispa.data.tasks import Samples, Task, TaskInfo
from nispa.errors import FormatError, InputError, NotLearnedError, OutputError, ScenarioError
from nispa.files import one_line, shown
from nispa.methods.base import (
    CACHE_BYTES,
    Event,
    LearnReport,
    Method,
    PhaseEnd,
    PhaseStart,
    Problem,
)
from nispa.methods.presets import Settings, settings_of
from nispa.methods.saving import encode, make_method
from nispa.methods.unlearned import unlearned
from nispa.network.operations import Ledger, counting
from nispa.runs.checkpoints import EVERY_S, Checkpoints
from nispa.runs.folder import RunFolder, held, settled
from nispa.runs.inputs import in_older_shape, inputs_of
from nispa.runs.origin import origin_file
from nispa.runs.record import MAX_TASKS, Record, TaskResult, read_record
from nispa.runs.recording import class_labels, first_record, task_result, with_task
from nispa.runs.usage import spent
from nispa.runs.writer import Drawing, RunWriter
from nispa.training.fit import EVALUATION_BATCH
from nispa.training.pausing import EpochEnd, FitBegin, FitPause


@dataclass(frozen=True)
class TaskStart:
    """A task begins: its index (from 0), the number of tasks, and its name."""

    task: int
    tasks: int
    name: str


@dataclass(frozen=True)
class TaskEnd:
    """A task is learned and measured.

    Attributes:
        task: Its index, from 0.
        accuracies: Test accuracy on every task learned so far, itself last. Measured without
            naming the task where tasks add classes or images to shared outputs.
        result: Its entry in the record.
    """

    task: int
    accuracies: tuple[float, ...]
    result: TaskResult


@dataclass(frozen=True)
class Notice:
    """A remark for the user, also kept among the record's notes."""

    task: int
    text: str


RunEvent = TaskStart | Event | TaskEnd | Notice

Stopping = Callable[[], BaseException | None]
"""Returns the exception to stop with after a last checkpoint, or None to go on."""


def _never() -> None:
    return None


@dataclass(frozen=True)
class Experiment:
    """What to run: a scenario, a method with its settings, a seed, a device.

    ``cache_bytes`` limits the memory for prepared data of one task; ``data`` is the folder that
    data sets were looked for in, kept for a resume. Neither changes a result.
    """

    scenario: Scenario
    settings: Settings
    seed: int
    device: str = "cpu"
    cache_bytes: int = CACHE_BYTES
    data: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed_of(self.seed))

    def method(self) -> Method:
        """Builds the method, ready for the first task.

        Raises:
            ScenarioError: It cannot learn these tasks.
            ConfigError: The network is too sparse to learn one of them.
            DeviceError: The device is not there.
        """
        scenario = self.scenario
        if len(scenario.tasks) > MAX_TASKS:
            raise ScenarioError(
                f"the scenario has {len(scenario.tasks):,} tasks, more than the {MAX_TASKS:,} that "
                "a record holds; ask for fewer of them"
            )
        problem = Problem(scenario.input_shape, scenario.outputs, len(scenario.tasks))
        method = make_method(self.settings, problem, seed=self.seed, device=self.device)
        method.cache_bytes = self.cache_bytes
        for task in scenario.tasks:
            method.check(task, [earlier.info for earlier in scenario.tasks[: task.index]])
        method.start()
        for task in scenario.tasks:
            method.check_paths(task.classes)
        return method


@in_usual_modes
def run(
    experiment: Experiment,
    out: Path,
    checkpoint_every: float = EVERY_S,
    stopping: Stopping = _never,
    drawing: Drawing | None = None,
) -> Generator[RunEvent, None, Record]:
    """Runs an experiment and keeps its record in a new folder ``out``.

    Args:
        experiment: What to run.
        out: The folder.
        checkpoint_every: Seconds between two checkpoints within an epoch; every phase ends with
            one in any case.
        stopping: Called at each pause of the training, about every second.
        drawing: Draws the picture that is kept beside the record; None for no picture.

    Yields:
        Events as they happen. Closing the generator, or an exception such as KeyboardInterrupt,
        leaves the record of the finished tasks, with status ``interrupted`` (or ``failed``).

    Returns:
        The complete record.

    Raises:
        OutputError: The folder holds a run or cannot be written to.
        BusyError: Another process is at work there.
        InputError: The method cannot learn these tasks; nothing was written.
        DivergedError: The loss is no longer finite.
    """
    out = settled(path_of(out))
    RunFolder.check(out)
    with held(out):
        method = experiment.method()
        record = first_record(experiment.scenario, experiment.settings, method)
        files = RunWriter.create(out, record, origin_file(experiment.data), drawing)
        return (yield from _learn_tasks(experiment, method, files, checkpoint_every, stopping))


@in_usual_modes
def resume(
    experiment: Experiment,
    out: Path,
    checkpoint_every: float = EVERY_S,
    stopping: Stopping = _never,
    drawing: Drawing | None = None,
) -> Generator[RunEvent, None, Record]:
    """Continues an unfinished run from its last checkpoint.

    Apart from times, the finished record and network are those of a run that was never stopped.

    Args:
        experiment: The same that the run was begun with.
        out: The run's folder.
        checkpoint_every: See :func:`run`.
        stopping: See :func:`run`.
        drawing: See :func:`run`.

    Yields and returns:
        As :func:`run`; finished tasks are not reported again.

    Raises:
        InputError: There is no run, it is complete, or it was another experiment.
        BusyError: Another process is at work on it.
        FormatError: Its files are damaged.
    """
    out = path_of(out)
    read_record(out, sealed=True)  # held() would create a folder that is missing
    with held(out):
        record = read_record(out, sealed=True)
        if record.status == "complete":
            raise InputError(f"{shown(out)} is complete: nothing is left to resume")
        if record.input_shape is None:
            experiment = replace(experiment, scenario=in_older_shape(experiment.scenario))
        method = experiment.method()
        wanted = first_record(experiment.scenario, experiment.settings, method)
        _check_same(record, wanted, out)
        if record.code not in (None, wanted.code) and OTHER_CODE not in record.notes:
            record = record.model_copy(update={"notes": (*record.notes, OTHER_CODE)})
            if record.per_task:  # else it is told with the other notes
                yield Notice(len(record.per_task), OTHER_CODE)
        files = RunWriter(RunFolder(out), record, drawing)
        if record.per_task:
            method = _saved_method(experiment, files)
        files.reopen()
        return (yield from _learn_tasks(experiment, method, files, checkpoint_every, stopping))


IDENTITY = ("version", "scenario", "data", "method", "seed", "incremental", "config", "tasks")
"""Fields of a record that a run and its continuation must agree on."""


OTHER_CODE = (
    "resumed by another state of the code than began it, whose rules and numbers may differ"
)
"""A note of such a run."""


def _check_same(record: Record, wanted: Record, out: Path) -> None:
    """Refuses to continue ``record`` as another experiment."""
    for name in IDENTITY:
        before, after = getattr(record, name), getattr(wanted, name)
        if name == "config":  # an older record may lack settings that were added since
            before = recorded_settings(record).as_json()
        if before != after:
            plain = isinstance(after, (str, int))
            both = f" ({one_line(str(before), 40)}, now {after})" if plain else ""
            raise InputError(
                f"{shown(out)} was begun with another {name}{both}, so the rest would not belong "
                "to one run; resume it with what it was begun with"
            )


def recorded_settings(record: Record) -> Settings:
    """The settings in a record, with defaults for those that its version did not have.

    Raises:
        FormatError: It holds none, as a record that was imported.
    """
    network, method = record.config.get("network"), record.config.get("method")
    if not isinstance(network, dict) or not isinstance(method, dict):
        raise FormatError("the record does not hold the settings of a run; it cannot be resumed")
    return settings_of(record.method, record.preset or "default", network, method)


def _identity(record: Record) -> str:
    """A hash of everything that decides a run's result, 64 hex digits."""
    values = record.model_dump(mode="json", include=set(IDENTITY))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _saved_method(experiment: Experiment, files: RunWriter) -> Method:
    """The method after the tasks that the record counts, checked to be this experiment's."""
    method, settings = files.saved_method(experiment.device)
    learned = [task.info for task in experiment.scenario.tasks[: len(method.learned)]]
    ours = (experiment.settings, experiment.seed, learned)
    if (settings, method.seed, method.learned) != ours:
        raise FormatError(
            f"the network in {shown(files.path)} is of another run; put back the one that belongs "
            "there"
        )
    method.cache_bytes = experiment.cache_bytes
    return method


def _learn_tasks(
    experiment: Experiment,
    method: Method,
    files: RunWriter,
    checkpoint_every: float,
    stopping: Stopping,
) -> Generator[RunEvent, None, Record]:
    """Learns, measures and saves each task that the record does not count yet."""
    tasks, done = experiment.scenario.tasks, len(files.record.per_task)
    checkpoints = Checkpoints(files.path, checkpoint_every, _identity(files.record))
    first = reach(tasks[0].train)
    try:
        for note in () if done else files.record.notes:
            yield Notice(0, note)
        for task in tasks[done:]:
            yield TaskStart(task.index, len(tasks), task.name)
            started, ledger = spent(), Ledger()
            report = yield from _learn(method, task, files, checkpoints, stopping, ledger)
            training = checkpoints.spent + (spent() - started)

            started = spent()
            told, untold = _measure(method, experiment.scenario, task.index)
            result = task_result(method, task, report, training, spent() - started, ledger)
            notes = len(files.record.notes)
            record = with_task(files.record, method, result, told, untold, unlearned(method, task))
            labels = class_labels(record, method)
            inputs = inputs_of(experiment.scenario, len(record.per_task))
            network = encode(method, experiment.settings, labels, first, inputs)
            files.add_task(record, network)
            last = record.main_matrix[-1][: task.index + 1]
            accuracies = tuple(value for value in last if value is not None)
            yield TaskEnd(task.index, accuracies, result)
            for note in record.notes[notes:]:
                yield Notice(task.index, note)
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, GeneratorExit))
        # A disk that failed once may fail again: report what failed first.
        failing = (OutputError,) if isinstance(error, OutputError) else ()
        with contextlib.suppress(*failing):
            files.finish("interrupted" if stopped else "failed")
        raise
    checkpoints.clear()
    return files.finish("complete")


_NAMES = {PhaseStart: "phase_start", EpochEnd: "epoch", PhaseEnd: "phase_end"}
"""Names of a method's events in ``events.jsonl``."""


def _learn(
    method: Method,
    task: Task,
    files: RunWriter,
    checkpoints: Checkpoints,
    stopping: Stopping,
    ledger: Ledger,
) -> Generator[RunEvent, None, LearnReport]:
    """Learns one task, starting from its checkpoints, and logs each event."""
    saved = checkpoints.begin(task.index)
    learning = method.learn(task)
    phase: dict[str, Any] = {}
    state = None
    try:
        while True:
            try:
                with counting(ledger):  # but not while the caller handles an event
                    event = learning.send(state)
            except FormatError as error:
                if state is None:
                    raise
                raise FormatError(
                    f"{shown(checkpoints.folder)}: {error}; delete this folder to learn the task "
                    "from its start"
                ) from None
            state = None
            if isinstance(event, FitBegin):
                checkpoints.fit()
                state = next(saved, None)
            elif isinstance(event, FitPause):
                stop = stopping()
                checkpoints.reached(event, last=stop is not None)
                if stop is not None:
                    raise stop
            else:
                if isinstance(event, PhaseStart):
                    phase = {"task": task.index, "phase": event.phase}
                files.log({"event": _NAMES[type(event)], **phase, **asdict(event)})
                yield event
    except StopIteration as end:
        report: LearnReport = end.value
        return report


def _measure(
    method: Method, scenario: Scenario, last: int
) -> tuple[list[float | None], list[float | None]]:
    """Test accuracies after task ``last``, one entry per task, None where not measured.

    Returns:
        Accuracies when the method is told the task, up to the task after ``last`` (forward
        transfer needs that one); and when it is not told, where it can do without.
    """
    told: list[float | None] = [None] * len(scenario.tasks)
    untold: list[float | None] = [None] * len(scenario.tasks)
    for task in scenario.tasks[: last + 2]:
        test = task.test.to(method.device)
        try:
            told[task.index] = accuracy_on(method, test, task.info)
        except NotLearnedError:  # a method with one network per task has none for the next task
            continue
        if method.task_agnostic and task.index <= last:
            untold[task.index] = accuracy_on(method, test, None)
    return told, untold


def accuracy_on(method: Method, test: Samples, info: TaskInfo | None) -> float:
    """Accuracy on test images, in [0, 1]; told the task unless ``info`` is None.

    Raises:
        NotLearnedError: The method has no network for that task.
    """
    right = sum(
        int((method.predict(images, info) == labels).sum())
        for images, labels in test.batches(EVALUATION_BATCH)
    )
    return right / len(test)
