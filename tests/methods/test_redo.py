"""ReDo: the score, the period, and what renewing a dormant unit changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.base.config import build
from nispa.base.seeding import stream
from nispa.methods.redo import DormantRenewal, Redo, RedoConfig, scores
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork
from nispa.training.fit import Batch

from .toy import finish, same_tensors, toy_method, toy_task

FIRST = build(NetworkConfig, {"hidden": (3,), "density": 1.0})


def tiny() -> SparseNetwork:
    """Two inputs, three units of which the second never says anything, two outputs."""
    network = NetworkSpec(FIRST, (1, 1, 2), 2).draw(0)
    with torch.no_grad():
        network.layers["fc1"].weight.copy_(torch.tensor([1.0, 1, -1, -1, 2, 0]))
        network.layers["fc1"].bias.copy_(torch.tensor([0.0, -0.5, 0]))
        network.layers["head"].weight.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]))
        network.layers["head"].bias.copy_(torch.tensor([0.25, 0.5]))
    return network


def renewed(network: SparseNetwork, steps: int, **values: Any) -> DormantRenewal:
    """After some steps that change nothing, on a batch of the images (1, 1) and (0.5, 0.5)."""
    redo = DormantRenewal(network, build(RedoConfig, values), FIRST)
    images = torch.tensor([[1.0, 1], [0.5, 0.5]]).view(2, 1, 1, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    step = redo.around(
        lambda batch: torch.zeros(()), optimiser, lambda batch, name: stream(0, "test", name)
    )
    for number in range(steps):
        step(Batch(images, torch.tensor([0, 1]), torch.arange(2), 1, number + 1))
    return redo


def test_scores_by_hand() -> None:
    said = torch.tensor([[1.0, 0, -4], [3, 0, 0]])  # means of sizes 2, 0 and 2, mean 4/3
    torch.testing.assert_close(scores(said), torch.tensor([1.5, 0, 1.5]))
    assert scores(torch.zeros(4, 3)).tolist() == [0, 0, 0]  # no division by 0


def test_a_dormant_unit_begins_anew_every_period() -> None:
    network = tiny()
    before = {name: layer.dense_weight() for name, layer in network.layers.items()}
    renewed(network, steps=2, period=3)
    assert all(
        torch.equal(layer.dense_weight(), before[name]) for name, layer in network.layers.items()
    )
    redo = renewed(network, steps=3, period=3)
    assert redo.steps == 3
    first, head = network.layers["fc1"], network.layers["head"]
    assert torch.equal(first.dense_weight()[[0, 2]], before["fc1"][[0, 2]])
    assert not torch.equal(first.dense_weight()[1], before["fc1"][1])
    assert first.dense_bias().tolist() == [0, 0, 0]
    assert head.dense_weight().tolist() == [[1, 0, 3], [4, 0, 6]]
    assert head.dense_bias().tolist() == [0.25, 0.5]


def test_new_inputs_are_drawn_as_first_values_are() -> None:
    config = build(NetworkConfig, {"hidden": (400,), "density": 0.5, "gain": 0.5})
    network = NetworkSpec(config, (1, 20, 20), 2).draw(0)
    with torch.no_grad():
        network.layers["fc1"].weight.fill_(-1.0)  # all dormant
    redo = DormantRenewal(network, build(RedoConfig, {"period": 1}), config)
    images = torch.rand(4, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    step = redo.around(
        lambda batch: torch.zeros(()), optimiser, lambda batch, name: stream(0, "test", name)
    )
    step(Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), 1, 1))
    layer = network.layers["fc1"]
    deviation = 0.5 * (2 / layer.pattern.sum(1).float()).sqrt().mean()
    assert float(layer.weight.detach().std()) == pytest.approx(float(deviation), rel=0.03)
    assert abs(float(layer.weight.detach().mean())) < 0.002


def test_tau_decides_what_is_dormant() -> None:
    network = tiny()
    # Units 0 and 2 say (2, 1) and (2, 1); the scores are 1.5, 0 and 1.5.
    every = renewed(network, steps=1, period=1, tau=1.5)
    assert network.layers["head"].dense_weight().eq(0).all()
    assert every.steps == 1


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_pattern_stays_and_steps_are_counted_over_tasks(keep: str) -> None:
    method = toy_method("redo", period=7, tau=0.5, epochs=2, keep=keep)
    assert isinstance(method, Redo)
    method.start()
    before = method.network.patterns()
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert method.steps == 24.0
    assert same_tensors(dict(before), dict(method.network.patterns()))


def test_without_dormant_units_it_is_fine_tuning_bit_for_bit() -> None:
    kept: list[dict[str, Tensor]] = []
    never: dict[str, Any] = {"period": 1_000_000}
    for name, values in (("finetune", {}), ("redo", never)):
        method = toy_method(name, **values)
        method.start()
        finish(method.learn(toy_task(0)))
        tensors = method.state().tensors
        kept.append({k: v for k, v in tensors.items() if k.startswith("network.")})
    assert same_tensors(*kept)
