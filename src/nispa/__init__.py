"""NISPA: continual learning in sparse networks that never forget."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nispa.learner import Learner

__all__ = ["Learner", "__version__"]

__version__ = version("nispa")

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    # GNU OpenMP, PyTorch's on Linux, reads this once, when PyTorch is imported. By its own choice a
    # thread that waits for another keeps its core busy for long, which on a machine with other work
    # keeps that core from the very thread it waits for. See docs/howto/speed.md.
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str) -> Any:
    """Imports :class:`Learner`, and with it PyTorch, when it is first asked for."""
    if name == "Learner":
        from nispa.learner import Learner

        return Learner
    raise AttributeError(f"module 'nispa' has no attribute '{name}'")
