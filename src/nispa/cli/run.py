"""``nispa run``: checks everything, then learns a scenario and keeps its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.options import (
    augment_option,
    cache_option,
    checkpoint_option,
    data_option,
    device_option,
    flag_of,
    incremental_option,
    method_option,
    model_option,
    no_download_option,
    out_option,
    preset_option,
    quiet_option,
    scenario_options,
    seed_option,
    set_option,
    settings_given,
    threads_option,
    track_option,
    with_model,
)
from nispa.cli.running import carry_out, title_of
from nispa.errors import ConfigError, OutputError, unknown_name

if TYPE_CHECKING:
    from nispa.cli.progress import Display
    from nispa.data.scenarios import Scenario
    from nispa.methods.presets import Settings
    from nispa.runs.runner import Experiment

ANY_SHAPE = (1, 28, 28)


class ScenarioCommand(click.Command):
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
    cls=ScenarioCommand, short_help="Learn the tasks of a scenario and record it.", epilog=EXAMPLES
)
@click.argument("scenario")
@method_option
@preset_option
@incremental_option
@augment_option
@model_option(
    "A network (see: nispa list models), or package.module:function that builds one from the shape "
    "of a sample and the number of classes; by default one that suits the data."
)
@seed_option("Everything random is derived from it.")
@data_option
@out_option("New folder for the record; by default one in ./runs.")
@device_option("cpu, cuda or cuda:NUMBER.")
@threads_option("CPU threads; PyTorch's own choice by default.")
@cache_option
@checkpoint_option
@track_option
@set_option("A setting of the network or method; may be repeated. See: nispa list settings.")
@no_download_option
@quiet_option("the record")
def run(
    *,
    scenario: str,
    method: str,
    preset: str,
    incremental: str | None,
    augment: str | None,
    model: str | None,
    seed: int,
    data: Path | None,
    out: Path | None,
    device: str,
    threads: int | None,
    cache_mb: int,
    checkpoint_every: int,
    track: tuple[str, ...],
    pairs: tuple[str, ...],
    no_download: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Learn the tasks of SCENARIO one after another, and keep a record.

    A run's folder holds record.json, events.jsonl, progress.csv, the picture run.png and the
    network. See also: nispa list scenarios.
    """
    import torch

    from nispa.base.devices import choose_device
    from nispa.files import shown
    from nispa.methods.presets import resolve
    from nispa.runs.folder import RunFolder, fresh_name
    from nispa.runs.recording import derived_line
    from nispa.runs.runner import Experiment
    from nispa.runs.runner import run as start
    from nispa.trackers import open_trackers

    settings = with_model(settings_given(pairs, incremental, augment), model)
    options = {name: value for name, value in options.items() if value is not None}
    check_options(scenario, options, settings)
    # Settings are checked before the data are read, which may take long. The shape of the images
    # can only change which benchmark a preset chooses.
    kind = resolve(method, preset, scenario, ANY_SHAPE, settings).config.incremental
    choose_device(device)
    trackers = open_trackers(track)
    folder = out or fresh_name("runs", f"{scenario}-{method}-{preset}-s{seed}")
    RunFolder.check(folder)
    if _lies_in(folder, options.get("dataset")):
        raise OutputError(
            f"{shown(folder)} lies in the data set, whose files it would join; choose a folder "
            "elsewhere with --out"
        )
    if threads is not None:
        torch.set_num_threads(threads)

    def build(display: Display) -> Experiment:
        tasks, chosen = scenario_and_settings(
            scenario,
            method,
            preset,
            settings,
            seed,
            folder=data,
            download=not no_download,
            options=options,
            progress=display.loading,
        )
        if line := derived_line(tasks, chosen):
            display.note(line)
        return Experiment(tasks, chosen, seed, device, cache_mb * 2**20, data)

    carry_out(
        start,
        folder,
        build,
        title=title_of(scenario, method, kind, f"preset {preset}", seed),
        checkpoint_every=checkpoint_every,
        trackers=trackers,
        quiet=quiet,
    )


def _lies_in(folder: Path, dataset: str | None) -> bool:
    """Whether a folder is that of a data set or below it."""
    if not dataset:
        return False
    own = Path(dataset).expanduser()
    return own.is_dir() and folder.resolve().is_relative_to(own.resolve())


def scenario_and_settings(
    scenario: str, method: str, preset: str, settings: dict[str, str], seed: int, **reading: Any
) -> tuple[Scenario, Settings]:
    """The tasks of a scenario, and the settings of a run that learns them.

    Args:
        scenario: Its name.
        method: Name of the method.
        preset: Name of the preset.
        settings: What was given with ``--set``.
        seed: Of the run.
        reading: How to read the data; see :func:`nispa.data.named.build_scenario`.
    """
    from nispa.data.named import build_scenario
    from nispa.methods.presets import resolve

    tasks = build_scenario(scenario, seed=seed, **reading)
    chosen = resolve(
        method,
        preset,
        scenario,
        tasks.input_shape,
        settings,
        outputs=tasks.outputs,
        tasks=len(tasks.tasks),
    )
    return tasks, chosen


def check_options(scenario: str, options: dict[str, Any], settings: dict[str, str]) -> None:
    """Checks the scenario's options, and that none of them was passed with ``--set``.

    Raises:
        InputError: They do not fit.
    """
    from nispa.base.config import describe
    from nispa.data.named import SCENARIOS, resolve_options

    if scenario not in SCENARIOS:
        raise unknown_name("scenario", scenario, SCENARIOS)
    for key in settings:
        if key in {option.name for option in scenario_options()}:
            raise ConfigError(
                f"{key} belongs to the scenario, not to the method or network; pass {flag_of(key)} "
                f"{settings[key]}"
            )
    names = [field.name for field in describe(SCENARIOS[scenario].options)]
    for name in options:
        if name not in names:
            raise ConfigError(
                f"{flag_of(name)} is no option of scenario {scenario}, which takes "
                f"{', '.join(map(flag_of, names))}"
            )
    resolve_options(SCENARIOS[scenario], options)
