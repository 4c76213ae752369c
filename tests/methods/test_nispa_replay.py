"""NISPA-Replay: what stays, what the memory holds, what a step follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.data.tasks import Task
from nispa.errors import ConfigError, FormatError, NotLearnedError
from nispa.methods.base import Method, MethodState, PhaseEnd, PhaseStart
from nispa.methods.nispa_replay import NispaReplay, NispaReplayConfig
from nispa.network.models import NetworkConfig
from nispa.network.topology import complement, live_between
from nispa.training.fit import batch_of, make_optimiser
from nispa.training.pausing import EpochEnd, FitBegin, FitPause

from .toy import NETWORKS, finish, same_tensors, toy_method, toy_problem, toy_task

PUBLISHED: dict[str, Any] = {
    "other_logits": "keep",
    "demote_unsupported": False,
    "revive_with_growth": False,
    "carry_over": False,
}


def replay(
    network: str = "mlp", *, seed: int = 0, start: bool = True, **values: Any
) -> NispaReplay:
    fast = {
        "learning_rate": 0.01,
        "batch_size": 8,
        "epochs_per_phase": 3,
        "k": 6,
        "accuracy_drop": 5,
        "memory": 24,
    }
    method = NispaReplay(
        toy_problem(3),
        build(NetworkConfig, NETWORKS[network]),
        build(NispaReplayConfig, fast | values),
        seed=seed,
    )
    if start:
        method.start()
    return method


def learned(tasks: int, **values: Any) -> NispaReplay:
    method = replay(**values)
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def owned(method: NispaReplay) -> dict[str, int]:
    """Live connections and those owed, per layer."""
    return {
        name: layer.live_count + method.owed[name] for name, layer in method.network.layers.items()
    }


def stable_activations(method: NispaReplay, stable: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the ``stable`` hidden units say to some images."""
    probe = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = method.network.eval().observe(probe, lambda active: active.clone())
    return {name: values[:, stable[name]] for name, values in seen.items()}


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {**PUBLISHED, "carry_over": True, "optimiser": "sgd", "momentum": 0.0},
        {"restart": True, "keep": "best", "growth": "from_stable"},
        {"output_rewiring": True, "validate": "seen"},
    ],
    ids=["default", "published", "other", "outputs"],
)
def test_invariants_hold_after_every_epoch_of_every_task(
    network: str, values: dict[str, Any]
) -> None:
    method = replay(network, max_phases=5, k=9, accuracy_drop=100, **values)
    connections = owned(method)
    hidden = [layer for layer in method.topology.layers if layer.target != "output"]
    for index in range(3):
        stable = {name: units.clone() for name, units in method.stable.items()}
        promised = stable_activations(method, stable)
        for event in method.learn(toy_task(index, count=24)):
            assert isinstance(event, (PhaseStart, EpochEnd, PhaseEnd, FitBegin, FitPause))
            said = stable_activations(method, stable)
            assert same_tensors(said, promised), "a stable unit computes something else"
            assert owned(method) == connections, "the density changed"
        assert all((stable[name] <= method.stable[name]).all() for name in stable)
        assert any(int(method.stable[layer.target].sum()) for layer in hidden)
        patterns = method.network.patterns()
        across = live_between(method.topology, patterns, complement(method.stable), method.stable)
        assert not any(bool(live.any()) for live in across.values())
        inside = live_between(method.topology, patterns, method.stable, method.stable)
        for spec in method.topology.layers:
            layer = method.network.layers[spec.name]
            biases = torch.zeros(layer.shape[0], dtype=torch.bool)
            biases[layer.frozen_bias_index] = True
            if spec in hidden:
                assert torch.equal(layer.frozen, inside[spec.name])
                assert torch.equal(biases, method.stable[spec.target])
            else:  # the outputs go on learning
                assert layer.frozen_count == 0
                assert not biases.any()


def test_the_memory_is_shared_among_the_classes_seen() -> None:
    method = replay(memory=13, max_phases=3)
    # 13 // 2 = 6 each and one more for the first; then 3 each and one more; then 2 and one more.
    expected = [[7, 6], [4, 3, 3, 3], [3, 2, 2, 2, 2, 2]]
    for index, counts in enumerate(expected):
        task = toy_task(index)
        finish(method.learn(task))
        labels = method.memory.labels
        assert [int((labels == label).sum()) for label in range(2 * index + 2)] == counts
        kept = method.memory.take(method.memory.select(place=index)).images
        training = task.train.batch(slice(None))[0]
        assert all(any(torch.equal(image, other) for other in training) for image in kept)


