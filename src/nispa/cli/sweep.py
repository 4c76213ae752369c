"""``nispa sweep`` and ``nispa reproduce``: many runs, each of them once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import CommandError, stopped
from nispa.cli.options import (
    MAX_SEED,
    cache_option,
    checkpoint_option,
    data_option,
    device_option,
    incremental_option,
    lists_given,
    models_option,
    no_download_option,
    out_option,
    parse_whole_number,
    quiet_option,
    set_option,
    settings_given,
    threads_option,
    whole_number,
    with_models,
)
from nispa.errors import ConfigError, InputError, installed, missing, needs, unknown_name

if TYPE_CHECKING:
    from nispa.sweep.base import Backend
    from nispa.sweep.jobs import Job, Outcome, Where
    from nispa.sweep.plan import Plan

MAX_WORKERS = 4096
MAX_SEEDS = 100_000  # equals sweep.plan.MAX_CELLS: each seed is a run at least

SHARED_OPTIONS = (
    click.option(
        "--seeds",
        metavar="N,N-N,...",
        help="Seeds and ranges of them, such as 0-4; those of the plan, or 0, if left out.",
    ),
    data_option,
    out_option(
        "Folder for the runs; by default one in ./runs, the same for the same command, so that "
        "finished runs are not repeated."
    ),
    click.option(
        "--backend",
        default="local",
        show_default=True,
        metavar="local|ray|slurm",
        help="Processes of this machine, a Ray cluster, or Slurm.",
    ),
    click.option(
        "--workers",
        callback=whole_number(1, MAX_WORKERS, f"[1, {MAX_WORKERS}]", "leave it out"),
        metavar="N",
        help="Runs at a time; as many as there are processors by default.",
    ),
    threads_option("CPU threads of each run; processors over workers by default."),
    device_option("As for nispa run."),
    cache_option,
    checkpoint_option,
    no_download_option,
    click.option("--dry-run", is_flag=True, help="List the runs and start none."),
    quiet_option("the runs"),
)


def with_shared_options(command: Any) -> Any:
    """Adds the options that sweep, reproduce and search share; see :class:`Shared`."""
    for option in reversed(SHARED_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Shared:
    """Values of the options in :data:`SHARED_OPTIONS`."""

    seeds: str | None
    data: Path | None
    out: Path | None
    backend: str
    workers: int | None
    threads: int | None
    device: str
    cache_mb: int
    checkpoint_every: int
    no_download: bool
    dry_run: bool
    quiet: bool
    models: tuple[str, ...] = ()

    def folder(self, name: str) -> Path:
        """``--out``, or a folder of that name in ``./runs``."""
        return self.out or Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]

    def tell(self, text: str) -> None:
        """Prints a line about progress, unless only results are wanted."""
        if not (self.quiet or self.dry_run):
            click.echo(text)

    def resources(self, out: Path, runs: int) -> tuple[Where, Backend]:
        """The settings that ``runs`` runs in ``out`` share, and the backend for them."""
        from nispa.sweep.backends import make_backend
        from nispa.sweep.jobs import Where

        processors = _processors()
        workers = self.workers or min(processors, max(1, runs))
        threads = self.threads or max(1, processors // workers)
        where = Where(
            out=out.absolute(),
            data=self.data.absolute() if self.data else None,
            download=not self.no_download,
            device=self.device,
            threads=threads,
            cache_bytes=self.cache_mb * 2**20,
            checkpoint_every=self.checkpoint_every,
            models=self.models,
            home=Path.cwd() if self.models else None,
        )
        return where, make_backend(self.backend, workers, threads)


@click.command(
    short_help="Learn many combinations of methods, settings and seeds.",
    epilog="\b\nExamples:\n  nispa sweep split-digits --method nispa --method packnet --seeds 0-4"
    "\n  nispa sweep split-digits --grid learning_rate=0.003,0.01 --grid 'hidden=50,50;100,100'\n"
    "  nispa sweep plan.toml --workers 4",
)
@click.argument("what", nargs=-1, metavar="PLAN.toml|SCENARIO...")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="May be repeated.")
@click.option("--preset", "presets", multiple=True, metavar="NAME", help="May be repeated.")
@models_option(
    "A network (see: nispa list models), or package.module:function that builds one; may be "
    "repeated. Beside a plan, a function that it names."
)
@incremental_option
@set_option("A setting of the network, method or scenario, in all runs; may be repeated.")
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="Values of such a setting to try; separate values that hold commas with semicolons. May "
    "be repeated.",
)
@with_shared_options
def sweep(
    what: tuple[str, ...],
    methods: tuple[str, ...],
    presets: tuple[str, ...],
    models: tuple[str, ...],
    incremental: str | None,
    pairs: tuple[str, ...],
    grids: tuple[str, ...],
    **given: Any,
) -> None:
    """Learn every combination of scenarios, methods, presets, settings and seeds.

    A plan is a TOML file, see docs/sweeps.md. The same command goes on where it was stopped; runs
    that are done, with the same settings, data and code, are not done again. One that fails does
    not stop the others.
    """
    from nispa.sweep.plan import Grid, Plan, read_plan

    functions = tuple(name for name in models if ":" in name)
    shared = Shared(**given, models=functions)
    if not what:
        raise InputError("no plan and no scenario given; try: nispa sweep split-digits --seeds 0,1")
    if any(name.endswith(".toml") for name in what):
        if len(what) > 1:
            raise InputError(f"{what[1]} beside {what[0]}: pass either one plan or scenarios")
        if methods or presets or incremental or pairs or grids:
            raise InputError(
                "--method, --preset, --incremental, --set and --grid belong in the plan; leave "
                "them out"
            )
        if named := [name for name in models if name not in functions]:
            raise InputError(
                f'--model {named[0]} belongs in the plan, as architecture="{named[0]}"'
            )
        plan, stem = read_plan(Path(what[0])), Path(what[0]).stem
    else:
        lists, settings = lists_given("--grid", grids), settings_given(pairs, incremental)
        grid = Grid(
            scenario=what,
            method=methods or ("nispa",),
            preset=presets or ("default",),
            set=with_models(settings, lists, models),
            grid=lists,
        )
        plan, stem = Plan((grid,)), "-".join(what)
    _carry_out(plan, shared.folder(f"sweep-{stem}"), shared)


def seeds_given(text: str | None) -> tuple[int, ...]:
    """The seeds in ``--seeds N,N-N``, such as ``0-4`` or ``0,1,5-7``; none if it was left out."""
    if text is None:
        return ()
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = parse_whole_number(first.strip(), 0, MAX_SEED)
        high = parse_whole_number(last.strip(), 0, MAX_SEED) if dash else low
        if low is None or high is None or low > high:
            raise ConfigError(
                f"--seeds={text} must be whole numbers in [0, 2^63) or ranges of them, such as "
                "0,19,42 or 0-4"
            )
        if high - low >= MAX_SEEDS - len(seeds):
            raise ConfigError(f"--seeds={text} are more than {MAX_SEEDS:,}; give fewer")
        seeds += range(low, high + 1)
    return tuple(seeds)


def plans() -> Mapping[str, Path]:
    """The plans that come with nispa, by name."""
    folder = Path(str(files("nispa.sweep") / "plans"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


class ReproduceCommand(click.Command):
    """A command whose help lists the plans."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line per plan."""
        from nispa.sweep.plan import read_plan

        with formatter.section("Plans"):
            formatter.write_dl([(name, read_plan(path).about) for name, path in plans().items()])


