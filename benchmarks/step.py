"""One training step over live connections, beside the same step in dense PyTorch with masks.

    python -m benchmarks.step --net convnet --density 0.1 --threads 2
    python -m benchmarks.step --net mlp --density 0.2 --stable 0.9 --no-cache
    python -m benchmarks.step --net mlp --density 0.1 --others

Each contestant has its turn in every round; what is shown are medians. Gathering the batch is part
of every contestant's time. See ``contestants.py`` for what is compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import Contestant, contestants
from benchmarks.networks import NETS, Case, Net, make_loss, make_network, make_samples
from benchmarks.others import others
from benchmarks.timing import gflops, in_turn, medians, product
from nispa.network.models import NetworkConfig

DENSITY: dict[Net, float] = {"mlp": NetworkConfig().density, "convnet": 0.1}
TOLERANCE = 1e-3
"""By how much first losses may differ, as a share: sums run in another order."""


def measure(case: Case, *, alternatives: bool = False, compiling: bool = True) -> dict[str, Any]:
    """Times one case: its settings, counts, and seconds by contestant and round.

    Args:
        case: What to train.
        alternatives: Whether to time the contestants of ``others.py``, too.
        compiling: Whether those of them that compile are among them.

    Raises:
        RuntimeError: Two of the usual contestants do not compute the same loss. Another one that
            does not is left out and named.
    """
    torch.set_num_threads(case.threads)
    network, samples, loss = make_network(case), make_samples(case), make_loss(case).loss
    found = contestants(network, samples, case.batch, loss, cache=case.cache)
    usual = list(found)
    if alternatives:
        found |= others(network, samples, case.batch, loss, compiling=compiling)
    first_seconds, wrong = check_losses(found, usual)
    for name in wrong:
        del found[name]
    seconds = in_turn({"peak": product(), **found}, case.rounds)
    layers = network.layers.values()
    return {
        **dataclasses.asdict(case),
        "live": sum(layer.live_count * layer.weights_each for layer in layers),
        "frozen": sum(layer.frozen_count * layer.weights_each for layer in layers),
        "positions": sum(math.prod(layer.shape) * layer.weights_each for layer in layers),
        "kept_bytes": kept_bytes(found["nispa"]),
        "first_seconds": first_seconds,
        "wrong": wrong,
        "seconds": seconds,
    }


def check_losses(
    found: Mapping[str, Callable[[], Tensor]], usual: Collection[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Runs the first step of each and compares the losses with that of ``masked``.

    Args:
        found: What takes a step and gives the loss.
        usual: Those of them that must be right.

    Returns:
        The seconds it took each; and, of those that are wrong, the loss.
    """
    losses, seconds = {}, {}
    for name, contestant in found.items():
        started = time.perf_counter()
        losses[name] = float(contestant())
        seconds[name] = time.perf_counter() - started
    wanted = losses["masked"]
    wrong = {
        name: f"{loss:.4g}"
        for name, loss in losses.items()
        if not math.isclose(loss, wanted, rel_tol=TOLERANCE)
    }
    for name in usual:
        if name in wrong:
            raise RuntimeError(f"the first loss of '{name}' is {wrong[name]}, of 'masked' {wanted}")
    return seconds, wrong


def kept_bytes(contestant: Contestant) -> int:
    """Memory of the prepared data set; 0 if there is none."""
    cached = getattr(contestant.data, "cached", None)
    return 0 if cached is None else int(cached.nbytes)


def best_masked(seconds: dict[str, float]) -> str:
    """The faster of the masked contestants that a user has without compiling."""
    names = [name for name in ("masked", "masked, channels-last") if name in seconds]
    return min(names, key=lambda name: seconds[name])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--net", choices=NETS, default="mlp")
    made.add_argument("--density", type=float)
    made.add_argument("--batch", type=int)
    made.add_argument("--stable", type=float, default=0.0, help="share of units that are stable")
    made.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--others", action="store_true", help="what else a user could pick, too")
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="of --others"
    )
    made.add_argument("--json", action="store_true", help="print one line of JSON")
    return made


def parse(arguments: Sequence[str] | None = None) -> tuple[Case, argparse.Namespace]:
    """The case that a command line describes, and the rest of it."""
    made = parser()
    given = made.parse_args(arguments)
    case = Case(
        net=given.net,
        density=DENSITY[given.net] if given.density is None else given.density,
        batch=given.batch or NETS[given.net][2],
        stable=given.stable,
        cache=given.cache,
        threads=given.threads,
        rounds=given.rounds,
    )
    if len(case.classes) < 2:
        made.error(f"--stable {case.stable} leaves {len(case.classes)} outputs to learn, not two")
    return case, given


def command_line(case: Case) -> list[str]:
    """The arguments that :func:`parse` makes this case of."""
    return [
        f"--net={case.net}",
        f"--density={case.density}",
        f"--batch={case.batch}",
        f"--stable={case.stable}",
        "--cache" if case.cache else "--no-cache",
        f"--threads={case.threads}",
        f"--rounds={case.rounds}",
    ]


def show(result: dict[str, Any]) -> None:
    """Prints milliseconds a step, and the ratios."""
    seconds = medians(result["seconds"])
    print(
        f"{result['net']}, density {result['density']}, stable {result['stable']}, "
        f"batch {result['batch']}, {result['threads']} threads, "
        f"peak {gflops(seconds.pop('peak')):.0f} GFLOP/s"
    )
    best = seconds[best_masked(seconds)]
    for name, taken in seconds.items():
        print(f"{name:28} {taken * 1e3:8.2f} ms   {best / taken:6.2f} x masked at its best")
    for name, loss in result["wrong"].items():
        print(f"{name:28} not timed: its first loss is {loss}")
    print(
        f"live weights: {result['live']:,} of {result['positions']:,}, {result['frozen']:,} frozen"
    )


def main() -> None:
    """Measures and prints."""
    case, given = parse()
    os.environ["OMP_NUM_THREADS"] = str(case.threads)  # for packages with threads of their own
    result = measure(case, alternatives=given.others, compiling=given.compile)
    print(json.dumps(result)) if given.json else show(result)


if __name__ == "__main__":
    main()
