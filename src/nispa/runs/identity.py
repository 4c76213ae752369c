"""What decides a run's result, as one number: settings, seed, tasks, data and code.

Two runs of the same key are the same run. A sweep knows by it what is done already.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nispa import __version__

READERS = frozenset(
    {"cli", "reading", "sweep", "trackers", "webpage"}
    | {f"runs/{name}" for name in ("capacity", "costs", "curve", "origin", "prediction")}
)
"""Modules and packages that read or show runs, or start them, and cannot change one's numbers."""

CALL = ("scenario", "seed", "options", "measured")
"""What of a scenario's settings says how it was built; the rest follows."""

SOURCES = frozenset({".py", ".cpp", ".hpp"})


@functools.cache
def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 over the version and the sources that a run's numbers come from, 64 hex digits.

    Whoever changes a method gets another one; whoever changes a report does not.

    Args:
        root: The folder of the package.
    """
    total = hashlib.sha256(f"{__version__}\n".encode())
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if path.suffix in SOURCES and not READERS & {
            place.parts[0],
            place.with_suffix("").as_posix(),
        }:
            content = path.read_bytes()
            total.update(f"{place.as_posix()}\n{len(content)}\n".encode())
            total.update(content)
    return total.hexdigest()


def run_key(
    *,
    method: str,
    seed: int,
    config: Mapping[str, Any],
    scenario: Mapping[str, Any],
    data: Sequence[str],
    code: str,
) -> str:
    """The key of a run, 64 hex digits.

    Args:
        method: Name of the method.
        seed: The seed.
        config: Settings of network and method, complete, as JSON values.
        scenario: How the tasks were built: name, seed and options, as JSON values.
        data: SHA-256 of each data set, in the order of their use.
        code: See :func:`code_digest`.
    """
    parts = {
        "method": method,
        "seed": seed,
        "config": config,
        "scenario": {name: scenario.get(name) for name in CALL},
        "data": list(data),
        "code": code,
    }
    text = json.dumps(parts, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