def test_a_class_with_few_images_leaves_room() -> None:
    task = toy_task(0)
    few = (task.train.labels == 0).nonzero().squeeze(1)[:2]
    many = (task.train.labels == 1).nonzero().squeeze(1)
    train = task.train.subset(torch.cat([few, many]))
    method = replay(memory=10, max_phases=3)
    finish(method.learn(Task(0, "t", (0, 1), train, task.validation, task.test)))
    assert method.memory.labels.bincount().tolist() == [2, 5]


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize(
    ("other_logits", "outputs"), [("slice", slice(0, 4)), ("keep", slice(None))]
)
def test_a_step_follows_both_losses(network: str, other_logits: str, outputs: slice) -> None:
    # A memory no larger than a batch is drawn whole, so that its loss can be written down.
    method = replay(network, memory=8, max_phases=3, other_logits=other_logits, replay_weight=3.0)
    finish(method.learn(toy_task(0)))
    task = toy_task(1)
    batch = batch_of(task.train, torch.arange(8))
    remembered = method.memory.take(torch.arange(8))

    values = [value for value in method.network.parameters() if value.numel()]
    loss = functional.cross_entropy(method.network(batch.images)[:, outputs], batch.labels)
    loss = loss + 3.0 * functional.cross_entropy(
        method.network(remembered.images)[:, outputs], remembered.wanted[:, 0]
    )
    gradients = torch.autograd.grad(loss, values, allow_unused=True)
    expected = [
        value.detach() - 0.1 * (0.0 if gradient is None else gradient)
        for value, gradient in zip(values, gradients, strict=True)
    ]

    config = build(NispaReplayConfig, {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.1})
    optimiser = make_optimiser(config, method.network.parameters())
    classes = method.class_mask(range(4))
    reached = method.step(task, classes, 1, optimiser)(batch)
    assert float(reached) == pytest.approx(float(loss.detach()), rel=1e-5)
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_without_weight_the_memory_changes_nothing() -> None:
    # The memory is filled either way; with weight 0 its content and size must not matter.
    small, large = (learned(2, replay_weight=0, memory=size, max_phases=3) for size in (8, 24))
    assert same_tensors(small.network.state_dict(), large.network.state_dict())
    assert len(small.memory) == 8
    other = learned(2, replay_weight=1, memory=24, max_phases=3)
    assert not same_tensors(large.network.state_dict(), other.network.state_dict())


def share_right(method: Method) -> float:
    """Share of the test images of two tasks predicted rightly among all classes."""
    right = []
    for index in range(2):
        images, labels = toy_task(index).test.batch(slice(None))
        right.append(method.predict(images, None) == labels)
    return float(torch.cat(right).float().mean())


def test_remembers_what_finetuning_forgets() -> None:
    plain = toy_method("finetune", incremental="class")
    plain.start()
    for index in range(2):
        finish(plain.learn(toy_task(index)))
    assert share_right(plain) <= 0.5
    # Weighted alike, as there are as many old classes as new ones.
    assert share_right(learned(2, replay_weight=1, output_rewiring=True)) >= 0.9


