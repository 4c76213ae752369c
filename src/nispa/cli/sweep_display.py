"""Displays of a sweep's progress, and the table at its end."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nispa.cli.progress import Closing, duration, percent
from nispa.errors import InputError
from nispa.files import one_line
from nispa.runs.record import RECORD, Record, read_record
from nispa.sweep.jobs import Job, Outcome

Clock = Callable[[], float]
QUIET_S = 60.0  # time after which a plain line says that the sweep still runs
MAX_SHOWN = 8  # running jobs that are listed
PATIENCE_S = 2.0  # least time between two looks for running jobs


class Standing:
    """The progress of a sweep.

    Attributes:
        total: Number of jobs.
        before: Number of jobs that were done when it began.
        done: Number of jobs that are done now, including those.
        failed: Outcomes of the jobs that failed.
        best: Title and accuracy of the best run; None if the jobs learn different things.
    """

    def __init__(self, jobs: Sequence[Job], before: Sequence[Job], clock: Clock) -> None:
        self._clock, self._began = clock, clock()
        self.total, self.before, self.done = len(jobs), len(before), len(before)
        self.failed: list[Outcome] = []
        self.best: tuple[str, float] | None = None
        self._open = {job.key: job for job in jobs}
        self._alike = len({_problem(job) for job in jobs}) == 1
        self._running: list[tuple[Job, Record]] = []
        self._looked = -PATIENCE_S
        for job in before:
            self._end(job)

    def take(self, outcome: Outcome) -> Record | None:
        """Counts an outcome; returns the record of a run that is done."""
        record = self._end(outcome.job)
        if outcome.status == "done":
            self.done += 1
            return record
        if outcome.status == "failed":
            self.failed.append(outcome)
        return None

    def _end(self, job: Job) -> Record | None:
        self._open.pop(job.key, None)
        try:
            record = read_record(job.folder)
        except InputError:
            return None
        value = _accuracy(record) if record.status == "complete" and self._alike else None
        if value is not None and (self.best is None or value > self.best[1]):
            self.best = (job.title, value)
        return record

    def running(self) -> list[tuple[Job, Record]]:
        """Jobs whose records say that they are running, with a delay of two seconds."""
        if self._clock() - self._looked >= PATIENCE_S:
            self._looked = self._clock()
            self._running = []
            for job in self._open.values():
                if (job.folder / RECORD).exists():
                    try:
                        record = read_record(job.folder)
                    except InputError:
                        continue
                    if record.status == "running":
                        self._running.append((job, record))
        return [(job, record) for job, record in self._running if job.key in self._open]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the sweep began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Seconds left, extrapolated from the runs that ended; None before the first."""
        ended = self.done - self.before + len(self.failed)
        left = self.total - self.done - len(self.failed)
        return None if not ended else self.elapsed_s * left / ended

    @property
    def counts(self) -> str:
        """Runs done, running and failed, and the time left, in a line."""
        parts = [f"{self.done} of {self.total} done", f"{len(self.running())} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} FAILED")
        if self.left_s is not None:
            parts.append(f"about {duration(self.left_s)} left")
        return ", ".join(parts)

    @property
    def best_line(self) -> str:
        """The best run so far, in a line; empty if there is none."""
        return f"best so far: {percent(self.best[1], 2)}, {self.best[0]}" if self.best else ""


