"""HAT: its arithmetic by hand, a step against plain autograd, and what binary gates protect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build, describe
from nispa.data.tasks import Samples, Task, TaskInfo
from nispa.errors import ConfigError, FormatError, NotLearnedError
from nispa.methods.base import MethodState, PhaseEnd, Problem
from nispa.methods.epochs import KeepConfig
from nispa.methods.hat import Gated, Hat, HatConfig, compensation, free_shares, held, scale, taken
from nispa.network.models import NetworkConfig, build_network
from nispa.network.operations import Ledger, counting
from nispa.training.pausing import FitPause

from .toy import FAST, NETWORKS, accuracy_on, finish, same_tensors, toy_problem, toy_task

STILL = 1e-30
"""A learning rate that moves no value of ordinary size."""


def hat(network: str | dict[str, object] = "mlp", *, seed: int = 0, **values: object) -> Hat:
    """HAT on a toy network, started."""
    shape = NETWORKS[network] if isinstance(network, str) else network
    fast: dict[str, object] = {**FAST["hat"], "batch_size": 8}
    config = build(HatConfig, fast | values)
    made = Hat(toy_problem(4), build(NetworkConfig, shape), config, seed=seed)
    made.start()
    return made


def own_logits(method: Hat, task: Task) -> Tensor:
    images, _ = task.test.batch(slice(None))
    with torch.no_grad():
        logits: Tensor = method.network_for(task.info)(images)
    return logits[:, list(task.classes)]


# The formulas by hand.


def test_the_scale_rises_from_its_inverse_and_never_reaches_the_largest() -> None:
    assert scale(0.0, 400.0) == 1 / 400
    assert scale(0.5, 400.0) == pytest.approx((400 + 1 / 400) / 2)
    assert scale(1.0, 400.0) == 400.0
    assert scale(3 / 4, 2.0) == pytest.approx(0.5 + 1.5 * 0.75)


def test_the_scale_follows_the_samples_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 images in batches of 20: s is taken at 0, 20/48 and 40/48 of each epoch."""
    seen: list[float] = []
    at = Gated.at

    def spy(self: Gated, s: float) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            seen.append(s)
        return at(self, s)

    monkeypatch.setattr(Gated, "at", spy)
    finish(hat(batch_size=20, epochs=2, s_max=4.0).learn(toy_task(0)))
    assert seen == pytest.approx(2 * [0.25, 0.25 + 3.75 * 20 / 48, 0.25 + 3.75 * 40 / 48])


def test_the_compensation_by_hand() -> None:
    embedding = torch.tensor([0.0, 1.0, -2.0, 6.0])
    found = compensation(embedding, s=2.0, s_max=10.0)
    wanted = [5 * (math.cosh(2 * e) + 1) / (math.cosh(e) + 1) for e in (0.0, 1.0, -2.0, 6.0)]
    torch.testing.assert_close(found, torch.tensor(wanted))
    bounded = compensation(torch.tensor([6.0]), s=400.0, s_max=400.0)  # s e = 2,400
    wanted = [(math.cosh(50) + 1) / (math.cosh(6) + 1)]
    torch.testing.assert_close(bounded, torch.tensor(wanted))


def test_the_compensated_gradient_is_s_max_times_that_of_a_plain_sigmoid() -> None:
    """The derivative of sigmoid(s e) is s / (2 cosh(s e) + 2): the factor takes s out of it."""
    embedding = torch.tensor([-1.5, 0.2, 0.9], requires_grad=True)
    torch.sigmoid(3.0 * embedding).sum().backward()
    assert embedding.grad is not None
    found = embedding.grad * compensation(embedding.detach(), 3.0, 400.0)
    plain = torch.sigmoid(embedding.detach())
    torch.testing.assert_close(found, 400.0 * plain * (1 - plain))