@click.command(cls=ReproduceCommand, short_help="Run the comparison behind a table of the paper.")
@click.argument("name")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Only these; may be repeated."
)
@with_shared_options
def reproduce(name: str, methods: tuple[str, ...], **given: Any) -> None:
    """Learn what a table of the paper compares, and write its report.

    NAME is one of those below. All its methods with published settings, over five seeds; see nispa
    sweep for stopping and going on. The report is report.html in the folder of the runs.
    """
    from nispa.sweep.plan import read_plan

    known = plans()
    if name not in known:
        raise unknown_name("plan", name, known)
    shared = Shared(**given)
    plan = read_plan(known[name]).only(methods)
    _carry_out(plan, shared.folder(f"reproduce-{name}"), shared, report=True)


def _carry_out(plan: Plan, out: Path, shared: Shared, *, report: bool = False) -> None:
    """Carries out the runs of a plan that are not done yet, and prints the outcome.

    Args:
        plan: What to run.
        out: The folder of the runs.
        shared: How.
        report: Whether to write the HTML report at the end.

    Raises:
        InputError: One of the runs cannot be carried out; none was started.
        CommandError: Some failed, or the sweep was stopped.
    """
    for package in ("rich", "pebble"):  # before any part of it is missed
        if not installed(package):
            raise missing("sweep", "a sweep", package)
    from nispa.cli.sweep_display import SweepDisplay
    from nispa.files import shown
    from nispa.sweep.backends import sweep as start
    from nispa.sweep.jobs import done_before, prepare

    if seeds := seeds_given(shared.seeds):
        plan = replace(plan, grids=tuple(replace(grid, seed=seeds) for grid in plan.grids))
    where, backend = shared.resources(out, runs=len(plan))
    jobs = prepare(plan.cells(), where, shared.tell)
    done = {job.key for job in jobs if done_before(job)}
    if shared.dry_run:
        for job in jobs:
            click.echo(f"{'done' if job.key in done else 'to do'}  {job.title}  {job.folder.name}")
        click.echo(f"{len(jobs)} runs, {len(done)} of them done")
        return
    before = [job for job in jobs if job.key in done]
    left = [job for job in jobs if job.key not in done]
    make_folder(out)
    display = SweepDisplay(quiet=shared.quiet)
    try:
        with display, closing(start(left, backend)) as outcomes:
            display.begin(jobs, before, backend.workers)
            for outcome in outcomes if left else ():
                display.show(outcome)
    except KeyboardInterrupt as stop:
        now = sum(map(done_before, jobs))
        kept = f"{now} of {len(jobs)} runs are done in {shown(out)}; the same command goes on"
        raise stopped(stop, kept) from None
    _print_end(jobs, display.standing.failed, out, shared.quiet, report)


