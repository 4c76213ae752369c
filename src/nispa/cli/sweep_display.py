"""A sweep's progress on a terminal or in plain lines, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import click

from nispa.cli.progress import Closing, duration, percent
from nispa.errors import InputError, needs
from nispa.files import one_line
from nispa.reading.groups import Run, group_runs
from nispa.reading.statistics import estimate
from nispa.reading.tables import new_table
from nispa.runs import metrics
from nispa.runs.record import RECORD, Record, read_record
from nispa.sweep.jobs import Job, Outcome

with needs("sweep", "a sweep"):
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

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
        self._alike = len({(job.scenario, job.config["incremental"]) for job in jobs}) == 1
        self._running: list[tuple[Job, Record]] = []
        self._looked = -PATIENCE_S
        for job in before:
            self._end(job)

    def take(self, outcome: Outcome) -> str:
        """Counts an outcome; returns it as a line."""
        title, accuracy = outcome.job.title, self._end(outcome.job)
        self.done += outcome.status == "done"
        if outcome.status == "stopped":
            return f"stopped: {title}"
        if outcome.status == "failed":
            self.failed.append(outcome)
            line = f"FAILED: {title}: {one_line(outcome.problem, 500)}"
        else:
            line = f"{title}: {percent(accuracy, 2)} in {duration(outcome.seconds)}"
        return f"[{self.done + len(self.failed)}/{self.total}] {line}"

    def _end(self, job: Job) -> float | None:
        """The accuracy of a job that ended, if its run is complete."""
        self._open.pop(job.key, None)
        record = _record(job)
        if record is None or record.status != "complete":
            return None
        accuracy = metrics.acc(record.main_matrix)
        if accuracy is not None and self._alike and accuracy > (self.best or ("", -1.0))[1]:
            self.best = (job.title, accuracy)
        return accuracy

    def running(self) -> list[tuple[Job, Record]]:
        """Jobs whose records say that they are running, with a delay of two seconds."""
        if self._clock() - self._looked >= PATIENCE_S:
            self._looked = self._clock()
            found = ((job, _record(job)) for job in self._open.values())
            self._running = [(job, r) for job, r in found if r and r.status == "running"]
        return [(job, record) for job, record in self._running if job.key in self._open]

    @property
    def line(self) -> str:
        """Runs done, running and failed, the time left, and the best run so far."""
        ended = self.done - self.before + len(self.failed)
        left = self.total - self.done - len(self.failed)
        parts = [f"{self.done} of {self.total} done", f"{len(self.running())} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} FAILED")
        if ended:
            parts.append(f"about {duration((self._clock() - self._began) * left / ended)} left")
        best = f"; best so far: {percent(self.best[1], 2)}, {self.best[0]}" if self.best else ""
        return ", ".join(parts) + best


def _record(job: Job) -> Record | None:
    try:
        return read_record(job.folder) if (job.folder / RECORD).exists() else None
    except InputError:  # half a run
        return None


class SweepDisplay(Closing):
    """Prints a line for each job that ends.

    Below these a terminal shows live lines about the whole sweep; a log or pipe gets one a minute.
    """

    def __init__(
        self, console: Console | None = None, clock: Clock = time.monotonic, *, quiet: bool = False
    ) -> None:
        self._console = console or Console(highlight=False)
        self._clock, self._quiet = clock, quiet
        self._live: Live | None = None

    def begin(self, jobs: Sequence[Job], before: Sequence[Job], workers: int) -> None:
        """Prints the number of ``jobs``, of which ``before`` are done, and starts live lines."""
        self.standing = Standing(jobs, before, self._clock)
        self._print(f"{len(jobs)} runs, {len(before)} of them done before, {workers} at a time")
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                get_renderable=self._frame,
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()

    def show(self, outcome: Outcome | None) -> None:
        """Prints a line for a job; None only passes time."""
        if outcome is not None:
            self._print(self.standing.take(outcome))
        elif self._live is None and self._clock() - self._said >= QUIET_S:
            self._print(self.standing.line)

    def close(self) -> None:
        """Removes the live lines."""
        if self._live is not None:
            self._live.stop()

    def _print(self, line: str) -> None:
        self._said = self._clock()
        if self._console.is_terminal and not self._quiet:  # above the live lines
            self._console.print(Text(line), soft_wrap=True)
        elif not self._quiet:
            click.echo(line)

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
        over = now.done + len(now.failed)
        bar = ProgressBar(total=now.total, completed=over, width=24)
        return Group(*lines, Text(now.line), bar)


def summary(jobs: Sequence[Job]) -> Table:
    """A table of means and standard deviations over the seeds of complete runs.

    Groups are those of ``nispa compare``, by scenario and kind of learning, best first.
    """
    records = filter(None, map(_record, jobs))
    groups = group_runs([Run("", record) for record in records if record.status == "complete"])
    several = len({group.record.incremental for group in groups}) > 1
    rows = []
    for group in groups:
        record, counted = group.record, [run for _, run in group.counted]
        kind = f"{record.incremental}-incremental"
        label = f"{kind}, {group.label}" if several and kind not in group.label else group.label
        mean, accuracy = _over(run.accuracy for run in counted)
        _, forgetting = _over(run.forgetting for run in counted)
        cells = (Text(label), str(len(counted)), accuracy, forgetting)
        rows.append(((record.scenario.name, kind, -mean), cells))
    table = new_table("run, accuracies in %", "seeds", "accuracy", "forgetting", fold=True)
    for _, cells in sorted(rows, key=lambda row: row[0]):
        table.add_row(*cells)
    return table


def _over(values: Iterable[float | None]) -> tuple[float, str]:
    """The mean; and mean and standard deviation as a text in per cent."""
    known = [value for value in values if value is not None]
    if not known:
        return -1.0, "-"
    found = estimate(known, -1.0)
    spread = "" if found.sd is None else f" ± {100 * found.sd:.2f}"
    return found.mean, f"{100 * found.mean:.2f}{spread}"