def test_the_penalty_by_hand() -> None:
    gates = {"fc1": torch.tensor([1.0, 0.5]), "fc2": torch.tensor([0.25, 0.0])}
    nothing = {name: torch.zeros(2) for name in gates}
    assert float(taken(gates, nothing)) == pytest.approx(1.75 / 4)  # in the first task the mean
    used = {"fc1": torch.tensor([1.0, 0.5]), "fc2": torch.tensor([0.0, 0.2])}
    assert float(taken(gates, used)) == pytest.approx((0 + 0.25 + 0.25 + 0) / (0 + 0.5 + 1 + 0.8))
    everything = {name: torch.ones(2) for name in gates}
    assert float(taken(gates, everything)) == 0.0


def test_gates_accumulate_to_the_largest() -> None:
    method = hat({"hidden": (2,)})
    assert method.used()["fc1"].tolist() == [0.0, 0.0]
    method.gates = {
        0: {"fc1": torch.tensor([0.9, 0.1])},
        1: {"fc1": torch.tensor([0.2, 0.3])},
    }
    used = method.used()
    torch.testing.assert_close(used["fc1"], torch.tensor([0.9, 0.3]))
    assert bool((used["input"] == 1).all())
    assert not bool(used["output"].any())


def test_the_factor_on_each_gradient_by_hand() -> None:
    network = build_network(NetworkConfig(hidden=(2, 2), density=1.0), (1, 1, 2), outputs=2, seed=0)
    used = {
        "input": torch.ones(2),
        "fc1": torch.tensor([0.9, 0.2]),
        "fc2": torch.tensor([0.6, 0.1]),
        "output": torch.zeros(2),
    }
    shares = {id(value): share.tolist() for value, share in free_shares(network, used)}
    layers = network.layers
    assert shares[id(layers["fc1"].weight)] == pytest.approx([0.1, 0.1, 0.8, 0.8])
    assert shares[id(layers["fc1"].bias)] == pytest.approx([0.1, 0.8])
    # 1 - min of (0.6, 0.9), (0.6, 0.2), (0.1, 0.9), (0.1, 0.2)
    assert shares[id(layers["fc2"].weight)] == pytest.approx([0.4, 0.8, 0.9, 0.9])
    assert shares[id(layers["fc2"].bias)] == pytest.approx([0.4, 0.9])
    assert shares[id(layers["head"].weight)] == [1.0] * 4
    assert shares[id(layers["head"].bias)] == [1.0] * 2


def test_a_channel_stands_for_its_kernels_and_all_its_pixels() -> None:
    shape = {"architecture": "convnet", "channels": (2,), "fc": (1,), "density": 1.0}
    network = build_network(build(NetworkConfig, shape), (1, 2, 2), outputs=2, seed=0)
    used = {"input": torch.ones(1), "conv1": torch.tensor([0.75, 0.25])}
    used |= {"fc1": torch.tensor([0.5]), "output": torch.zeros(2)}
    shares = {id(value): share for value, share in free_shares(network, used)}
    kernels = shares[id(network.layers["conv1"].weight)]
    assert kernels.flatten().tolist() == [0.25, 0.75]
    assert (kernels * network.layers["conv1"].weight).shape == (2, 3, 3)
    assert shares[id(network.layers["fc1"].weight)].tolist() == 4 * [0.5] + 4 * [0.75]


# A step, against the same step written with plain tensors.


