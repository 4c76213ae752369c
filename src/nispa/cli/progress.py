"""Displays of a run's progress: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from nispa.files import one_line
from nispa.methods.base import PhaseEnd, PhaseStart
from nispa.runs.runner import Notice, RunEvent, TaskEnd, TaskStart
from nispa.training.pausing import EpochEnd

if TYPE_CHECKING:
    from typing_extensions import Self

Clock = Callable[[], float]
QUIET_S = 10.0  # least time between two plain lines about data
NAME_WIDTH = 14


class Progress:
    """The progress of a run, computed from its events.

    Attributes:
        task: The current task, from 0.
        name: Its name.
        phase: Its current phase, from 1, of at most ``phases``.
        epoch: Finished epochs of that phase, of ``epochs``.
        tau: Share of activation that selected the phase's candidates, or None.
        validation: Last validation accuracy of the task; None before the first.
        stable: Share of hidden units that are stable or candidates, or None.
    """

    def __init__(self, epoch_sizes: Sequence[int], clock: Clock = time.perf_counter) -> None:
        """Starts the clock.

        Args:
            epoch_sizes: Training images per epoch, for each task.
            clock: Returns seconds; only differences matter.
        """
        self._sizes, self._clock = tuple(epoch_sizes), clock
        self._started = self._warm = clock()
        self._samples: int | None = None
        self.tasks, self.task, self.name = len(self._sizes), 0, ""
        self._new_task()

    def _new_task(self) -> None:
        self.phase = self.phases = self.epochs = 1
        self.epoch = self._epochs_done = 0
        self.tau: float | None = None
        self.validation: float | None = None
        self.stable: float | None = None

    def update(self, event: RunEvent) -> None:
        """Updates the progress after an event."""
        if isinstance(event, TaskStart):
            self._new_task()
            self.task, self.name = event.task, one_line(event.name, NAME_WIDTH)
        elif isinstance(event, PhaseStart):
            self.phase, self.phases, self.epochs = event.phase, event.phases, event.epochs
            self.tau, self.stable, self.epoch = event.tau, event.stable_share, 0
        elif isinstance(event, EpochEnd):
            self.epoch = event.epoch
            self._epochs_done += 1
            if self._samples is None:  # not counted, since libraries warm up in the first epoch
                self._samples, self._warm = 0, self._clock()
            else:
                self._samples += event.samples
            self.validation = event.validation_accuracy

    @property
    def label(self) -> str:
        """The task's place and name, such as ``2/5 2-3``."""
        return f"{self.task + 1}/{self.tasks} {self.name}"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first task began."""
        return self._clock() - self._started

    @property
    def share_done(self) -> float:
        """Share of the run that is done, in [0, 1], if every task takes its most epochs."""
        within = self._epochs_done / (self.phases * self.epochs)
        return min(1.0, (self.task + min(within, 1.0)) / self.tasks)

    @property
    def left_s(self) -> float | None:
        """Seconds left if every task takes its most epochs; None before two epochs are over."""
        if not self._samples:
            return None
        most = self.phases * self.epochs
        samples = max(most - self._epochs_done, 0) * self._sizes[self.task]
        samples += most * sum(self._sizes[self.task + 1 :])
        return samples * (self._clock() - self._warm) / self._samples

    @property
    def left(self) -> str:
        """The time left in words: an upper bound, since tasks may stop early."""
        return "" if self.left_s is None else f"at most {duration(self.left_s)} left"


def duration(seconds: float) -> str:
    """A time in words, such as ``4 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} days"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as ``43 %``, or ``-`` for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def stable_share(event: TaskEnd) -> float | None:
    """Share of hidden units that are stable after a task; None for methods without stable units."""
    counts = event.result.stable_units.values()
    size = sum(count.size for count in counts)
    return sum(count.stable for count in counts) / size if size else None


def data_progress(what: str, done: int, total: int) -> str:
    """Progress of reading or downloading, such as ``gzip.zip: 45 %``."""
    return f"{what}: {100 * done // total} %" if total else f"{what}: {done:,}"


class Closing:
    """A display for a ``with`` block, which closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes live lines from the screen."""


class Display(Closing):
    """Shows nothing; used by ``--quiet``, and the base of the others."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Shows how many images are decoded, or bytes downloaded."""

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """Starts showing a run of these tasks, whose record goes to ``where``."""
        self.progress = Progress(epoch_sizes)

    def show(self, event: RunEvent) -> None:
        """Shows an event of the run."""
        self.progress.update(event)
        if isinstance(event, Notice):
            self.note(event.text)

    def note(self, text: str) -> None:
        """Shows a line of text."""


class PlainDisplay(Display):
    """Prints a line per phase and per task, without control characters, for logs and pipes."""

    def __init__(self, title: str, clock: Clock = time.perf_counter) -> None:
        self._clock, self._what, self._said = clock, "", 0.0
        click.echo(title)

    def loading(self, what: str, done: int, total: int) -> None:
        """Prints a line at the start, at the end, and every few seconds in between."""
        if what != self._what or done == total or self._clock() - self._said >= QUIET_S:
            self._what, self._said = what, self._clock()
            click.echo(f"data: {data_progress(what, done, total)}")

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """Prints the number of tasks and the folder."""
        super().begin(epoch_sizes, where)
        click.echo(f"{len(epoch_sizes)} tasks; the record goes to {where}")

    def note(self, text: str) -> None:
        """Prints a line."""
        click.echo(text)

    def show(self, event: RunEvent) -> None:
        """Prints a line at the end of a phase or a task."""
        super().show(event)
        now = self.progress
        if isinstance(event, PhaseEnd):
            parts = [
                f"task {now.label}: phase {now.phase} (of at most {now.phases})",
                f"validation {percent(event.accuracy, 1)}",
                f"tau {'-' if now.tau is None else f'{now.tau:.3f}'}",
                f"stable or candidate {percent(now.stable)}",
                duration(event.seconds),
                now.left,
            ]
            click.echo(", ".join(part for part in parts if part))
        elif isinstance(event, TaskEnd):
            result = event.result
            parts = [
                f"task {now.label}: learned, test {percent(event.accuracies[-1], 1)}",
                f"mean so far {percent(mean(event.accuracies), 1)}",
                f"stable {percent(stable_share(event))}",
                f"{result.phases} phase{'s' * (result.phases != 1)}",
                f"{duration(result.train_s)} ({result.stop_reason})",
            ]
            click.echo(", ".join(parts))


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)
