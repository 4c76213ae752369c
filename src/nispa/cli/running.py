"""Carries out one run for ``nispa run`` and ``nispa resume``: display, trackers, Ctrl-C, report."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.exits import CommandError, Stops, stopped
from nispa.errors import InputError, NispaError, installed

if TYPE_CHECKING:
    from nispa.cli.progress import Display
    from nispa.data.scenarios import Scenario
    from nispa.methods.presets import Settings
    from nispa.runs.record import Record
    from nispa.runs.runner import Experiment, RunEvent
    from nispa.trackers import Tracker


def carry_out(
    start: Callable[..., Generator[RunEvent, None, Record]],
    out: Path,
    build: Callable[[Display], Experiment],
    *,
    title: str,
    checkpoint_every: int,
    trackers: Sequence[Tracker],
    quiet: bool,
) -> None:
    """Runs an experiment to its end and prints its report.

    Args:
        start: ``nispa.runs.runner.run`` or ``resume``.
        out: The run's folder.
        build: Reads the data and returns the experiment; shows its progress on the display.
        title: The run in a line.
        checkpoint_every: Seconds.
        trackers: See :func:`nispa.trackers.open_trackers`.
        quiet: Whether to print nothing but the folder.

    Raises:
        InputError: It cannot be run; nothing was written.
        CommandError: It failed or was stopped on its way; the message says what was kept.
    """
    from nispa.cli.show import print_end
    from nispa.files import shown
    from nispa.reading.drawing import drawing
    from nispa.trackers import tracked

    display = _display(title, quiet)
    begun, stops = False, Stops()
    try:
        with display:
            experiment = build(display)
            for line in data_notes(experiment.scenario):
                display.note(line)
            display.begin(epoch_sizes(experiment.scenario, experiment.settings), shown(out))
            running = start(experiment, out, checkpoint_every, stops, drawing())
            events = tracked(running, trackers, out, warn=_warn, tell=display.note)
            with stops.kept(), closing(events):
                while True:
                    try:
                        event = next(events)
                    except StopIteration as end:
                        record: Record = end.value
                        break
                    begun = True
                    display.show(event)
    except KeyboardInterrupt as stop:
        raise stopped(stop, kept(out)) from None
    except NispaError as error:
        if isinstance(error, InputError) and not begun:
            raise
        raise CommandError(1, f"error: {error}. Run: {kept(out)}") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        fix = "pass a smaller network or batch_size"
        raise CommandError(1, f"error: not enough memory; {fix}. Run: {kept(out)}") from error
    if quiet:
        click.echo(str(out))
    else:
        click.echo()
        print_end(record, out)


def title_of(scenario: str, method: str, kind: str, what: str, seed: int) -> str:
    """A run in a line, with the kind of learning that its accuracies measure."""
    from nispa.runs.record import kind_in_words

    return f"{scenario}, {method}, {kind_in_words(kind, kind == 'task')}, {what}, seed {seed}"


def _display(title: str, quiet: bool) -> Display:
    from nispa.cli.progress import Display, PlainDisplay

    if quiet:
        return Display()
    if not sys.stdout.isatty() or not installed("rich"):
        return PlainDisplay(title)
    from nispa.cli.live import LiveDisplay

    return LiveDisplay(title)


def data_notes(scenario: Scenario) -> list[str]:
    """What a reader must know of the data before the run, a line for each data set."""
    from nispa.files import one_line

    lines = []
    for data in scenario.identity:
        known = [] if data.canonical is not False else ["NOT THE CANONICAL DATA"]
        known += [one_line(data.note, 300)] * bool(data.note)
        if data.canonical is not True and known:
            lines.append(f"data {one_line(data.name, 40)}: {'; '.join(known)}")
    return lines


def epoch_sizes(scenario: Scenario, settings: Settings) -> list[int]:
    """Training images per epoch, for each task."""
    sizes = [len(task.train) for task in scenario.tasks]
    return list(itertools.accumulate(sizes)) if settings.method_class.rehearses else sizes


def _warn(text: str) -> None:
    click.echo(f"nispa: warning: {text}", err=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU, PyTorch has no exception class for that."""
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def kept(out: Path) -> str:
    """Says what an unfinished run left behind."""
    from nispa.files import one_line, shown
    from nispa.runs.record import read_record

    try:
        record = read_record(out)
    except InputError:
        return "nothing was written"
    tasks = record.progress if record.learned else "no finished task"
    names = ", ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    network = record.config.get("network")
    model = network.get("architecture") if isinstance(network, dict) else None
    # Code is run only where it is named again.
    own = f" --model {one_line(str(model), 200)}" if ":" in str(model) else ""
    return f"kept {tasks} in {shown(out)} ({names}); go on with: nispa resume {shown(out)}{own}"
