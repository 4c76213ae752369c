"""Backends by name, and sweeps on them. Each backend is a well-kept library's scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from nispa.errors import ConfigError
from nispa.sweep.base import Backend, Outcomes
from nispa.sweep.jobs import Job

BACKENDS = ("local", "ray", "slurm")
"""Names of the backends."""


def make_backend(name: str, workers: int, threads: int) -> Backend:
    """Builds a backend.

    Args:
        name: One of :data:`BACKENDS`.
        workers: Runs at a time.
        threads: CPU threads of each run.

    Raises:
        MissingPackageError: Its library is not installed.
        ConfigError: No backend has that name.
    """
    if name == "local":
        from nispa.sweep.local import Local

        return Local(workers)
    if name == "ray":
        from nispa.sweep.ray_cluster import RayCluster

        return RayCluster(workers, threads)
    if name == "slurm":
        from nispa.sweep.slurm import Slurm

        return Slurm(workers, threads)
    raise ConfigError(f"backend={name} must be one of {', '.join(BACKENDS)}")


def sweep(jobs: Sequence[Job], backend: Backend) -> Outcomes:
    """Carries out jobs; waits for those that another process is at work on, after all others.

    Yields:
        The outcome of each job, and None from time to time.
    """
    busy: list[Job] = []
    for outcome in backend.run(jobs):
        if outcome is not None and outcome.status == "busy":
            busy.append(outcome.job)
        else:
            yield outcome
    if busy:
        yield from backend.run(busy, wait=True)
