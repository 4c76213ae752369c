"""Runs a scenario: feeds the tasks to a method, measures, and keeps the record up to date.

``run`` is a generator of events, as ``learn`` is. After every task the record, the network and the
picture on disk are complete as far as the run has come, and checkpoints hold what was learned of
the current one, so that ``resume`` goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nispa.base.arguments import path_of, seed_of
from nispa.runs.checkpoints import EVERY_S, Checkpoints
from nispa.runs.curve import Journal
from nispa.data.scenarios import Scenario
from nispa.errors import (
    FormatError,
    InputError,
    NotLearnedError,
    OutputError,
    ScenarioError,
)
from nispa.files import move, one_line, remove, remove_unfinished, shown, write_atomic
from nispa.methods.saving import decode, encode, make_method
from nispa.methods.base import (
    CACHE_BYTES,
    Event,
    Learning,
    LearnReport,
    Method,
    PhaseEnd,
    PhaseStart,
    Problem,
)
from nispa.base.modes import in_usual_modes
from nispa.network.operations import Ledger, counting
from nispa.runs.origin import origin_file
from nispa.training.pausing import EpochEnd, FitBegin, FitPause, FitState
from nispa.methods.presets import Settings, settings_of
from nispa.runs.recording import filling, first_record, task_end, task_result, with_task
from nispa.runs.record import (
    MAX_TASKS,
    Record,
    TaskResult,
    now,
)
from nispa.runs.folder import (
    NETWORK,
    NEWER_NETWORK,
    ORIGIN,
    RunFolder,
    held,
    settled,
)
from nispa.data.tasks import Samples, Task, TaskInfo
from nispa.training.fit import EVALUATION_BATCH
from nispa.runs.usage import spent


@dataclass(frozen=True)
class TaskStart:
    """A task begins: its place (from 0), how many there are, and its name."""

    task: int
    tasks: int
    name: str


@dataclass(frozen=True)
class TaskEnd:
    """A task is learned and measured.

    Attributes:
        task: Its place, from 0.
        accuracies: Test accuracy on every task learned so far, itself last; without being told the
            task where tasks add classes or images to the same outputs.
        result: What the record keeps of it.
    """

    task: int
    accuracies: tuple[float, ...]
    result: TaskResult


@dataclass(frozen=True)
class Notice:
    """Something worth a line that the record keeps among its notes, too."""

    task: int
    text: str


RunEvent = TaskStart | Event | TaskEnd | Notice

Stopping = Callable[[], BaseException | None]
"""What to stop with after a last checkpoint, or None."""


Drawing = Callable[[Record], bytes]
"""From a record to its picture, a PNG file."""


def _never() -> None:
    return None


@dataclass(frozen=True)
class Experiment:
    """What to run: a scenario, a method with its settings, a seed, a device.

    ``cache_bytes`` is memory that prepared data of one task may take; it changes no result. Nor
    does ``data``, the folder that data sets were looked for in, which is kept for a resume.
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
        """The method, ready for the first task.

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
        checkpoint_every: Seconds between two checkpoints within an epoch; there is one at the end
            of each phase whatever it is.
        stopping: Asked every second while values are learned: what to raise after a last
            checkpoint, or None to go on.
        drawing: Draws the picture that is kept beside the record; None keeps none.

    Yields:
        What happens, as it happens. Closing the generator, or an exception such as
        KeyboardInterrupt, leaves the record of the tasks finished, with status ``interrupted`` (or
        ``failed``).

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
        beside = {ORIGIN: origin_file(experiment.data)}
        folder = RunFolder.create(out, record, beside, drawing)
        record = yield from _tasks(experiment, method, folder, record, checkpoint_every, stopping)
    return record


@in_usual_modes
def resume(
    experiment: Experiment,
    out: Path,
    checkpoint_every: float = EVERY_S,
    stopping: Stopping = _never,
    drawing: Drawing | None = None,
) -> Generator[RunEvent, None, Record]:
    """Goes on with an unfinished run from its last checkpoint.

    The finished record and network are, times aside, those of a run that was never disturbed.

    Args:
        experiment: The same that the run was begun with.
        out: The run's folder.
        checkpoint_every: See :func:`run`.
        stopping: See :func:`run`.
        drawing: See :func:`run`.

    Yields and returns:
        As :func:`run`; tasks that were finished are not told again.

    Raises:
        InputError: There is no run, it is complete, or it was another experiment.
        BusyError: Another process is at work on it.
        FormatError: Its files are damaged.
    """
    out = path_of(out)
    folder = RunFolder(out, drawing)
    folder.read_record(sealed=True)  # where there is no run, nothing is made
    with held(out):
        record = yield from _resume(experiment, folder, checkpoint_every, stopping)
    return record


def _resume(
    experiment: Experiment, folder: RunFolder, checkpoint_every: float, stopping: Stopping
) -> Generator[RunEvent, None, Record]:
    out, record = folder.path, folder.read_record(sealed=True)
    if record.status == "complete":
        raise InputError(f"{shown(out)} is complete: nothing is left to resume")
    method = experiment.method()
    _same_run(record, first_record(experiment.scenario, experiment.settings, method), out)
    remove_unfinished(out)
    _settle_network(folder, len(record.per_task))
    if record.per_task:
        method = _saved_method(experiment, folder, len(record.per_task))
    remove(folder.path / NEWER_NETWORK)
    folder.cut_events(len(record.per_task))
    record = record.model_copy(update={"status": "running", "finished": None})
    folder.write_record(record)
    record = yield from _tasks(experiment, method, folder, record, checkpoint_every, stopping)
    return record


SAME = ("version", "scenario", "data", "method", "seed", "incremental", "config", "tasks")
"""What a run and its continuation must agree on."""


def _same_run(record: Record, wanted: Record, out: Path) -> None:
    """Refuses another experiment than the one that ``record`` is of."""
    for name in SAME:
        before, now_ = getattr(record, name), getattr(wanted, name)
        if name == "config":  # one of before may lack settings that came since
            before = _completed(record)
        if before != now_:
            plain = isinstance(now_, (str, int))
            both = f" ({one_line(str(before), 40)}, now {now_})" if plain else ""
            raise InputError(
                f"{shown(out)} was begun with another {name}{both}, so what comes would not be one "
                "run; resume it with what it was begun with"
            )


def _completed(record: Record) -> dict[str, Any]:
    """A record's settings with those that this version has besides."""
    parts = [record.config.get(part) for part in ("network", "method")]
    network, method = (part if isinstance(part, dict) else {} for part in parts)
    return settings_of(record.method, record.preset or "default", network, method).as_json()


