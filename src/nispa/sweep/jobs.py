"""The jobs of a sweep: prepared, recognised when they are done, executed in any process."""

from __future__ import annotations

import functools
import json
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nispa.base.config import describe
from nispa.base.devices import choose_device
from nispa.data.named import SCENARIOS, build_scenario
from nispa.data.scenarios import Scenario, on_validation
from nispa.errors import BusyError, ConfigError, InputError, NispaError, unknown_name
from nispa.files import shown, wording
from nispa.methods.presets import Settings, resolve, settings_of
from nispa.network.backbone import enter
from nispa.reading.drawing import drawing
from nispa.runs.checkpoints import EVERY_S
from nispa.runs.folder import held
from nispa.runs.identity import code_of, run_key
from nispa.runs.record import RECORD, Record, read_record
from nispa.runs.runner import Experiment, Stopping, resume, run
from nispa.sweep.kinds import check_kinds
from nispa.sweep.plan import Cell, Measured

KEY_LETTERS = 8
MAX_THREADS = 1024  # as on the command line


@dataclass(frozen=True)
class Where:
    """Settings that the runs of a sweep share and that do not change their results.

    Attributes:
        out: Folder of the sweep, with a subfolder for each run.
        data: Folder to look for data sets in.
        download: Whether to download data sets that are not found.
        device: Name of the device.
        threads: CPU threads of each run.
        cache_bytes: See :class:`nispa.runs.runner.Experiment`.
        checkpoint_every: Seconds between two checkpoints.
        models: Functions that build networks, named by whoever started the sweep.
        home: Folder in which modules of theirs may be.
    """

    out: Path
    data: Path | None = None
    download: bool = True
    device: str = "cpu"
    threads: int = 1
    cache_bytes: int = 512 * 2**20
    checkpoint_every: float = EVERY_S
    models: tuple[str, ...] = ()
    home: Path | None = None


@dataclass(frozen=True)
class Job:
    """A run as texts and numbers, without code, so that any process can execute it.

    Attributes:
        title: The run in a line.
        scenario: Name of the scenario.
        options: The scenario's options that differ from its defaults.
        method: Name of the method.
        preset: Name of the preset.
        seed: The seed.
        network: All settings of the network.
        config: All settings of the method.
        key: See :func:`nispa.runs.identity.run_key`.
        folder: The run's folder.
        where: Settings shared with the other jobs.
        measured: Which images accuracies are measured on.
    """

    title: str
    scenario: str
    options: Mapping[str, Any]
    method: str
    preset: str
    seed: int
    network: Mapping[str, Any]
    config: Mapping[str, Any]
    key: str
    folder: Path
    where: Where
    measured: Measured = "test"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        job: The job.
        status: ``done``, ``failed``, ``busy`` if another process is at work on it, or ``stopped``
            on request.
        problem: Why it failed, in a line.
        details: The traceback of an unforeseen exception.
        seconds: Wall time of this attempt.
    """

    job: Job
    status: Literal["done", "failed", "busy", "stopped"]
    problem: str = ""
    details: str = ""
    seconds: float = 0.0


# --- Preparing -----------------------------------------------------------------------------------


def prepare(
    cells: Iterable[Cell], where: Where, tell: Callable[[str], None] = lambda line: None
) -> list[Job]:
    """Makes the jobs of a sweep and checks them all before any is started.

    Args:
        cells: What to run; cells that resolve to the same settings become one job.
        where: Settings that all jobs share.
        tell: Called with a line about data that are about to be read.

    Raises:
        InputError: A name is unknown, a setting is out of range, data are missing, a method cannot
            learn the tasks (the message names the run), or runs of a scenario would not compare.
    """
    choose_device(where.device)
    cells = list(cells)
    check_kinds(cells)
    scenarios: dict[str, Scenario] = {}
    checked: set[str] = set()
    jobs: dict[str, Job] = {}
    for cell in cells:
        try:
            job = _job(cell, where, scenarios, checked, tell)
        except InputError as error:
            raise type(error)(f"{error} (in the run: {cell.title})") from None
        jobs.setdefault(job.key, job)
    return list(jobs.values())


def _job(
    cell: Cell,
    where: Where,
    scenarios: dict[str, Scenario],
    checked: set[str],
    tell: Callable[[str], None],
) -> Job:
    options, given = split_options(cell)
    call_key = json.dumps([cell.scenario, options], sort_keys=True)
    if call_key not in scenarios:
        # Checks the settings before the data are read, which may take long.
        resolve(cell.method, cell.preset, cell.scenario, (1, 28, 28), given)
        tell(f"reading the data of {cell.scenario}")
        scenarios[call_key] = build_scenario(
            cell.scenario,
            seed=cell.seed,
            folder=where.data,
            download=where.download,
            options=options,
        )
    scenario = scenarios[call_key]
    if cell.measured == "validation":
        scenario = on_validation(scenario)
    settings = resolve(
        cell.method,
        cell.preset,
        cell.scenario,
        scenario.input_shape,
        given,
        outputs=scenario.outputs,
        tasks=len(scenario.tasks),
    )
    parts = settings.as_json()
    but_seed = json.dumps([call_key, parts, cell.method], sort_keys=True)
    if but_seed not in checked:  # one seed stands for all
        Experiment(scenario, settings, cell.seed, where.device).method()
        checked.add(but_seed)
    key = _key(settings, cell.seed, {**scenario.settings, "seed": cell.seed}, scenario)
    return Job(
        title=cell.title,
        scenario=cell.scenario,
        options=options,
        method=cell.method,
        preset=cell.preset,
        seed=cell.seed,
        network=parts["network"],
        config=parts["method"],
        key=key,
        folder=where.out / folder_name(cell, key),
        where=where,
        measured=cell.measured,
    )


def split_options(cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a cell's settings into options of the scenario and settings of network and method.

    Raises:
        UnknownNameError: No scenario has its name.
        ConfigError: One is an option of other scenarios only.
    """
    if cell.scenario not in SCENARIOS:
        raise unknown_name("scenario", cell.scenario, SCENARIOS)
    names = {option.name for option in describe(SCENARIOS[cell.scenario].options)}
    every = {option.name for known in SCENARIOS.values() for option in describe(known.options)}
    options, given = {}, {}
    for name, value in cell.given.items():
        plain = tuple(value) if isinstance(value, list) else value
        if name in names:
            options[name] = plain
        elif name in every:
            raise ConfigError(
                f"'{name}' is no option of scenario {cell.scenario}, which takes "
                f"{', '.join(sorted(names))}"
            )
        else:
            given[name] = plain
    return options, given


