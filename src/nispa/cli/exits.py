"""How a command ends: its exit code, and one line on stderr if it failed.

0: done. 1: a run failed on its way. 2: the input cannot be used; nothing was started or written.
130 and 143: stopped by Ctrl-C or SIGTERM. An unforeseen exception keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click

from nispa.errors import InputError, NispaError, on_command_line, unknown_name

MAX_MESSAGE = 2_000


class CommandError(Exception):
    """Ends the program with an exit code and a line on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints each warning about data or learners once, as a line on stderr."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(each.message) for each in said):
        click.echo(f"nispa: warning: {text}", err=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is Ctrl-C from another process."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM raise :class:`Terminated`, so that a run ends as tidily as on Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stops:
    """Ctrl-C and SIGTERM while a run learns: the first one waits, a second one stops at once."""

    def __init__(self) -> None:
        self._asked: KeyboardInterrupt | None = None

    def __call__(self) -> KeyboardInterrupt | None:
        """The exception to raise after a checkpoint; None if no signal came."""
        return self._asked

    def _take(self, number: int, frame: FrameType | None) -> None:
        asked = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if self._asked is not None:
            raise asked
        self._asked = asked

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Makes the first signal wait for the next checkpoint; it is lost if there is none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._take) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def stopped(stop: KeyboardInterrupt, kept: str) -> CommandError:
    """The error that ends the program after Ctrl-C or SIGTERM; ``kept`` says what is left."""
    if isinstance(stop, Terminated):
        return CommandError(143, f"terminated: {kept}")
    return CommandError(130, f"interrupted: {kept}")


class Commands(click.Group):
    """A group of commands that end every foreseen failure with one line and its exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command and exits; see :meth:`click.Command.main`."""
        import nispa.base.openmp  # noqa: F401 - before anything imports PyTorch

        _replace_unencodable(sys.stdout)
        try:
            with on_command_line():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except CommandError as failure:
            _end(failure.code, str(failure))
        except click.ClickException as error:
            _end(error.exit_code, f"error: {_explain(error)}")
        except InputError as error:
            _end(2, f"error: {error}")
        except NispaError as error:
            _end(1, f"error: {error}")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; Ctrl-C and SIGTERM become an exit code before click writes about it."""
        try:
            with terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise stopped(stop, "nothing was written") from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` name, or an error that suggests the nearest one."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_name("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def _explain(error: click.ClickException) -> str:
    """Click's message, with the command that shows the help."""
    message = error.format_message()
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        known = [name for param in ctx.command.get_params(ctx) for name in param.opts]
        near = difflib.get_close_matches(error.option_name, known, n=1, cutoff=0.6)
        guess = f"; did you mean '{near[0]}'?" if near else "."
        message = f"unknown option '{error.option_name}'{guess}"
    stop = "" if message.endswith((".", "?")) else "."
    command = "nispa" if ctx is None else ctx.command_path
    return f"{message}{stop} See: {command} --help"


def _end(code: int, message: str) -> None:
    from nispa.files import one_line

    line = one_line(" ".join(message.split()), MAX_MESSAGE)
    click.echo(f"nispa: {line}", err=True)
    sys.exit(code)


def _replace_unencodable(stream: Any) -> None:
    """Makes a stream write ``?`` for characters that its encoding lacks."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
