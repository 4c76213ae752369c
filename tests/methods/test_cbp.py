"""Continual backprop: utilities, what is due, and one replacement, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.base.config import build
from nispa.base.seeding import stream
from nispa.errors import FormatError
from nispa.methods.base import MethodState
from nispa.methods.cbp import (
    Cbp,
    CbpConfig,
    ContinualBackprop,
    corrected,
    due,
    least,
    no_records,
    running,
    usefulness,
)
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork
from nispa.network.reads import Reads
from nispa.training.fit import batch_of, make_optimiser, network_step

from .toy import finish, same_tensors, toy_method, toy_task

FIRST = build(NetworkConfig, {"hidden": (2,), "density": 1.0})


def tiny() -> SparseNetwork:
    """Two inputs, two units, two outputs."""
    network = NetworkSpec(FIRST, (1, 1, 2), 2).draw(0)
    with torch.no_grad():
        network.layers["fc1"].weight.copy_(torch.tensor([1.0, -3, 2, 2]))
        network.layers["fc1"].bias.copy_(torch.tensor([0.5, 0.25]))
        network.layers["head"].weight.copy_(torch.tensor([0.5, 1, -1.5, 3]))
    return network


def addon(network: SparseNetwork, **values: Any) -> ContinualBackprop:
    config = build(CbpConfig, values)
    return ContinualBackprop(network, config, FIRST, no_records(network))


def sgd(network: SparseNetwork) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1)


def draws(name: str) -> torch.Generator:
    return stream(0, "test", name)


def test_a_running_mean_is_corrected_by_its_age() -> None:
    # Of the values 2 and 6 with decay 0.5: (0.5 * 2) * 0.5 + 0.5 * 6 = 3.5, over 1 - 0.25.
    mean = running(running(torch.tensor([0.0]), torch.tensor([2.0]), 0.5), torch.tensor([6.0]), 0.5)
    assert mean.tolist() == [3.5]
    found = corrected(mean, torch.tensor([2.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([3.5 / 0.75]))
    same = corrected(
        running(torch.tensor([0.0]), torch.tensor([2.0]), 0.9), torch.tensor([1.0]), 0.9
    )
    torch.testing.assert_close(same, torch.tensor([2.0]))  # of one value it is that value


def test_utilities_by_hand() -> None:
    said = torch.tensor([[1.0, -4], [3, 0]])
    mean, outputs, inputs = torch.tensor([2.0, 1]), torch.tensor([1.0, 2]), torch.tensor([2.0, 0.5])
    find = {
        kind: usefulness(kind, said, mean, outputs, inputs).tolist()
        for kind in ("contribution", "zero_contribution", "adaptable")
    }
    assert find["contribution"] == [1 * 2, 2 * 2]
    assert find["zero_contribution"] == [1 * 1, 2 * (5 + 1) / 2]
    assert find["adaptable"] == [1 / 2, 6 / 0.5]
    none = usefulness("adaptable", said, mean, outputs, torch.zeros(2))
    assert bool(none.isfinite().all())


def test_fractions_of_a_unit_add_up() -> None:
    assert due(0.0, 0.3, 2) == (0, 0.6)
    count, left = due(0.6, 0.3, 2)
    assert count == 1
    assert left == pytest.approx(0.2)
    assert due(0.5, 1.0, 3) == (3, 0.5)
    assert due(0.5, 0.3, 0) == (0, 0.5)


def test_the_least_useful_of_some() -> None:
    utility = torch.tensor([0.5, 0.1, 0.3, 0.3, 0.0])
    among = torch.tensor([True, True, True, True, False])
    assert least(utility, among, 2).tolist() == [False, True, True, False, False]
    assert least(utility, among, 0).sum() == 0


def test_one_step_by_hand() -> None:
    network = tiny()
    cbp = addon(network, utility_decay=0.5, maturity=1, replacement_rate=0.5, utility="adaptable")
    seen = torch.tensor([[1.0, 2], [3, 2]])  # means 2 and 2; mean distances from m' 1 and 0
    chosen = cbp.after(Reads({"fc1": seen}, None), sgd(network), draws)
    assert chosen["fc1"].tolist() == [False, False]  # of age 1, not above 1
    age, utility, mean = cbp.records()["fc1"]
    assert age.tolist() == [1, 1]
    assert mean.tolist() == [1, 1]
    # Output weights: means 1 and 2; input weights: 2 and 2. y = 1 * 1 / 2 and 0.
    assert utility.tolist() == [0.25, 0.0]
    assert cbp.fractions.tolist() == [0.0]

    before = [layer.dense_weight() for layer in network.layers.values()]
    bias = network.layers["head"].dense_bias()
    chosen = cbp.after(
        Reads({"fc1": torch.tensor([[2.0, 5.0], [4, 5]])}, None), sgd(network), draws
    )
    # m = 0.5 + 0.5 * 3 = 2 and 0.5 + 2.5 = 3, over 3/4: m' = 8/3 and 4. Distances of h from m':
    # (2/3 + 4/3) / 2 = 1 and 1; y = 1/2 and 1; u = 1/8 + 1/4 = 3/8 and 1/2; u' = 1/2 and 2/3.
    # Two units are mature: 2 * 0.5 = one is due, the first.
    assert chosen["fc1"].tolist() == [True, False]
    age, utility, mean = cbp.records()["fc1"]
    assert age.tolist() == [0, 2]
    assert utility.tolist() == [0, pytest.approx(0.5)]
    assert mean.tolist() == [0, 3]
    first, head = network.layers["fc1"], network.layers["head"]
    assert not torch.equal(first.dense_weight()[0], before[0][0])
    assert torch.equal(first.dense_weight()[1], before[0][1])
    assert first.dense_bias().tolist() == [0.0, 0.25]
    assert head.dense_weight().tolist() == [[0, 1], [0, 3]]
    moved = bias + torch.tensor([0.5, -1.5]) * 8 / 3
    torch.testing.assert_close(head.dense_bias(), moved)


def test_rank_is_by_the_corrected_utility() -> None:
    """A young unit has a small u, because it began at 0, but may be as useful as an old one."""
    network = tiny()
    records = no_records(network)
    records["fc1"] = torch.tensor([[1.0, 500], [0.05, 0.9], [0, 0]])
    config = {"utility_decay": 0.9, "maturity": 1, "replacement_rate": 0.5}
    cbp = ContinualBackprop(
        network, build(CbpConfig, config | {"utility": "contribution"}), FIRST, records
    )
    chosen = cbp.after(Reads({"fc1": torch.tensor([[4.0, 0.2]])}, None), sgd(network), draws)
    # y = 1 * 4 and 2 * 0.2; u = 0.045 + 0.4 and 0.81 + 0.04; u' = 0.445 / 0.19 and 0.85.
    assert chosen["fc1"].tolist() == [False, True]


def test_moving_the_mean_into_biases_keeps_the_mean_output() -> None:
    network = tiny()
    images = torch.rand(64, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    seen = network.observe(images, lambda said: said)["fc1"]
    with torch.no_grad():
        before = network(images).mean(0)
    cbp = addon(network, maturity=0, replacement_rate=0.5)
    chosen = cbp.after(
        Reads({"fc1": seen}, None), sgd(network), draws
    )  # m' is the mean over these images
    assert int(chosen["fc1"].sum()) == 1
    with torch.no_grad():
        after = network(images).mean(0)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_sparse_networks_keep_their_pattern(network: str, density: float) -> None:
    method = toy_method(
        "cbp", network, network_settings={"density": density}, replacement_rate=0.2, maturity=2
    )
    assert isinstance(method, Cbp)
    method.start()
    before = method.network.patterns()
    finish(method.learn(toy_task(0)))
    after = method.network.patterns()
    assert same_tensors(dict(before), dict(after))
    age = torch.cat([each[0] for name, each in method.units.items() if name != "fractions"])
    assert bool((age < 120).any())  # 20 epochs of 6 steps: some began anew
    assert method.census().live == sum(
        layer.live_count * layer.weights_each + layer.shape[0]
        for layer in method.network.layers.values()
    )


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "adadelta"])
def test_the_optimiser_forgets_what_it_knew_of_a_unit(optimiser: str) -> None:
    network = tiny()
    config = build(CbpConfig, {"optimiser": optimiser, "maturity": 0, "replacement_rate": 0.5})
    chosen_by = make_optimiser(config, network.parameters())
    images, labels = torch.rand(8, 1, 1, 2), torch.arange(8) % 2
    network.gradients(images, labels, torch.nn.functional.cross_entropy)
    chosen_by.step()
    cbp = ContinualBackprop(network, config, FIRST, no_records(network))
    seen = network.observe(images, lambda said: said)
    unit = int(cbp.after(Reads(seen, None), chosen_by, draws)["fc1"].nonzero())
    first, head = network.layers["fc1"], network.layers["head"]
    for values, gone in (
        (first.weight, torch.arange(4) // 2 == unit),
        (first.bias, torch.arange(2) == unit),
        (head.weight, torch.arange(4) % 2 == unit),
    ):
        for moment in chosen_by.state[values].values():
            if isinstance(moment, Tensor) and moment.shape == values.shape:
                assert bool((moment[gone] == 0).all())
                assert bool((moment[~gone] != 0).any())


def test_frozen_units_never_begin_anew() -> None:
    network = tiny()
    one = torch.tensor([[True, False], [False, False]])
    network.layers["head"].freeze(one, torch.zeros(2, dtype=torch.bool))  # reads unit 0
    cbp = addon(network, maturity=0, replacement_rate=1.0)
    chosen = cbp.after(Reads({"fc1": torch.ones(4, 2)}, None), sgd(network), draws)
    assert chosen["fc1"].tolist() == [False, True]


def test_without_replacement_it_is_fine_tuning_bit_for_bit() -> None:
    kept = []
    none: dict[str, Any] = {"replacement_rate": 0.0}
    for name, values in (("finetune", {}), ("cbp", none)):
        method = toy_method(name, **values)
        method.start()
        for index in range(2):
            finish(method.learn(toy_task(index)))
        tensors = method.state().tensors
        kept.append({k: v for k, v in tensors.items() if k.startswith("network.")})
    assert same_tensors(*kept)


def test_records_outlive_a_task() -> None:
    method = toy_method("cbp", replacement_rate=0.001, maturity=5, keep="last", epochs=2)
    assert isinstance(method, Cbp)
    method.start()
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert method.units["fc1"][0].max() == 24  # 2 tasks, 2 epochs, 6 steps
    assert 0 < float(method.units["fractions"][0]) < 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("importance.fc1"),
        lambda tensors: tensors.update({"importance.fc1": torch.zeros(3, 2)}),
        lambda tensors: tensors["importance.fc1"].fill_(-1),
        lambda tensors: tensors["importance.fc1"].fill_(torch.nan),
        lambda tensors: tensors["importance.fractions"].fill_(1.5),
    ],
)
def test_records_that_do_not_fit_are_refused(damage: Any) -> None:
    method = toy_method("cbp")
    method.start()
    state = method.state()
    tensors = dict(state.tensors)
    toy_method("cbp").load_state(MethodState(tensors, state.values))
    damage(tensors)
    with pytest.raises(FormatError):
        toy_method("cbp").load_state(MethodState(tensors, state.values))


def test_the_add_on_serves_any_step() -> None:
    """Around a step of someone else's: here plain gradient descent on a network of its own."""
    images = toy_task(0).train
    network = NetworkSpec(FIRST, images.shape, 2).draw(0)
    optimiser = sgd(network)
    step = network_step(network, torch.nn.functional.cross_entropy, optimiser)
    cbp = addon(network)
    stepped = cbp.around(step, optimiser, lambda batch, name: stream(0, batch.number, name))
    batch = batch_of(images, torch.arange(8))
    first = stepped(batch)
    assert float(stepped(batch)) < float(first)
    assert cbp.records()["fc1"][0].tolist() == [2, 2]