def task_of(place: int, count: int = 6) -> Task:
    """Random images of the two classes of the task at ``place``."""
    classes = (2 * place, 2 * place + 1)
    pixels = torch.rand((count, 1, 1, 2), generator=torch.Generator().manual_seed(place))
    samples = Samples(pixels, torch.tensor(classes * (count // 2)))
    return Task(place, "random", classes, samples, samples, samples)


def one_step(method: Hat, task: Task, s: float, used: Tensor) -> dict[str, Tensor]:
    """What one full batch makes of weights, biases and embeddings, with plain autograd."""
    config, rate = method.config, method.config.learning_rate
    images, labels = task.train.batch(slice(None))
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    values = {
        "w1": first.dense_weight(),
        "b1": first.dense_bias(),
        "w2": head.dense_weight(),
        "b2": head.dense_bias(),
        "e": method._embeddings(task)["fc1"],
    }
    for value in values.values():
        value.requires_grad_()
    gate = torch.sigmoid(s * values["e"])
    hidden = functional.linear(images.flatten(1), values["w1"], values["b1"]).relu() * gate
    logits = functional.linear(hidden, values["w2"], values["b2"])[:, list(task.classes)]
    free = 1 - used
    loss = functional.cross_entropy(logits, labels - task.classes[0])
    loss = loss + config.strength * (gate * free).sum() / free.sum()
    loss.backward()
    steps = {name: value.grad for name, value in values.items() if value.grad is not None}
    assert steps.keys() == values.keys()
    steps["w1"] = steps["w1"] * free[:, None]  # inputs are always used: the minimum is the unit's
    steps["b1"] = steps["b1"] * free
    e = values["e"].detach()
    hard, soft = (s * e).clamp(-50, 50).cosh() + 1, e.cosh() + 1
    steps["e"] = steps["e"] * config.s_max / s * hard / soft
    norm = torch.cat([step.flatten() for step in steps.values()]).norm()
    steps = {name: step * min(1.0, 10_000 / float(norm)) for name, step in steps.items()}
    moved = {name: value.detach() - rate * steps[name] for name, value in values.items()}
    return moved | {"e": moved["e"].clamp(-6, 6)}


def tiny(**values: object) -> Hat:
    """Two inputs, three hidden units, two tasks; one step an epoch, one epoch a task."""
    config = {"epochs": 1, "batch_size": 6, "keep": "last", "s_max": 5.0, "learning_rate": 0.1}
    method = Hat(
        Problem((1, 1, 2), 4, 2),
        NetworkConfig(hidden=(3,), density=1.0),
        build(HatConfig, config | values),
        seed=1,
    )
    method.start()
    return method


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"s_max": 100.0, "strength": 1e4, "learning_rate": 1e-4},  # the norm is cut
        {"s_max": 1.1, "strength": 1e4, "learning_rate": 0.02},  # embeddings are cut
    ],
)
def test_the_first_steps_of_two_tasks_by_hand(values: dict[str, object]) -> None:
    method, used = tiny(**values), torch.zeros(3)
    s_max = method.config.s_max
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    for place in range(2):
        task = task_of(place)
        wanted = one_step(method, task, 1 / s_max, used)
        finish(method.learn(task))
        torch.testing.assert_close(first.dense_weight(), wanted["w1"])
        torch.testing.assert_close(first.dense_bias(), wanted["b1"])
        torch.testing.assert_close(head.dense_weight(), wanted["w2"])
        torch.testing.assert_close(head.dense_bias(), wanted["b2"])
        gate = torch.sigmoid(s_max * wanted["e"])
        torch.testing.assert_close(method.gates[place]["fc1"], gate)
        used = torch.maximum(used, gate)
    assert head.frozen_bias_index.tolist() == [0, 1, 2, 3]


# Gates of a task, in its network.


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("binary", [False, True])
def test_the_network_of_a_task_is_the_gated_one(network: str, binary: bool) -> None:
    method, task = hat(network, binary=binary, s_max=5.0), toy_task(0)
    finish(method.learn(task))
    gates = {name: gate.float() for name, gate in method.gates[0].items()}
    images, _ = task.test.batch(slice(None))
    gated = Gated(method.network, gates)
    gated.gates = gates
    with gated.attached(), torch.no_grad():
        logits = gated.eval()(images)
    torch.testing.assert_close(own_logits(method, task), logits[:, [0, 1]])
    with torch.no_grad():  # and the hooks are gone
        assert not torch.equal(method.network(images), logits)


def test_closed_units_and_other_heads_are_cut_from_the_network_of_a_task() -> None:
    method = tiny(binary=True, learning_rate=STILL)
    finish(method.learn(task_of(0)))
    opened = method._embeddings(task_of(0))["fc1"] > 0
    assert torch.equal(method.gates[0]["fc1"], opened)
    assert 0 < int(opened.sum()) < 3
    view = method.network_for(task_of(0).info)
    wanted = torch.zeros(4, 3, dtype=torch.bool)
    wanted[:2] = opened
    assert torch.equal(view.layers["head"].pattern, wanted)
    assert torch.equal(view.layers["fc1"].pattern, opened[:, None].expand(3, 2))


