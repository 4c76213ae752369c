"""The key of a run: a hash of everything that decides its result.

That is its settings, seed, tasks, data and code. Two runs with the same key are the same run; a
sweep uses the key to recognise runs that are done already.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nispa import __version__
from nispa.network.backbone import source_of

READERS = frozenset(
    {"cli", "reading", "sweep", "trackers", "webpage"}
    | {f"runs/{name}" for name in ("capacity", "costs", "curve", "origin", "prediction")}
)
"""Packages and modules that start, read or show runs and cannot change their numbers."""

CALL = ("scenario", "seed", "options", "measured")
"""The scenario's settings that decide all others."""

SOURCES = frozenset({".py", ".cpp", ".hpp"})


@functools.cache
def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 of the version and of the sources that make a run's numbers, 64 hex digits.

    A change to a method changes it; a change to a report does not.

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


def code_of(architecture: str) -> str:
    """The digest of the code behind a network's runs, 64 hex digits.

    Args:
        architecture: Its name. If that is a function of the user's, its file counts, too; not what
            the file imports.
    """
    own = source_of(architecture)
    return (
        code_digest()
        if own is None
        else hashlib.sha256(f"{code_digest()}\n".encode() + own).hexdigest()
    )


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
        config: All settings of network and method, as JSON values.
        scenario: The scenario's settings, as JSON values; only those in :data:`CALL` count.
        data: SHA-256 of each data set, in order of use.
        code: See :func:`code_of`.
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
