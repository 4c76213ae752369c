"""``nispa sweep`` and ``nispa reproduce``: many runs, each of them once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.cli.exits import CommandError, stopped, terminable
from nispa.cli.options import (
    MAX_SEED,
    cache_option,
    checkpoint_option,
    data_option,
    incremental_option,
    settings_of_kind,
    settle,
    threads_option,
    whole_number,
)
from nispa.errors import ConfigError, InputError, unknown_name

if TYPE_CHECKING:
    from nispa.cli.sweep_display import SweepDisplay
    from nispa.sweep.backends import Backend
    from nispa.sweep.jobs import Job, Where
    from nispa.sweep.plan import Plan

MAX_WORKERS = 4096
MAX_SEEDS = 100_000  # as sweep.plan.MAX_CELLS: each seed is a run at least

shared_options = (
    click.option(
        "--seeds",
        metavar="N,N-N,...",
        help="Seeds and ranges of them, such as 0-4; those of the plan, or 0, if left out.",
    ),
    data_option,
    click.option(
        "--out",
        type=click.Path(readable=False, path_type=Path),
        metavar="DIR",
        callback=settle,
        help="Folder for the runs; by default one in ./runs, the same for the same command, so "
        "that what is done is not done again.",
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
    click.option(
        "--device", default="cpu", metavar="NAME", show_default=True, help="As for nispa run."
    ),
    cache_option,
    checkpoint_option,
    click.option(
        "--no-download", is_flag=True, help="Fail where data would have to be downloaded."
    ),
    click.option("--dry-run", is_flag=True, help="List the runs and start none."),
    click.option("--quiet", is_flag=True, help="Print nothing but the folder of the runs."),
)


def with_shared_options(command: Any) -> Any:
    """Adds what both commands take."""
    for option in reversed(shared_options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Given:
    """What both commands take, as it was given."""

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


@click.command(
    short_help="Learn many combinations of methods, settings and seeds.",
    epilog="\b\nExamples:\n  nispa sweep split-digits --method nispa --method packnet --seeds 0-4"
    "\n  nispa sweep split-digits --grid learning_rate=0.003,0.01 --grid 'hidden=50,50;100,100'\n"
    "  nispa sweep plan.toml --workers 4",
)
@click.argument("what", nargs=-1, metavar="PLAN.toml|SCENARIO...")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="May be repeated.")
@click.option("--preset", "presets", multiple=True, metavar="NAME", help="May be repeated.")
@incremental_option
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the network, method or scenario, in all runs; may be repeated.",
)
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="Values of such a setting to try; between values that hold commas write semicolons. May "
    "be repeated.",
)
@with_shared_options
def sweep(
    what: tuple[str, ...],
    methods: tuple[str, ...],
    presets: tuple[str, ...],
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
    chosen = Given(**given)
    if not what:
        raise InputError("no plan and no scenario given; try: nispa sweep split-digits --seeds 0,1")
    if any(name.endswith(".toml") for name in what):
        others = (methods, presets, incremental, pairs, grids)
        plan, stem = _from_file(what, any(others)), Path(what[0]).stem
    else:
        chosen_settings = settings_of_kind(pairs, incremental)
        plan, stem = _from_options(what, methods, presets, chosen_settings, grids), "-".join(what)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"sweep-{stem}")[:100]
    with terminable():
        carry_out(_seeded(plan, chosen.seeds), chosen.out or Path("runs") / name, chosen)


def _from_file(what: tuple[str, ...], others: bool) -> Plan:
    from nispa.sweep.plan import read_plan

    if len(what) > 1:
        raise InputError(f"{what[1]} beside {what[0]}: give one plan alone, or scenarios alone")
    if others:
        raise InputError(
            "--method, --preset, --incremental, --set and --grid belong into the plan; leave them "
            "out"
        )
    return read_plan(Path(what[0]))


def _from_options(
    what: tuple[str, ...],
    methods: tuple[str, ...],
    presets: tuple[str, ...],
    chosen: dict[str, str],
    grids: tuple[str, ...],
) -> Plan:
    from nispa.sweep.plan import Grid, Plan

    grid = Grid(
        scenario=what,
        method=methods or ("nispa",),
        preset=presets or ("default",),
        set=chosen,
        grid=lists_given("--grid", grids),
    )
    return Plan((grid,))


def lists_given(option: str, pairs: tuple[str, ...]) -> dict[str, list[str]]:
    """What ``KEY=V1,V2,...`` said; semicolons stand between values that hold commas.

    Raises:
        InputError: One is no such thing, or a key is given twice.
    """
    lists: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, values = pair.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise InputError(f"{option} {pair} must be KEY=V1,V2, such as {option} density=0.1,0.2")
        if key.strip() in lists:
            raise InputError(f"{option} {pair} comes after another one of {key}; keep one of them")
        between = ";" if ";" in values else ","
        lists[key.strip()] = [value.strip() for value in values.split(between)]
    return lists


def _seeded(plan: Plan, seeds: str | None) -> Plan:
    """The plan with other seeds."""
    from nispa.sweep.plan import Plan as Made

    found = seeds_given(seeds)
    if not found:
        return plan
    return Made(tuple(replace(grid, seed=found) for grid in plan.grids), plan.about)


def seeds_given(seeds: str | None) -> tuple[int, ...]:
    """The seeds in ``--seeds N,N-N``, such as ``0-4`` or ``0,1,5-7``; none if it was left out."""
    if seeds is None:
        return ()
    found: list[int] = []
    for text in seeds.split(","):
        first, dash, last = text.partition("-")
        ends = [_seed(end) for end in ((first, last) if dash else (first,))]
        low, high = ends[0], ends[-1]
        if low is None or high is None or low > high:
            raise ConfigError(
                f"--seeds={seeds} must be whole numbers in [0, 2^63) or ranges of them, such as "
                "0,19,42 or 0-4"
            )
        if high - low >= MAX_SEEDS - len(found):
            raise ConfigError(f"--seeds={seeds} are more than {MAX_SEEDS:,}; give fewer")
        found += range(low, high + 1)
    return tuple(found)


def _seed(text: str) -> int | None:
    digits = text.strip()
    plain = digits.isascii() and digits.isdecimal() and len(digits) < 30
    return int(digits) if plain and int(digits) <= MAX_SEED else None


def plans() -> Mapping[str, Path]:
    """The plans that come with nispa, by name."""
    folder = Path(str(files("nispa.sweep") / "plans"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


class ReproduceCommand(click.Command):
    """A command whose help lists the plans that there are."""

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
    chosen = Given(**given)
    plan = read_plan(known[name])
    out = chosen.out or Path("runs") / f"reproduce-{name}"
    with terminable():
        carry_out(_seeded(plan.only(methods), chosen.seeds), out, chosen, report=True)


def carry_out(plan: Plan, out: Path, given: Given, *, report: bool = False) -> None:
    """Does what a plan says that is not done yet, and tells the outcome.

    Args:
        plan: What to run.
        out: Where the runs go.
        given: How.
        report: Whether to write the HTML report at the end.

    Raises:
        InputError: One of the runs cannot be; none was started.
        CommandError: Some failed, or it was stopped.
    """
    from nispa.files import shown
    from nispa.sweep.backends import sweep as start
    from nispa.sweep.jobs import done_before, prepare

    where, backend = place_of(out, given, runs=len(plan))
    tell = (lambda line: None) if given.quiet or given.dry_run else click.echo
    jobs = prepare(plan.cells(), where, tell)
    before = [job for job in jobs if done_before(job)]
    if given.dry_run:
        _list(jobs, before)
        return
    done_keys = {job.key for job in before}
    left = [job for job in jobs if job.key not in done_keys]
    make_folder(out)
    display = _display(given.quiet)
    try:
        with display, closing(start(left, backend)) as outcomes:
            display.begin(jobs, before, backend.workers)
            for outcome in outcomes if left else ():
                display.show(outcome)
    except KeyboardInterrupt as stop:
        done = sum(map(done_before, jobs))
        kept = f"{done} of {len(jobs)} runs are done in {shown(out)}; the same command goes on"
        raise stopped(stop, kept) from None
    _end(jobs, display, out, given.quiet, report)


def place_of(out: Path, given: Given, runs: int) -> tuple[Where, Backend]:
    """What runs share, and what carries them out."""
    from nispa.sweep.backends import make_backend
    from nispa.sweep.jobs import Where

    processors = _processors()
    workers = given.workers or min(processors, max(1, runs))
    threads = given.threads or max(1, processors // workers)
    where = Where(
        out=out.absolute(),
        data=given.data.absolute() if given.data else None,
        download=not given.no_download,
        device=given.device,
        threads=threads,
        cache_bytes=given.cache_mb * 2**20,
        checkpoint_every=given.checkpoint_every,
    )
    return where, make_backend(given.backend, workers, threads)


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _list(jobs: list[Job], before: list[Job]) -> None:
    done = {job.key for job in before}
    for job in jobs:
        click.echo(f"{'done' if job.key in done else 'to do'}  {job.title}  {job.folder.name}")
    click.echo(f"{len(jobs)} runs, {len(before)} of them done")


def make_folder(out: Path) -> None:
    """The folder of a sweep, with its parents."""
    from nispa.errors import OutputError
    from nispa.files import reason, shown

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot create {shown(out)}: {reason(error)}") from error


def _display(quiet: bool) -> SweepDisplay:
    from nispa.cli.sweep_display import LiveSweepDisplay, PlainSweepDisplay, SweepDisplay

    if quiet:
        return SweepDisplay()
    return LiveSweepDisplay() if sys.stdout.isatty() else PlainSweepDisplay()


def _end(jobs: list[Job], display: SweepDisplay, out: Path, quiet: bool, report: bool) -> None:
    from rich.console import Console

    from nispa.cli.sweep_display import summary
    from nispa.cli.tables import show
    from nispa.files import one_line, shown

    failed = display.standing.failed
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
    """The HTML report of the runs that have records."""
    from nispa.files import write_atomic
    from nispa.runs.record import RECORD
    from nispa.webpage import page, read_runs

    folders = [job.folder for job in jobs if (job.folder / RECORD).exists()]
    if not folders:
        return None
    write_atomic(out / "report.html", page(*read_runs(folders)))
    return out / "report.html"
