"""What this process has used: wall-clock time, CPU time and peak memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and CPU seconds of all threads together."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def spent() -> Spent:
    """Reads the clocks; only differences between two readings are meaningful."""
    return Spent(time.perf_counter(), time.process_time())


def peak_bytes() -> int | None:
    """Peak resident memory of this process in bytes; None on systems that do not report it."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage may report the peak of the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
