"""Steps and whole runs on a graphics card beside masked dense PyTorch; a JSON line for each.

    python -m benchmarks.gpu steps
    python -m benchmarks.gpu runs --data DIR --out runs/gpu
    python -m benchmarks.gpu seeds --data DIR --out runs/gpu --seeds 5
    python -m benchmarks.gpu steps --device cpu --tiny          # the same, to try it
    python -m benchmarks.gpu tables --from gpu.jsonl            # what was printed, as tables

``masked`` is what published code and other frameworks do: dense weights times masks, Adam over all
of them. ``graph`` is the same recorded by hand with ``torch.cuda.graph``, which hardly anybody
does. Each contestant has its turn in every round; what is printed are medians. Gathering the batch
is part of a step; the data lie on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants import ADAM, Loss, Masked, swapped
from benchmarks.lines import NAMES
from benchmarks.networks import NETS, Case, Net, make_network, make_samples
from benchmarks.page import number, table
from benchmarks.timing import in_turn, medians
from nispa.base.seeding import stream
from nispa.data.tasks import Samples
from nispa.methods.base import CACHE_BYTES
from nispa.network.models import DataSet, SparseNetwork
from nispa.training.fit import ClassMask, batch_of, make_optimiser, network_step

Work = Callable[[], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]
TOLERANCE = 2e-2
"""By how much first losses may differ, as a share: some compute products in half precision."""

CASES: tuple[tuple[Net, float, int, float], ...] = (
    ("mlp", 0.2, 512, 0.0),
    ("mlp", 0.2, 1024, 0.0),
    ("mlp", 0.2, 512, 0.7),
    ("convnet", 0.1, 128, 0.0),
    ("convnet", 0.1, 1024, 0.0),
    ("convnet", 0.1, 128, 0.7),
)
RUNS = ("efmnist", "split-cifar10")


@dataclass(frozen=True)
class Shown:
    """How large a measurement is: steps in a turn, rounds, and images in the data set."""

    steps: int = 20
    rounds: int = 9
    images: int | None = None


TINY = Shown(steps=2, rounds=1, images=64)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside it, float32 products may round their factors to TF32, or may not.

    Convolutions may in any case: that is PyTorch's default.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Cycle:
    """Batches of places in a data set, in the same order for every contestant."""

    def __init__(self, size: int, batch: int, device: torch.device) -> None:
        order = torch.randperm(size, generator=stream(0, "order")).to(device)
        self._parts = itertools.cycle(order[: size // batch * batch].split(batch))

    def __call__(self) -> Tensor:
        part: Tensor = next(self._parts)
        return part


def masked(
    network: SparseNetwork,
    data: DataSet,
    batches: Cycle,
    loss: Loss,
    *,
    autocast: torch.dtype | None = None,
    lying: bool = False,
    graph: bool = False,
) -> Work:
    """Dense weights times masks."""
    module: nn.Module = swapped(network, Masked).to(next(network.parameters()).device)
    if lying:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(module.parameters()).device
    optimiser = torch.optim.Adam(module.parameters(), lr=ADAM.learning_rate, capturable=graph)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        if lying:
            images = images.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            value = loss(module(images).float(), labels)
        value.backward()
        optimiser.step()
        return value.detach()

    update: Step = recorded_by_hand(step) if graph else step

    def work() -> Tensor:
        images, labels = data.batch(batches())
        return update(images, labels)

    return work


def recorded_by_hand(
    step: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step as a CUDA graph, as PyTorch's notes do it."""
    held: list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = []

    def update(images: Tensor, labels: Tensor) -> Tensor:
        if not held:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                first = step(images, labels)
            torch.cuda.current_stream().wait_stream(side)
            mine, classes = images.clone(), labels.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = step(mine, classes)
            held.append((graph, mine, classes, found))
            return first
        graph, mine, classes, found = held[0]
        mine.copy_(images)
        classes.copy_(labels)
        graph.replay()
        return found

    return update


