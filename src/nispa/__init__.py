"""NISPA: continual learning in sparse networks that never forget."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nispa import errors
    from nispa.deploy.compact import compact
    from nispa.learner import Learner
    from nispa.network.sparsify import sparsify
    from nispa.webpage.notebook import show

__all__ = ["Learner", "__version__", "compact", "errors", "show", "sparsify"]

__version__ = version("nispa")


def __getattr__(name: str) -> Any:
    """Imports the names below, and with most of them PyTorch, on first use."""
    if name == "Learner":
        import nispa.base.openmp  # before PyTorch
        from nispa.learner import Learner

        return Learner
    if name == "sparsify":
        import nispa.base.openmp  # before PyTorch
        from nispa.network.sparsify import sparsify

        return sparsify
    if name == "compact":
        import nispa.base.openmp  # before PyTorch
        from nispa.deploy.compact import compact

        return compact
    if name == "show":
        from nispa.webpage.notebook import show

        return show
    if name == "errors":
        import nispa.errors

        return nispa.errors
    raise AttributeError(f"module 'nispa' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, including those that are imported on first use."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
