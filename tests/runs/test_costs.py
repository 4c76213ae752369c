"""What a run cost, by hand; what this process used; and what a real run's record says of both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nispa.methods.saving import decode
from nispa.runs.costs import KINDS, cost_of, scaled, total_cost
from nispa.runs.folder import NETWORK
from nispa.runs.record import Cost, Record, encode
from nispa.runs.record import decode as read
from nispa.runs.runner import resume, run
from nispa.runs.usage import Spent, peak_bytes, spent
from tests.records import priced, record
from tests.runs.test_resume import die
from tests.runs.test_resume import experiment as two_tasks
from tests.runs.test_resume import finish as complete
from tests.runs.test_runner import experiment, finish

# By hand from COSTS in records.py.
TOTAL = Cost(
    live=652,
    model_bytes=7_824,
    kept_bytes=1_000,
    operations={
        "forward": 8_000_000,
        "weight_gradients": 2_000_000,
        "updates": 600_000,
        "replay": 1_400_000,
    },
    train_operations=12_000_000,
    inference_operations=1_304,
    train_s=3.5,
    train_cpu_s=6.0,
    eval_s=0.75,
    eval_cpu_s=1.5,
    peak_bytes=400_000_000,
)


def test_sums_by_hand() -> None:
    assert total_cost(priced().per_task) == TOTAL
    assert cost_of(priced()) == TOTAL
    assert read(encode(priced())).cost == TOTAL


def test_records_of_before_tell_what_they_can() -> None:
    assert cost_of(record()) == Cost(live=652, kept_bytes=0, train_s=3.5, eval_s=0.75)
    assert cost_of(record(per_task=())) == Cost(live=652)
    assert cost_of(record(per_task=(), parameters=None)) == Cost()


@pytest.mark.parametrize(
    "name", ["operations", "train_cpu_s", "eval_cpu_s", "peak_bytes", "model_bytes"]
)
def test_a_sum_is_not_known_where_a_part_is_not(name: str) -> None:
    base = priced()
    for place in (0, 1):
        tasks = list(base.per_task)
        tasks[place] = tasks[place].model_copy(update={name: None})
        wanted = {name: None} | ({"train_operations": None} if name == "operations" else {})
        if name == "model_bytes" and place == 0:  # the size after the last task is the one
            wanted = {}
        assert total_cost(tasks) == TOTAL.model_copy(update=wanted)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 "),
        (999, "999 "),
        (999.6, "1 k"),
        (1_300, "1.3 k"),
        (12_345_678, "12.3 M"),
        (4.56e14, "456 T"),
        (7e18, "7 E"),
        (7e21, "7e+03 E"),
    ],
)
def test_prefixes(value: float, text: str) -> None:
    assert scaled(value) == text


def test_values_with_their_units() -> None:
    texts = [kind.text(getattr(TOTAL, name)) for name, kind in KINDS.items()]
    assert texts == [
        *("12 MFLOP", "1.3 kFLOP", "6 s", "3.5 s", "1.5 s", "0.75 s", "652"),
        *("7.82 kB", "1 kB", "400 MB"),
    ]
    assert KINDS["train_s"].text(1234.56) == "1,234.6 s"
    assert KINDS["live"].text(None) == "-"
    assert KINDS["model_bytes"].title == "bytes of the model (B)"
    assert KINDS["live"].title == "live parameters"


# What the process used.


def test_seconds_add_up() -> None:
    assert Spent(3.0, 5.0) + (Spent(2.0, 4.0) - Spent(1.0, 1.0)) == Spent(4.0, 8.0)
    first = spent()
    while spent().cpu_s == first.cpu_s:  # until the clock of this process has moved
        pass
    assert spent().wall_s > first.wall_s


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_the_peak_is_that_of_this_process() -> None:
    """300 MB that were given back count; what the parent had does not."""
    code = (
        "from nispa.runs.usage import peak_bytes\n"
        "before = peak_bytes()\n"
        "room = bytearray(b'x') * 300_000_000\n"
        "del room\n"
        "print(before, peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1_000_000 < before < 200_000_000
    assert 300_000_000 <= after < before + 320_000_000
    ours = peak_bytes()
    assert ours is not None
    assert ours > before  # PyTorch is here


# Real runs.


def costs_of(method: str, out: Path, **given: Any) -> Record:
    _, made = finish(experiment(method, **given), out)
    return made


def test_what_a_run_says_by_hand(tmp_path: Path) -> None:
    """16 pixels, 16 and 12 units, 6 outputs at density 0.6: 154 + 115 + 43 connections."""
    made = costs_of("finetune", tmp_path / "run", epochs=2)
    connections = 154 + 115 + 43
    live = connections + 16 + 12 + 6
    size = sum(
        value.nbytes for value in decode(tmp_path / "run" / NETWORK)[0].state().tensors.values()
    )
    assert size == 8 * live  # a float32 and its position, an int32
    for task in made.per_task:
        assert (task.live, task.model_bytes) == (live, 8 * live)
        assert task.inference_operations == 2 * connections
        # 72 images in 9 batches and 8 for validation, twice; no gradient into the pixels.
        assert task.operations == {
            "forward": 144 * 2 * connections,
            "weight_gradients": 144 * 2 * connections,
            "input_gradients": 144 * 2 * (115 + 43),
            "updates": 18 * 13 * live,
            "validation": 16 * 2 * connections,
        }
        assert task.train_cpu_s is not None
        assert task.eval_cpu_s is not None
        assert task.peak_bytes is not None
    assert made.cost == total_cost(made.per_task)
    assert made.cost is not None
    assert made.cost.inference_operations == 2 * connections


def test_inference_is_that_of_what_predicts(tmp_path: Path) -> None:
    """PackNet predicts with its tasks' connections, STL with one of its networks."""
    made = costs_of("packnet", tmp_path / "packnet", epochs=2, retrain_epochs=1)
    frozen = [sum(layer.frozen for layer in task.connections.values()) for task in made.per_task]
    assert [task.inference_operations for task in made.per_task] == [2 * each for each in frozen]
    assert frozen[0] < frozen[1] < frozen[2]
    made = costs_of("stl", tmp_path / "stl", epochs=1)
    live = [sum(layer.live for layer in task.connections.values()) for task in made.per_task]
    assert live == [312, 624, 936]
    assert [task.inference_operations for task in made.per_task] == [2 * 312] * 3
    assert [task.model_bytes for task in made.per_task] == [8 * 346, 16 * 346, 24 * 346]