def test_rounding_is_up_above_a_half() -> None:
    method = tiny(binary=True)
    gated = Gated(method.network, {"fc1": torch.tensor([-0.1, 0.0, 0.1])})
    assert method._final(gated)["fc1"].tolist() == [False, False, True]
    method = tiny()
    gated = Gated(method.network, {"fc1": torch.tensor([-0.1, 0.0, 0.1])})
    wanted = torch.sigmoid(torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(method._final(gated)["fc1"], wanted)


def test_validation_is_of_the_gates_that_predict() -> None:
    for binary in (False, True):
        method, task = hat(binary=binary, keep="last", epochs=3), toy_task(0)
        events, _ = finish(method.learn(task))
        images, labels = task.validation.batch(slice(None))
        right = float((method.predict(images, task.info) == labels).float().mean())
        assert [e.accuracy for e in events if isinstance(e, PhaseEnd)] == [pytest.approx(right)]


# What is held.


def test_what_is_frozen_by_hand() -> None:
    network = build_network(NetworkConfig(hidden=(2, 2), density=1.0), (1, 1, 2), outputs=4, seed=0)
    gates = {
        0: {"fc1": torch.tensor([True, False]), "fc2": torch.tensor([True, False])},
        1: {"fc1": torch.tensor([True, False]), "fc2": torch.tensor([False, True])},
    }
    found = held(network, gates, [TaskInfo(0, (0, 1))])
    assert found["fc1"][0].int().tolist() == [[1, 1], [0, 0]]
    assert found["fc1"][1].tolist() == [True, False]
    assert found["fc2"][0].int().tolist() == [[1, 0], [1, 0]]
    assert found["head"][0].int().tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert found["head"][1].tolist() == [True, True, False, False]
    soft = held(network, {}, [TaskInfo(0, (0, 1))])
    assert not bool(soft["fc1"][0].any() or soft["fc2"][0].any() or soft["fc2"][1].any())
    assert torch.equal(soft["head"][0], found["head"][0])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("binary", [False, True])
def test_learns_three_tasks(network: str, binary: bool) -> None:
    method = hat(network, binary=binary)
    for index in range(3):
        finish(method.learn(toy_task(index)))
    for index in range(3):
        assert accuracy_on(method, toy_task(index)) >= 0.9


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    network=st.sampled_from(sorted(NETWORKS)),
    density=st.sampled_from([0.3, 1.0]),
    optimiser=st.sampled_from(["sgd", "adam", "adamw"]),
    strength=st.sampled_from([0.0, 0.75, 20.0]),
    keep=st.sampled_from(["best", "last"]),
)
def test_with_binary_gates_old_logits_stay(
    seed: int, network: str, density: float, optimiser: str, strength: float, keep: str
) -> None:
    method = hat(
        NETWORKS[network] | {"density": density},
        seed=seed,
        binary=True,
        epochs=2,
        optimiser=optimiser,
        momentum=0.9,
        weight_decay=0.1,
        learning_rate=0.1,
        strength=strength,
        keep=keep,
    )
    assume(not {0, 1} <= set(method.unreached))  # it would refuse the first task
    seen: list[Tensor] = []
    for index in range(3):
        finish(method.learn(toy_task(index)))
        seen.append(own_logits(method, toy_task(index)))
        for earlier in range(index + 1):
            assert torch.equal(own_logits(method, toy_task(earlier)), seen[earlier])


def test_with_soft_gates_old_logits_drift_and_scores_show_it() -> None:
    """Soft gates of a small s_max hold only in part; the view of a task is made anew."""
    method = hat(s_max=2.0)
    finish(method.learn(toy_task(0)))
    before = own_logits(method, toy_task(0))
    finish(method.learn(toy_task(1)))
    assert not torch.equal(own_logits(method, toy_task(0)), before)
    head = method.network.layers["head"]
    assert head.frozen_bias_index.tolist() == [0, 1, 2, 3]
    assert method.network.layers["fc1"].frozen_count == 0