def ours(network: SparseNetwork, samples: Samples, batches: Cycle, loss: Loss) -> Work:
    """The way methods train."""
    data = network.prepare(samples, CACHE_BYTES)
    step = network_step(network, loss, make_optimiser(ADAM, network.parameters()))
    return lambda: step(batch_of(data, batches()))


def contestants(case: Case, device: torch.device, size: Shown) -> dict[str, tuple[Work, bool]]:
    """What takes a step, by name, and whether with TF32."""
    samples = make_samples(case)
    if size.images is not None:
        samples = samples.subset(torch.arange(size.images))
    samples = samples.to(device)
    network = make_network(case).to(device)
    loss = ClassMask(case.classes, case.outputs, "slice", device).loss
    found: dict[str, tuple[Work, bool]] = {}

    def add(name: str, make: Callable[..., Work], *, fast: bool = False, **settings: Any) -> None:
        own = copy.deepcopy(network)
        own.precision = settings.pop("precision", "float32")
        batches = Cycle(len(samples), case.batch, device)
        found[name] = make(own, samples, batches, loss, **settings), fast

    half, lying = torch.bfloat16, case.net == "convnet"
    add("masked", masked)
    add("masked, TF32", masked, fast=True)
    add("masked, bfloat16", masked, autocast=half)
    if lying:
        add("masked, channels-last", masked, lying=True)
        add("masked, channels-last, bfloat16", masked, lying=True, autocast=half)
    if device.type == "cuda":
        add("masked, graph", masked, graph=True, lying=lying)
        add("masked, graph, TF32", masked, graph=True, fast=True, lying=lying)
        add("masked, graph, bfloat16", masked, graph=True, autocast=half, lying=lying)
    add("nispa", ours)
    add("nispa, TF32", ours, precision="tf32")
    add("nispa, bfloat16", ours, precision="bfloat16")
    return found


def time_step(case: Case, device: torch.device, size: Shown) -> dict[str, Any]:
    """Milliseconds of a step, by contestant.

    Raises:
        RuntimeError: Two contestants do not compute the same loss.
    """
    found = contestants(case, device, size)
    first: dict[str, float] = {}
    turns: dict[str, Callable[[], object]] = {}
    for name, (work, fast) in found.items():
        with tf32(fast):
            first[name] = float(work())
            for _ in range(3):
                work()
        turns[name] = _turn(work, device, size.steps, fast)
    for name, loss in first.items():
        if not math.isclose(loss, first["masked"], rel_tol=TOLERANCE):
            raise RuntimeError(f"the first loss of '{name}' is {loss}, not {first['masked']}")
    taken = medians(in_turn(turns, size.rounds, least=0.0))
    return {name: 1e3 * seconds / size.steps for name, seconds in taken.items()}


def _turn(work: Work, device: torch.device, steps: int, fast: bool) -> Callable[[], object]:
    def turn() -> None:
        with tf32(fast):
            for _ in range(steps):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return turn


def command(scenario: str, seed: int, given: argparse.Namespace) -> tuple[list[str], Path]:
    """The command of a whole run, and its folder."""
    folder = Path(given.out) / f"{scenario}-s{seed}"
    words = ["run", scenario, "--preset", "paper", "--seed", str(seed)]
    words += ["--device", given.device, "--threads", "1", "--out", str(folder), "--quiet"]
    words += ["--data", given.data] if given.data else []
    for setting in given.set:
        words += ["--set", setting]
    return [sys.executable, "-m", "nispa", *words], folder


def outcome(folder: Path) -> dict[str, Any]:
    """What a run's record says."""
    record = json.loads((folder / "record.json").read_text())
    return {
        "accuracy": record["metrics"]["acc"]["value"],
        "forgetting": record["metrics"]["forgetting"]["value"],
        "train_seconds": [task["train_s"] for task in record["per_task"]],
        "phases": [task["phases"] for task in record["per_task"]],
    }