def _processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_folder(out: Path) -> None:
    """Creates the folder of a sweep, with its parents."""
    from nispa.errors import OutputError
    from nispa.files import reason, shown

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot create {shown(out)}: {reason(error)}") from error


def _print_end(
    jobs: list[Job], failed: list[Outcome], out: Path, quiet: bool, report: bool
) -> None:
    """Prints the table of the runs and those that failed; writes the report.

    Raises:
        CommandError: Some failed.
    """
    with needs("sweep", "a sweep"):
        from rich.console import Console

    from nispa.cli.sweep_display import summary
    from nispa.cli.tables import show
    from nispa.files import one_line, shown

    for outcome in failed:
        if outcome.details:
            click.echo(outcome.details.rstrip(), err=True)
    written = _report(jobs, out) if report else None
    if quiet:
        click.echo(str(out))
    else:
        click.echo()
        show([summary(jobs)], Console(highlight=False))
        click.echo(f"runs: {shown(out)}" + (f"; report: {shown(written)}" if written else ""))
        if written is None:
            click.echo(f"more: nispa compare {shown(out)}, nispa report {shown(out)}")
    if failed:
        for outcome in failed:
            click.echo(f"failed: {outcome.job.title}: {one_line(outcome.problem, 500)}", err=True)
        raise CommandError(
            1,
            f"error: {len(failed)} of {len(jobs)} runs failed, listed above; the same command "
            "tries them again",
        )


def _report(jobs: list[Job], out: Path) -> Path | None:
    """Writes the HTML report of the runs that have records; None if none has."""
    from nispa.files import write_atomic
    from nispa.runs.record import RECORD
    from nispa.webpage import page, read_runs

    folders = [job.folder for job in jobs if (job.folder / RECORD).exists()]
    if not folders:
        return None
    write_atomic(out / "report.html", page(*read_runs(folders)))
    return out / "report.html"