def test_a_full_network_still_learns_heads_and_says_so() -> None:
    method = hat(binary=True, strength=0.0)
    finish(method.learn(toy_task(0)))
    for gate in method.gates[0].values():
        gate.fill_(True)
    fixed = held(method.network, method.gates, method.learned)
    for name, (connections, biases) in fixed.items():
        method.network.layers[name].freeze(connections, biases)
    _, report = finish(method.learn(toy_task(1)))
    assert report.stop_reason == "capacity"
    assert accuracy_on(method, toy_task(1)) >= 0.9


# The learning rate.


def test_settings_that_hat_begins_with_otherwise_keep_their_other_names() -> None:
    every = {each.name: each.aliases for each in describe(KeepConfig)}
    own = {each.name: each.aliases for each in describe(HatConfig)}
    assert {name: own[name] for name in every} == every


def test_the_schedule_is_that_of_the_settings() -> None:
    config = build(HatConfig, {})
    assert config.plateau is not None
    still = [0.5] * 6
    assert config.plateau.rate_after(still) == pytest.approx(0.05 / 3)
    assert config.plateau.rate_after([0.5] * 31) is None
    assert build(HatConfig, {"rate_patience": None}).plateau is None
    assert build(HatConfig, {"decay": "linear"}).plateau is None


def test_a_task_ends_when_the_rate_is_too_low() -> None:
    method = hat(learning_rate=STILL, rate_patience=2, lowest_rate=STILL / 10, epochs=50)
    _, report = finish(method.learn(toy_task(0)))
    assert report.stop_reason == "patience"
    assert report.samples_trained == 48 * 7  # 1 + 3 * 2: a third, a ninth, then it ends


# Costs.


def test_operations_by_hand() -> None:
    """Gates need a gradient into every hidden unit, also where every weight before it is frozen."""
    method = hat({"hidden": (16, 12), "density": 1.0}, binary=True, epochs=2, keep="last")
    ledger = Ledger()
    with counting(ledger):
        finish(method.learn(toy_task(0)))
    live = [16 * 16, 16 * 12, 12 * 8]
    values = sum(live) + 16 + 12 + 8 + 16 + 12  # weights, biases, embeddings
    assert ledger.table() == {
        "forward": 96 * 2 * sum(live),
        "weight_gradients": 96 * 2 * sum(live),
        "input_gradients": 96 * 2 * sum(live[1:]),
        "updates": 12 * 2 * values,
        "validation": 2 * 16 * 2 * sum(live),
    }
    plastic = sum(len(layer.plastic_index) for layer in method.network.layers.values())
    assert plastic < sum(live)
    ledger = Ledger()
    with counting(ledger):
        finish(method.learn(toy_task(1)))
    assert ledger.table()["weight_gradients"] == 96 * 2 * plastic
    assert ledger.table()["input_gradients"] == 96 * 2 * sum(live[1:])


def test_counts_the_bytes_of_its_gates() -> None:
    for binary, each in ((False, 4), (True, 1)):
        method = hat(binary=binary, epochs=1)
        assert method.census().storage == {"masks": 0}
        finish(method.learn(toy_task(0)))
        assert method.census().storage == {"masks": each * 28}
        finish(method.learn(toy_task(1)))
        assert method.census().storage == {"masks": each * 56}


# Saved, interrupted, damaged.


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("binary", [False, True])
def test_saved_it_goes_on_identically(network: str, binary: bool) -> None:
    method, other = (hat(network, binary=binary, epochs=3) for _ in range(2))
    for index in (0, 1):
        finish(method.learn(toy_task(index)))
    other.learned = list(method.learned)
    other.load_state(method.state())
    assert torch.equal(own_logits(other, toy_task(0)), own_logits(method, toy_task(0)))
    for each in (method, other):
        finish(each.learn(toy_task(2)))
    assert same_tensors(method.state().tensors, other.state().tensors)


