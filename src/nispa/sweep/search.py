"""Searches for settings with Optuna, on validation images; test images are never looked at.

Trials are drawn in rounds of as many as run at a time. So the same seed and number of workers give
the same search, whichever trial ends first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nispa.errors import ConfigError, FormatError, InputError, either, needs
from nispa.files import check_own, shown, wording
from nispa.runs.record import read_record
from nispa.sweep.backends import sweep
from nispa.sweep.base import Backend
from nispa.sweep.jobs import Job, Outcome, Where, done_before, prepare
from nispa.sweep.plan import Cell

with needs("search", "a search for settings"):
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.samplers import TPESampler
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState

STUDY = "study.jsonl"


@dataclass(frozen=True)
class Space:
    """The space of settings to search.

    Attributes:
        cell: Scenario, method, preset and fixed settings.
        seeds: Seeds over which each trial takes the mean.
        ranges: Lowest and highest value by setting, and whether to search logarithms.
        choices: Possible values by setting.
    """

    cell: Cell
    seeds: tuple[int, ...]
    ranges: Mapping[str, tuple[float, float, bool]]
    choices: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if not self.ranges and not self.choices:
            raise ConfigError(
                "nothing to search: give a range or a choice, such as learning_rate=0.001..0.1:log"
            )
        if "incremental" in self.choices:
            raise ConfigError(
                "incremental cannot be chosen by accuracy, since it makes tasks harder or easier; "
                "search each kind by itself"
            )
        for name in self.ranges:
            if name in self.choices:
                raise ConfigError(f"{name} has a range and a choice; keep one of them")
        for name in (*self.ranges, *self.choices):
            if name in self.cell.given:
                raise ConfigError(f"{name} is set and searched for; keep one of them")
        for name, (low, high, log) in self.ranges.items():
            if not low < high or (log and low <= 0):
                what = "0 < low < high" if log else "low < high"
                raise ConfigError(f"the range {name}={low:g}..{high:g} must have {what}")

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space as Optuna's distributions."""
        space: dict[str, BaseDistribution] = {}
        for name, (low, high, log) in self.ranges.items():
            if isinstance(low, int) and isinstance(high, int):
                space[name] = IntDistribution(low, high, log=log)
            else:
                space[name] = FloatDistribution(low, high, log=log)
        for name, values in self.choices.items():
            space[name] = CategoricalDistribution(values)
        return space

    def cells(self, params: Mapping[str, Any]) -> list[Cell]:
        """The runs of a trial, one for each seed."""
        given = {**self.cell.given, **params}
        return [
            replace(self.cell, seed=seed, given=given, varied=tuple(params), measured="validation")
            for seed in self.seeds
        ]

    def corners(self) -> list[Cell]:
        """Runs to check before any is started: both ends of the ranges, each choice."""
        low = {name: ends[0] for name, ends in self.ranges.items()}
        high = {name: ends[1] for name, ends in self.ranges.items()}
        first = {name: values[0] for name, values in self.choices.items()}
        corners = [low | first, high | first]
        for name, values in self.choices.items():
            corners += [low | first | {name: value} for value in values[1:]]
        return [self.cells(params)[0] for params in corners]


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        number: Its number, from 0.
        params: The settings that were tried.
        accuracy: Mean validation accuracy over tasks and seeds after the last task; None if a run
            failed.
        problem: Why it failed.
    """

    number: int
    params: Mapping[str, Any]
    accuracy: float | None
    problem: str = ""


Followed = Generator[Trial | Outcome | None, None, None]


def open_study(out: Path, seed: int) -> optuna.Study:
    """Opens the study in a folder, or creates it; interrupted trials are repeated.

    Args:
        out: The folder of the search.
        seed: Decides what is tried, together with the number of trials so far.

    Raises:
        FormatError: It is damaged, or a link.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_own(out / STUDY)
    try:
        storage = JournalStorage(JournalFileBackend(str(out / STUDY)))
        study = optuna.create_study(
            storage=storage, study_name="nispa", direction="maximize", load_if_exists=True
        )
        trials = study.get_trials(deepcopy=False)
    except Exception as error:  # noqa: BLE001 - a damaged line makes Optuna raise anything
        raise FormatError(
            f"{shown(out / STUDY)} cannot be read: {wording(error)}; delete it to start the search "
            "again, which keeps the runs that are done"
        ) from None
    study.sampler = TPESampler(seed=(seed + len(trials)) % 2**32)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
    return study


