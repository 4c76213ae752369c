"""Forgetting on purpose, and tasks on a full network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nispa.errors import ConfigError, NotLearnedError
from nispa.learner import Learner
from nispa.methods import METHODS
from nispa.methods.base import PhaseEnd
from nispa.methods.nispa import Nispa
from nispa.methods.presets import resolve, settings_of
from nispa.methods.saving import decode, encode
from nispa.methods.stable import is_frozen

from .test_contract import learned_once
from .test_contract import settings_of as settings_in
from .toy import FREEZES, accuracy_on, finish, same_tensors, toy_method, toy_task


def nispa(tasks: int = 2, **settings: Any) -> Nispa:
    method = toy_method("nispa", network_settings={"hidden": (24, 20), "density": 0.4}, **settings)
    assert isinstance(method, Nispa)
    method.start()
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def logits(method: Nispa) -> Tensor:
    images = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = method.network.eval()(images)
    return found


def test_a_learner_is_told_which_task() -> None:
    with pytest.raises(ConfigError, match="task=None must be"):
        Learner(input_shape=(1, 4, 4), classes=4, hidden=(8,)).forget(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1])
def test_a_task_is_forgotten_and_the_others_are_as_they_were(index: int) -> None:
    method, other = nispa(), 1 - index
    info, before, state = toy_task(index).info, logits(method), method.state()
    stable = {group.name: int(method.stable[group.name].sum()) for group in method.topology.hidden}
    promised = method.forget(info, dry_run=True)
    assert same_tensors(method.state().tensors, state.tensors)
    assert method.forget(info) == promised
    assert sum(promised.values()) > 0
    now = {group.name: int(method.stable[group.name].sum()) for group in method.topology.hidden}
    assert now == {name: stable[name] - freed for name, freed in promised.items()}
    kept = list(toy_task(other).classes)
    assert torch.equal(logits(method)[:, kept], before[:, kept])
    assert not torch.equal(logits(method)[:, list(info.classes)], before[:, list(info.classes)])
    assert is_frozen(method.network, method.stable)
    assert method.stable["output"].nonzero().flatten().tolist() == kept
    # What is left of the task: its number. Its units can be used again.
    assert method.is_forgotten(info)
    assert method.choices(None) == toy_task(other).classes
    for call in (
        lambda: method.predict(torch.zeros(1, 1, 4, 4), info),
        lambda: method.scores(torch.zeros(1, 1, 4, 4), info),
        lambda: method.forget(info),
    ):
        with pytest.raises(NotLearnedError, match="forgotten on purpose"):
            call()
    with pytest.raises(NotLearnedError, match="not known"):
        method.forget(toy_task(2).info)
    finish(method.learn(toy_task(2)))
    assert accuracy_on(method, toy_task(2)) >= 0.9
    assert torch.equal(logits(method)[:, kept], before[:, kept])


def test_all_tasks_forgotten_leave_every_unit_plastic() -> None:
    method = nispa()
    live = {name: layer.live_count for name, layer in method.network.layers.items()}
    for index in range(2):
        method.forget(toy_task(index).info)
    assert not any(bool(method.stable[group.name].any()) for group in method.topology.hidden)
    for name, layer in method.network.layers.items():
        assert (layer.live_count, layer.frozen_count) == (live[name], 0)
        assert not len(layer.frozen_bias_index)
    with pytest.raises(NotLearnedError):
        method.choices(None)


def test_what_is_forgotten_stays_so_in_a_file(tmp_path: Path) -> None:
    method = nispa()
    method.forget(toy_task(0).info)
    file = tmp_path / "network.safetensors"
    file.write_bytes(encode(method, settings_in(method)))
    loaded, _, _ = decode(file)
    assert isinstance(loaded, Nispa)
    assert [loaded.is_forgotten(info) for info in loaded.learned] == [True, False]
    assert torch.equal(logits(loaded), logits(method))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "nispa"])
def test_other_methods_say_that_they_cannot(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot forget"):
        learned_once(name).forget(toy_task(0).info)
    assert "nispa" in FREEZES


def test_a_learner_forgets() -> None:
    random = np.random.default_rng(0)
    learner = Learner(
        input_shape=(1, 4, 4), classes=6, hidden=(20, 16), density=0.5, max_phases=3,
        epochs_per_phase=1, batch_size=8,
    )  # fmt: skip
    images = random.integers(0, 256, (40, 4, 4), dtype=np.uint8)
    for names in (["a", "b"], ["c", "d"]):
        learner.learn(images, np.array(names)[np.arange(40) % 2])
    before = learner.predict_proba(images, task=1)
    would = learner.forget(0, dry_run=True)
    assert set(would) == {"fc1", "fc2"}
    assert learner.forget(0) == would
    assert np.array_equal(learner.predict_proba(images, task=1), before)
    assert learner.classes_of() == ["c", "d"]
    with pytest.raises(NotLearnedError, match="forgotten"):
        learner.predict(images, task=0)
    learner.learn(images, np.array(["e", "f"])[np.arange(40) % 2])
    assert learner.classes_of() == ["c", "d", "e", "f"]
    assert learner.classes_of(2) == ["e", "f"]
    with pytest.raises(NotLearnedError, match="task=5"):
        learner.forget(5)


# A full network.


def full(**settings: Any) -> Nispa:
    """A network whose two hidden units are stable after its first task."""
    method = toy_method(
        "nispa", network_settings={"hidden": (2,), "density": 1.0}, seed=1, k=30,
        epochs_per_phase=1, max_phases=6, **settings,
    )  # fmt: skip
    assert isinstance(method, Nispa)
    method.start()
    finish(method.learn(toy_task(0)))
    assert bool(method.stable["fc1"].all()), "the toy network is not full"
    return method


def test_a_task_on_a_full_network_skips_phases_without_effect() -> None:
    method, usual = full(), full(accuracy_drop=100, stop_when_full=False)
    events, report = finish(method.learn(toy_task(1)))
    long, expected = finish(usual.learn(toy_task(1)))
    assert (report.phases, report.stop_reason) == (3, "full")
    assert (expected.phases, expected.stop_reason) == (6, "max_phases")
    # The phases that were skipped would have moved no connection.
    ends = [event for event in long if isinstance(event, PhaseEnd) and event.dropped]
    assert len(ends) == 5
    assert not any(sum(event.dropped.values()) + sum(event.grown.values()) for event in ends)
    for name, layer in method.network.layers.items():
        assert torch.equal(layer.pattern, usual.network.layers[name].pattern)
    assert all(torch.equal(units, usual.stable[name]) for name, units in method.stable.items())
    # It keeps the network of its last phase.
    reached = [event.accuracy for event in events if isinstance(event, PhaseEnd)]
    images, labels = toy_task(1).validation.batch(slice(None))
    right = (method.predict(images, toy_task(1).info) == labels).float().mean()
    assert float(right) == pytest.approx(reached[-1])


def test_with_room_no_phase_is_skipped() -> None:
    method = nispa(0, max_phases=5, k=30, accuracy_drop=100)
    _, report = finish(method.learn(toy_task(0)))
    assert (report.phases, report.stop_reason) == (5, "max_phases")


def test_published_behaviour_and_older_files_skip_nothing() -> None:
    for method, preset, expected in (
        ("nispa", "default", True),
        ("nispa", "paper", False),
        ("nispa-context", "default", True),
        ("nispa-replay", "default", False),
    ):
        found = resolve(method, preset, "efmnist", (1, 28, 28))
        assert found.config.stop_when_full is expected  # type: ignore[attr-defined]
        saved = found.as_json()
        again = settings_of(method, preset, saved["network"], saved["method"])
        assert again == found
        del saved["method"]["stop_when_full"]
        older = settings_of(method, preset, saved["network"], saved["method"])
        assert older.config.stop_when_full is False  # type: ignore[attr-defined]
