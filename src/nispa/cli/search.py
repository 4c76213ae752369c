"""``nispa search``: settings chosen on validation images, by Optuna."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import CommandError, stopped
from nispa.cli.options import (
    flag_of,
    incremental_option,
    lists_given,
    method_option,
    models_option,
    preset_option,
    seed_option,
    set_option,
    settings_given,
    whole_number,
    with_models,
)
from nispa.cli.sweep import Shared, make_folder, seeds_given, with_shared_options
from nispa.errors import InputError, needs

if TYPE_CHECKING:
    import optuna
    from rich.progress import Progress

    from nispa.sweep.jobs import Where
    from nispa.sweep.search import Followed, Space, Trial

MAX_TRIALS = 100_000


@click.command(
    short_help="Choose settings by their validation accuracy.",
    epilog="\b\nExample:\n  nispa search split-digits --range learning_rate=0.001..0.1:log "
    "--choice optimiser=sgd,adam --trials 20",
)
@click.argument("scenario")
@method_option
@preset_option
@models_option(
    "A network (see: nispa list models), or package.module:function that builds one; may be "
    "repeated, to choose among them."
)
@incremental_option
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="KEY=LOW..HIGH[:log]",
    help="A setting to search for, evenly or in logarithms; may be repeated.",
)
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="A setting to choose among values; separate values that hold commas with semicolons.",
)
@set_option("A setting of all trials.")
@click.option(
    "--trials",
    callback=whole_number(1, MAX_TRIALS, f"[1, {MAX_TRIALS}]", "20 is usual"),
    default="20",
    metavar="N",
    show_default=True,
    help="How many, including those of earlier calls.",
)
@seed_option("Decides what is tried.", "--search-seed")
@with_shared_options
def search(
    scenario: str,
    method: str,
    preset: str,
    models: tuple[str, ...],
    incremental: str | None,
    ranges: tuple[str, ...],
    choices: tuple[str, ...],
    pairs: tuple[str, ...],
    trials: int,
    search_seed: int,
    **given: Any,
) -> None:
    """Search for settings with the best mean accuracy on the validation images of SCENARIO.

    Test images are never looked at. The same command goes on where it was stopped. A trial is the
    mean over --seeds.
    """
    shared = Shared(**given, models=tuple(name for name in models if ":" in name))
    from nispa.sweep.plan import Cell
    from nispa.sweep.search import Space, parse_range

    lists: dict[str, Any] = dict(lists_given("--choice", choices))
    settings = with_models(settings_given(pairs, incremental), lists, models)
    cell = Cell(scenario, method, preset, 0, settings)
    ends = [parse_range(text) for text in ranges]
    for name, count in Counter(name for name, _ in ends).items():
        if count > 1:
            raise InputError(f"--range {name} is given twice; keep one of them")
    values = {name: tuple(texts) for name, texts in lists.items()}
    space = Space(cell, seeds_given(shared.seeds) or (0,), dict(ends), values)
    _search(space, shared, trials, search_seed)


def _search(space: Space, shared: Shared, trials: int, seed: int) -> None:
    from nispa.files import shown
    from nispa.sweep.search import best, check, open_study
    from nispa.sweep.search import search as start

    out = shared.folder(f"search-{space.cell.scenario}-{space.cell.method}")
    where, backend = shared.resources(out, runs=trials * len(space.seeds))
    check(space, where, shared.tell)
    if shared.dry_run:
        click.echo(f"{trials} trials of {len(space.seeds)} runs each would go to {shown(out)}")
        return
    make_folder(out)
    study = open_study(out, seed)
    try:
        with (
            _progress(shared.quiet) as progress,
            closing(start(space, study, where, backend, trials)) as steps,
        ):
            _follow(steps, study, trials, progress, shared.quiet)
    except KeyboardInterrupt as stop:
        raise stopped(stop, f"the trials are in {shown(out)}; the same command goes on") from None
    found = best(study)
    if not found:
        raise CommandError(1, f"error: none of {trials} trials came to an end; see {shown(out)}")
    if shared.quiet:
        click.echo(str(out))
        return
    click.echo(f"\nbest of {trials} trials, mean validation accuracy:")
    for trial in found:
        click.echo(_line(trial))
    click.echo(f"\nmeasure it on test images with:\n  {command_of(space, found[0], where)}")


def command_of(space: Space, trial: Trial, where: Where) -> str:
    """The shell command that learns with a trial's settings and measures on test images.

    Args:
        space: The space that was searched.
        trial: The trial.
        where: Tells where the search found its data and on which device it ran.
    """
    from nispa.base.config import describe
    from nispa.data.named import SCENARIOS, resolve_options
    from nispa.sweep.jobs import split_options

    cell = replace(space.cell, given={**space.cell.given, **trial.params})
    options, settings = split_options(cell)
    parts = ["nispa", "run", cell.scenario, "--method", cell.method, "--preset", cell.preset]
    parts += ["--data", str(where.data)] if where.data else []
    parts += ["--device", where.device] if where.device != "cpu" else []
    chosen = resolve_options(SCENARIOS[cell.scenario], options)
    for field in describe(type(chosen)):
        if field.name not in options:
            continue
        flag = flag_of(field.name)
        if field.kind == "true or false":  # such an option is a pair of flags without a value
            parts.append(flag if getattr(chosen, field.name) else f"--no-{flag[2:]}")
        else:  # one word, since a value may begin with a dash
            parts.append(f"{flag}={_typed(options[field.name])}")
    for name, value in settings.items():
        if name == "architecture" and ":" in str(value):  # code that only --model may name
            parts += ["--model", str(value)]
            continue
        parts += ["--set", f"{name}={_typed(value)}"]
    return shlex.join(parts)


def _typed(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_typed, value))
    return value if isinstance(value, str) else json.dumps(value)


def _progress(quiet: bool) -> Progress:
    """A live progress line on a terminal; elsewhere it only prints what goes through it."""
    with needs("search", "a search for settings"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(24),
        TextColumn("{task.completed:.0f} of {task.total:.0f} trials"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),  # settings may hold brackets
        console=Console(highlight=False),
        transient=True,
        disable=quiet or not sys.stdout.isatty(),
    )


def _follow(
    steps: Followed, study: optuna.Study, trials: int, progress: Progress, quiet: bool
) -> None:
    """Carries out a search and prints a line for each trial that ends."""
    with needs("search", "a search for settings"):
        from rich.text import Text

    from nispa.sweep.search import Trial, best, trials_over

    def standing() -> str:
        found = best(study, 1)
        return f"best so far: {_line(found[0])}" if found else ""

    bar = progress.add_task(standing(), total=trials, completed=trials_over(study))
    for step in steps:
        if isinstance(step, Trial):
            if not quiet:
                progress.console.print(Text(_line(step)), soft_wrap=True)
            progress.update(bar, advance=1, description=standing())


def _line(trial: Trial) -> str:
    from nispa.files import one_line
    from nispa.sweep.plan import as_text

    value = "failed" if trial.accuracy is None else f"{100 * trial.accuracy:.2f} %"
    params = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={as_text(value)}"
        for name, value in trial.params.items()
    )
    problem = f": {one_line(trial.problem)}" if trial.problem else ""
    return f"trial {trial.number}: {value}  {params}{problem}"
