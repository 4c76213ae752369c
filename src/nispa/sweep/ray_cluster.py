"""Runs jobs on a Ray cluster; Ray schedules them and retries those of lost workers.

The runs are in a folder that all machines share. The worker that takes over a lost run continues
from its last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nispa.errors import needs
from nispa.sweep.base import ATTEMPTS, TICK_S, Outcomes
from nispa.sweep.jobs import Job, Outcome, execute

with needs("ray", "the backend ray"):
    import ray
    from ray.exceptions import RayError


def _work(job: Job, wait: bool) -> Outcome:
    return execute(job, wait=wait)


class RayCluster:
    """The cluster that ``RAY_ADDRESS`` names, or one on this machine."""

    def __init__(self, workers: int, threads: int) -> None:
        """Stores the limits; :meth:`run` connects.

        Args:
            workers: Runs at a time if Ray is started on this machine.
            threads: CPUs to reserve for each run.
        """
        self.workers, self._threads = workers, threads

    def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
        """See :class:`nispa.sweep.base.Backend`; stopped jobs keep their last checkpoint."""
        began = not ray.is_initialized()
        if began:
            here: dict[str, Any] = {"num_cpus": self.workers * self._threads}
            ray.init(
                log_to_driver=False,
                include_dashboard=False,
                **({} if os.environ.get("RAY_ADDRESS") else here),
            )
        work = ray.remote(_work).options(
            num_cpus=self._threads, max_retries=ATTEMPTS - 1, retry_exceptions=False
        )
        waiting = {work.remote(job, wait): job for job in jobs}
        try:
            while waiting:
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK_S)
                for reference in ended:
                    yield _outcome(reference, waiting.pop(reference))
                if not ended:
                    yield None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
            if began:
                ray.shutdown()


def _outcome(reference: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        return Outcome(job, "failed", f"{type(error).__name__}: {said[0]}")
