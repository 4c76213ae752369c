"""The learner that answers, and the tasks that it is taught meanwhile. Nothing here knows of HTTP.

A task is learned by a copy, in a process of its own. The copy takes the learner's place in one
step, after its old answers were held against the present ones and its file was written.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import nispa
from nispa.data.arrays import Array
from nispa.errors import (
    BusyError,
    InputError,
    NispaError,
    NotLearnedError,
    OutputError,
    UnknownNameError,
)
from nispa.files import one_line, reason, shown, wording, write_atomic
from nispa.learner import Learner
from nispa.methods.saving import MAX_TASKS, check_task_name
from nispa.runs.folder import NETWORK
from nispa.runs.record import RECORD
from nispa.serve.bodies import Lesson
from nispa.serve.jobs import ENDED, Job, Stopped, learn_apart
from nispa.serve.probes import Probes

MAX_JOBS = 1000
"""Jobs that are over and still listed."""


class QueueFullError(NispaError):
    """As many tasks wait as may."""


@dataclass(frozen=True)
class Setup:
    """What a service is started with.

    Attributes:
        path: The learner's file or a run's folder.
        device: Where to compute.
        model: Name of the function that builds the learner's network, if it was made with one.
        teach: Whether it may be taught.
        forgetting: Whether a task is kept although it changes old answers.
        queue: Tasks that may wait or be learned at a time.
        threads: Threads that learning uses.
    """

    path: Path
    device: str = "cpu"
    model: str | None = None
    teach: bool = True
    forgetting: bool = False
    queue: int = 4
    threads: int = 1


class Service:
    """Answers with a learner, and teaches it.

    Attributes:
        setup: What it was started with.
        learner: The learner that answers now; replaced as a whole, never changed.
    """

    def __init__(self, setup: Setup) -> None:
        """Loads the learner and takes its file for this process.

        Raises:
            BusyError: Another server teaches it.
            InputError: It cannot be loaded, or is part of a run and may not be taught.
        """
        path = setup.path.resolve() if setup.teach else setup.path  # one lock, whatever link
        if setup.teach and (path.is_dir() or _of_run(path)):
            raise InputError(
                f"{shown(setup.path)} belongs to a run, whose record counts its tasks; serve it "
                "with --read-only, or copy its network.safetensors to another folder and serve that"
            )
        self.setup, self.path = setup, path
        self._closing = contextlib.ExitStack()
        if setup.teach:
            self._closing.enter_context(_held(path))
        try:
            self.learner = Learner.load(path, device=setup.device, model=setup.model)
            self._seal = _mark(path) if setup.teach else ()
            self._probes = Probes.of_shape(self.learner.method.problem.input_shape)
            self._expected = self._probes.answers(self.learner) if setup.teach else {}
        except BaseException:
            self._closing.close()
            raise
        self._computing = threading.Lock()  # a network computes in one thread at a time
        self._changing = threading.Lock()
        self._waiting: queue.Queue[tuple[Job, Lesson] | None] = queue.Queue()
        self._jobs: dict[int, Job] = {}
        self._made = 0
        self._closed = False
        self._left: list[Job] = []  # not yet learned when the service was closed
        self._teacher = threading.Thread(target=self._work, name="teacher", daemon=True)
        if setup.teach:
            self._teacher.start()

    # Answering.

    def about(self) -> dict[str, Any]:
        """What the learner is and knows, in JSON values."""
        learner = self.learner
        problem = learner.method.problem
        return {
            "nispa": nispa.__version__,
            "method": learner.settings.method,
            "incremental": learner.settings.config.incremental,
            "input_shape": list(problem.input_shape),
            "tasks": [self._task(learner, place) for place in range(len(learner.tasks))],
            "classes": problem.outputs,
            "classes_free": problem.outputs
            - len({output for task in learner.tasks for output in task.classes}),
            "teach": self.setup.teach,
        }

    @staticmethod
    def _task(learner: Learner, place: int) -> dict[str, Any]:
        named = {"task": place + 1, "name": learner.task_names[place]}
        try:
            return {**named, "labels": learner.classes_of(place)}
        except NotLearnedError:
            return {**named, "labels": [], "forgotten": True}

    def answer(
        self, images: Array, channels_first: bool | None, task: Any = None, top: int = 1
    ) -> list[dict[str, Any]]:
        """For each image the likeliest labels, the likeliest first.

        Args:
            images: As in :meth:`nispa.learner.Learner.predict`.
            channels_first: As there.
            task: Number from 1, or name; None to choose among all labels.
            top: Number of labels.

        Raises:
            NotLearnedError: No such task, or the learner must be told one.
            InputError: The images cannot be used.
        """
        with self._computing:
            learner = self.learner  # the one that answers now, for the whole request
            place = _place(learner, task)
            found = learner.ranked(images, place, top, channels_first=channels_first)
        return [
            {"labels": [{"label": label, "probability": share} for label, share in best]}
            for best in found
        ]

    # Teaching.

    def check_room(self) -> None:
        """Whether one more task may be taught now, before its examples are even read.

        Raises:
            InputError: The service is read-only, or is ending.
            QueueFullError: Too many wait.
        """
        if not self.setup.teach:
            raise InputError("this server is read-only; start it without --read-only to teach it")
        if self._closed:
            raise InputError("the server is stopping")
        busy = sum(job.state not in ENDED for job in self._jobs.values())
        if busy >= self.setup.queue:
            raise QueueFullError(
                f"{busy} tasks wait or are being learned, the most allowed; try again later"
            )

    def teach(self, lesson: Lesson) -> Job:
        """Queues a task.

        Raises:
            InputError: It cannot be learned, as far as can be seen now.
            QueueFullError: Too many wait.
        """
        check_task_name(lesson.name)
        with self._changing:
            self.check_room()
            if lesson.name.isdecimal():
                raise InputError(f"name={lesson.name} is a number, which tasks have anyway")
            names = {name for name in self.learner.task_names if name}
            names |= {job.name for job in self._jobs.values() if job.state not in ENDED}
            if lesson.name and lesson.name in names:
                raise InputError(
                    f"a task is called '{lesson.name}' already; choose another name, since old "
                    "tasks never change"
                )
            if len(self.learner.tasks) >= MAX_TASKS:
                raise InputError(f"{MAX_TASKS:,} tasks are learned, the most there can be")
            self._made += 1
            kinds = list(dict.fromkeys(lesson.labels))
            job = Job(self._made, lesson.name, len(lesson.labels), kinds)
            self._jobs[job.number] = job
            for old in [each for each in self._jobs.values() if each.state in ENDED][:-MAX_JOBS]:
                del self._jobs[old.number]
            self._waiting.put((job, lesson))
        return job

    def drop(self, number: int) -> Job:
        """Calls a task off, unless it is over: nothing of it is kept."""
        with self._changing:
            job = self.job(number)
            job.stop.set()
        return job

    @property
    def jobs(self) -> list[Job]:
        """The tasks taught, those that wait among them, in order."""
        return list(self._jobs.values())

    def job(self, number: int) -> Job:
        """One of them.

        Raises:
            UnknownNameError: There is none of that number.
        """
        found = self._jobs.get(number)
        if found is None:
            raise UnknownNameError(f"there is no job {number}; GET /jobs lists them")
        return found

    def _work(self) -> None:
        """The teacher: one task after another."""
        while (item := self._waiting.get()) is not None:
            job, lesson = item
            if job.stop.is_set():
                job.end("dropped", "")
                continue
            try:
                self._learn(job, lesson)
            except Stopped:
                job.end("dropped", "")
            except NispaError as error:
                job.end("failed", one_line(str(error), 1000))
            except Exception as error:  # noqa: BLE001 - the next task must still be learned
                job.end("failed", f"unforeseen: {wording(error)}")

    def _learn(self, job: Job, lesson: Lesson) -> None:
        job.state = "learning"
        content = learn_apart(job, lesson, self.learner, self.setup)
        job.state = "checking"
        with _loaded(content, self.setup) as learner:
            compared = self._probes.compare(self._expected, learner)
            job.old_answers = compared.as_json()
            if not compared.unchanged and not self.setup.forgetting:
                raise InputError(
                    f"learning it changed {compared.changed:,} of {compared.values:,} logits of "
                    "earlier tasks, so it was not kept; start the server with --allow-forgetting "
                    "to keep such tasks"
                )
            if _mark(self.path) != self._seal:
                raise InputError(
                    f"another program changed {shown(self.path)}, so nothing was written over it; "
                    "restart the server"
                )
            # While nobody else asks it yet: afterwards answers would have to wait for this.
            probes = self._probes.with_examples(lesson.images, lesson.channels_first)
            expected = probes.answers(learner)
            # From here on the task is kept: an end of the server waits for it.
            with self._changing:
                if job.stop.is_set():
                    raise Stopped
                write_atomic(self.path, content)
                self._seal = _mark(self.path)
                self._probes, self._expected = probes, expected
                with self._computing:
                    self.learner = learner
        job.task = len(self.learner.tasks)
        job.end("learned", "")

    def close(self) -> list[Job]:
        """Ends the teacher; a task that is not yet learned is dropped as a whole.

        Returns:
            The tasks dropped.
        """
        with self._changing:
            if not self._closed:
                self._left = [job for job in self._jobs.values() if job.state not in ENDED]
            self._closed = True
            for job in self._left:
                job.stop.set()
        if self._teacher.is_alive():
            self._waiting.put(None)
            self._teacher.join()
        self._closing.close()
        return [job for job in self._left if job.state == "dropped"]


def _place(learner: Learner, task: Any) -> int | None:
    """A task's place from its number or name; the only task there is, if none is given."""
    count = len(learner.tasks)
    if task is None:
        return 0 if count == 1 else None
    if isinstance(task, str) and task in learner.task_names:
        return learner.task_names.index(task) if task else None
    if isinstance(task, str) and task.isdecimal() and len(task) < 10:
        task = int(task)
    if type(task) is int and 1 <= task <= count:
        return task - 1
    known = [f"{place} ({name})" if name else str(place)
             for place, name in enumerate(learner.task_names, start=1)][:20]  # fmt: skip
    raise NotLearnedError(
        f"task={one_line(str(task), 60)} is not learned; learned are: {', '.join(known) or 'none'}"
    )


def _of_run(path: Path) -> bool:
    return path.name == NETWORK and (path.parent / RECORD).exists()


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when another program writes a file."""
    try:
        found = path.stat()
    except OSError as error:
        raise OutputError(f"cannot use {shown(path)}: {reason(error)}") from error
    return (found.st_ino, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Locks a learner's file for this process; the lock goes with the process."""
    lock = FileLock(path.parent / f".{path.name}.nispa-serve.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"another server teaches {shown(path)}; stop it, or start this one with --read-only"
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot lock {shown(path)}: {reason(error)}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _loaded(content: bytes, setup: Setup) -> Iterator[Learner]:
    """A learner from the bytes of its file, as they will be written."""
    with tempfile.TemporaryDirectory(prefix="nispa-serve-") as folder:
        file = Path(folder) / "candidate.safetensors"
        file.write_bytes(content)
        yield Learner.load(file, device=setup.device, model=setup.model)
