"""``nispa resume``: continues a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.options import (
    MAX_THREADS,
    PATH,
    cache_option,
    checkpoint_option,
    data_option,
    device_option,
    model_option,
    no_download_option,
    quiet_option,
    threads_option,
    track_option,
)
from nispa.cli.running import carry_out, title_of
from nispa.errors import InputError

if TYPE_CHECKING:
    from nispa.cli.progress import Display
    from nispa.data.scenarios import Scenario
    from nispa.runs.origin import Origin
    from nispa.runs.runner import Experiment


@click.command(short_help="Go on with an interrupted run.")
@click.argument("run", type=PATH)
@data_option
@device_option("The one that it was begun on by default.", default=None)
@threads_option("As many as it was begun with by default: another number may change the last bits.")
@cache_option
@checkpoint_option
@track_option
@model_option("The function that the run was begun with, if it was: package.module:function.")
@no_download_option
@quiet_option("the record")
def resume(
    *,
    run: Path,
    data: Path | None,
    device: str | None,
    threads: int | None,
    cache_mb: int,
    checkpoint_every: int,
    track: tuple[str, ...],
    model: str | None,
    no_download: bool,
    quiet: bool,
) -> None:
    """Go on with the run in the folder RUN from its last checkpoint.

    It comes to the same record and network as a run that was never interrupted, times aside.
    """
    del model  # known from here on
    import torch

    from nispa.data.named import build_scenario
    from nispa.files import shown
    from nispa.runs.origin import read_origin
    from nispa.runs.record import read_record
    from nispa.runs.runner import Experiment, recorded_settings
    from nispa.runs.runner import resume as start
    from nispa.trackers import open_trackers

    trackers = open_trackers(track)
    record = read_record(run, sealed=True)
    if record.status == "complete":
        raise InputError(f"{shown(run)} is complete: nothing is left to resume")
    options = record.scenario_options
    if options is None:
        raise InputError(
            f"the tasks of {shown(run)} were built in Python; resume it there with "
            "nispa.runs.runner.resume"
        )
    settings = recorded_settings(record)
    torch.set_num_threads(threads or min(record.environment.threads or 1, MAX_THREADS))

    def build(display: Display) -> Experiment:
        def scenario_in(folder: Path | None) -> Scenario:
            seed: Any = record.scenario.settings.get("seed")
            return build_scenario(
                record.scenario.name,
                seed=seed,
                folder=folder,
                download=not no_download,
                options=options,
                progress=display.loading,
            )

        scenario, found_in = _find_data(read_origin(run), data, scenario_in)
        where = device or record.environment.device.partition(" ")[0]
        return Experiment(scenario, settings, record.seed, where, cache_mb * 2**20, found_in)

    carry_out(
        start,
        run,
        build,
        title=title_of(
            record.scenario.name, record.method, record.incremental, "resumed", record.seed
        ),
        checkpoint_every=checkpoint_every,
        trackers=trackers,
        quiet=quiet,
    )


def _find_data(
    origin: Origin | None, data: Path | None, build: Callable[[Path | None], Scenario]
) -> tuple[Scenario, Path | None]:
    """Builds the scenario, and returns it with the folder that its data were found in.

    Data are looked for as they were when the run was begun, then as they would be from here. A
    folder given on the command line comes before the one of then, which comes before
    ``NISPA_DATA``.
    """
    from nispa.files import shown
    from nispa.runs.origin import working_in

    source = click.get_current_context().get_parameter_source("data")
    here = (Path.cwd(), None if data is None else data.absolute())
    places = [here]
    if origin is not None:
        explicit = source is click.core.ParameterSource.COMMANDLINE
        place = origin.folder if _is_folder(origin.folder) else here[0]
        then = origin.data if _is_folder(origin.data) else here[1]
        places = list(dict.fromkeys([(place, here[1] if explicit else then), here]))
    errors: list[InputError] = []
    for place, folder in places:
        try:
            with working_in(place):
                return build(folder), folder
        except InputError as error:
            errors.append(error)
    looked = " and then from ".join(dict.fromkeys(shown(place) for place, _ in places))
    before = f", data sets lay in {shown(origin.data)}" if origin and origin.data else ""
    raise type(errors[0])(
        f"{errors[0]} (looked from the folder {looked}{before}; pass --data DIR, or call from "
        "where relative paths are right)"
    )


def _is_folder(path: Path | None) -> bool:
    try:
        return path is not None and path.is_dir()
    except (OSError, ValueError):
        return False
