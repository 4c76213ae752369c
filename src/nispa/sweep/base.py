"""What a backend is: a way to carry out jobs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from nispa.sweep.jobs import Job, Outcome

Outcomes = Generator[Outcome | None, None, None]
"""Outcomes in the order in which jobs end, and None about twice a second in between.

The None lets the caller refresh a display, or stop.
"""

TICK_S = 0.5
ATTEMPTS = 3  # for a job whose process dies; each continues from the last checkpoint


class Backend(Protocol):
    """A way to carry out jobs."""

    workers: int
    """Runs at a time."""

    def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
        """Carries out jobs.

        Closing the iterator stops them; each keeps a checkpoint.

        Args:
            jobs: The jobs.
            wait: Whether to wait if another process is at work on one of them.

        Yields:
            The outcome of each job, and None from time to time.
        """
