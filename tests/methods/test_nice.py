"""NICE: ages, learners, connections between them, and the task told from their activations."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import FormatError
from nispa.methods.base import MethodState, PhaseEnd, Problem, draw_network
from nispa.methods.context import posterior
from nispa.methods.nice import Nice, NiceConfig, NiceFeatures, connect_others, stable_units
from nispa.methods.saving import decode, encode
from nispa.methods.stable import is_frozen
from nispa.network.keeping import drop_into
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork
from nispa.training.pausing import EpochEnd

from .test_contract import settings_of
from .toy import NETWORKS, accuracy_on, finish, same_tensors, toy_method, toy_problem, toy_task


def toy(network: str = "mlp", **settings_: Any) -> Nice:
    method = toy_method("nice", network, **settings_)
    assert isinstance(method, Nice)
    method.start()
    return method


@functools.cache
def learned(tasks: int = 3) -> Nice:
    """A method that no test changes."""
    method = toy()
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def by_hand(classes: int = 6, tasks: int | None = None, **given_: Any) -> Nice:
    """Two inputs a and b; two units relu(a) and relu(b); outputs that read both with weight 1."""
    config = build(NetworkConfig, {"hidden": (2,), "density": 1.0})
    method = Nice(Problem((1, 1, 2), classes, tasks), config, build(NiceConfig, given_), seed=0)
    method.start()
    layers = method.network.layers
    layers["fc1"].connect(torch.ones(2, 2).bool(), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    layers["head"].connect(torch.ones(classes, 2).bool(), torch.ones(2 * classes))
    return method


def images(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).view(-1, 1, 1, 2)


def task(index: int, *rows: tuple[float, float]) -> Task:
    """A task of two classes, the first half of the rows of the first."""
    classes = (2 * index, 2 * index + 1)
    labels = torch.tensor(classes).repeat_interleave(len(rows) // 2)
    samples = Samples(images(*rows), labels)
    return Task(index, str(index), classes, samples, samples, samples)


# Ages and learners.


def test_learners_hold_the_share_of_what_learners_say() -> None:
    method = by_hand(activity_share=0.75)
    network = method.network
    every = {"input": torch.ones(2).bool(), "fc1": torch.ones(2).bool()}
    every["output"] = torch.tensor([True, True, False, False, False, False])
    none = network.topology.no_units()
    # Over both images unit a says 3 and unit b 1: three quarters are a's.
    first = task(0, (1.0, 0.0), (2.0, 1.0))
    assert method._still_learning(first.train, none, every)["fc1"].tolist() == [True, False]
    # A mature unit is kept, but holds no share: b alone is all that learners say.
    mature = {**none, "fc1": torch.tensor([True, False])}
    assert method._still_learning(first.train, mature, every)["fc1"].tolist() == [True, True]
    # A young unit is not taken back, whatever it says.
    fewer = {**every, "fc1": torch.tensor([False, True])}
    chosen = method._still_learning(first.train, none, fewer)
    assert chosen["fc1"].tolist() == [False, True]
    assert torch.equal(chosen["output"], every["output"])


def test_young_units_stop_feeding_learners_and_hear_everyone() -> None:
    config = build(NetworkConfig, {"hidden": (2, 2), "density": 1.0})
    network = NetworkSpec(config, (1, 1, 2), 2).draw(0)
    pool = network.patterns()
    before = network.layers["fc2"].dense_weight()
    kept = {
        "input": torch.ones(2).bool(),
        "fc1": torch.tensor([True, False]),
        "fc2": torch.tensor([True, False]),
        "output": torch.tensor([True, False]),
    }
    assert drop_into(network, kept) == {"fc1": 0, "fc2": 1, "head": 1}
    assert connect_others(network, kept, pool) == {"fc1": 0, "fc2": 0, "head": 0}
    assert network.layers["fc2"].pattern.tolist() == [[True, False], [True, True]]
    # The second unit of fc2 stays; the first becomes young: what it lost comes back at 0.
    kept["fc2"] = torch.tensor([False, True])
    drop_into(network, kept)
    assert connect_others(network, kept, pool) == {"fc1": 0, "fc2": 1, "head": 0}
    expected = before.clone()
    expected[0, 1] = expected[1, 1] = 0
    assert torch.equal(network.layers["fc2"].dense_weight(), expected)


def test_connections_outside_the_first_pattern_never_live() -> None:
    method = learned()
    pool = draw_network(method, method.seed).patterns()
    for name, layer in method.network.layers.items():
        assert not bool((layer.pattern & ~pool[name]).any())


def test_ages_rise_with_each_task() -> None:
    method = toy(tasks=5)
    births: dict[str, Tensor] = {}
    for index in range(3):
        finish(method.learn(toy_task(index)))
        for name, ages in method.ages.items():
            new = births.setdefault(name, torch.full(ages.shape, -1))
            new[(new < 0) & (ages > 0)] = index
            expected = torch.where(new < 0, 0, 2 + index - new)
            assert torch.equal(ages, expected.to(ages.dtype))
    assert method.ages["output"].tolist() == [4, 4, 3, 3, 2, 2, 0, 0, 0, 0]
    assert bool((method.ages["fc1"] == 0).any())
    assert bool((method.ages["fc1"] == 3).any())


def test_the_last_planned_task_takes_all_units() -> None:
    method = toy(tasks=2)
    finish(method.learn(toy_task(0)))
    assert bool((method.ages["fc1"] == 0).any())
    finish(method.learn(toy_task(1)))
    assert not bool((method.ages["fc1"] == 0).any())
    problem = Problem((1, 4, 4), 4)  # nobody knows which task is the last
    unplanned = Nice(problem, method.network_config, method.config, seed=0)
    unplanned.start()
    finish(unplanned.learn(toy_task(0)))
    finish(unplanned.learn(toy_task(1)))
    assert bool((unplanned.ages["fc1"] == 0).any())


def test_without_a_young_unit_a_task_learns_its_outputs_alone() -> None:
    problem = toy_problem(3)
    method = Nice(
        Problem(problem.input_shape, problem.outputs),
        build(NetworkConfig, {**NETWORKS["mlp"], "density": 1.0}),
        build(NiceConfig, {"activity_share": 1.0, "learning_rate": 0.03, "batch_size": 8}),
        seed=0,
    )
    method.start()
    assert finish(method.learn(toy_task(0)))[1].stop_reason == "epochs"
    hidden = method.network.layers["fc1"].dense_weight()
    assert finish(method.learn(toy_task(1)))[1].stop_reason == "capacity"
    assert torch.equal(method.network.layers["fc1"].dense_weight(), hidden)
    assert accuracy_on(method, toy_task(1)) > 0.8


def test_logits_of_other_classes_count_as_zero() -> None:
    # The task's own outputs say 0, too: a sixth for each, whatever the others would say.
    method = by_hand(learning_rate=1e-9, phases=2, epochs_per_phase=1)
    with torch.no_grad():
        method.network.layers["head"].bias.copy_(torch.tensor([0.0, 0.0, 50.0, -50.0, 7.0, 7.0]))
    events, _ = finish(method.learn(task(0, (0.0, 0.0), (0.0, 0.0))))
    losses = [event.loss for event in events if isinstance(event, EpochEnd)]
    assert losses == [pytest.approx(math.log(6), rel=1e-5)] * 2


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1000),
    network=st.sampled_from(sorted(NETWORKS)),
    share=st.floats(0.3, 1.0),
    phases=st.integers(2, 4),
)
def test_what_holds_whatever_happens(seed: int, network: str, share: float, phases: int) -> None:
    method = toy(network, seed=seed, tasks=4, activity_share=share, phases=phases)
    pool = draw_network(method, method.seed).patterns()
    first, kept = toy_task(0).test.batch(slice(None))[0], None
    for index in range(3):
        events, report = finish(method.learn(toy_task(index)))
        ends = [event for event in events if isinstance(event, PhaseEnd)]
        assert report.phases == len(ends) == phases
        stable = stable_units(method.network, method.ages)
        assert is_frozen(method.network, stable)
        for name, layer in method.network.layers.items():
            young = ~layer.spec.rows_in(stable).unsqueeze(1)
            assert torch.equal(layer.pattern & young, pool[name] & young)
        with torch.no_grad():
            logits = method.network.eval()(first)[:, :2]
        assert kept is None or torch.equal(logits, kept)
        kept = logits.clone()


# The task, told by activations.


def test_features_are_inputs_units_and_outputs() -> None:
    network = by_hand().network
    features = NiceFeatures({"input": 2, "fc1": 2, "output": 6}, "input")
    x = features.units_of(network, images((2.0, -1.0)))
    # Inputs and units are relu(a) and relu(b), outputs their sum.
    assert x.tolist() == [[2.0, 0.0, 2.0, 0.0] + [2.0] * 6]


def test_a_feature_of_a_map_is_its_mean() -> None:
    config = build(NetworkConfig, {"architecture": "convnet", "channels": (1,), "fc": ()})
    network = NetworkSpec(config, (2, 2, 2), 2).draw(0)
    sizes = {group.name: group.size for group in network.topology.groups}
    x = torch.tensor([[[[1.0, 2], [3, 6]], [[-4, 0], [0, 8]]]])
    found = NiceFeatures(sizes, "input").units_of(network, x)
    assert found[0, :2].tolist() == [3.0, 1.0]
    assert found.shape == (1, sum(sizes.values()))
    with torch.no_grad():
        assert torch.equal(found[:, -2:], network(x))


def test_bits_and_chances_by_hand() -> None:
    # Where all bits are alike, p_k is the share of its samples among those of task k and later
    # ones, and so P(k) its share of all: 2, 4 and 2 of 8. The kept images are at most 2 a class.
    method = by_hand(samples_per_class=2)
    rows = [(1.0, 1.0)]
    for index, count in enumerate((1, 3, 1)):
        given_ = task(index, *(rows * (2 * count)))
        method.learned.append(given_.info)
        stable = method.network.topology.no_units()
        stable["output"][: 2 * index + 2] = True
        generator = torch.Generator().manual_seed(0)
        method.context.learn(method.network, given_, stable, generator)
    # Thresholds: inputs and units say 1, outputs 2, and none is above its mean.
    assert method.context.thresholds.tolist() == [1.0, 1.0, 2.0]
    assert [len(bits) for bits in method.context.bits] == [2, 4, 2]
    assert method.context.features.counts == [4, 6, 8]  # both inputs, and the outputs learned
    chances = [1 / 4, 1 / 2, 1 / 4]
    scores = method.scores(images((1.0, 1.0)), None).exp()
    assert scores[0].tolist() == [pytest.approx(p, rel=1e-3) for p in chances for _ in (0, 1)]
    assert method.predict(images((1.0, 1.0)), None).tolist() == [2]


def test_the_posterior_chooses_the_task_and_the_logits_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = by_hand()
    with torch.no_grad():
        method.network.layers["head"].bias.copy_(torch.tensor([0.0, 1.0, 9.0, 7.0, 2.0, 2.5]))
    method.learned = [task(index, (0.0, 0.0), (0.0, 0.0)).info for index in range(3)]
    method.context.features.places = torch.arange(2)
    # p_1 = 3/4 and p_2 = 1/2: P = 3/4, 1/8, 1/8. The outputs say their biases.
    odds = [torch.tensor([math.log(3.0)]).double(), torch.zeros(1).double()]
    monkeypatch.setattr(method.context, "odds", lambda _: odds)
    assert posterior(odds, 1).exp().tolist() == [[pytest.approx(p) for p in (0.75, 0.125, 0.125)]]
    zero = images((0.0, 0.0))
    expected = [math.log(0.75) - 1, math.log(0.75), math.log(0.125), math.log(0.125) - 2]
    expected += [math.log(0.125) - 0.5, math.log(0.125)]
    assert method.scores(zero, None)[0].tolist() == [pytest.approx(each) for each in expected]
    assert method.predict(zero, None).tolist() == [1]
    assert method.predict(zero, method.learned[1]).tolist() == [2]


def test_tells_tasks_apart_that_look_different() -> None:
    method = toy(tasks=2)
    for index in range(2):
        finish(method.learn(toy_task(index)))
    for index in range(2):
        tests, labels = toy_task(index).test.batch(slice(None))
        assert float((method.predict(tests, None) == labels).float().mean()) > 0.8


# Saving.


def test_a_saved_method_tells_the_same(tmp_path: Path) -> None:
    method, file = learned(), tmp_path / "network.safetensors"
    file.write_bytes(encode(method, settings_of(method)))
    loaded, _, _ = decode(file)
    tests, _ = toy_task(1).test.batch(slice(None))
    assert torch.equal(loaded.scores(tests, None), method.scores(tests, None))
    assert same_tensors(loaded.state().tensors, method.state().tensors)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ages.fc1", lambda t: t + 1),
        ("ages.fc1", lambda t: t * 0 + 1),
        ("ages.fc1", lambda t: t.flip(0)),
        ("ages.fc1", lambda t: t.long()),
        ("ages.fc1", lambda t: t[1:]),
        ("ages.output", lambda t: t.flip(0)),
        ("memory.places", lambda t: t.flip(0)),
        ("memory.counts", lambda t: t[:1]),
        ("memory.thresholds", lambda t: t[1:]),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, change: Any) -> None:
    method, other = learned(2), toy()
    other.learned = list(method.learned)
    state = method.state()
    tensors = {**state.tensors, name: change(state.tensors[name])}
    with pytest.raises(FormatError):
        other.load_state(MethodState(tensors, state.values))
    other.load_state(state)
    assert isinstance(other.network, SparseNetwork)
