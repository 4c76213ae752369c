"""One run of a sweep: made ready, recognised when it is done, carried out in any process."""

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
from nispa.reading.plots import picture
from nispa.runs.checkpoints import EVERY_S
from nispa.runs.folder import held
from nispa.runs.identity import code_digest, run_key
from nispa.runs.record import RECORD, Record, read_record
from nispa.runs.runner import Experiment, Stopping, resume, run
from nispa.sweep.kinds import check_kinds
from nispa.sweep.plan import Cell, Measured

KEY_LETTERS = 8
MAX_THREADS = 1024  # as on the command line


@dataclass(frozen=True)
class Where:
    """What runs share that does not decide their results.

    Attributes:
        out: Folder of the sweep; each run has one of its own in it.
        data: Where to look for data sets.
        download: Whether to download what is not found.
        device: Name of the device.
        threads: CPU threads of each run.
        cache_bytes: See :class:`nispa.runs.runner.Experiment`.
        checkpoint_every: Seconds.
    """

    out: Path
    data: Path | None = None
    download: bool = True
    device: str = "cpu"
    threads: int = 1
    cache_bytes: int = 512 * 2**20
    checkpoint_every: float = EVERY_S


@dataclass(frozen=True)
class Job:
    """One run, as any process can carry it out: texts and numbers only, no code.

    Attributes:
        title: The run in a line.
        scenario: Name of the scenario.
        options: The scenario's options that differ from its defaults.
        method: Name of the method.
        preset: Name of the preset.
        seed: The seed.
        network: Settings of the network, complete.
        config: Settings of the method, complete.
        key: See :func:`nispa.runs.identity.run_key`.
        folder: Where its record goes.
        where: What it shares with the others.
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
    """What became of a job.

    Attributes:
        job: The job.
        status: ``done``, ``failed``; ``busy`` while another process is at work on it, ``stopped``
            where it was told to.
        problem: Why it failed, in a line.
        details: Where the program met something unforeseen: the traceback.
        seconds: Wall time, of the attempt alone.
    """

    job: Job
    status: Literal["done", "failed", "busy", "stopped"]
    problem: str = ""
    details: str = ""
    seconds: float = 0.0


# --- Making ready --------------------------------------------------------------------------------


def prepare(
    cells: Iterable[Cell], where: Where, tell: Callable[[str], None] = lambda line: None
) -> list[Job]:
    """The jobs of a sweep, every one checked: nothing is started if one of them cannot be.

    Args:
        cells: What to run; cells that come to the same settings become one job.
        where: What all of them share.
        tell: Told what is being read.

    Raises:
        InputError: A name is unknown, a setting out of range, data are missing, a method cannot
            learn the tasks (the message says which run it is about), or runs of a scenario add
            different things unasked.
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
    place = json.dumps([cell.scenario, options], sort_keys=True)
    if place not in scenarios:
        resolve(cell.method, cell.preset, cell.scenario, (1, 28, 28), given)  # before data are read
        tell(f"reading the data of {cell.scenario}")
        scenarios[place] = build_scenario(
            cell.scenario,
            seed=cell.seed,
            folder=where.data,
            download=where.download,
            options=options,
        )
    scenario = scenarios[place]
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
    shape = json.dumps([place, settings.as_json(), cell.method], sort_keys=True)
    if shape not in checked:  # seeds aside, whoever can learn it once can learn it again
        Experiment(scenario, settings, cell.seed, where.device).method()
        checked.add(shape)
    call = {**scenario.settings, "seed": cell.seed}
    key = _key(settings, cell.seed, call, scenario, code_digest())
    parts = settings.as_json()
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
    """What a cell says of the scenario, and of network and method."""
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


def _key(
    settings: Settings, seed: int, call: Mapping[str, Any], scenario: Scenario, code: str
) -> str:
    return run_key(
        method=settings.method,
        seed=seed,
        config=settings.as_json(),
        scenario=call,
        data=[data.sha256 for data in scenario.identity],
        code=code,
    )


def folder_name(cell: Cell, key: str) -> str:
    """The name of a run's folder: readable, and another one for every key."""
    text = f"{cell.scenario}-{cell.method}-{cell.preset}-s{cell.seed}-{key[:KEY_LETTERS]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


# --- Recognising ---------------------------------------------------------------------------------


def key_of(record: Record) -> str | None:
    """The key of the run that a record is of; None where its tasks were built in Python."""
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


# --- Carrying out --------------------------------------------------------------------------------


def execute(job: Job, stopping: Stopping = lambda: None, *, wait: bool = False) -> Outcome:
    """Does a job, or goes on with it where an earlier attempt ended; raises nothing.

    Args:
        job: What to do.
        stopping: See :func:`nispa.runs.runner.run`.
        wait: Whether to wait while another process is at work on it.
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
    except Exception as error:  # noqa: BLE001 - one run's fault must not end the others
        return outcome(
            "failed", f"{type(error).__name__}: {wording(error)}", traceback.format_exc()
        )
    return outcome("done")


def _events(job: Job, stopping: Stopping, wait: bool) -> Iterator[Any]:
    where = job.where
    torch.set_num_threads(where.threads)
    options = json.dumps(dict(job.options), sort_keys=True)
    scenario = _scenario(job.scenario, job.seed, options, where.data, where.download)
    if job.measured == "validation":
        scenario = on_validation(scenario)
    settings = settings_of(job.method, job.preset, job.network, job.config)
    found = _key(settings, job.seed, scenario.settings, scenario, code_digest())
    if found != job.key:
        raise InputError(
            "the data or the code are not those that the sweep was begun with; start it again"
        )
    experiment = Experiment(
        scenario, settings, job.seed, where.device, where.cache_bytes, where.data
    )
    with held(job.folder, wait=wait):  # what is decided by the record holds until it is done
        if not (job.folder / RECORD).exists():
            yield from run(experiment, job.folder, where.checkpoint_every, stopping, picture)
        elif not done_before(job):
            record = read_record(job.folder)
            if record.status == "complete":
                raise InputError(f"{shown(job.folder)} holds another run; move it away")
            before = record.environment.threads or where.threads
            torch.set_num_threads(min(before, MAX_THREADS))  # a stranger's record says any number
            yield from resume(experiment, job.folder, where.checkpoint_every, stopping, picture)


@functools.lru_cache(maxsize=1)
def _scenario(name: str, seed: int, options: str, data: Path | None, download: bool) -> Scenario:
    """The tasks; kept for the next job, which often has the same."""
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(options).items()
    }
    return build_scenario(name, seed=seed, folder=data, download=download, options=given)
