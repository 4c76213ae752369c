"""Runs as one self-contained HTML page, complete without a script or a network.

The page carries its style, its charts (SVG) and a small script that shows values under the pointer
and lets the reader choose runs. Its Content-Security-Policy forbids every connection and every
other script.
"""

from __future__ import annotations

from nispa.reading.groups import Run, find_folders, read_run, read_runs
from nispa.webpage.document import MARK, MAX_BYTES, MAX_RUNS, page

__all__ = ["MARK", "MAX_BYTES", "MAX_RUNS", "Run", "find_folders", "page", "read_run", "read_runs"]
