"""NISPA and the same network fine-tuned, taught the same tasks side by side, and whoever watches.

Nothing here knows of HTTP. A thread teaches; watchers are called with JSON texts.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nispa.data.arrays import Array
from nispa.errors import DataError, InputError, NispaError, UnknownNameError
from nispa.files import one_line, wording
from nispa.learner import Learner
from nispa.methods.base import Event, PhaseEnd, PhaseStart
from nispa.methods.nispa import Nispa
from nispa.serve.lessons import MOST_KINDS, SIDE, TaskToTeach, centred, drawn, offered
from nispa.serve.snapshots import Watcher
from nispa.training.pausing import EpochEnd

MOST_TASKS = 7
NETWORK: dict[str, Any] = {
    "architecture": "mlp",
    "hidden": (400, 400, 400),
    "density": 0.2,
    "batch_size": 32,
}
NISPA: dict[str, Any] = {
    "epochs_per_phase": 2,
    "min_phases": 4,
    "max_phases": 7,
    "max_share_per_task": 0.14,
}
PLAIN: dict[str, Any] = {"epochs": 14, "keep": "last"}
"""As many epochs as NISPA has at most."""

Listener = Callable[[str], None]


class _Restart(Exception):  # noqa: N818 - it is no error
    """The class begins again."""


class Classroom:
    """Two learners of the same network, and what they are taught.

    Attributes:
        tasks: The tasks that can be taught, by key.
        taught: Those that were, in order.
        accuracy: For each learner the present accuracy on each task taught.
    """

    def __init__(self, data: Path | None = None, **network: Any) -> None:
        """A fresh class.

        Args:
            data: Where data sets lie, or None.
            network: Settings of the network in place of those above.
        """
        self.tasks = {task.key: task for task in offered(data)}
        self.network = {**NETWORK, **network}
        self._listeners: list[Listener] = []
        self._changing = threading.RLock()
        self._thread: threading.Thread | None = None
        self._restart = threading.Event()
        self._drawn = 0
        self._fresh()

    def _fresh(self) -> None:
        same: dict[str, Any] = {
            "input_shape": (1, SIDE, SIDE),
            "classes": MOST_TASKS * MOST_KINDS,
            "seed": 0,
        }
        self.nispa = Learner("nispa", **same, **self.network, **NISPA)
        self.plain = Learner("finetune", **same, **self.network, **PLAIN)
        assert isinstance(self.nispa.method, Nispa)
        self.watcher = Watcher(self.nispa.method)
        self.taught: list[TaskToTeach] = []
        self.accuracy: dict[str, list[float]] = {"nispa": [], "plain": []}
        self.learning: str | None = None
        self._answering: dict[str, Learner] = {}

    # What is seen.

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls a function with each event, the present state first; returns what ends that."""
        with self._changing:
            listener(json.dumps(self.state()))
            self._listeners.append(listener)

        def end() -> None:
            with self._changing:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def state(self) -> dict[str, Any]:
        """Everything a page needs to begin."""
        with self._changing:
            return {
                "event": "state",
                **self.watcher.form(),
                "units": self.watcher.units(),
                "lines": self.watcher.lines(),
                "tasks": [
                    {"key": task.key, "title": task.title, "labels": task.labels,
                     "samples": [sample.flatten().tolist() for sample in task.samples]}
                    for task in self.tasks.values()
                ],
                "taught": [{"key": task.key, "title": task.title, "labels": task.labels}
                           for task in self.taught],
                "accuracy": self.accuracy,
                "learning": self.learning,
                "side": SIDE,
                "most_tasks": MOST_TASKS,
            }  # fmt: skip

    def _tell(self, event: str, **values: Any) -> None:
        with self._changing:
            text = json.dumps({"event": event, **values})
            for listener in list(self._listeners):
                listener(text)

    # What is taught.

    def teach(self, key: str) -> None:
        """Begins to teach a task.

        Raises:
            UnknownNameError: There is none of that key.
            InputError: It was taught already, or another one is being taught.
        """
        if key not in self.tasks:
            raise UnknownNameError(f"there is no task '{one_line(key, 40)}'")
        self._begin(self.tasks[key])

    def teach_drawings(self, name: str, drawings: list[tuple[str, list[Array]]]) -> None:
        """Begins to teach a task of drawings; see :func:`nispa.serve.lessons.drawn`."""
        if not 1 <= len(name) <= 40 or not name.isprintable():
            raise DataError("the task needs a name of 1 to 40 characters")
        with self._changing:
            self._drawn += 1
            key = f"drawn-{self._drawn}"
        task = drawn(key, name, drawings)
        self._begin(task)
        with self._changing:
            self.tasks[key] = task

    def _begin(self, task: TaskToTeach) -> None:
        with self._changing:
            if self.learning is not None:
                raise InputError("a task is being learned; wait until it is done")
            if task.key in [each.key for each in self.taught]:
                raise InputError(f"'{task.title}' is learned already; choose another task")
            if len(self.taught) >= MOST_TASKS:
                raise InputError(f"{MOST_TASKS} tasks are learned, the most here; start again")
            self.learning = task.title
            self._thread = threading.Thread(target=self._teach, args=(task,), daemon=True)
            self._thread.start()

    def _teach(self, task: TaskToTeach) -> None:
        number = len(self.taught)
        self._tell("begin", task=number, title=task.title, labels=task.labels)
        try:
            self.nispa.learn(*task.train, watch=lambda e: self._nispa(task, e), progress=False)
            with self._changing:
                self.watcher.keep(number)
                changes = self.watcher.changes()
            self._tell("stable", task=number, units=self.watcher.units(), changes=changes,
                       lines=self.watcher.lines())  # fmt: skip
            self.plain.learn(*task.train, watch=lambda e: self._plain(task, e), progress=False)
            with self._changing:
                self.taught.append(task)
                for name, learner in (("nispa", self.nispa), ("plain", self.plain)):
                    self.accuracy[name] = self._measured(learner)
                    self._answering[name] = _copied(learner)
                self.learning = None
            self._tell("learned", task=number, title=task.title, accuracy=self.accuracy)
        except _Restart:
            with self._changing:
                self.learning = None
        except Exception as error:  # noqa: BLE001 - the class must be able to go on
            text = str(error) if isinstance(error, NispaError) else wording(error)
            with self._changing:
                self._fresh()  # one of the two may have learned the task already
            self._tell("failed", error=one_line(text, 300))
            self._tell(**self.state())

    def _nispa(self, task: TaskToTeach, event: Event) -> None:
        if self._restart.is_set():
            raise _Restart
        if isinstance(event, PhaseStart):
            self._tell("phase", phase=event.phase, phases=event.phases)
        elif isinstance(event, EpochEnd):
            accuracy = self._measured(self.nispa)
            self._tell("epoch", learner="nispa", accuracy=accuracy, new=event.validation_accuracy)
        elif isinstance(event, PhaseEnd):
            self._tell(
                "rewired",
                phase=event.phase,
                units=self.watcher.units(),
                changes=self.watcher.changes(),
                lines=self.watcher.lines(),
            )

    def _plain(self, task: TaskToTeach, event: Event) -> None:
        if self._restart.is_set():
            raise _Restart
        if isinstance(event, EpochEnd):
            accuracy = self._measured(self.plain)
            self._tell("epoch", learner="plain", accuracy=accuracy, new=event.validation_accuracy)

    def _measured(self, learner: Learner) -> list[float]:
        """The accuracy now on each task taught, also while the next one is learned."""
        return [
            round(learner.accuracy(*task.test, place), 4) for place, task in enumerate(self.taught)
        ]

    def restart(self) -> None:
        """Forgets everything, also what is being learned."""
        self._stop()
        with self._changing:
            self._fresh()
            self.tasks = {k: task for k, task in self.tasks.items() if not k.startswith("drawn-")}
        self._tell(**self.state())

    def _stop(self) -> None:
        self._restart.set()
        if self._thread is not None:
            self._thread.join()
        self._restart.clear()

    def close(self) -> None:
        """Ends what is being learned."""
        self._stop()

    # What is asked.

    def ask(self, image: Array, task: int, *, drawing: bool) -> dict[str, list[dict[str, Any]]]:
        """Both learners' labels of an image with probabilities, the likeliest first.

        Args:
            image: ``(16, 16)`` uint8.
            task: The task it belongs to, from 0.
            drawing: Whether to bring it to the size of a digit first.

        Raises:
            InputError: There is no such task, or the image is empty.
        """
        with self._changing:
            if not 0 <= task < len(self.taught):
                raise InputError("teach a task first, then ask")
            pixels = (centred(image) if drawing else image)[None]
            found = {}
            for name, learner in self._answering.items():
                shares = learner.predict_proba(pixels, task)[0]
                labels = learner.classes_of(task)
                best = np.argsort(-shares, kind="stable")
                found[name] = [
                    {"label": labels[place], "probability": float(shares[place])} for place in best
                ]
            return found

    def example(self, task: int, number: int) -> tuple[Array, str]:
        """A test image of a task, and its label."""
        with self._changing:
            if not 0 <= task < len(self.taught):
                raise InputError("teach a task first, then take an example")
            images, labels = self.taught[task].test
            place = (number * 37 + 11) % len(images)
            return images[place], str(labels[place])


def _copied(learner: Learner) -> Learner:
    """A learner that answers while the other one learns."""
    with tempfile.TemporaryDirectory(prefix="nispa-play-") as folder:
        file = Path(folder) / "copy.safetensors"
        learner.save(file)
        return Learner.load(file)
