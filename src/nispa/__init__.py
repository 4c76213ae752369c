"""NISPA: continual learning in sparse networks that never forget."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nispa import errors
    from nispa.learner import Learner

__all__ = ["Learner", "__version__", "errors"]

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
    if name == "errors":
        import nispa.errors

        return nispa.errors
    raise AttributeError(f"module 'nispa' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, those that are imported when they are asked for among them."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
