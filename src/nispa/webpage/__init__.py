"""Runs as one HTML page: complete without a script, without a network, from records alone.

The page holds its own style, pictures (SVG) and a little script that adds values under the pointer
and a choice of runs. Its Content-Security-Policy forbids every connection and every script but that
one, which it names by its hash.
"""

from __future__ import annotations

from nispa.reading.groups import Run, find_folders, read_run, read_runs
from nispa.webpage.document import MARK, MAX_BYTES, MAX_RUNS, page

__all__ = ["MARK", "MAX_BYTES", "MAX_RUNS", "Run", "find_folders", "page", "read_run", "read_runs"]
