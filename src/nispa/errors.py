"""Named errors. Each message names the value, the bound and the fix, and no error loses work."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Iterable, Iterator


class NispaError(Exception):
    """The base class of every error that nispa raises on purpose."""


class DivergedError(NispaError):
    """The training loss is no longer finite."""


class InputError(NispaError, ValueError):
    """An argument cannot be used; nothing was started or written."""


class ConfigError(InputError):
    """A setting has the wrong type, is out of range, or contradicts another one."""


class UnknownNameError(InputError):
    """No scenario, method, preset, data set or setting has that name."""


class DataError(InputError):
    """A data set is missing or damaged, or is not what its name says."""


class ScenarioError(InputError):
    """The requested tasks cannot be built, or the method cannot learn them."""


class CapacityError(InputError):
    """The network has too few outputs, or does not fit the shape of the images."""


class GraphError(InputError):
    """A PyTorch module cannot be made sparse: its units cannot be told apart."""


class IsolationError(NispaError):
    """Logits of kept classes would change with what is learned later."""


class ExportError(NispaError):
    """An exported network does not compute what the learner does."""


class DeviceError(InputError):
    """The requested compute device is not available."""


class OutputError(InputError):
    """The output folder cannot be used, or writing to it failed."""


class BusyError(InputError):
    """Another process is working on the same run."""


class FormatError(InputError):
    """A record or a saved learner is damaged, or was written by another version."""


class NotLearnedError(InputError):
    """The task to predict for has not been learned, or the method needs to be told one."""


class MissingPackageError(InputError, ImportError):
    """A package is not installed that only some of nispa needs; the message says how to get it."""


class DataWarning(UserWarning):
    """Images or tables will hardly be learned as they are."""


_on_command_line = False


@contextlib.contextmanager
def on_command_line() -> Iterator[None]:
    """Inside this context, messages give command-line fixes instead of Python ones."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def either(python: str, command: str) -> str:
    """The part of a message that differs between Python and the command line, such as its fix.

    Args:
        python: The text for Python, such as ``device='cpu'``.
        command: The text for the command line, such as ``--device cpu``.
    """
    return command if _on_command_line else python


_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""What pip calls a package that is imported by another name."""


@contextlib.contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Inside this context packages are imported that come with one of nispa's extras.

    Args:
        extra: Its name in ``pyproject.toml``.
        what: What needs them, as the beginning of a sentence.

    Raises:
        MissingPackageError: One of them is not installed, or too old.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        if isinstance(error, ModuleNotFoundError):
            raise missing(extra, what, package) from None
        if "cannot import name" in str(error):
            raise MissingPackageError(
                f"{what} needs a newer release of {_PACKAGES.get(package, package)}; get it with: "
                f'pip install --upgrade "nispa[{extra}]"'
            ) from None
        raise


def missing(extra: str, what: str, package: str) -> MissingPackageError:
    """The error that a package is not installed; see :func:`needs`."""
    return MissingPackageError(
        f"{what} needs the package {_PACKAGES.get(package, package)}, which is not installed; "
        f'install it with: pip install "nispa[{extra}]"'
    )


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """An error that lists the ``known`` names of a ``kind`` and suggests the nearest one."""
    names = sorted(known)
    plain = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.6)
    guess = f"; did you mean '{plain[near[0]]}'?" if near else "."
    return UnknownNameError(f"unknown {kind} '{name}'{guess} Known: {', '.join(names) or 'none'}")
