"""Winning SubNetworks: which connections win, and the gradients of one step worked out by hand."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import MethodState, Problem
from nispa.methods.subnetworks import largest
from nispa.methods.wsn import Wsn, WsnConfig
from nispa.network.models import NetworkConfig

from .toy import finish, toy_method, toy_task


def step_of(index: int) -> Task:
    """One batch: two images (1, 0.5), one of each class of the task."""
    images = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    samples = Samples(images, torch.tensor([2 * index, 2 * index + 1]))
    return Task(index, "two", (2 * index, 2 * index + 1), samples, samples, samples)


def tiny(**values: Any) -> Wsn:
    """Two inputs, two units, four outputs; each task is one step of gradient descent by 0.01."""
    plain = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.01, "epochs": 1}
    method = Wsn(
        Problem((1, 1, 2), 4, 2),
        build(NetworkConfig, {"hidden": (2,), "density": 1.0}),
        build(WsnConfig, plain | {"keep": "last"} | values),
        seed=0,
    )
    method.start()
    return method


def put(method: Wsn, weights: list[float], scores: list[float], head: list[float]) -> None:
    """Sets plastic hidden weights, all scores, and the plastic weights of the head."""
    with torch.no_grad():
        method.network.layers["fc1"].weight.copy_(torch.tensor(weights))
        method.network.layers["head"].weight.copy_(torch.tensor(head))
    method.weight_scores = {"fc1": torch.tensor(scores)}


@pytest.mark.parametrize(
    ("sizes", "share", "places"),
    [
        ([3.0, 1.0, 2.0, 4.0], 0.5, [0, 3]),
        ([3.0, 1.0, 2.0, 4.0], 1.0, [0, 1, 2, 3]),
        ([3.0, 1.0, 2.0, 4.0], 0.01, [3]),  # at least one
        ([1.0, 2.0, 1.0, 1.0], 0.5, [0, 1]),  # of equals the first
        ([2.0, 2.0, 2.0, 2.0], 0.75, [0, 1, 2]),
        ([0.0, 0.0], 0.5, [0]),
        ([1.0], 0.1, [0]),
        ([], 0.5, []),
    ],
)
def test_largest(sizes: list[float], share: float, places: list[int]) -> None:
    assert largest(torch.tensor(sizes), share).nonzero().flatten().tolist() == places


def test_one_step_by_hand() -> None:
    method = tiny()
    gap = (math.log(3) - 3) / 2
    put(method, [2, 4, -1, 6], [0.9, 0.1, 0.3, -0.8], [gap, 1, 0, 0, 0, 0, 0, 0])
    finish(method.learn(step_of(0)))
    # The mask is [[1, 0], [0, 1]]: units 2 and 3, logits 2 gap + 3 = ln 3 and 0, probabilities 3/4
    # and 1/4. The slopes of the loss are 1/4 and -1/4 by the logits, gap / 4 and 1/4 by the units.
    a = gap / 4
    of_product = torch.tensor([a, a / 2, 0.25, 0.125])
    first = method.network.layers["fc1"]
    whole = first.dense_weight().flatten()
    torch.testing.assert_close(
        whole, torch.tensor([2 - 0.01 * a, 4, -1, 6 - 0.01 * 0.125]), rtol=0, atol=1e-6
    )
    of_score = of_product * torch.tensor([2.0, 4, -1, 6]) * torch.tensor([1.0, 1, 1, -1])
    expected = torch.tensor([0.9, 0.1, 0.3, -0.8]) - 0.01 * of_score
    torch.testing.assert_close(method.weight_scores["fc1"], expected, rtol=0, atol=1e-6)
    assert first.frozen_index.tolist() == [0, 3]  # the mask's weights belong to the task
    biases = torch.tensor([-0.01 * a, -0.01 * 0.25])
    torch.testing.assert_close(first.dense_bias(), biases, rtol=0, atol=1e-6)


def test_owned_weights_stay_while_their_scores_move() -> None:
    method = tiny()
    put(method, [2, 4, -1, 6], [0.9, 0.1, 0.3, -0.8], [0.0] * 8)
    finish(method.learn(step_of(0)))
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    gap = math.log(3) / 4
    with torch.no_grad():
        head.weight.copy_(torch.tensor([gap, 0.0, 0.0, 0.0]))
    method.weight_scores = {"fc1": torch.tensor([0.9, 0.8, 0.1, -0.2])}
    finish(method.learn(step_of(1)))
    # Unit 0 is 2 + 4 / 2 = 4, the logits ln 3 and 0: the slope by unit 0 is gap / 4.
    whole = first.dense_weight().flatten()
    expected = torch.tensor([2, 4 - 0.01 * gap / 8, -1, 6])
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-7)
    assert whole[[0, 2, 3]].tolist() == [2.0, -1.0, 6.0]
    scores = torch.tensor([0.9 - 0.01 * gap / 4 * 2, 0.8 - 0.01 * gap / 8 * 4, 0.1, -0.2])
    torch.testing.assert_close(method.weight_scores["fc1"], scores, rtol=0, atol=1e-7)
    assert first.frozen_index.tolist() == [0, 1, 3]


def test_each_layer_uses_its_share_and_scores_outlive_a_task() -> None:
    method = toy_method("wsn", network_settings={"density": 1.0}, capacity=0.25)
    assert isinstance(method, Wsn)
    method.start()
    first = {name: each.clone() for name, each in method.weight_scores.items()}
    for index in range(2):
        finish(method.learn(toy_task(index)))
        bits = method.masks.of(index)
        assert {name: int(each.sum()) for name, each in bits.items()} == {
            "fc1": 64,
            "fc2": 48,
            "head": 24,
        }
        for name, each in method.weight_scores.items():
            assert torch.equal(bits[name], largest(each.abs(), 0.25))
            assert not torch.equal(each, first[name])
    assert method.census().storage["importance"] == 4 * (256 + 192)


def test_a_kernel_wins_as_one() -> None:
    method = toy_method("wsn", "convnet", network_settings={"density": 1.0})
    assert isinstance(method, Wsn)
    method.start()
    assert len(method.weight_scores["conv1"]) == 4
    finish(method.learn(toy_task(0)))
    assert int(method.masks.of(0)["conv1"].sum()) == 2
    assert method.network.layers["conv1"].frozen_weight.shape == (2, 3, 3)


def test_the_bytes_of_masks_by_hand() -> None:
    method = tiny()
    finish(method.learn(step_of(0)))
    bits = method.masks.of(0)
    coded = [
        1 + len(zlib.compress(np.packbits(each.numpy()).tobytes(), 9)) for each in bits.values()
    ]
    assert method.census().storage == {"masks": sum(coded), "importance": 4 * 4}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, "nan"])
def test_shares_that_make_no_sense_are_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        build(WsnConfig, {"capacity": share})


@pytest.mark.parametrize(
    "scores",
    [
        None,
        torch.zeros(3),
        torch.zeros(4, dtype=torch.float64),
        torch.tensor([0.0, 1.0, 2.0, torch.nan]),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores: torch.Tensor | None) -> None:
    method = tiny()
    tensors = dict(method.state().tensors)
    if scores is None:
        tensors.pop("importance.fc1")
    else:
        tensors["importance.fc1"] = scores
    with pytest.raises(FormatError, match="score"):
        tiny().load_state(MethodState(tensors, method.state().values))


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_scores_begin_within_one_by_the_root_of_the_inputs(network: str) -> None:
    """A channel of a convolution reads 3 by 3 pixels of each channel before it."""
    method = toy_method("wsn", network, network_settings={"density": 1.0})
    assert isinstance(method, Wsn)
    method.start()
    inputs = {"mlp": {"fc1": 16, "fc2": 16}, "convnet": {"conv2": 36}}[network]
    for name, count in inputs.items():
        scores, bound = method.weight_scores[name], count**-0.5
        assert 0.6 * bound < scores.max() <= bound
        assert -bound <= scores.min() < -0.6 * bound
