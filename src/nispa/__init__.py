"""NISPA: continual learning in sparse networks that never forget."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nispa.learner import Learner

__all__ = ["Learner", "__version__"]

__version__ = version("nispa")


def __getattr__(name: str) -> Any:
    """Imports :class:`Learner`, and with it PyTorch, when it is first asked for."""
    if name == "Learner":
        from nispa.learner import Learner

        return Learner
    raise AttributeError(f"module 'nispa' has no attribute '{name}'")