def test_ends_no_task_for_its_accuracy_before_min_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    method = replay(k=30, min_phases=4, epochs_per_phase=1)
    # By hand: the fall in phases 2 to 4 is let pass (t > 4 is asked for), that in phase 5 counts.
    reached = iter([0.9, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr("nispa.methods.base.accuracy", lambda *_: next(reached))
    _, report = finish(method.learn(toy_task(0)))
    assert (report.phases, report.stop_reason) == (5, "accuracy_drop")


@pytest.mark.parametrize(("keep", "expected"), [("last", 0.5), ("best", 0.9)])
def test_the_epoch_kept_decides(
    keep: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = replay(keep=keep, max_phases=3)
    reached = iter([0.8, 0.9, 0.5] * 3)
    monkeypatch.setattr("nispa.methods.base.accuracy", lambda *_: next(reached))
    events, _ = finish(method.learn(toy_task(0)))
    assert [end.accuracy for end in events if isinstance(end, PhaseEnd)] == [expected] * 3


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_restart_changes_no_logit_of_a_seen_class(network: str) -> None:
    images, _ = toy_task(0).test.batch(slice(None))
    logits = []
    for restart in (False, True):
        method = replay(network, max_phases=3, restart=restart)
        finish(method.learn(toy_task(0)))
        with torch.no_grad():
            logits.append(method.network(images))
    assert torch.equal(logits[0][:, :2], logits[1][:, :2])
    assert not torch.equal(logits[0][:, 2:], logits[1][:, 2:])


def test_settling_afresh_changes_no_logit_of_an_earlier_class() -> None:
    images, _ = toy_task(0).test.batch(slice(None))
    logits = []
    for fresh in (False, True):  # with steps so small that drawing alone changes values
        method = learned(1, max_phases=3, accuracy_drop=100, settle_epochs=1, learning_rate=1e-12)
        method.given = replace(method.given, settle_fresh=fresh)
        finish(method.learn(toy_task(1)))
        with torch.no_grad():
            logits.append(method.network(images))
    torch.testing.assert_close(logits[0][:, :2], logits[1][:, :2])
    assert not torch.allclose(logits[0][:, 2:4], logits[1][:, 2:4])
    assert not torch.allclose(logits[0][:, 4:], logits[1][:, 4:])


def test_validation_counts_each_class_seen_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    method = learned(1, max_phases=3, validate="seen", memory=24)
    # By hand: 3 of 4 new images right, 6 of the 24 remembered ones: (2 * 0.25 + 2 * 0.75) / 4.
    monkeypatch.setattr("nispa.methods.base.accuracy", lambda *_: 0.75)
    labels = method.memory.labels
    shown = labels.clone()
    shown[6:] = 3 - shown[6:]  # a class of the new task
    rows = iter(functional.one_hot(shown, 6).float().split(512))
    monkeypatch.setattr(method.network, "forward", lambda _: next(rows))
    task = toy_task(1)
    classes = method.class_mask(range(4))
    assert method.validate(task, classes, task.validation) == pytest.approx(0.5)


def test_an_output_is_brought_up_to_its_share_of_connections() -> None:
    method = replay(output_rewiring=True)
    head, kept = method.network.layers["head"], method.topology.no_units()
    kept["fc2"][:5] = True  # of 12
    kept["output"][:2] = True  # of 6
    before = head.pattern
    share = head.live_count // 6
    assert share == 7  # 0.6 * 12 * 6 = 43 connections
    changes = method.rewire_outputs(kept, torch.Generator().manual_seed(0))
    after = head.pattern
    # More than the five kept units cannot be read: the rest is owed, and other outputs get nothing.
    assert after[:2, :5].all()
    assert not after[:2, 5:].any()
    assert torch.equal(after[2:], before[2:])
    dropped, grown = int(before[:2, 5:].sum()), int((~before[:2, :5]).sum())
    assert method.owed["head"] == dropped - grown > 0
    assert changes["head"].dropped == dropped
    assert changes["head"].ungrown == dropped - grown
    assert len(changes["head"].grown) == grown
    # Once more units are kept, the debt is paid, and no output gets more than its share.
    kept["fc2"][:10] = True
    method.rewire_outputs(kept, torch.Generator().manual_seed(0))
    assert head.live_count + method.owed["head"] == int(before.sum())
    assert int(head.pattern[:2].sum(1).max()) <= share
    assert method.owed["head"] < dropped - grown


def test_goes_on_from_a_state_bit_by_bit() -> None:
    first, second = learned(2, max_phases=3), replay(start=False, max_phases=3)
    second.learned = list(first.learned)
    second.load_state(first.state())
    for method in (first, second):
        finish(method.learn(toy_task(2)))
    assert same_tensors(first.state().tensors, second.state().tensors)
    assert first.state().values == second.state().values
    assert len(first.memory) == 24


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("memory.labels", None),
        ("memory.labels", torch.full((24,), 9)),
        ("memory.labels", torch.full((24,), -1)),
        ("memory.places", torch.zeros(24)),
        ("memory.images", torch.zeros(24, 1, 5, 5, dtype=torch.uint8)),
        ("memory.images", torch.zeros(25, 1, 4, 4, dtype=torch.uint8)),
        ("stable.fc1", torch.ones(3, dtype=torch.bool)),
    ],
)
def test_a_damaged_state_is_refused(name: str, damaged: Tensor | None) -> None:
    state = learned(1, max_phases=3).state()
    tensors = {key: value for key, value in state.tensors.items() if key != name}
    if damaged is not None:
        tensors[name] = damaged
    method = learned(1, max_phases=3, seed=1)
    before = method.state()
    with pytest.raises(FormatError):
        method.load_state(MethodState(tensors, state.values))
    assert same_tensors(method.state().tensors, before.tensors)
    with pytest.raises(FormatError, match="memory"):
        method.load_state(MethodState(state.tensors, {"owed": state.values["owed"]}))


def test_a_memory_of_tasks_not_learned_is_refused() -> None:
    state = learned(2, max_phases=3).state()
    method = learned(1, max_phases=3)
    with pytest.raises(FormatError, match="not learned"):
        method.load_state(state)


def test_a_memory_smaller_than_the_classes_is_refused_before_learning() -> None:
    method = replay(memory=3, max_phases=3)
    finish(method.learn(toy_task(0)))
    before = method.state()
    with pytest.raises(ConfigError, match="memory=3 must be at least 4, one sample for each class"):
        finish(method.learn(toy_task(1)))
    assert same_tensors(method.state().tensors, before.tensors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replay_weight": -1}, "replay_weight=-1 must be"),
        ({"lambda": -0.5}, "replay_weight=-0.5 must be"),
        ({"memory": 0}, "memory=0 must be"),
        ({"min_phases": 1}, "min_phases=1 must be"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(NispaReplayConfig, values)


def test_predicts_among_all_classes_seen_or_those_of_the_task() -> None:
    method = replay(max_phases=3)
    images = toy_task(0).test.batch(slice(None))[0]
    with pytest.raises(NotLearnedError):
        method.predict(images, None)
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert set(method.predict(images, None).tolist()) <= {0, 1, 2, 3}
    assert set(method.predict(images, toy_task(1).info).tolist()) <= {2, 3}


def test_counts_the_bytes_of_its_memory() -> None:
    # 24 images of 16 bytes, and two numbers of 8 bytes for each.
    assert learned(1, max_phases=3).census().storage == {"memory": 24 * (16 + 16)}
