"""PyTorch's modes that a caller has set: the same result, and the caller's modes afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nispa import Learner
from nispa.base.modes import flushes, in_usual_modes, usual_modes
from nispa.data.arrays import from_arrays
from nispa.data.permuted import permuted
from nispa.data.scenarios import split
from nispa.methods.presets import resolve
from nispa.runs.runner import Experiment, run
from tests.test_learner import arrays


@contextlib.contextmanager
def setting(change: Callable[[Any], object], value: Any, usual: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(usual)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": lambda: setting(torch.set_grad_enabled, False, True),
    "double": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "device": lambda: setting(torch.set_default_device, "meta", None),
    "within a device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "flushing": lambda: setting(torch.set_flush_denormal, True, False),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
}


def learned(
    method: str, settings: dict[str, Any], mode: Callable[[], AbstractContextManager[object]]
) -> tuple[list[Any], bytes]:
    """All that comes of two tasks, the first of which is learned in a mode, and predicted in it."""
    first, second = arrays(0, 24), arrays(1, 24)
    with mode():
        made = Learner(method, input_shape=(1, 4, 4), classes=4, seed=1, batch_size=8, **settings)
        made.learn(*first)
    made.learn(*second)
    with mode():
        made.save("in a mode")
        again = Learner.load("in a mode")
        found = [
            made.predict(first[0], 0).tolist(),
            again.predict_proba(second[0], 1).tolist(),
            again.accuracy(*second, task=1),
        ]
    return found, Path("in a mode").read_bytes()


MLP = {"hidden": (16, 12), "density": 0.6, "epochs_per_phase": 2, "k": 6, "settle_epochs": 3}
CONVNET = {
    "architecture": "convnet",
    "channels": (4, 6),
    "fc": (8,),
    "epochs": 2,
    "retrain_epochs": 1,
}


@pytest.mark.parametrize(("method", "settings"), [("nispa", MLP), ("packnet", CONVNET)])
def test_a_learner_is_the_same_in_any_mode(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = learned(method, settings, contextlib.nullcontext)
    for name, mode in MODES.items():
        assert learned(method, settings, mode) == usual, name


@pytest.mark.parametrize("mode", ["inference", "double", "device"])
def test_a_run_is_the_same_in_any_mode(mode: str, tmp_path: Path) -> None:
    def network(folder: Path, how: Callable[[], AbstractContextManager[object]]) -> bytes:
        with how():
            x, y = arrays(0, 40, names=(0, 1))
            data = from_arrays(np.concatenate([x, x]), np.concatenate([y, y + 2]))
            permuted(data, tasks=2)
            scenario = split(data, normalise=True)
            given = {"hidden": (8,), "epochs": 1}
            settings = resolve("finetune", "default", "", scenario.input_shape, given)
            for _ in run(Experiment(scenario, settings, 0), folder):
                pass
        return (folder / "network.safetensors").read_bytes()

    usual = network(tmp_path / "usual", contextlib.nullcontext)
    assert network(tmp_path / "mode", MODES[mode]) == usual


def test_the_callers_modes_hold_where_the_caller_is_at_work() -> None:
    made = Learner("finetune", input_shape=(1, 4, 4), classes=2, hidden=(4,), epochs=1)
    seen = []

    def watch(event: object) -> None:
        seen.append((torch.get_default_dtype(), torch.is_inference_mode_enabled()))

    with MODES["double"](), torch.inference_mode():
        made.learn(*arrays(0, 24), watch=watch)
        watch(None)
    assert set(seen) == {(torch.float64, True)}
    assert torch.get_default_dtype() == torch.float32


def test_an_error_leaves_the_callers_modes() -> None:
    with MODES["double"]():
        with pytest.raises(KeyError), usual_modes():
            raise KeyError
        assert torch.get_default_dtype() == torch.float64


def test_a_generator_steps_in_usual_modes() -> None:
    ended = []

    @in_usual_modes
    def steps(count: int) -> Generator[torch.dtype, int, int]:
        total = 0
        try:
            for _ in range(count):
                try:
                    total += yield torch.get_default_dtype()
                except KeyError:
                    total += 100
            return total
        finally:
            ended.append(torch.get_default_dtype())

    with MODES["double"]():
        going = steps(3)
        assert next(going) == torch.float32
        assert going.send(1) == torch.float32
        assert going.throw(KeyError()) == torch.float32
        with pytest.raises(StopIteration) as end:
            going.send(2)
        assert end.value.value == 103
        left = steps(3)
        next(left)
        left.close()
    assert ended == [torch.float32] * 2


def test_numbers_that_are_nearly_0_are_0_in_between_alone() -> None:
    tiny = torch.full((40,), 1e-40)
    assert not flushes()
    with usual_modes():
        assert flushes()
        assert not (tiny * 1.0).any()
        with usual_modes():
            pass
        assert flushes()
    assert not flushes()
    assert (tiny * 1.0).all()
    with MODES["flushing"](), usual_modes():
        pass
    assert not flushes()