def test_interrupted_in_a_task_it_goes_on_identically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nispa.training.fit.PAUSE_S", 0.0)
    settings_: dict[str, Any] = {"rate_patience": 1, "lowest_rate": 1e-9, "epochs": 6}
    whole = hat(**settings_)
    finish(whole.learn(toy_task(0)))
    broken, pauses, state = hat(**settings_), 0, None
    learning = broken.learn(toy_task(0))
    for event in learning:
        if isinstance(event, FitPause):
            pauses += 1
            if pauses == 26:  # in the fourth epoch, after the rate has fallen
                state = event.state()
                break
    learning.close()
    assert state is not None
    assert state.values["epoch"] == 4
    resumed = hat(**settings_)
    learning = resumed.learn(toy_task(0))
    event = next(learning)
    while type(event).__name__ != "FitBegin":
        event = next(learning)
    learning.send(state)
    finish(learning)
    assert same_tensors(resumed.state().tensors, whole.state().tensors)


def too_few_units(tensors: dict[str, Tensor]) -> None:
    tensors["mask.0.fc1"] = tensors["mask.0.fc1"][:-1]


def another_type(tensors: dict[str, Tensor]) -> None:
    tensors["mask.0.fc1"] = tensors["mask.0.fc1"].double()


def out_of_range(tensors: dict[str, Tensor]) -> None:
    tensors["mask.0.fc1"] = tensors["mask.0.fc1"] + 1


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors["mask.0.fc1"] = tensors["mask.0.fc1"] * math.nan


def a_task_to_come(tensors: dict[str, Tensor]) -> None:
    tensors["mask.1.fc1"] = tensors["mask.0.fc1"]


def a_plastic_head(tensors: dict[str, Tensor]) -> None:
    path = [name for name in tensors if name.endswith(".bias")][-1].removesuffix(".bias")
    size = len(tensors[f"{path}.bias"]) + len(tensors[f"{path}.frozen_bias"])
    for kind, bias in (("", torch.zeros(size)), ("frozen_", torch.zeros(0))):
        tensors[f"{path}.{kind}bias"] = bias
        tensors[f"{path}.{kind}bias_index"] = torch.arange(len(bias))


@pytest.mark.parametrize(
    "damage",
    [too_few_units, another_type, out_of_range, not_a_number, a_task_to_come, a_plastic_head],
)
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Tensor]], None]) -> None:
    method = hat(epochs=1)
    finish(method.learn(toy_task(0)))
    tensors, other = dict(method.state().tensors), hat(epochs=1)
    other.learned = list(method.learned)
    other.load_state(MethodState(tensors, {}))
    damage(tensors)
    with pytest.raises(FormatError, match=r"gate|frozen"):
        other.load_state(MethodState(tensors, {}))


def test_other_gates_than_what_is_frozen_are_refused() -> None:
    method = hat(epochs=1, binary=True)
    finish(method.learn(toy_task(0)))
    tensors, other = dict(method.state().tensors), hat(epochs=1, binary=True)
    other.learned = list(method.learned)
    tensors["mask.0.fc1"] = ~tensors["mask.0.fc1"]
    with pytest.raises(FormatError, match="frozen in layer"):
        other.load_state(MethodState(tensors, {}))


def test_must_be_told_a_task_that_it_has_learned() -> None:
    method = hat(epochs=1)
    finish(method.learn(toy_task(0)))
    images, _ = toy_task(0).test.batch(slice(None))
    with pytest.raises(NotLearnedError, match="told the task"):
        method.predict(images, None)
    with pytest.raises(NotLearnedError, match="not been learned yet"):
        method.predict(images, TaskInfo(1, (2, 3)))


@pytest.mark.parametrize(
    "values",
    [
        {"s_max": 1.0},
        {"strength": -1},
        {"rate_factor": 1.0},
        {"rate_patience": 0},
        {"s_max": "nan"},
    ],
)
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        build(HatConfig, values)
