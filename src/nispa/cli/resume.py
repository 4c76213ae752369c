"""``nispa resume``: goes on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import Stops, stopped, terminable
from nispa.cli.options import (
    MAX_THREADS,
    cache_option,
    checkpoint_option,
    data_option,
    threads_option,
    track_option,
)
from nispa.cli.run import (
    display_of,
    epoch_sizes,
    follow,
    kept,
    print_end,
    title_of,
)
from nispa.errors import FormatError, InputError

if TYPE_CHECKING:
    from nispa.data.scenarios import Scenario
    from nispa.methods.presets import Settings
    from nispa.runs.origin import Origin
    from nispa.runs.record import Record


@click.command(short_help="Go on with an interrupted run.")
@click.argument("run", type=click.Path(path_type=Path))
@data_option
@click.option("--device", metavar="NAME", help="The one that it was begun on by default.")
@threads_option("As many as it was begun with by default: another number may change the last bits.")
@cache_option
@checkpoint_option
@track_option
@click.option("--no-download", is_flag=True, help="Fail where data would have to be downloaded.")
@click.option("--quiet", is_flag=True, help="Print nothing but the folder of the record.")
def resume(**given: Any) -> None:
    """Go on with the run in the folder RUN from its last checkpoint.

    It comes to the same record and network as a run that was never interrupted, times aside.
    """
    with terminable():
        _resume(**given)


def _resume(
    *,
    run: Path,
    data: Path | None,
    device: str | None,
    threads: int | None,
    cache_mb: int,
    checkpoint_every: int,
    track: tuple[str, ...],
    no_download: bool,
    quiet: bool,
) -> None:
    import torch

    from nispa.data.named import build_scenario
    from nispa.files import shown
    from nispa.reading.plots import picture
    from nispa.runs.origin import read_origin
    from nispa.runs.record import read_record
    from nispa.runs.runner import Experiment
    from nispa.runs.runner import resume as go_on
    from nispa.trackers import open_trackers

    trackers = open_trackers(track)
    record = read_record(run, sealed=True)
    if record.status == "complete":
        raise InputError(f"{shown(run)} is complete: nothing is left to resume")
    call, settings = _call(record, run), _settings(record, run)
    before = record.environment.threads or 1
    torch.set_num_threads(threads or min(before, MAX_THREADS))
    title = title_of(
        record.scenario.name, record.method, record.incremental, "resumed", record.seed
    )
    display = display_of(title, quiet)
    try:
        with display:
            scenario, data = _found(
                read_origin(run),
                data,
                lambda folder: build_scenario(
                    call["scenario"],
                    seed=call["seed"],
                    folder=folder,
                    download=not no_download,
                    options=call["options"],
                    progress=display.loading,
                ),
            )
            chosen = device or record.environment.device.partition(" ")[0]
            experiment = Experiment(scenario, settings, record.seed, chosen, cache_mb * 2**20, data)
            left = epoch_sizes(scenario, settings)
            display.begin(left, shown(run))
            stops = Stops()
            with stops.kept():
                running = go_on(experiment, run, checkpoint_every, stops, picture)
                follow(running, run, display, trackers)
    except KeyboardInterrupt as stop:
        raise stopped(stop, kept(run)) from None
    print_end(run, quiet)


def _found(
    origin: Origin | None, given: Path | None, build: Callable[[Path | None], Scenario]
) -> tuple[Scenario, Path | None]:
    """The scenario, with the folder that its data were found in.

    Data are looked for as when the run was begun, then as it would be from here. A folder that was
    given on the command line goes before the one of then, which goes before ``NISPA_DATA``.
    """
    from nispa.files import shown
    from nispa.runs.origin import working_in

    source = click.get_current_context().get_parameter_source("data")
    here = (Path.cwd(), None if given is None else given.absolute())
    places = [here]
    if origin is not None:
        explicit = source is click.core.ParameterSource.COMMANDLINE
        place = origin.folder if _is_folder(origin.folder) else here[0]
        data = origin.data if _is_folder(origin.data) else here[1]
        places = list(dict.fromkeys([(place, here[1] if explicit else data), here]))
    errors: list[InputError] = []
    for place, data in places:
        try:
            with working_in(place):
                return build(data), data
        except InputError as error:
            errors.append(error)
    looked = " and then from ".join(dict.fromkeys(shown(place) for place, _ in places))
    then = f", data sets lay in {shown(origin.data)}" if origin and origin.data else ""
    raise type(errors[0])(
        f"{errors[0]} (looked from the folder {looked}{then}; pass --data DIR, or call from where "
        "relative paths are right)"
    )


def _is_folder(path: Path | None) -> bool:
    try:
        return path is not None and path.is_dir()
    except (OSError, ValueError):
        return False


def _call(record: Record, run: Path) -> dict[str, Any]:
    """How the scenario was built, from a record that may be anybody's."""
    call = record.scenario.settings
    options = call.get("options")
    if call.get("scenario") != record.scenario.name or not isinstance(options, dict):
        raise InputError(
            f"the tasks of {run} were built in Python; resume it there with "
            "nispa.runs.runner.resume"
        )
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    return {"scenario": record.scenario.name, "seed": call.get("seed"), "options": given}


def _settings(record: Record, run: Path) -> Settings:
    """The settings that a record holds."""
    from nispa.methods.presets import settings_of

    network, method = record.config.get("network"), record.config.get("method")
    if not isinstance(network, dict) or not isinstance(method, dict):
        raise FormatError(f"{run} does not hold the settings of a run; it cannot be resumed")
    return settings_of(record.method, record.preset or "default", network, method)
