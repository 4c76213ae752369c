"""``nispa run``: checks everything, then learns a scenario and keeps its record."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import CommandError, Stops, stopped, terminable
from nispa.cli.options import (
    MAX_SEED,
    cache_option,
    checkpoint_option,
    data_option,
    incremental_option,
    method_option,
    preset_option,
    scenario_options,
    settings_of_kind,
    settle,
    threads_option,
    track_option,
    whole_number,
)
from nispa.errors import ConfigError, InputError, NispaError, unknown_name

if TYPE_CHECKING:
    from nispa.cli.progress import Display
    from nispa.data.scenarios import Scenario
    from nispa.methods.presets import Settings
    from nispa.runs.record import Record
    from nispa.runs.runner import RunEvent
    from nispa.trackers import Tracker

ANY_SHAPE = (1, 28, 28)


class RunCommand(click.Command):
    """A command whose help shows the options of scenarios apart, read from their settings."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options written here, then those of the scenarios."""
        return [*super().get_params(ctx), *scenario_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lists of options."""
        for title, params in (
            ("Options", super().get_params(ctx)),
            ("Options of scenarios", scenario_options()),
        ):
            with formatter.section(title):
                found = [p.get_help_record(ctx) for p in params if isinstance(p, click.Option)]
                formatter.write_dl([record for record in found if record is not None])


EXAMPLES = """\b
Examples:
  nispa run split-digits
  nispa run efmnist --data ~/data --preset paper --seed 19
  nispa run split-mnist --method er --incremental class
  nispa run split --dataset photos/ --classes-per-task 3 --set density=0.1"""


@click.command(
    cls=RunCommand, short_help="Learn the tasks of a scenario and record it.", epilog=EXAMPLES
)
@click.argument("scenario")
@method_option
@preset_option
@incremental_option
@click.option(
    "--seed",
    callback=whole_number(0, MAX_SEED, "[0, 2^63)", "0 is usual"),
    default="0",
    metavar="N",
    show_default=True,
    help="Everything random is derived from it.",
)
@data_option
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path),
    metavar="DIR",
    callback=settle,
    help="New folder for the record; by default one in ./runs.",
)
@click.option(
    "--device", default="cpu", metavar="NAME", show_default=True, help="cpu, cuda or cuda:NUMBER."
)
@threads_option("CPU threads; PyTorch's own choice by default.")
@cache_option
@checkpoint_option
@track_option
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the network or method; may be repeated. See: nispa list settings.",
)
@click.option("--no-download", is_flag=True, help="Fail where data would have to be downloaded.")
@click.option("--quiet", is_flag=True, help="Print nothing but the folder of the record.")
def run(**given: Any) -> None:
    """Learn the tasks of SCENARIO one after another, and keep a record.

    A run's folder holds record.json, events.jsonl, progress.csv, the picture run.png and the
    network. See also: nispa list scenarios.
    """
    pairs, no_download = given.pop("pairs"), given.pop("no_download")
    chosen = settings_of_kind(pairs, given.pop("incremental"))
    wanted = Wanted(
        **{field.name: given.pop(field.name) for field in fields(Wanted) if field.name in given},
        settings=chosen,
        download=not no_download,
        options={name: value for name, value in given.items() if value is not None},
    )
    with terminable():
        _run(wanted)


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for, as it was given."""

    scenario: str
    method: str
    preset: str
    seed: int
    data: Path | None
    out: Path | None
    device: str
    threads: int | None
    cache_mb: int
    checkpoint_every: int
    track: tuple[str, ...]
    quiet: bool
    download: bool
    settings: dict[str, str]
    options: dict[str, Any]

    def title(self, kind: str) -> str:
        """The run in a line; ``kind`` is what a task adds."""
        return title_of(self.scenario, self.method, kind, f"preset {self.preset}", self.seed)


def _run(wanted: Wanted) -> None:
    import torch

    from nispa.data.named import build_scenario
    from nispa.files import shown
    from nispa.methods.presets import resolve
    from nispa.reading.plots import picture
    from nispa.runs.recording import derived_line
    from nispa.runs.runner import Experiment
    from nispa.runs.runner import run as start
    from nispa.trackers import open_trackers

    kind = _check(wanted)
    trackers = open_trackers(wanted.track)
    out = _folder(wanted)
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    display = display_of(wanted.title(kind), wanted.quiet)
    try:
        with display:
            scenario = build_scenario(
                wanted.scenario,
                seed=wanted.seed,
                folder=wanted.data,
                download=wanted.download,
                options=wanted.options,
                progress=display.loading,
            )
            settings = resolve(
                wanted.method,
                wanted.preset,
                wanted.scenario,
                scenario.input_shape,
                wanted.settings,
                outputs=scenario.outputs,
                tasks=len(scenario.tasks),
            )
            experiment = Experiment(
                scenario,
                settings,
                wanted.seed,
                wanted.device,
                wanted.cache_mb * 2**20,
                wanted.data,
            )
            if line := derived_line(scenario, settings):
                display.note(line)
            display.begin(epoch_sizes(scenario, settings), shown(out))
            stops = Stops()
            with stops.kept():
                running = start(experiment, out, wanted.checkpoint_every, stops, picture)
                follow(running, out, display, trackers)
    except KeyboardInterrupt as stop:
        raise stopped(stop, kept(out)) from None
    print_end(out, wanted.quiet)


def title_of(scenario: str, method: str, kind: str, what: str, seed: int) -> str:
    """A run in a line, with the kind of learning that its accuracies are of."""
    from nispa.runs.record import kind_in_words

    return f"{scenario}, {method}, {kind_in_words(kind, kind == 'task')}, {what}, seed {seed}"


def _check(wanted: Wanted) -> str:
    """Everything that can be said without the data is said before they are read.

    Gives what a task adds.
    """
    from nispa.base.config import describe
    from nispa.base.devices import choose_device
    from nispa.data.named import SCENARIOS, resolve_options
    from nispa.methods.presets import resolve

    if wanted.scenario not in SCENARIOS:
        raise unknown_name("scenario", wanted.scenario, SCENARIOS)
    for key in wanted.settings:
        if key in {option.name for option in scenario_options()}:
            flag = key.replace("_", "-")
            raise ConfigError(
                f"{key} belongs to the scenario, not to the method or network; pass --{flag} "
                f"{wanted.settings[key]}"
            )
    known = SCENARIOS[wanted.scenario]
    flags = {field.name: "--" + field.name.replace("_", "-") for field in describe(known.options)}
    for name in wanted.options:
        if name not in flags:
            raise ConfigError(
                f"--{name.replace('_', '-')} is no option of scenario {wanted.scenario}, which "
                f"takes {', '.join(flags.values())}"
            )
    resolve_options(known, wanted.options)
    # Which benchmark a preset takes may depend on the images; whether the settings are valid not.
    found = resolve(wanted.method, wanted.preset, wanted.scenario, ANY_SHAPE, wanted.settings)
    choose_device(wanted.device)
    return found.config.incremental


def _folder(wanted: Wanted) -> Path:
    """Where the run goes; nothing is created yet."""
    from nispa.runs.folder import RunFolder, fresh_name

    out = wanted.out
    if out is None:
        stem = f"{wanted.scenario}-{wanted.method}-{wanted.preset}-s{wanted.seed}"
        out = fresh_name("runs", stem)
    RunFolder.check(out)
    return out


def display_of(title: str, quiet: bool) -> Display:
    """What shows a run: nothing, plain lines, or a living line."""
    from nispa.cli.progress import Display, LiveDisplay, PlainDisplay

    if quiet:
        return Display()
    if not sys.stdout.isatty():
        return PlainDisplay(title)
    return LiveDisplay(title)


def epoch_sizes(scenario: Scenario, settings: Settings) -> list[int]:
    """Training images of an epoch of each task."""
    sizes = [len(task.train) for task in scenario.tasks]
    if settings.method_class.rehearses:
        return list(itertools.accumulate(sizes))
    return sizes


def follow(
    running: Generator[RunEvent, None, Record],
    out: Path,
    display: Display,
    trackers: Sequence[Tracker],
) -> None:
    """Runs to the end, or to a :class:`CommandError` that says what was kept."""
    from nispa.trackers import tracked

    begun = False
    try:
        with closing(tracked(running, trackers, out, warn=_warn, tell=display.note)) as events:
            for event in events:
                begun = True
                display.show(event)
    except NispaError as error:
        if isinstance(error, InputError) and not begun:
            raise
        raise CommandError(1, f"error: {error}. Run: {kept(out)}") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        fix = "pass a smaller network or batch_size"
        raise CommandError(1, f"error: not enough memory; {fix}. Run: {kept(out)}") from error


def _warn(text: str) -> None:
    click.echo(f"nispa: warning: {text}", err=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out; on the CPU, PyTorch has no type for that."""
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def kept(out: Path) -> str:
    """What an unfinished run left behind, in words."""
    from nispa.files import shown
    from nispa.runs.record import read_record

    try:
        record = read_record(out)
    except InputError:
        return "nothing was written"
    done = len(record.accuracy_matrix)
    tasks = f"{done} of {len(record.tasks)} tasks" if done else "no finished task"
    names = ", ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    return f"kept {tasks} in {shown(out)} ({names}); go on with: nispa resume {shown(out)}"


def print_end(out: Path, quiet: bool) -> None:
    """The report of a complete run, or where it lies."""
    from nispa.cli.show import print_report
    from nispa.runs.record import read_record

    if quiet:
        click.echo(str(out))
        return
    click.echo()
    print_report(read_record(out), out)
