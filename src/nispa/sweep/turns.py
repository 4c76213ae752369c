"""In which order jobs are started."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable

from nispa.sweep.jobs import Job, Outcome


class Turns:
    """Jobs that wait: seed by seed as given, and of each seed the longest first.

    So the last worker does not begin the longest run when all others have ended. How long a run
    takes is known once the same settings were run with another seed; until then its turn comes
    before those of all known ones, in the order given.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        seeds: dict[int, list[Job]] = {}
        for job in jobs:
            seeds.setdefault(job.seed, []).append(job)
        self._seeds = deque(seeds.values())
        self._now: deque[Job] = deque()
        self._seconds: dict[str, float] = {}

    def take(self) -> Job | None:
        """The next job, which waits no longer; None if none is left."""
        if not self._now and self._seeds:
            self._now.extend(sorted(self._seeds.popleft(), key=self._expected, reverse=True))
        return self._now.popleft() if self._now else None

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
