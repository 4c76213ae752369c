"""Runs jobs in processes of this machine, by Pebble. A process that dies affects only one job."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future
from concurrent.futures import wait as wait_for
from multiprocessing.synchronize import Event

from nispa.errors import either, needs
from nispa.sweep.base import ATTEMPTS, TICK_S, Outcomes
from nispa.sweep.jobs import Job, Outcome, execute
from nispa.sweep.turns import Turns

with needs("sweep", "a sweep in processes of this machine"):
    from pebble import ProcessExpired, ProcessPool

STOP_S = 30.0  # time for a last checkpoint of each run
_stop: Event | None = None
_parent = 0


def _begin(stop: Event, parent: int) -> None:
    """Sets up a worker. It ignores Ctrl-C, which the parent passes on by ``stop``."""
    global _stop, _parent
    _stop, _parent = stop, parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopping() -> BaseException | None:
    """The exception to stop with, if the sweep was stopped or its process is gone."""
    asked = _stop is not None and _stop.is_set()
    return KeyboardInterrupt() if asked or os.getppid() != _parent else None


def _work(job: Job, wait: bool) -> Outcome:
    if _stopping() is not None:
        return Outcome(job, "stopped")
    return execute(job, _stopping, wait=wait)


class Local:
    """A pool of ``workers`` processes; each keeps PyTorch and the last data that it read."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job], *, wait: bool = False) -> Outcomes:
        """See :class:`nispa.sweep.base.Backend`."""
        context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
        stop = context.Event()
        pool = ProcessPool(
            max_workers=min(self.workers, len(jobs)),
            initializer=_begin,
            initargs=(stop, os.getpid()),
            context=context,
        )
        attempts = {job.key: 1 for job in jobs}
        turns = Turns(jobs)
        waiting: dict[Future[Outcome], Job] = {}

        def schedule(job: Job) -> None:
            waiting[pool.schedule(_work, args=[job, wait])] = job

        def fill() -> None:
            while len(waiting) < self.workers and (job := turns.take()) is not None:
                schedule(job)

        try:
            fill()
            while waiting:
                ended, _ = wait_for(waiting, TICK_S, FIRST_COMPLETED)
                outcomes: list[Outcome | None] = []
                for future in ended:
                    job = waiting.pop(future)
                    outcome = _outcome(future, job, last=attempts[job.key] == ATTEMPTS)
                    if outcome is not None:
                        outcomes.append(outcome)
                        turns.ended(outcome)
                    else:
                        attempts[job.key] += 1
                        schedule(job)
                fill()  # before whoever reads the outcomes takes time
                yield from outcomes or [None]
        finally:  # also when the generator is closed: running jobs write a last checkpoint
            stop.set()
            try:
                wait_for(waiting, STOP_S)
            finally:
                pool.stop()  # type: ignore[no-untyped-call]
                pool.join()


def _outcome(future: Future[Outcome], job: Job, *, last: bool) -> Outcome | None:
    """The outcome of a job; None if its process died and it may be tried again."""
    try:
        return future.result()
    except ProcessExpired as death:
        if not last:
            return None
        how = f"by signal {-death.exitcode}" if death.exitcode < 0 else f"with {death.exitcode}"
        return Outcome(
            job,
            "failed",
            f"its process ended {how} {ATTEMPTS} times, perhaps for lack of memory; pass fewer "
            f"{either('', '--')}workers, or run it alone with nispa resume",
        )
    except (CancelledError, Exception) as error:  # noqa: BLE001 - must not end the other jobs
        return Outcome(job, "failed", f"{type(error).__name__}: {error}")
