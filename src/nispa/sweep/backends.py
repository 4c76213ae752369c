"""Ways to carry out jobs; each is a well-kept library's, ours is only what a job is.

A backend yields outcomes in the order in which jobs end, and None about once a second, so that
whoever follows can show something, or stop.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from nispa.errors import ConfigError, InputError
from nispa.sweep.jobs import Job, Outcome

Outcomes = Generator[Outcome | None, None, None]

TICK_S = 0.5
ATTEMPTS = 3  # of a job whose process dies: it goes on from its last checkpoint


class Backend(Protocol):
    """A way to carry out jobs."""

    workers: int
    """Runs at a time."""

    def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
        """Carries out jobs.

        Closing the iterator stops what runs; each run keeps a checkpoint.

        Args:
            jobs: What to do.
            wait: Whether to wait for other processes that are at work on one of them.

        Yields:
            What became of each, and None from time to time.
        """


BACKENDS = ("local", "ray", "slurm")
"""Names of the ways there are."""


def make_backend(name: str, workers: int, threads: int) -> Backend:
    """A backend by its name.

    Args:
        name: One of :data:`BACKENDS`.
        workers: Runs at a time.
        threads: CPU threads of each.

    Raises:
        InputError: Its library is not installed.
        ConfigError: There is none of that name.
    """
    try:
        if name == "local":
            from nispa.sweep.local import Local

            return Local(workers)
        if name == "ray":
            from nispa.sweep.ray_cluster import RayCluster

            return RayCluster(workers, threads)
        if name == "slurm":
            from nispa.sweep.slurm import Slurm

            return Slurm(workers, threads)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the backend {name} needs the package '{error.name}', which is not installed; install "
            f"it with: pip install 'nispa[{name}]'"
        ) from None
    raise ConfigError(f"backend={name} must be one of {', '.join(BACKENDS)}")


def sweep(jobs: Sequence[Job], backend: Backend) -> Outcomes:
    """Carries out jobs; those that another process is at work on come last, and are waited for.

    Yields:
        What became of each, and None from time to time.
    """
    busy: list[Job] = []
    for outcome in backend.run(jobs):
        if outcome is not None and outcome.status == "busy":
            busy.append(outcome.job)
        else:
            yield outcome
    if busy:
        yield from backend.run(busy, wait=True)
