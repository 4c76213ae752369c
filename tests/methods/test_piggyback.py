"""Piggyback: a fixed network, the gradient of a mask's numbers, and the threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nispa.base.config import build
from nispa.errors import ConfigError
from nispa.methods.base import Problem
from nispa.methods.parts import hidden_layers
from nispa.methods.piggyback import Piggyback, PiggybackConfig
from nispa.network.models import NetworkConfig

from .test_wsn import step_of
from .toy import finish, toy_method, toy_task

STILL = 1e-30
"""A learning rate that moves no value of ordinary size."""


def tiny(**values: Any) -> Piggyback:
    """Two inputs, two units, four outputs; a later task is one step of gradient descent by 0.01."""
    plain = {"optimiser": "sgd", "momentum": 0.0, "epochs": 1, "keep": "last"}
    rates = {"learning_rate": STILL, "mask_rate": 0.01}
    method = Piggyback(
        Problem((1, 1, 2), 4, 2),
        build(NetworkConfig, {"hidden": (2,), "density": 1.0}),
        build(PiggybackConfig, plain | rates | values),
        seed=0,
    )
    method.start()
    return method


def test_the_numbers_after_one_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny()
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([2.0, 4, -1, 6]))
    finish(method.learn(step_of(0)))
    assert first.frozen_weight.tolist() == [2, 4, -1, 6]  # the backbone, wholly frozen
    assert method.masks.of(0)["fc1"].tolist() == [True] * 4

    # All numbers begin at 0.01, above the threshold: units 4 and 2, logits 4 gap + 2 = ln 3 and 0,
    # probabilities 3/4 and 1/4: slopes gap / 4 and 1 / 4 by the units.
    gap = (math.log(3) - 2) / 4
    with torch.no_grad():
        head.weight.copy_(torch.tensor([gap, 1.0, 0.0, 0.0]))
    seen: list[torch.Tensor] = []
    choose = method.choose

    def watched(numbers: torch.Tensor) -> torch.Tensor:
        seen.append(numbers)
        return choose(numbers)

    monkeypatch.setattr(method, "choose", watched)
    finish(method.learn(step_of(1)))
    a = gap / 4
    of_numbers = torch.tensor([a * 2, a / 2 * 4, 0.25 * -1, 0.125 * 6])
    torch.testing.assert_close(seen[-1], 0.01 - 0.01 * of_numbers, rtol=0, atol=1e-7)
    # 0.01 - 0.01 * 0.75 = 0.0025 is below the threshold of 0.005, the others are above it.
    assert method.masks.of(1)["fc1"].tolist() == [True, True, True, False]
    assert first.frozen_weight.tolist() == [2, 4, -1, 6]


def test_the_threshold() -> None:
    numbers = torch.tensor([-0.01, 0.004, 0.005, 0.0051, 0.01])
    assert tiny().choose(numbers).tolist() == [False, False, False, True, True]
    assert tiny(threshold=0.0).choose(numbers).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_backbone_stays_and_masks_differ(network: str) -> None:
    method = toy_method("piggyback", network)
    assert isinstance(method, Piggyback)
    method.start()
    finish(method.learn(toy_task(0)))
    before = {name: layer.dense_weight() for name, layer in hidden_layers(method.network).items()}
    for index in (1, 2):
        finish(method.learn(toy_task(index)))
    for name, layer in hidden_layers(method.network).items():
        assert len(layer.plastic_index) == 0
        assert torch.equal(layer.dense_weight(), before[name])
        assert bool(method.masks.of(0)[name].all())
    off = [sum(int((~bits).sum()) for bits in method.masks.of(index).values()) for index in (1, 2)]
    assert min(off) > 0


def test_nothing_but_masks_is_kept_beside_the_network() -> None:
    method = toy_method("piggyback", epochs=1)
    method.start()
    finish(method.learn(toy_task(0)))
    finish(method.learn(toy_task(1)))
    assert set(method.census().storage) == {"masks"}
    assert not any(name.startswith("importance.") for name in method.state().tensors)


@pytest.mark.parametrize("first", [-1.0, 0.001, 0.005])
def test_a_task_must_begin_with_its_connections(first: float) -> None:
    with pytest.raises(ConfigError, match=r"first_value=.* must be above threshold=0\.005"):
        build(PiggybackConfig, {"first_value": first})