def _identity(record: Record) -> str:
    """A hash of all that a run's result follows from."""
    values = record.model_dump(mode="json", include=set(SAME))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _settle_network(folder: RunFolder, tasks: int) -> None:
    """Takes the newer network where the record counts its task."""
    newer = folder.path / NEWER_NETWORK
    learned = -1
    with contextlib.suppress(InputError):
        learned = len(decode(newer)[0].learned)
    if learned == tasks:
        move(newer, folder.path / NETWORK)


def _saved_method(experiment: Experiment, folder: RunFolder, done: int) -> Method:
    """The method as it was after the ``done`` tasks that the record counts."""
    path = folder.path / NETWORK
    try:
        method, settings, _ = decode(path, experiment.device)
    except InputError as error:
        raise FormatError(f"{error}; the run cannot be resumed without it: run it anew") from None
    method.cache_bytes = experiment.cache_bytes
    expected = [task.info for task in experiment.scenario.tasks[:done]]
    if method.learned != expected:
        raise FormatError(
            f"{shown(path)} has learned {len(method.learned)} tasks, the record counts {done}; the "
            "run cannot be resumed: run it anew"
        )
    if settings != experiment.settings or method.seed != experiment.seed:
        raise FormatError(f"{shown(path)} is of another run; put back the one that belongs here")
    return method


def _tasks(
    experiment: Experiment,
    method: Method,
    folder: RunFolder,
    record: Record,
    every: float,
    stopping: Stopping,
) -> Generator[RunEvent, None, Record]:
    """Learns the tasks that the record does not count yet."""
    checkpoints = Checkpoints(folder.path, every, _identity(record))
    try:
        journal: Journal | None = None
        for note in () if record.per_task else record.notes:
            yield Notice(0, note)
        for task in experiment.scenario.tasks[len(record.per_task) :]:
            yield TaskStart(task.index, len(experiment.scenario.tasks), task.name)
            journal = journal or Journal(folder, len(record.tasks))
            started, ledger = spent(), Ledger()
            report = yield from _learn(method, task, journal, checkpoints, stopping, ledger)
            training = checkpoints.spent + (spent() - started)

            started = spent()
            row, agnostic = _measure(method, experiment.scenario, task.index)
            evaluation = spent() - started
            result = task_result(method, task, report, training, evaluation, ledger)
            longer = with_task(record, method, result, row, agnostic)
            note = filling(longer)
            if note:
                longer = longer.model_copy(update={"notes": (*longer.notes, note)})
            labels = _labels(record, method)
            write_atomic(folder.path / NEWER_NETWORK, encode(method, experiment.settings, labels))
            journal.add(task_end(longer, task.index))  # before the record, which decides
            record = longer  # no record may count a task whose network is not on disk
            _save(folder, record)
            last = record.main_matrix[-1][: task.index + 1]
            learned = tuple(value for value in last if value is not None)
            yield TaskEnd(task.index, learned, result)
            if note:
                yield Notice(task.index, note)
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, GeneratorExit))
        # A disk that fails once may fail again: what failed first is what to tell.
        failing = (OutputError,) if isinstance(error, OutputError) else ()
        with contextlib.suppress(*failing):
            _finish(folder, record, "interrupted" if stopped else "failed")
        raise
    checkpoints.clear()
    return _finish(folder, record, "complete")


