"""Named errors. Each message names the value, the bound and the fix; none of them loses work."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class NispaError(Exception):
    """The root of every error that nispa raises on purpose."""


class DivergedError(NispaError):
    """Training produced a loss that is not a finite number."""


class InputError(NispaError, ValueError):
    """Something the caller passed cannot be used; nothing was started or written."""


class ConfigError(InputError):
    """A setting has the wrong type, lies out of range, or contradicts another one."""


class UnknownNameError(InputError):
    """A scenario, method, preset, data set or setting of that name does not exist."""


class DataError(InputError):
    """A data set is missing, damaged, or not what its name says."""


class ScenarioError(InputError):
    """The tasks asked for cannot be built, or the method cannot learn them."""


class CapacityError(InputError):
    """The network has too few outputs, or another shape than the images."""


class GraphError(InputError):
    """A PyTorch module cannot be made sparse: its units cannot be told apart."""


class IsolationError(NispaError):
    """Logits of kept classes would change with what is learned later."""


class DeviceError(InputError):
    """The compute device asked for is not there."""


class OutputError(InputError):
    """The output folder cannot be used, or writing to it failed."""


class BusyError(InputError):
    """Another process is at work on the same run."""


class FormatError(InputError):
    """A record or a saved learner is damaged, or was written by another version."""


class NotLearnedError(InputError):
    """A prediction was asked for a task that has not been learned."""


class DataWarning(UserWarning):
    """Images or tables that can be learned, but hardly as they are."""


_on_command_line = False


@contextlib.contextmanager
def on_command_line() -> Iterator[None]:
    """Within it messages speak to somebody who typed a command, not to a caller in Python."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def either(python: str, command: str) -> str:
    """A part of a message in the words of whoever made the call, such as its fix.

    Args:
        python: What to write in Python, such as ``device='cpu'``.
        command: What to type, such as ``--device cpu``.
    """
    return command if _on_command_line else python


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """An error that lists the ``known`` names of a ``kind`` and offers the nearest one."""
    names = sorted(known)
    plain = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.6)
    guess = f"; did you mean '{plain[near[0]]}'?" if near else "."
    return UnknownNameError(f"unknown {kind} '{name}'{guess} Known: {', '.join(names) or 'none'}")
