"""Methods that give each task a part of a network, beside NISPA, with settings searched alike.

    python -m benchmarks.family efmnist --data DIR --workers 2 --out runs/family-efmnist

For each method, as many trials over the ranges below, judged by the validation images of a seed
that the table does not use; then, with what was best, all seeds, measured on test images: in the
network that the method is published with, and in one as sparse as NISPA's. The same command goes on
where it was stopped. ``OUT/plan.toml`` holds what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nispa.base.config import describe
from nispa.files import write_atomic
from nispa.methods import method_class

SEEDS = (0, 19, 42, 2022, 31415)
SEARCH_SEED = 7
RATE = "learning_rate=0.0003..0.03:log"
EPOCHS = 20
"""Of all methods that do not learn in phases, so that none gets more time than another."""


@dataclass(frozen=True)
class Contestant:
    """A method and what is searched for.

    Attributes:
        method: Its name.
        ranges: What ``nispa search`` takes as ``--range``.
        given: Settings of all its trials.
        sparse: Whether there is a row at NISPA's density as well.
        equal: Whether its network has NISPA's density in all trials, and in its only row.
    """

    method: str
    ranges: tuple[str, ...]
    given: tuple[tuple[str, Any], ...] = ()
    sparse: bool = True
    equal: bool = False


CONTESTANTS = (
    Contestant("nispa", (RATE, "accuracy_drop=0.3..1.5"), sparse=False),
    Contestant("stl", (RATE,), sparse=False, equal=True),
    Contestant("packnet", (RATE, "retrain_rate=0.03..1:log")),
    Contestant("wsn", (RATE, "capacity=0.1..0.7")),
    Contestant("piggyback", (RATE, "mask_rate=0.0001..0.01:log")),
    Contestant("supsup", (RATE, "capacity=0.1..0.7")),
    Contestant(
        "hat",
        ("learning_rate=0.02..0.5:log", "strength=0.1..2:log"),
        (("binary", True),),
        sparse=False,
    ),
    Contestant("clnp", (RATE, "margin=0.25..1")),
    Contestant("spacenet", (RATE, "drop_share=0.05..0.4"), (("incremental", "task"),), False),
    Contestant("nice", ("learning_rate=0.005..0.1:log",), (("incremental", "task"),), False),
    Contestant("si", (RATE, "strength=3..300:log")),
    Contestant("ewc", (RATE, "strength=300..30000:log")),
    Contestant("cbp", (RATE, "replacement_rate=0.00001..0.001:log"), sparse=False, equal=True),
    Contestant("redo", (RATE, "tau=0.01..0.2:log"), sparse=False, equal=True),
)


def given(contestant: Contestant, options: argparse.Namespace) -> dict[str, Any]:
    """Settings of all trials of a method."""
    able = {field.name for field in describe(method_class(contestant.method).config_class)}
    alike = {"epochs": options.epochs} if "epochs" in able else {}
    alike |= {"density": options.density} if contestant.equal else {}
    return alike | dict(contestant.given)


def shared(options: argparse.Namespace) -> list[str]:
    """What every command is called with."""
    data = ["--data", str(options.data)] if options.data else []
    return [*data, "--workers", str(options.workers), "--threads", "1"]


def nispa(*words: str) -> None:
    """Runs the command line in this Python."""
    subprocess.run([sys.executable, "-m", "nispa", *words], check=True)


def searched(contestant: Contestant, options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were best on validation images."""
    from nispa.sweep.search import best, open_study  # its library need not be there for the rest

    out = options.out / f"search-{contestant.method}"
    ranges = [word for text in contestant.ranges for word in ("--range", text)]
    sets = [
        word
        for name, value in given(contestant, options).items()
        for word in ("--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    start = ["search", options.scenario, "--method", contestant.method]
    ends = ["--seeds", str(SEARCH_SEED), "--trials", str(options.trials), "--out", str(out)]
    nispa(*start, *ranges, *sets, *ends, *shared(options))
    return dict(best(open_study(out, 0), 1)[0].params)


def lines(
    found: Sequence[tuple[Contestant, dict[str, Any]]], options: argparse.Namespace
) -> Iterator[str]:
    """A plan of all runs, as TOML."""
    scenario = options.scenario
    yield f'about = "{scenario}: settings from a search on the validation images of one seed"'
    yield f'scenario = "{scenario}"'
    yield f"seed = {list(SEEDS)}"
    for contestant, params in found:
        values = given(contestant, options) | params
        for more in ({}, {"density": options.density}) if contestant.sparse else ({},):
            yield f'\n[[runs]]\nmethod = "{contestant.method}"\n[runs.set]'
            yield from (f"{name} = {json.dumps(value)}" for name, value in (values | more).items())


def main() -> None:
    """Searches, writes the plan and runs it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", choices=("efmnist", "split-mnist", "split-digits"))
    parser.add_argument("--data", type=Path, default=os.environ.get("NISPA_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="where there are no phases")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.2, help="NISPA's, for the second rows")
    options = parser.parse_args()
    wanted = options.methods or [each.method for each in CONTESTANTS]
    chosen = [each for each in CONTESTANTS if each.method in wanted]
    found = [(each, searched(each, options)) for each in chosen]
    plan = options.out / "plan.toml"
    text = "\n".join(lines(found, options)) + "\n"
    write_atomic(plan, text.encode())
    nispa("sweep", str(plan), "--out", str(options.out / "runs"), *shared(options))


if __name__ == "__main__":
    main()
