"""Limits how long PyTorch's idle CPU threads spin. Import this before PyTorch.

GNU OpenMP, which PyTorch uses on Linux, reads its settings once, when PyTorch is imported. By
default a waiting thread keeps its core busy for a long time. If the machine has other work, that
takes the core from the very thread it waits for. See docs/howto/speed.md.

Modules that start runs import this one first: the command line, ``nispa.Learner`` and
``nispa.runs.runner``. A plain ``import nispa`` changes nothing.
"""

from __future__ import annotations

import os

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"