def _finish(folder: RunFolder, record: Record, status: str) -> Record:
    """Writes the picture and the record a last time, with the status that the run ended in."""
    record = record.model_copy(update={"status": status, "finished": now()})
    if status != "complete":  # what went wrong may be the writing
        folder.write_record(record)
    if record.per_task:
        folder.write_picture(record)
    if status == "complete":  # says that all else is there
        folder.write_record(record)
    return record


def _learn(
    method: Method,
    task: Task,
    journal: Journal,
    checkpoints: Checkpoints,
    stopping: Stopping,
    ledger: Ledger,
) -> Generator[RunEvent, None, LearnReport]:
    """Learns one task, from what checkpoints hold, with a line of ``events.jsonl`` per event."""
    saved = checkpoints.begin(task.index)
    learning = method.learn(task)
    phase: dict[str, Any] = {}
    state: FitState | None = None
    try:
        while True:
            with counting(ledger):  # not while somebody else works on the events
                event = _send(learning, state, checkpoints)
            state = None
            if isinstance(event, FitBegin):
                checkpoints.fit()
                state = next(saved, None)
                continue
            if isinstance(event, FitPause):
                stop = stopping()
                checkpoints.reached(event, last=stop is not None)
                if stop is not None:
                    raise stop
                continue
            names = {PhaseStart: "phase_start", EpochEnd: "epoch", PhaseEnd: "phase_end"}
            if isinstance(event, PhaseStart):
                phase = {"task": task.index, "phase": event.phase}
            journal.add({"event": names[type(event)], **phase, **asdict(event)})
            yield event
    except StopIteration as end:
        report: LearnReport = end.value
        return report


def _send(
    learning: Learning, state: FitState | None, checkpoints: Checkpoints
) -> Event | FitBegin | FitPause:
    """The next event; a saved state that does not fit is an error that names its folder."""
    try:
        return learning.send(state)
    except FormatError as error:
        if state is None:
            raise
        raise FormatError(
            f"{shown(checkpoints.folder)}: {error}; delete this folder to learn the task anew"
        ) from None


def _labels(record: Record, method: Method) -> list[list[Any]]:
    """The names of the classes learned, task by task: as numbers where all of them are such."""
    names: list[Any] = list(record.class_names)
    if all(name.isascii() and name.isdecimal() and name == str(int(name)) for name in names):
        names = [int(name) for name in names]
    names += range(len(names), method.problem.outputs)  # a record of before has none
    return [[names[output] for output in task.classes] for task in method.learned]


def _measure(
    method: Method, scenario: Scenario, last: int
) -> tuple[list[float | None], list[float | None]]:
    """Test accuracy after task ``last``: told the task, and (where possible) not told it.

    Told the task, every task learned and the next one are measured; forward transfer needs that.
    """
    told: list[float | None] = [None] * len(scenario.tasks)
    untold: list[float | None] = [None] * len(scenario.tasks)
    for task in scenario.tasks[: last + 2]:
        test = task.test.to(method.device)
        try:
            told[task.index] = _accuracy(method, test, task.info)
        except NotLearnedError:  # a method with a network per task has none for the next one
            continue
        if method.task_agnostic and task.index <= last:
            untold[task.index] = _accuracy(method, test, None)
    return told, untold


def _accuracy(method: Method, test: Samples, info: TaskInfo | None) -> float:
    right = sum(
        int((method.predict(images, info) == labels).sum())
        for images, labels in test.batches(EVALUATION_BATCH)
    )
    return right / len(test)


def _save(folder: RunFolder, record: Record) -> None:
    """Record, network and picture as they stand after a task.

    The record decides: until it counts the task, the network of the one before is kept.
    """
    folder.write_record(record)
    move(folder.path / NEWER_NETWORK, folder.path / NETWORK)
    if len(record.per_task) < len(record.tasks):  # the last picture is drawn at the end
        folder.write_picture(record)