class SweepDisplay(Closing):
    """Shows nothing; used by ``--quiet``, and the base of the others."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock

    def begin(self, jobs: Sequence[Job], before: Sequence[Job], workers: int) -> None:
        """Starts showing a sweep of ``jobs``, of which ``before`` are done already."""
        self.standing = Standing(jobs, before, self._clock)

    def show(self, outcome: Outcome | None) -> None:
        """Shows the outcome of a job; None only passes time."""
        if outcome is not None:
            self.standing.take(outcome)


def _accuracy(record: Record | None) -> float | None:
    metric = None if record is None else record.main_metrics.get("acc")
    return None if metric is None else metric.value


def outcome_line(outcome: Outcome, record: Record | None) -> str:
    """The outcome of a job in a line."""
    if outcome.status == "failed":
        return f"FAILED: {outcome.job.title}: {one_line(outcome.problem, 500)}"
    if outcome.status == "stopped":
        return f"stopped: {outcome.job.title}"
    return f"{outcome.job.title}: {percent(_accuracy(record), 2)} in {duration(outcome.seconds)}"


class PlainSweepDisplay(SweepDisplay):
    """Prints a line for each job that ends, and one a minute."""

    def begin(self, jobs: Sequence[Job], before: Sequence[Job], workers: int) -> None:
        """Prints the number of jobs."""
        super().begin(jobs, before, workers)
        self._said = self._clock()
        click.echo(f"{len(jobs)} runs, {len(before)} of them done before, {workers} at a time")

    def show(self, outcome: Outcome | None) -> None:
        """Prints a line for a job, or once a minute."""
        now = self.standing
        if outcome is not None:
            record = now.take(outcome)
            place = now.done + len(now.failed)
            click.echo(f"[{place}/{now.total}] {outcome_line(outcome, record)}")
        elif self._clock() - self._said >= QUIET_S:
            click.echo("; ".join(filter(None, (now.counts, now.best_line))))
        else:
            return
        self._said = self._clock()


class LiveSweepDisplay(SweepDisplay):
    """Prints a line for each job that ends, above live lines about the whole sweep."""

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console or Console(highlight=False)
        self._live: Live | None = None

    def begin(self, jobs: Sequence[Job], before: Sequence[Job], workers: int) -> None:
        """Prints the number of jobs and starts the live lines."""
        super().begin(jobs, before, workers)
        text = f"{len(jobs)} runs, {len(before)} of them done before, {workers} at a time"
        self._console.print(Text(text))
        self._live = Live(
            get_renderable=self._frame, console=self._console, refresh_per_second=2, transient=True
        )
        self._live.start()

    def close(self) -> None:
        """Removes the live lines."""
        if self._live is not None:
            self._live.stop()

    def show(self, outcome: Outcome | None) -> None:
        """Prints a line for a job."""
        if outcome is not None:
            record = self.standing.take(outcome)
            style = "bold red" if outcome.status == "failed" else ""
            self._console.print(Text(outcome_line(outcome, record), style=style))

    def _frame(self) -> RenderableType:
        now = self.standing
        running = now.running()
        lines: list[RenderableType] = [Text()]
        for job, record in running[:MAX_SHOWN]:
            task = min(len(record.per_task) + 1, len(record.tasks))
            tasks = f"  task {task} of {len(record.tasks)}"
            lines.append(Text.assemble("  ", job.title, (tasks, "dim")))
        if len(running) > MAX_SHOWN:
            lines.append(Text(f"  and {len(running) - MAX_SHOWN} more", style="dim"))
        if now.best_line:
            lines.append(Text(now.best_line))
        bar = Table.grid(padding=(0, 2))
        over = now.done + len(now.failed)
        bar.add_row(ProgressBar(total=now.total, completed=over, width=24), Text(now.counts))
        return Group(*lines, bar)


def _problem(job: Job) -> tuple[str, str]:
    """The scenario and the kind of learning; runs that differ in one cannot be compared."""
    return job.scenario, f"{job.config['incremental']}-incremental"


def summary(jobs: Sequence[Job]) -> RenderableType:
    """A table of means and standard deviations over the seeds of complete runs, best first.

    Rows are sorted by scenario, then by kind of learning.
    """
    groups: dict[tuple[tuple[str, str], str], list[Record]] = {}
    for job in jobs:
        try:
            record = read_record(job.folder)
        except InputError:
            continue
        if record.status == "complete":
            title = job.title.removeprefix(f"{job.scenario}, ").rpartition(", seed ")[0]
            groups.setdefault((_problem(job), title), []).append(record)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = [len({problem[part] for problem, _ in groups}) > 1 for part in (0, 1)]
    table.add_column("run, accuracies in %", overflow="fold")
    for name in ("seeds", "accuracy", "forgetting"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [
        (
            problem,
            _over(records, "acc"),
            Text(", ".join([*itertools.compress(problem, several), title])),
            len(records),
            _over(records, "forgetting"),
        )
        for (problem, title), records in groups.items()
    ]
    rows.sort(key=lambda row: (row[0], -row[1][0]))
    for _, accuracy, label, count, forgetting in rows:
        table.add_row(label, str(count), accuracy[1], forgetting[1])
    return table


def _over(records: Sequence[Record], name: str) -> tuple[float, str]:
    """The mean of a metric; and mean and standard deviation as a text in per cent."""
    metrics = [record.main_metrics.get(name) for record in records]
    values = [metric.value for metric in metrics if metric and metric.value is not None]
    if not values:
        return -1.0, "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, f"{100 * mean:.2f}"
    return mean, f"{100 * mean:.2f} ± {100 * statistics.stdev(values):.2f}"
