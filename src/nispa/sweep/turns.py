"""In which order jobs are started."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from nispa.sweep.jobs import Job, Outcome


class Turns:
    """Jobs that wait: seed by seed as given, and of each seed the longest first.

    So the last worker does not begin the longest run when all others have ended. How long a run
    takes is known once the same settings were run with another seed; until then its turn comes
    before those of all known ones, in the order given.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = list(jobs)
        self._seconds: dict[str, float] = {}

    def take(self) -> Job | None:
        """The next job, which waits no longer; None if none is left."""
        if not self._waiting:
            return None
        seed = self._waiting[0].seed
        chosen = max((job for job in self._waiting if job.seed == seed), key=self._expected)
        self._waiting.remove(chosen)
        return chosen

    def ended(self, outcome: Outcome) -> None:
        """Learns from an outcome."""
        if outcome.status == "done":
            self._seconds[_settings(outcome.job)] = outcome.seconds

    def _expected(self, job: Job) -> float:
        return self._seconds.get(_settings(job), math.inf)


def _settings(job: Job) -> str:
    """What runs of different seeds have in common."""
    return json.dumps(
        [job.scenario, job.options, job.method, job.network, job.config, job.measured],
        sort_keys=True,
        default=list,
    )
