"""SpaceNet: importance, what moves, what is reserved, and what a later task can still change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.errors import CapacityError, ConfigError, FormatError
from nispa.methods.base import MethodState, PhaseEnd, Problem
from nispa.methods.presets import resolve
from nispa.methods.spacenet import SpaceNet, SpaceNetConfig, between, measured, move, units_in
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork
from nispa.training.fit import Batch, fit

from .toy import NETWORKS, accuracy_on, finish, toy_method, toy_task


def toy(network: str = "mlp", **settings_: Any) -> SpaceNet:
    method = toy_method("spacenet", network, **settings_)
    assert isinstance(method, SpaceNet)
    method.start()
    return method


def tiny(hidden: tuple[int, ...] = (3,)) -> SparseNetwork:
    """Three inputs, and as many outputs as classes: four."""
    config = build(NetworkConfig, {"hidden": hidden, "density": 1.0})
    return NetworkSpec(config, (1, 1, 3), 4).draw(0)


# Importance.


def test_a_connection_s_importance_is_what_it_moved_times_its_gradient() -> None:
    # One sample x = (1, 2, 0); the unit is relu(w . x) = 3, the logits are (3, -3) for class 1.
    network = tiny((1,))
    fc1, head = network.layers["fc1"], network.layers["head"]
    fc1.connect(torch.tensor([[True, True, True]]), torch.ones(3))
    head.connect(torch.tensor([[True], [True], [False], [False]]), torch.tensor([1.0, -1.0]))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits[:, :2], labels)

    # p = sigmoid(6) is given to class 0. dL/dlogits = (p, -p), dL/dunit = 2 p, dL/dw = 2 p x.
    # Plain SGD at rate r moves w by -r 2 p x: the importance is r (2 p x)^2.
    p, rate = 1 / (1 + math.exp(-6)), 0.01
    gained = {"fc1": torch.zeros(3)}
    step = measured(network, loss, torch.optim.SGD(network.parameters(), lr=rate), gained)
    images = torch.tensor([1.0, 2.0, 0.0]).view(1, 1, 1, 3)
    value = step(Batch(images, torch.tensor([1]), torch.tensor([0]), 1, 1))
    assert float(value) == pytest.approx(-math.log(1 - p), rel=1e-5)
    expected = torch.tensor([1.0, 4.0, 0.0]) * rate * (2 * p) ** 2
    torch.testing.assert_close(gained["fc1"], expected)
    before = gained["fc1"].clone()
    step(Batch(images, torch.tensor([1]), torch.tensor([0]), 1, 2))
    assert bool((gained["fc1"][:2] > before[:2]).all())  # steps add up


def test_the_least_important_connections_move_between_the_most_important_units() -> None:
    # Rows are targets 0 to 2, columns sources 0 to 2; target 2 is not the task's.
    layer = tiny().layers["fc1"]
    pattern = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).bool()
    layer.connect(pattern, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    units = {
        "input": torch.tensor([True, True, True]),
        "fc1": torch.tensor([True, True, False]),
    }
    of_units = {"input": torch.tensor([1.0, 1.0, 5.0]), "fc1": torch.tensor([2.0, 3.0, 9.0])}
    omega = torch.tensor([0.3, 0.1, 0.2, 0.4])
    # A quarter of four: the connection of 0.1, (0, 1), goes. Absent are (0, 2) with 2 x 5 and
    # (1, 2) with 3 x 5; what was just dropped is not among them.
    importance, moved = move(layer, omega, of_units, units, 0.25)
    assert moved == 1
    assert layer.pattern.int().tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert layer.weight.tolist() == [1.0, 3.0, 4.0, 0.0]  # what grows begins at 0
    torch.testing.assert_close(importance, torch.tensor([0.3, 0.2, 0.4, 0.0]))


def test_no_more_connections_move_than_find_room() -> None:
    layer = tiny().layers["fc1"]
    layer.connect(torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool(), torch.ones(5))
    units = {"input": torch.ones(3).bool(), "fc1": torch.tensor([True, True, False])}
    of_units = {"input": torch.ones(3), "fc1": torch.ones(3)}
    _, moved = move(layer, torch.arange(5.0), of_units, units, 0.9)
    assert moved == 1
    assert layer.live_count == 5


def test_a_frozen_connection_does_not_move() -> None:
    layer = tiny().layers["fc1"]
    layer.connect(torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).bool(), torch.ones(4))
    layer.freeze(torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0]]).bool(), torch.zeros(3).bool())
    units = {"input": torch.ones(3).bool(), "fc1": torch.ones(3).bool()}
    of_units = {"input": torch.ones(3), "fc1": torch.ones(3)}
    move(layer, torch.zeros(3), of_units, units, 0.99)
    assert bool(layer.frozen[0, 0])
    assert layer.live_count == 4


def test_the_importance_of_kernels_is_that_of_their_weights() -> None:
    method = toy("convnet")
    task = toy_task(0)
    method.allocate(task, method.choose_units(task))
    layer = method.network.layers["conv2"]
    gained = {"conv2": torch.zeros(layer.live_count)}
    optimiser = torch.optim.SGD(method.network.parameters(), lr=0.1)
    step = measured(method.network, method.loss(task), optimiser, gained)
    images, labels = task.train.batch(slice(None))
    step(Batch(images, labels, torch.arange(len(labels)), 1, 1))
    assert layer.weight.grad is not None
    expected = 0.1 * layer.weight.grad.square().sum((1, 2))
    torch.testing.assert_close(gained["conv2"], expected)


# The loss.


def test_outputs_of_other_classes_say_their_biases() -> None:
    method = toy()
    head = method.network.layers["head"]
    with torch.no_grad():
        head.bias.copy_(torch.tensor([9.0, 9.0, 0.0, math.log(2), math.log(3), 0.0]))
    loss = method.loss(toy_task(0))
    logits = torch.tensor([[math.log(4), 0.0, 50.0, -50.0, 7.0, 7.0]], requires_grad=True)
    # The others count 1, 2, 3 and 1, whatever feeds them; the task's own are 4 and 1.
    value = loss(logits, torch.tensor([0]))
    assert float(value.detach()) == pytest.approx(-math.log(4 / 12), rel=1e-5)
    (slope,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(slope, torch.tensor([[4 / 12 - 1, 1 / 12, 0, 0, 0, 0]]))


def test_with_tasks_only_their_own_outputs_compete() -> None:
    loss = toy(incremental="task").loss(toy_task(0))
    value = loss(torch.tensor([[math.log(3), 0.0, 9, 9, 9, 9]]), torch.tensor([1]))
    assert float(value) == pytest.approx(math.log(4), rel=1e-5)


# What a task gets, and what stays.


def test_a_task_gets_its_budget_between_its_units() -> None:
    # 16 inputs, layers of 16 and 12, 6 outputs; density 0.5 of 256, 192 and 72 positions.
    method = toy(network_settings={"density": 0.5}, selected=0.5, budget=(0.25, 0.125), epochs=1)
    task = toy_task(0)
    units = method.choose_units(task)
    assert [int(units[name].sum()) for name in ("input", "fc1", "fc2", "output")] == [16, 8, 6, 2]
    assert all(layer.live_count == 0 for layer in method.network.layers.values())
    method.allocate(task, units)
    counts = {name: layer.live_count for name, layer in method.network.layers.items()}
    assert counts == {"fc1": 32, "fc2": 12, "head": 4}  # 128 / 4, 96 / 8 and 36 / 8
    for layer in method.network.layers.values():
        inside = between(layer, units)
        assert not bool((layer.pattern & ~inside).any())
    # The last value of the budget holds for the head, and there is no more room than 8 x 6.
    full = toy(network_settings={"density": 1.0}, selected=0.5, budget=(1.0,))
    units = full.choose_units(task)
    full.allocate(task, units)
    assert full.network.layers["fc2"].live_count == 48


def test_planned_tasks_share_units_and_connections_evenly() -> None:
    method = toy(tasks=4, budget=(), network_settings={"density": 0.5})
    assert (method.select, method.reserve, method.budget) == (0.25, 0.125, (0.25,))
    assert toy(tasks=8, budget=()).select == 0.2  # the published share
    assert toy(tasks=2, selected=0.1).reserve == 0.1  # no more than it uses
    unplanned = SpaceNet(Problem((1, 4, 4), 6), NetworkConfig(), SpaceNetConfig(), seed=0)
    assert (unplanned.select, unplanned.reserve, unplanned.budget) == (0.2, 0.1, (0.2,))


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1000),
    network=st.sampled_from(sorted(NETWORKS)),
    selected=st.floats(0.3, 0.8),
    ratio=st.floats(0.0, 1.0),
    drop_share=st.floats(0.0, 0.9),
)
def test_what_holds_whatever_happens(
    seed: int, network: str, selected: float, ratio: float, drop_share: float
) -> None:
    method = toy(
        network,
        seed=seed,
        selected=selected,
        reserved=min(0.3, ratio * selected),
        drop_share=drop_share,
        epochs=3,
    )
    layers = method.network.layers
    for index in range(3):
        before = {name: layer.dense_weight() for name, layer in layers.items()}
        biases = {name: layer.dense_bias() for name, layer in layers.items()}
        live = {name: layer.pattern for name, layer in layers.items()}
        reserved = {name: units.clone() for name, units in method.reserved.items()}
        events, report = finish(method.learn(toy_task(index)))
        assert report.phases == 3
        for end in events:
            if isinstance(end, PhaseEnd):
                assert end.dropped == end.grown
        for name, layer in layers.items():
            new = layer.pattern & ~live[name]
            assert int(new.sum()) <= math.ceil(0.3 * 0.6 * layer.position_count) or name == "conv1"
            assert torch.equal(layer.frozen, layer.pattern)
            # Earlier connections are there, and not a bit of them has changed.
            assert bool(layer.pattern[live[name]].all())
            assert torch.equal(layer.dense_weight()[live[name]], before[name][live[name]])
            # No new connection enters or leaves a reserved unit.
            hidden = {**reserved, "input": torch.zeros_like(reserved["input"])}
            assert not bool((new & layer.spec.rows_in(hidden).unsqueeze(1)).any())
            assert not bool((new & layer.spec.columns_in(hidden).unsqueeze(0)).any())
            rows = layer.spec.rows_in(reserved)
            assert torch.equal(layer.dense_bias()[rows], biases[name][rows])
        for group in method.network.topology.hidden:
            added = method.reserved[group.name] & ~reserved[group.name]
            assert bool(method.reserved[group.name][reserved[group.name]].all())
            assert int(added.sum()) <= units_in(group.size, method.reserve)


def logits(method: SpaceNet, index: int) -> Tensor:
    images = toy_task(index).test.batch(slice(None))[0]
    return method.scores(images, toy_task(index).info)


def test_shares_are_rounded_alike() -> None:
    assert [units_in(size, 0.1) for size in (4, 5, 14, 16, 400)] == [1, 1, 1, 2, 40]
    assert units_in(400, 0.0) == 0
    method = toy(selected=0.02, reserved=0.02, budget=(1.0,))  # of 16 and 12 units: one
    kept = []
    for index in range(3):
        finish(method.learn(toy_task(index)))
        kept.append(logits(method, index))
    assert all(torch.equal(logits(method, index), kept[index]) for index in range(3))
    assert int(method.reserved["fc1"].sum()) == 3


def test_room_is_counted_in_whole_units() -> None:
    network = build(NetworkConfig, {"hidden": (8, 8), "density": 0.5})
    config = build(SpaceNetConfig, {"selected": 0.2, "reserved": 0.2})
    with pytest.raises(
        ConfigError, match=r"keeps 2 of the 8 units of fc1.*pass reserved=0\.125 or"
    ):
        SpaceNet(Problem((1, 4, 4), 10, tasks=5), network, config, seed=0)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_old_logits_stay_where_all_of_a_task_s_units_are_reserved(network: str) -> None:
    method = toy(network, selected=0.3, reserved=0.3, budget=(1.0,))
    finish(method.learn(toy_task(0)))
    before = logits(method, 0)
    finish(method.learn(toy_task(1)))
    finish(method.learn(toy_task(2)))
    assert torch.equal(logits(method, 0), before)


def test_old_logits_drift_where_units_are_shared() -> None:
    method = toy(selected=0.8, reserved=0.0, budget=(1.0,))
    finish(method.learn(toy_task(0)))
    before = logits(method, 0)
    finish(method.learn(toy_task(1)))
    assert not torch.equal(logits(method, 0), before)
    assert accuracy_on(method, toy_task(1)) >= 0.9


def test_the_most_important_units_are_reserved() -> None:
    method = toy(selected=0.5, reserved=0.25)
    task = toy_task(0)
    units = method.choose_units(task)
    worth = {"fc1": torch.arange(16.0), "fc2": torch.zeros(12)}
    method._keep(task, units, worth)
    chosen = units["fc1"].nonzero().squeeze(1)
    assert method.reserved["fc1"].nonzero().squeeze(1).tolist() == chosen[-4:].tolist()
    assert int(method.reserved["fc2"].sum()) == 3
    assert method.reserved["output"].nonzero().flatten().tolist() == [0, 1]


def test_the_learning_rate_falls_over_the_whole_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append((named["rates"](0.0), named["rates"](0.5)))
        return fit(*arguments, **named)

    monkeypatch.setattr("nispa.methods.spacenet.fit", watched)
    finish(toy(epochs=3, rewire_every=2, learning_rate=0.06, decay="linear").learn(toy_task(0)))
    assert seen == [pytest.approx((0.06, 0.04)), pytest.approx((0.02, 0.01))]


# What it refuses.


def test_shares_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"reserved=0\.5 is more than selected=0\.3"):
        toy(selected=0.3, reserved=0.5)
    with pytest.raises(ConfigError, match=r"none for the last; pass reserved=0\.416 or less"):
        toy(selected=0.6, reserved=0.5)
    with pytest.raises(ConfigError, match=r"budget=0\.2,1\.5 must be shares in \(0, 1\]"):
        toy(budget=(0.2, 1.5))


def test_a_task_without_a_free_unit_is_refused() -> None:
    method = SpaceNet(
        Problem((1, 4, 4), 6),
        build(NetworkConfig, NETWORKS["mlp"]),
        build(SpaceNetConfig, {"selected": 1.0, "reserved": 1.0, "epochs": 1}),
        seed=0,
    )
    method.start()
    finish(method.learn(toy_task(0)))
    with pytest.raises(CapacityError, match="every unit of fc1 is reserved"):
        finish(method.learn(toy_task(1)))


def test_a_state_whose_units_do_not_fit_is_refused() -> None:
    method = toy(epochs=1)
    finish(method.learn(toy_task(0)))
    state, other = method.state(), toy(epochs=1)
    other.learned = list(method.learned)
    tensors = {**state.tensors, "reserved.fc1": ~state.tensors["reserved.fc1"]}
    with pytest.raises(FormatError, match="reserved"):
        other.load_state(MethodState(tensors, state.values))
    other.load_state(state)


def test_preset_settings_leave_room_for_many_tasks() -> None:
    chosen = resolve("spacenet", "default", "split", (1, 8, 8), outputs=40, tasks=20)
    method = SpaceNet(Problem((1, 8, 8), 40, 20), chosen.network, chosen.config, seed=0)
    assert method.reserve == 1 / 40
    published = resolve("spacenet", "default", "split-mnist", (1, 28, 28), outputs=10, tasks=5)
    method = SpaceNet(Problem((1, 28, 28), 10, 5), published.network, published.config, seed=0)
    method.start()
    task = toy_task(0)  # of classes 0 and 1
    units = method.choose_units(task)
    method.allocate(task, units)
    assert [int(units[name].sum()) for name in ("fc1", "fc2")] == [80, 80]
    counts = [layer.live_count for layer in method.network.layers.values()]
    assert counts == [10_000, 1640, 80]
    assert method.reserve == 0.1
