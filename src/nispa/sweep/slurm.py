"""Runs jobs on a Slurm cluster, by submitit, as one array job with logs beside the runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from nispa.errors import needs
from nispa.files import check_own
from nispa.sweep.base import TICK_S, Outcomes
from nispa.sweep.jobs import Job, Outcome, execute

with needs("slurm", "the backend slurm"):
    import submitit

HOURS = 24
LOGS = ".slurm"  # in the sweep's folder; hidden, so that it is not searched for runs


def _work(job: Job, wait: bool) -> Outcome:
    return execute(job, wait=wait)


class Slurm:
    """The cluster that ``sbatch`` submits to; sbatch's variables choose partition and account."""

    def __init__(self, workers: int, threads: int, cluster: str | None = None) -> None:
        """Stores the limits.

        Args:
            workers: Runs at a time.
            threads: CPUs of each run.
            cluster: ``"local"`` or ``"debug"`` to run without Slurm; None to detect it.
        """
        self.workers, self._threads, self._cluster = workers, threads, cluster

    def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
        """See :class:`nispa.sweep.base.Backend`."""
        logs = jobs[0].where.out / LOGS
        check_own(logs, folder=True)
        # submitit unpickles files there, so the folder must be new: nobody could put any into it.
        logs /= secrets.token_hex(8)
        executor = submitit.AutoExecutor(folder=logs, cluster=self._cluster)
        executor.update_parameters(
            timeout_min=60 * HOURS,
            cpus_per_task=self._threads,
            slurm_array_parallelism=self.workers,
            name="nispa",
        )
        with executor.batch():
            tasks = [executor.submit(_work, job, wait) for job in jobs]
        waiting = list(zip(tasks, jobs, strict=True))
        try:
            while waiting:
                ended = [pair for pair in waiting if pair[0].done()]
                for pair in ended:
                    waiting.remove(pair)
                    yield _outcome(*pair)
                if not ended:
                    yield None
                    time.sleep(TICK_S)
        finally:
            for task, _ in waiting:
                task.cancel()


def _outcome(task: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = task.result()
        return outcome
    except Exception as error:  # noqa: BLE001 - submitit raises any exception of the process
        said = str(error).strip().splitlines() or [""]
        return Outcome(job, "failed", f"{type(error).__name__}: {said[-1]}")