def _key(settings: Settings, seed: int, call: Mapping[str, Any], scenario: Scenario) -> str:
    return run_key(
        method=settings.method,
        seed=seed,
        config=settings.as_json(),
        scenario=call,
        data=[data.sha256 for data in scenario.identity],
        code=code_of(settings.network.architecture),
    )


def folder_name(cell: Cell, key: str) -> str:
    """A readable name for a run's folder, different for every key."""
    text = f"{cell.scenario}-{cell.method}-{cell.preset}-s{cell.seed}-{key[:KEY_LETTERS]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


# --- Recognising ---------------------------------------------------------------------------------


def key_of(record: Record) -> str | None:
    """The key of a record's run; None if its tasks were built in Python."""
    if record.code is None or not {"scenario", "seed", "options"} <= set(record.scenario.settings):
        return None
    return run_key(
        method=record.method,
        seed=record.seed,
        config=record.config,
        scenario=record.scenario.settings,
        data=[data.sha256 for data in record.data],
        code=record.code,
    )


def done_before(job: Job) -> bool:
    """Whether the job's folder holds its complete record."""
    try:
        record = read_record(job.folder)
    except InputError:
        return False
    return record.status == "complete" and key_of(record) == job.key


# --- Executing -----------------------------------------------------------------------------------


def execute(job: Job, stopping: Stopping = lambda: None, *, wait: bool = False) -> Outcome:
    """Runs a job, from the last checkpoint of an earlier attempt if there is one.

    Args:
        job: The job.
        stopping: See :func:`nispa.runs.runner.run`.
        wait: Whether to wait if another process is at work on it.

    Returns:
        The outcome; every exception becomes one.
    """
    started = time.perf_counter()

    def outcome(status: Any, problem: str = "", details: str = "") -> Outcome:
        return Outcome(job, status, problem, details, time.perf_counter() - started)

    try:
        for _ in _events(job, stopping, wait):
            pass
    except BusyError:
        return outcome("busy")
    except NispaError as error:
        return outcome("failed", str(error))
    except KeyboardInterrupt:
        return outcome("stopped")
    except Exception as error:  # noqa: BLE001 - a failure of one run must not end the others
        return outcome(
            "failed", f"{type(error).__name__}: {wording(error)}", traceback.format_exc()
        )
    return outcome("done")


def _events(job: Job, stopping: Stopping, wait: bool) -> Iterator[Any]:
    where = job.where
    for name in where.models:
        enter(name, where.home)
    torch.set_num_threads(where.threads)
    options = json.dumps(dict(job.options), sort_keys=True)
    scenario = _scenario(job.scenario, job.seed, options, where.data, where.download)
    if job.measured == "validation":
        scenario = on_validation(scenario)
    settings = settings_of(job.method, job.preset, job.network, job.config)
    if _key(settings, job.seed, scenario.settings, scenario) != job.key:
        raise InputError(
            "the data or the code are not those that the sweep was begun with; start it again"
        )
    experiment = Experiment(
        scenario, settings, job.seed, where.device, where.cache_bytes, where.data
    )
    with held(job.folder, wait=wait):  # so that the record cannot change after it was read
        if not (job.folder / RECORD).exists():
            yield from run(experiment, job.folder, where.checkpoint_every, stopping, drawing())
        elif not done_before(job):
            record = read_record(job.folder)
            if record.status == "complete":
                raise InputError(f"{shown(job.folder)} holds another run; move it away")
            before = record.environment.threads or where.threads
            torch.set_num_threads(min(before, MAX_THREADS))  # a record may say any number
            yield from resume(experiment, job.folder, where.checkpoint_every, stopping, drawing())


@functools.lru_cache(maxsize=1)
def _scenario(name: str, seed: int, options: str, data: Path | None, download: bool) -> Scenario:
    """Builds the scenario; cached, since the next job often has the same."""
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(options).items()
    }
    return build_scenario(name, seed=seed, folder=data, download=download, options=given)
