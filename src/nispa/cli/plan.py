"""``nispa plan``: learns the first tasks of a scenario and estimates how many fit a network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.options import (
    augment_option,
    data_option,
    device_option,
    method_option,
    model_option,
    no_download_option,
    preset_option,
    seed_option,
    set_option,
    settings_given,
    threads_option,
    whole_number,
    with_model,
)
from nispa.cli.run import ANY_SHAPE, ScenarioCommand, check_options, scenario_and_settings
from nispa.errors import InputError, needs

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nispa.data.scenarios import Scenario
    from nispa.methods.presets import Settings
    from nispa.runs.planning import Measured

MOST_WIDTH = 100.0
EXAMPLES = """\b
Examples:
  nispa plan split-digits
  nispa plan efmnist --data ~/data --width 1,2 --density 0.1,0.2
  nispa plan split --dataset photos/ --classes-per-task 5 --learn 3"""


def _factors(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float]:
    """Numbers with commas in between."""
    high = MOST_WIDTH if param.name == "widths" else 1.0
    factors = []
    for text in (value or "").split(",") if value else ():
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not 0 < factor <= high:
            raise InputError(
                f"{param.opts[0]}={value} must be numbers in (0, {high:g}] with commas in between, "
                f"such as {param.opts[0]} {'1,2' if param.name == 'widths' else '0.1,0.2'}"
            )
        factors.append(factor)
    return list(dict.fromkeys(factors))


@click.command(
    cls=ScenarioCommand,
    short_help="Estimate how many tasks a network will hold.",
    epilog=EXAMPLES,
)
@click.argument("scenario")
@click.option(
    "--learn",
    callback=whole_number(1, 100, "[1, 100]", "2 is the default"),
    default="2",
    metavar="N",
    show_default=True,
    help="Tasks to learn for the estimate.",
)
@click.option(
    "--width",
    "widths",
    callback=_factors,
    default="1",
    metavar="X,...",
    show_default=True,
    help="Factors on the units of every hidden layer.",
)
@click.option(
    "--density",
    "densities",
    callback=_factors,
    metavar="D,...",
    help="Densities to try; by default that of the settings.",
)
@method_option
@preset_option
@augment_option
@model_option("A network; see: nispa list models.")
@seed_option("Everything random is derived from it.")
@data_option
@device_option("cpu, cuda or cuda:NUMBER.")
@threads_option("CPU threads; PyTorch's own choice by default.")
@set_option("A setting of the network or method; may be repeated. See: nispa list settings.")
@no_download_option
def plan(
    *,
    scenario: str,
    learn: int,
    widths: list[float],
    densities: list[float],
    method: str,
    preset: str,
    augment: str | None,
    model: str | None,
    seed: int,
    data: Path | None,
    device: str,
    threads: int | None,
    pairs: tuple[str, ...],
    no_download: bool,
    **options: Any,
) -> None:
    """Learn the first tasks of SCENARIO, and estimate how many tasks will fit.

    Each width is tried with each density. A network is nearly full once a layer has no more than a
    tenth of its units plastic; the tasks that begin before that count as fitting. Nothing is
    written.
    """
    import torch

    with needs("reports", "a table on the terminal"):
        from rich.console import Console

    from nispa.base.devices import choose_device
    from nispa.methods.presets import resolve
    from nispa.runs.planning import resized

    given = with_model(settings_given(pairs, None, augment), model)
    options = {name: value for name, value in options.items() if value is not None}
    check_options(scenario, options, given)
    config = resolve(method, preset, scenario, ANY_SHAPE, given).config
    for name, unlimited in (("unit_share", "0"), ("max_share_per_task", "1")):
        if name in config.derived:
            # A task that may stop at its share of the units takes that share: it shows no need.
            given = {**given, name: unlimited}
    choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(highlight=False)
    with Steps(console) as steps:
        tasks, settings = scenario_and_settings(
            scenario,
            method,
            preset,
            given,
            seed,
            folder=data,
            download=not no_download,
            options=options,
            progress=steps.loading,
        )
        trials = [
            (width, resized(settings, width, density))
            for width in widths
            for density in densities or [settings.network.density]
        ]
        learn = min(learn, len(tasks.tasks))
        steps.begin(len(trials) * learn)
        found = [
            (width, each, steps.measure(tasks, each, seed, device, learn)) for width, each in trials
        ]
    _print(console, tasks, found, learn)


class Steps:
    """Progress: a live line on a terminal, otherwise a line for each task."""

    def __init__(self, console: Console) -> None:
        with needs("reports", "a progress bar"):
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("reading the data", total=None)

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def loading(self, what: str, done: int, total: int) -> None:
        """Shows how much of the data is read."""
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def begin(self, tasks: int) -> None:
        """Starts counting tasks."""
        self._bar.reset(self._task, total=tasks)

    def measure(
        self, scenario: Scenario, settings: Settings, seed: int, device: str, learn: int
    ) -> Measured:
        """Learns the first tasks with some settings."""
        from nispa.methods.base import PhaseStart
        from nispa.runs.planning import Measured, measure
        from nispa.runs.runner import Experiment

        what = f"{_sizes(settings)}, density {settings.network.density:g}"
        names, task = [task.name for task in scenario.tasks[:learn]], -1
        for event in measure(Experiment(scenario, settings, seed, device), learn):
            if isinstance(event, PhaseStart):
                if event.phase == 1:
                    task += 1
                    self._bar.advance(self._task, min(task, 1))
                    if not self._console.is_terminal:
                        click.echo(f"{what}: task {task + 1} of {learn}, {names[task]}")
                text = f"{what}: task {task + 1} of {learn}, phase {event.phase}"
                self._bar.update(self._task, description=text)
            elif isinstance(event, Measured):
                self._bar.advance(self._task)
                return event
        raise AssertionError  # measure ends with what it measured


def _sizes(settings: Settings) -> str:
    """The sizes of a network's layers as one sets them."""
    from nispa.network.architecture import ARCHITECTURES

    network = settings.network
    values = [getattr(network, name) for name in ARCHITECTURES[network.architecture].sizes]
    parts = ["-".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
    return f"{network.architecture} {' '.join(parts)}".strip()


def _print(
    console: Console,
    scenario: Scenario,
    found: Iterable[tuple[float, Settings, Measured]],
    learned: int,
) -> None:
    from nispa.cli.tables import show
    from nispa.reading.tables import new_table

    found = list(found)
    table: Table = new_table(
        "width", "density", "live", f"accuracy of {learned}, %", "tasks that fit", "fills first"
    )
    for width, settings, measured in found:
        room = measured.room
        mean = 100 * sum(measured.accuracies) / len(measured.accuracies)
        table.add_row(
            f"{width:g}",
            f"{settings.network.density:.3g}",
            f"{measured.live:,}",
            f"{mean:.1f}",
            _range(room.tasks, room.least, room.most),
            room.layer,
        )
    show([table], console)
    click.echo()
    click.echo(_advice(len(scenario.tasks), found))


def _range(tasks: float, least: float, most: float) -> str:
    """A number of tasks with its range, such as ``5 (4 to 7)``."""
    if math.isinf(tasks):
        return "any number"
    if least == most:
        return f"{tasks:g}"
    return f"{tasks:g} ({least:g} to {'more' if math.isinf(most) else f'{most:g}'})"


def _advice(tasks: int, found: list[tuple[float, Settings, Measured]]) -> str:
    """A sentence: whether the scenario's tasks fit, and what to pass if they do."""
    from nispa.network.architecture import ARCHITECTURES

    fitting = [trial for trial in found if trial[2].room.tasks >= tasks]
    if not fitting:
        widest = max(width for width, _, _ in found)
        return (
            f"The scenario has {tasks} task{'s' * (tasks > 1)}: too many for what was tried. Try "
            f"wider layers (--width {2 * widest:g}), a lower max_share_per_task, or fewer tasks."
        )
    _, settings, measured = min(fitting, key=lambda trial: trial[2].live)
    network = settings.network
    pairs = [f"--set density={network.density:g}"]
    for name in ARCHITECTURES[network.architecture].sizes:
        size = getattr(network, name)
        pairs.append(
            f"--set {name}={','.join(map(str, size)) if isinstance(size, tuple) else size}"
        )
    whole = f"{tasks} tasks fit" if tasks > 1 else "one task fits"
    return f"The scenario's {whole}, with {measured.live:,} live connections: {' '.join(pairs)}"
