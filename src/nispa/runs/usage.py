"""What this process has used: wall and CPU seconds, and the most memory it has had."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and seconds of all processors that worked on it, threads included."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def spent() -> Spent:
    """The time since some moment of the past: only differences mean something."""
    return Spent(time.perf_counter(), time.process_time())


def peak_bytes() -> int | None:
    """Most memory that this process has had resident; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage tells on Linux may be that of the process that began this
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