def whole_runs(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds and accuracy of whole runs with the published settings, one after another."""
    for scenario in given.scenario or RUNS:
        words, folder = command(scenario, given.seed, given)
        started = time.perf_counter()
        subprocess.run(words, check=True)
        yield {
            "part": "run",
            "scenario": scenario,
            "seconds": time.perf_counter() - started,
            **outcome(folder),
        }


def several_seeds(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Several seeds at once, each a process of its own on the same card."""
    for scenario in given.scenario or RUNS:
        calls = [command(scenario, seed, given) for seed in range(given.seeds)]
        started = time.perf_counter()
        running = [subprocess.Popen(words) for words, _ in calls]
        codes = [process.wait() for process in running]
        seconds = time.perf_counter() - started
        if any(codes):
            raise RuntimeError(f"{scenario}: exit codes {codes}")
        yield {
            "part": "seeds",
            "scenario": scenario,
            "seeds": given.seeds,
            "seconds": seconds,
            "accuracies": [outcome(folder)["accuracy"] for _, folder in calls],
        }


def steps(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A step of each case."""
    size = TINY if given.tiny else Shown(rounds=given.rounds)
    for net, density, batch, stable in CASES:
        if given.net not in (None, net) or (given.tiny and (stable or batch > 512)):
            continue
        case = Case(net, density, 16 if given.tiny else batch, stable)
        yield {
            "part": "step",
            "net": net,
            "density": density,
            "batch": case.batch,
            "stable": stable,
            "milliseconds": time_step(case, torch.device(given.device), size),
        }


def where(device: str) -> dict[str, Any]:
    """The card and the software."""
    found = {"part": "machine", "torch": torch.__version__, "device": "cpu"}
    if device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(torch.device(device))
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def tables(lines: Sequence[str]) -> str:
    """What was printed, as Markdown."""
    found = [json.loads(line) for line in lines if line.startswith("{")]
    cases = [each for each in found if each["part"] == "step"]
    names = dict.fromkeys(name for case in cases for name in case["milliseconds"])
    heads = ["ms a step"]
    for case in cases:
        stable = f", {case['stable']:.0%} stable" if case["stable"] else ""
        heads.append(f"{NAMES[case['net']]}, batch {case['batch']:,}{stable}")
    rows = [
        [name, *(_cell(case["milliseconds"], name) for case in cases)] for name in names if cases
    ]
    made = [table(heads, rows)] if cases else []
    runs = [each for each in found if each["part"] in ("run", "seeds")]
    if runs:
        rows = [
            [
                each["scenario"],
                str(each.get("seeds", 1)),
                number(each["seconds"]),
                ", ".join(f"{100 * one:.2f}" for one in each.get("accuracies", [])[:9])
                or f"{100 * each['accuracy']:.2f}",
            ]
            for each in runs
        ]
        made.append(table(("run", "seeds at once", "seconds", "accuracy, %"), rows))
    return "\n\n".join(made)


def _cell(taken: Mapping[str, float], name: str) -> str:
    if name not in taken:
        return "–"
    times = taken["masked"] / taken[name]
    return number(taken[name]) if name == "masked" else f"{number(taken[name])} ({times:.1f}×)"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("part", choices=(*PARTS, "tables"))
    made.add_argument("--from", dest="lines", type=Path, help="a file with what was printed")
    made.add_argument("--device", default="cuda")
    made.add_argument("--tiny", action="store_true", help="a few images and steps, to try it")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--net", choices=NETS)
    made.add_argument("--data", default=None, help="folder of the data sets")
    made.add_argument("--out", default="runs/gpu", help="folder for the runs")
    made.add_argument("--scenario", action="append", help="which scenario; may be repeated")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--seeds", type=int, default=5, help="how many at once")
    made.add_argument("--set", action="append", default=[], help="a setting of the runs")
    return made


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "steps": steps,
    "runs": whole_runs,
    "seeds": several_seeds,
}


def main(arguments: list[str] | None = None) -> None:
    """Prints a line of JSON for each measurement as it comes."""
    given = parser().parse_args(arguments)
    if given.part == "tables":
        print(tables(given.lines.read_text().splitlines()))
        return
    print(json.dumps(where(given.device)), flush=True)
    for found in PARTS[given.part](given):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
