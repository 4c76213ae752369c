"""Progress of learning from Python: one line that changes, on a terminal or in a notebook.

It appears once learning has taken about a second, and goes to a file or a pipe only on request.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from nispa.errors import installed, needs
from nispa.methods.base import Event, LearnReport, PhaseEnd, PhaseStart
from nispa.training.pausing import EpochEnd, FitBegin, FitPause

if TYPE_CHECKING:
    from typing_extensions import Self

AFTER_S = 1.0
"""Seconds of learning before anything is shown."""

EVERY_S = 0.1
"""Least seconds between two changes of the line."""


class Place(Protocol):
    """A place that shows one line."""

    def show(self, text: str) -> None:
        """Replaces the line."""

    def close(self) -> None:
        """Leaves the last line as it is."""


class Terminal:
    """A line of a terminal, on stderr, by rich."""

    def __init__(self) -> None:
        with needs("reports", "a line of progress that changes"):
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

        self._text = Text
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def show(self, text: str) -> None:
        """Replaces the line."""
        self._live.update(self._text(text, overflow="ellipsis", no_wrap=True), refresh=True)

    def close(self) -> None:
        """Leaves the last line as it is."""
        self._live.stop()


class Notebook:
    """A line in the output of a notebook's cell."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Replaces the output."""
        content = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def close(self) -> None:
        """Nothing to do: the output stays."""


class Plain:
    """A line of a file or a pipe: only the last one, since none can be replaced."""

    def __init__(self) -> None:
        self._text = ""

    def show(self, text: str) -> None:
        """Remembers the line."""
        self._text = text

    def close(self) -> None:
        """Writes the last line."""
        if self._text:
            sys.stderr.write(f"{self._text}\n")
            self._text = ""


def find_place(wanted: bool | None) -> Callable[[], Place] | None:
    """A function that makes the place for a line; None for no line.

    Args:
        wanted: True for a line anywhere, False for none, None for one on a terminal or in a
            notebook.
    """
    if wanted is False:
        return None
    display = _notebook_display()
    if display is not None:
        return lambda: Notebook(display)
    if sys.stderr is None:
        return None
    terminal = sys.stderr.isatty()
    if terminal and installed("rich"):
        return Terminal
    return Plain if wanted or terminal else None


def _notebook_display() -> Callable[..., Any] | None:
    """IPython's ``display`` in a notebook, otherwise None."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # none, or one on a terminal
        return None
    from IPython.display import display

    found: Callable[..., Any] = display
    return found


class Progress:
    """Shows how far the learning of a task has come, from its events."""

    def __init__(
        self,
        title: str,
        wanted: bool | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """A task that begins now.

        Args:
            title: The task's title.
            wanted: As in :func:`find_place`.
            clock: Seconds since a fixed moment.
        """
        self._title, self._make, self._clock = title, find_place(wanted), clock
        self._place: Place | None = None
        self._started = self._shown = clock()
        self._after = 0.0 if wanted else AFTER_S
        self._phase = PhaseStart(1, 1)
        self._epoch = 0
        self._validation: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._place is not None:
                self._place.close()

    def update(self, event: Event | FitBegin | FitPause) -> None:
        """Records an event, and shows it if the last change is long enough ago."""
        if isinstance(event, PhaseStart):
            self._phase, self._epoch = event, 0
        elif isinstance(event, EpochEnd):
            self._epoch, self._validation = event.epoch, event.validation_accuracy
        elif isinstance(event, PhaseEnd):
            self._validation = event.accuracy
        now = self._clock()
        if now - self._started >= self._after and now - self._shown >= EVERY_S:
            self._shown = now
            self._say(self._line())

    def end(self, report: LearnReport) -> None:
        """The task is learned."""
        if self._place is not None or self._after == 0.0:
            phases = f" in {report.phases} phases" if report.phases > 1 else ""
            self._say(", ".join([f"{self._title}: learned{phases}", *self._facts()[:2]]))

    def _line(self) -> str:
        phase = self._phase
        epoch = min(self._epoch + 1, phase.epochs)
        parts = [f"epoch {epoch}/{phase.epochs}", *self._facts()]
        if phase.phases > 1:
            parts.insert(0, f"phase {phase.phase} of at most {phase.phases}")
        return f"{self._title}: {', '.join(parts)}"

    def _facts(self) -> list[str]:
        """Validation accuracy, time, stable share: a narrow terminal cuts off the last first."""
        reached = "-" if self._validation is None else f"{100 * self._validation:.1f} %"
        facts = [f"validation {reached}"]
        seconds = self._clock() - self._started
        minutes, rest = divmod(round(seconds), 60)
        facts.append(f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s")
        if self._phase.stable_share is not None:
            facts.append(f"{100 * self._phase.stable_share:.0f} % stable or candidates")
        return facts

    def _say(self, text: str) -> None:
        if self._make is None:
            return
        with contextlib.suppress(OSError, ValueError):  # a window that closed ends no learning
            if self._place is None:
                self._place = self._make()
            self._place.show(text)
