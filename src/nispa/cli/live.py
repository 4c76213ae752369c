"""A run's progress as live lines of a terminal, by rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nispa.cli.progress import Display, data_progress, duration, mean, percent, stable_share
from nispa.errors import needs
from nispa.files import one_line
from nispa.runs.runner import RunEvent, TaskEnd

with needs("reports", "live lines on a terminal"):
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self

LABEL_WIDTH = 22


class LiveDisplay(Display):
    """Prints a line per finished task, above live lines about the current one."""

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
        """Removes the live lines."""
        self._live.stop()

    def loading(self, what: str, done: int, total: int) -> None:
        """Updates the live line."""
        self._loading = data_progress(one_line(what, 60), done, total)

    def begin(self, epoch_sizes: Sequence[int], where: str) -> None:
        """Prints the head of the table of tasks."""
        super().begin(epoch_sizes, where)
        text = f"{len(epoch_sizes)} tasks; the record goes to {where}"
        self._console.print(Text(text), soft_wrap=True)
        self._console.print()
        head = _row("task", "test", "mean so far", "stable", "phases", "time")
        self._console.print(Text(head, style="dim"))
        self._started = True

    def note(self, text: str) -> None:
        """Prints a line above the live lines."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, event: RunEvent) -> None:
        """Prints a line at the end of a task; other events update the live lines."""
        super().show(event)
        if isinstance(event, TaskEnd):
            row = _row(
                self.progress.label,
                percent(event.accuracies[-1], 1),
                percent(mean(event.accuracies), 1),
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


def _row(label: str, *cells: str) -> str:
    widths = (8, 13, 8, 8, 13)
    text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{label:<{LABEL_WIDTH}}{text}"