def test_inference_counts_no_work_that_is_done_once(tmp_path: Path) -> None:
    """iCaRL's means of exemplars are computed before the first prediction alone."""
    made = costs_of("icarl", tmp_path / "run", epochs=1, memory=30, incremental="class")
    assert [task.inference_operations for task in made.per_task] == [2 * 312] * 3


def test_a_method_without_networks_of_ours_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nispa.network.sparse_network.current", lambda: None)
    task = costs_of("finetune", tmp_path / "run", epochs=1).per_task[0]
    assert (task.inference_operations, task.operations) == (None, None)


def test_seconds_of_a_run_that_was_taken_up_count_together(tmp_path: Path) -> None:
    """What checkpoints hold of the time before is added, by clock and by processor."""
    from nispa.runs.checkpoints import Checkpoints
    from nispa.training.pausing import FitPause, FitState

    checkpoints = Checkpoints(tmp_path, every=0.0)
    (tmp_path / "checkpoint").mkdir()
    list(checkpoints.begin(0))
    checkpoints.fit()
    checkpoints._began = spent() - Spent(100.0, 250.0)
    checkpoints.reached(FitPause(True, lambda: FitState({}, {"over": True})))
    later = Checkpoints(tmp_path, every=0.0)
    assert len(list(later.begin(0))) == 1
    assert 100.0 <= later.spent.wall_s < 200.0
    assert 250.0 <= later.spent.cpu_s < 350.0
    later.fit()
    later._began = spent() - Spent(1000.0, 2000.0)
    later.reached(FitPause(True, lambda: FitState({}, {"over": True})))
    list(checkpoints.begin(0))
    assert 1100.0 <= checkpoints.spent.wall_s < 1200.0
    assert 2250.0 <= checkpoints.spent.cpu_s < 2350.0


def test_a_run_that_was_taken_up_tells_the_seconds_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one took 1,000 s and 5,000 s of CPU until its last checkpoint."""
    clock = iter([Spent(0.0, 0.0)])
    with monkeypatch.context() as patched:
        patched.setattr("nispa.runs.checkpoints.spent", lambda: next(clock, Spent(1000.0, 5000.0)))
        assert die(run(two_tasks("finetune"), tmp_path / "run", checkpoint_every=0.0), 1)
    first, second = complete(resume(two_tasks("finetune"), tmp_path / "run")).per_task
    assert 1000.0 <= first.train_s < 1500.0
    assert 5000.0 <= (first.train_cpu_s or 0.0) < 5500.0
    assert second.train_s < 500.0
