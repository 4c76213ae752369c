"""What a run looks like while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from nispa.files import one_line
from nispa.methods.base import PhaseEnd, PhaseStart
from nispa.runs.runner import Notice, RunEvent, TaskEnd, TaskStart
from nispa.training.pausing import EpochEnd

if TYPE_CHECKING:
    from typing_extensions import Self

Clock = Callable[[], float]
QUIET_S = 10.0  # plain lines about data come no closer than this
NAME_WIDTH = 14


class Progress:
    """Where a run stands, put together from its events.

    Attributes:
        task: The task being learned, from 0.
        name: Its name.
        phase: The phase it is in, from 1; ``phases`` is the most it can have.
        epoch: Epochs of that phase that are over, of ``epochs``.
        tau: Share of activation that the phase's candidates were picked with, or None.
        validation: Last validation accuracy of the task, or None before the first.
        stable: Share of hidden units that are stable or candidates, or None.
    """

    def __init__(self, epoch_sizes: Sequence[int], clock: Clock = time.perf_counter) -> None:
        """At the start of a run.

        Args:
            epoch_sizes: Training images of one epoch, for each task.
            clock: Seconds since some moment.
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
        """Takes note of an event."""
        if isinstance(event, TaskStart):
            self._new_task()
            self.task, self.name = event.task, one_line(event.name, NAME_WIDTH)
        elif isinstance(event, PhaseStart):
            self.phase, self.phases, self.epochs = event.phase, event.phases, event.epochs
            self.tau, self.stable, self.epoch = event.tau, event.stable_share, 0
        elif isinstance(event, EpochEnd):
            self.epoch = event.epoch
            self._epochs_done += 1
            if self._samples is None:  # the first epoch also warms up libraries: it is not counted
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
        """Share of the run that is over if every task took its longest, in [0, 1]."""
        within = self._epochs_done / (self.phases * self.epochs)
        return min(1.0, (self.task + min(within, 1.0)) / self.tasks)

    @property
    def left_s(self) -> float | None:
        """Seconds left if every task takes all its phases; None before two epochs are over."""
        if not self._samples:
            return None
        most = self.phases * self.epochs
        samples = max(most - self._epochs_done, 0) * self._sizes[self.task]
        samples += most * sum(self._sizes[self.task + 1 :])
        return samples * (self._clock() - self._warm) / self._samples

    @property
    def left(self) -> str:
        """The time left in words; it is an upper bound, since tasks may end before their time."""
        return "" if self.left_s is None else f"at most {duration(self.left_s)} left"


def duration(seconds: float) -> str:
    """Seconds in words, such as ``4 s``, ``3 min 20 s`` or ``2 h 05 min``."""
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
    """A share as ``43 %``, or ``-`` where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def stable_share(event: TaskEnd) -> float | None:
    """Share of hidden units that are stable after a task, or None for methods without such."""
    counts = event.result.stable_units.values()
    size = sum(count.size for count in counts)
    return sum(count.stable for count in counts) / size if size else None


def data_progress(what: str, done: int, total: int) -> str:
    """How far reading or downloading has come, such as ``gzip.zip: 45 %``."""
    return f"{what}: {100 * done // total} %" if total else f"{what}: {done:,}"


class Closing:
    """Something for a ``with`` block, whose end closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes what lives from the screen."""


class Display(Closing):
    """Shows nothing: what ``--quiet`` uses, and what the others build on."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Data are coming in: images decoded, or bytes downloaded."""

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """The tasks are known, and where the record goes."""
        self.progress = Progress(epoch_sizes)
        self.where = where

    def show(self, event: RunEvent) -> None:
        """Something happened in the run."""
        self.progress.update(event)
        if isinstance(event, Notice):
            self.note(event.text)

    def note(self, text: str) -> None:
        """Something else worth a line."""


class PlainDisplay(Display):
    """A line for each phase and each task, without control characters: for logs and pipes."""

    def __init__(self, title: str, clock: Clock = time.perf_counter) -> None:
        self._clock, self._what, self._said = clock, "", 0.0
        click.echo(title)

    def loading(self, what: str, done: int, total: int) -> None:
        """A line at the start and the end, and now and then between."""
        if what != self._what or done == total or self._clock() - self._said >= QUIET_S:
            self._what, self._said = what, self._clock()
            click.echo(f"data: {data_progress(what, done, total)}")

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """A line with the number of tasks and the folder."""
        super().begin(epoch_sizes, where)
        click.echo(f"{len(epoch_sizes)} tasks; the record goes to {where}")

    def note(self, text: str) -> None:
        """A line."""
        click.echo(text)

    def show(self, event: RunEvent) -> None:
        """A line at the end of a phase and of a task."""
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
                f"mean so far {percent(_mean(event.accuracies), 1)}",
                f"stable {percent(stable_share(event))}",
                f"{result.phases} phase{'s' * (result.phases != 1)}",
                f"{duration(result.train_s)} ({result.stop_reason})",
            ]
            click.echo(", ".join(parts))


class LiveDisplay(Display):
    """A line for each finished task, and below them one that lives."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._console.print(Text(title, style="bold"))
        self._loading = "reading the data"
        self._spinner = Spinner("line")
        self._started = False
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            refresh_per_second=8,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def close(self) -> None:
        """The living line goes."""
        self._live.stop()

    def loading(self, what: str, done: int, total: int) -> None:
        """Changes the living line."""
        self._loading = data_progress(one_line(what, 60), done, total)

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """The head of the table of tasks."""
        super().begin(epoch_sizes, where)
        text = f"{len(epoch_sizes)} tasks; the record goes to {where}"
        self._console.print(Text(text), soft_wrap=True)
        self._console.print()
        head = _row("task", "test", "mean so far", "stable", "phases", "time")
        self._console.print(Text(head, style="dim"))
        self._started = True

    def note(self, text: str) -> None:
        """A line above those of the tasks."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, event: RunEvent) -> None:
        """A line at the end of a task; the rest changes the living line."""
        super().show(event)
        if isinstance(event, TaskEnd):
            row = _row(
                self.progress.label,
                percent(event.accuracies[-1], 1),
                percent(_mean(event.accuracies), 1),
                percent(stable_share(event)),
                str(event.result.phases),
                duration(event.result.train_s),
            )
            self._console.print(Text(row))

    def _frame(self) -> RenderableType:
        if not self._started:
            self._spinner.update(text=Text(self._loading))
            return self._spinner
        now = self.progress
        epoch = min(now.epoch + 1, now.epochs)
        parts = [] if now.tau is None else [f"tau {now.tau:.2f}"]
        parts.append(f"validation {percent(now.validation, 1)}")
        if now.stable is not None:
            parts.append(f"stable or candidate {percent(now.stable)}")
        times = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=now.share_done, width=24)
        times.add_row(bar, Text(f"{duration(now.elapsed_s)} so far"), Text(now.left, style="dim"))
        return Group(
            Text(),
            Text.assemble(
                (f"{now.label:<{LABEL_WIDTH}}", "bold"),
                f"phase {now.phase} (of at most {now.phases}), epoch {epoch}/{now.epochs}",
            ),
            Text(" " * LABEL_WIDTH + "  ".join(parts)),
            times,
        )


LABEL_WIDTH = 22


def _row(label: str, *cells: str) -> str:
    widths = (8, 13, 8, 8, 13)
    text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{label:<{LABEL_WIDTH}}{text}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