def trials_over(study: optuna.Study) -> int:
    """Number of finished trials, including failed but not interrupted ones."""
    return sum(trial.user_attrs.get("told", False) for trial in study.get_trials(deepcopy=False))


def search(
    space: Space, study: optuna.Study, where: Where, backend: Backend, trials: int
) -> Followed:
    """Continues a study until ``trials`` trials are complete or failed.

    Args:
        space: The space to search.
        study: See :func:`open_study`.
        where: Settings that the runs share.
        backend: Carries out the runs.
        trials: Number of trials, including those of earlier calls.

    Yields:
        Trials as they end, outcomes of their runs before that, and None from time to time.
    """
    told = trials_over(study)
    while told < trials:
        asked = [
            study.ask(space.distributions()) for _ in range(min(backend.workers, trials - told))
        ]
        runs = {trial.number: prepare(space.cells(trial.params), where) for trial in asked}
        todo = {job.key: job for jobs in runs.values() for job in jobs if not done_before(job)}
        problems: dict[str, str] = {}
        for outcome in sweep(list(todo.values()), backend) if todo else ():
            if outcome is not None and outcome.status == "failed":
                problems[outcome.job.key] = outcome.problem
            yield outcome
        for trial in asked:
            ended = _value(runs[trial.number], problems)
            trial.set_user_attr("told", True)
            if isinstance(ended, str):
                trial.set_user_attr("problem", ended)
                study.tell(trial, state=TrialState.FAIL)
                yield Trial(trial.number, trial.params, None, ended)
            else:
                study.tell(trial, ended)
                yield Trial(trial.number, trial.params, ended)
            told += 1


def _value(jobs: Sequence[Job], problems: Mapping[str, str]) -> float | str:
    """The mean accuracy of a trial's runs, or the reason why there is none."""
    values: list[float] = []
    for job in jobs:
        if job.key in problems:
            return problems[job.key]
        metric = read_record(job.folder).main_metrics["acc"].value
        if metric is None:
            return "its accuracy is not known"
        values.append(metric)
    return statistics.fmean(values)


def check(space: Space, where: Where, tell: Callable[[str], None]) -> None:
    """Checks the corners of a search; see :func:`nispa.sweep.jobs.prepare`.

    Raises:
        InputError: One of these runs is impossible.
    """
    prepare(space.corners(), where, tell)


def best(study: optuna.Study, most: int = 5) -> list[Trial]:
    """At most ``most`` trials, best first."""
    complete: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    complete.sort(key=lambda trial: -(trial.value or 0.0))
    return [Trial(trial.number, trial.params, trial.value) for trial in complete[:most]]


def parse_range(text: str) -> tuple[str, tuple[float, float, bool]]:
    """Parses ``KEY=LOW..HIGH`` or ``KEY=LOW..HIGH:log``; whole ends stay whole numbers.

    Raises:
        InputError: It has another form.
    """
    key, equals, ends = text.partition("=")
    ends, colon, scale = ends.partition(":")
    low, dots, high = ends.partition("..")
    try:
        if not equals or not dots or not key.strip() or (colon and scale != "log"):
            raise ValueError
        return key.strip(), (_number(low), _number(high), scale == "log")
    except ValueError:
        raise InputError(
            f"{either('range', '--range')} {text} must be KEY=LOW..HIGH or KEY=LOW..HIGH:log, "
            "such as learning_rate=0.001..0.1:log"
        ) from None


def _number(text: str) -> float:
    return int(text) if text.strip().lstrip("-").isdecimal() else float(text)
