"""A network that is full gets wider: at the same density, with every old logit as it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa.errors import ConfigError, FormatError
from nispa.learner import Learner
from nispa.methods import widening
from nispa.methods.base import MethodState
from nispa.methods.nispa import Nispa
from nispa.methods.presets import resolve
from nispa.methods.stable import is_frozen
from nispa.network.layers import SparseLayer
from nispa.runs import capacity
from tests.methods.toy import finish, same_tensors, toy_images, toy_method, toy_task

IMAGES = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def growing(network: str = "mlp", tasks: int = 4, **settings: Any) -> Nispa:
    """A method whose network is full after a task or two."""
    values: dict[str, Any] = {"grow_when_full": 0.5, "max_phases": 3} | settings
    method = toy_method("nispa", network, tasks=tasks, **values)
    assert isinstance(method, Nispa)
    method.start()
    return method


@torch.no_grad()
def logits(method: Nispa, outputs: list[int]) -> Tensor:
    found: Tensor = method.network.eval()(IMAGES)[:, outputs]
    return found


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_old_logits_stay_and_so_does_density(network: str) -> None:
    method = growing(network)
    first = {group.name: group.size for group in method.topology.hidden}
    for index in range(4):
        outputs = list(range(2 * index))
        before = logits(method, outputs)
        finish(method.learn(toy_task(index)))
        assert torch.equal(logits(method, outputs), before)
        assert is_frozen(method.network, method.stable)
        for name, layer in method.network.layers.items():
            share = 1.0 if name == "conv1" else 0.6
            assert layer.live_count + method.owed[name] == round(share * layer.position_count)
    assert method.widenings >= 1
    for group in method.topology.hidden:
        assert group.size == first[group.name] + method.widenings * -(-first[group.name] // 2)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.1, 0.5, 1.5]),
    network=st.sampled_from(["mlp", "convnet"]),
)
def test_nothing_stable_reads_anything_new(seed: int, share: float, network: str) -> None:
    method = growing(network, seed=seed, grow_when_full=share)
    finish(method.learn(toy_task(0)))
    before, old = method.network, method.stable
    larger = widening.widened(method, toy_task(1))
    assert method.network is before
    for name, layer in before.layers.items():
        wide = larger.network.layers[name]
        rows, columns = layer.shape
        assert torch.equal(wide.frozen[:rows, :columns], layer.frozen)
        assert wide.frozen_count == layer.frozen_count
        assert torch.equal(wide.frozen_weight, layer.frozen_weight)
        assert bool((wide.pattern[:rows, :columns] | ~layer.pattern).all())  # nothing is dropped
        stable = layer.spec.rows_in(old)
        assert torch.equal(wide.pattern[:rows][stable].sum(1), layer.pattern[stable].sum(1))
    for name, units in old.items():
        assert torch.equal(larger.stable[name][: len(units)], units)
        assert not larger.stable[name][len(units) :].any()
    assert is_frozen(larger.network, larger.stable)


def test_a_network_with_room_does_not_grow() -> None:
    method = growing(network_settings={"hidden": (64, 64)}, max_share_per_task=0.1)
    for index in range(3):
        finish(method.learn(toy_task(index)))
    assert method.widenings == 0
    assert "widenings" not in method.state().values


def test_a_network_that_grew_is_saved_and_learns_on_alike(tmp_path: Path) -> None:
    learner = Learner(
        input_shape=(1, 4, 4),
        classes=8,
        hidden=(12, 8),
        density=0.6,
        learning_rate=0.01,
        epochs_per_phase=2,
        max_phases=3,
        settle_epochs=2,
        grow_when_full=0.5,
    )
    for index in range(3):
        samples = toy_images(index, 48, "train")
        learner.learn(samples.images.numpy(), samples.labels.numpy())
    method: Any = learner.method
    assert method.widenings >= 1
    learner.save(tmp_path / "wide.safetensors")
    loaded = Learner.load(tmp_path / "wide.safetensors")
    samples = toy_images(3, 48, "train")
    for each in (learner, loaded):
        each.learn(samples.images.numpy(), samples.labels.numpy())
    assert same_tensors(loaded.method.state().tensors, method.state().tensors)
    assert loaded.method.state().values == method.state().values


@pytest.mark.parametrize("value", [-1, 0, 7, 1.5, True, "2", 10**9])
def test_a_strangers_number_is_refused(value: Any) -> None:
    method = growing()
    for index in range(4):
        finish(method.learn(toy_task(index)))
    assert method.widenings not in (0, 7)
    state, other = method.state(), growing()
    other.learned = method.learned
    with pytest.raises(FormatError):
        other.load_state(MethodState(state.tensors, {**state.values, "widenings": value}))


def test_logits_that_would_change_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    method = growing()
    for index in range(2):
        finish(method.learn(toy_task(index)))
    placed = widening._placed

    def wrong(layer: SparseLayer, wide: SparseLayer) -> dict[str, Tensor]:
        return {
            name: value * 1.0001 if name == "frozen_bias" else value + 0
            for name, value in placed(layer, wide).items()
        }

    monkeypatch.setattr(widening, "_placed", wrong)
    before = method.state()
    with pytest.raises(ConfigError, match="bit for bit"):
        widening.widened(method, toy_task(2))
    assert same_tensors(method.state().tensors, before.tensors)


def test_who_cannot_grow_says_so() -> None:
    for method, more in (("nispa-replay", {}), ("nispa", {"architecture": "resnet18"})):
        with pytest.raises(ConfigError, match="grow_when_full is for"):
            resolve(method, "default", "", (3, 16, 16), {"grow_when_full": 0.5, **more})


@pytest.mark.parametrize("grows", [False, True])
def test_a_network_that_will_grow_warns_of_nothing(
    grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "NEARLY", 0.5)  # one of two units is nearly nothing
    small: dict[str, Any] = {"hidden": (2,), "density": 1.0, "batch_size": 8, "k": 6}
    settings = {**small, "accuracy_drop": 5, "grow_when_full": 1.0 if grows else 0.0}
    learner = Learner(input_shape=(1, 4, 4), classes=6, **settings)
    images, labels = np.random.default_rng(0).random((60, 4, 4)), np.arange(60) % 2
    images[labels == 1, :2] += 2
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learner.learn(images, labels)
    assert any("nearly full" in str(each.message) for each in found) is not grows
