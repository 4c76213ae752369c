"""PackNet: which connection belongs to which task, and what no later one reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa.base.config import build
from nispa.data.tasks import Samples, Task, TaskInfo
from nispa.errors import ConfigError, FormatError, NispaError, NotLearnedError
from nispa.methods.base import MethodState, PhaseEnd, PhaseStart, Problem
from nispa.methods.packnet import PackNet, PackNetConfig, smallest
from nispa.network.models import NetworkConfig, SparseNetwork

from .toy import NETWORKS, accuracy_on, finish, same_tensors, toy_problem, toy_task

STILL = 1e-30
"""A learning rate that moves no value of ordinary size."""


def packnet(
    network: dict[str, object] | str = "mlp", *, seed: int = 0, **values: object
) -> PackNet:
    """PackNet on the toy problem, started."""
    shape = NETWORKS[network] if isinstance(network, str) else network
    fast = {"batch_size": 8, "epochs": 20}
    made = PackNet(
        toy_problem(4),
        build(NetworkConfig, shape),
        build(PackNetConfig, fast | values),
        seed=seed,
    )
    made.start()
    return made


def tiny(shape: dict[str, object], images: tuple[int, int, int] = (1, 1, 2)) -> PackNet:
    """PackNet on four outputs that prunes a half and moves no weight."""
    made = PackNet(
        Problem(images, 4, 2),
        build(NetworkConfig, {"density": 1.0} | shape),
        build(
            PackNetConfig,
            {"learning_rate": STILL, "epochs": 1, "retrain_epochs": 1, "prune": (0.5,)},
        ),
        seed=0,
    )
    made.start()
    return made


def task_of(place: int, images: tuple[int, int, int] = (1, 1, 2)) -> Task:
    """Four random images of the two classes of the task at ``place``."""
    classes = (2 * place, 2 * place + 1)
    pixels = torch.rand((4, *images), generator=torch.Generator().manual_seed(place))
    samples = Samples(pixels, torch.tensor([*classes, *classes]))
    return Task(place, "random", classes, samples, samples, samples)


def set_weight(method: PackNet, name: str, values: list[float]) -> None:
    """Sets the plastic weights of a layer, in order of position."""
    layer = method.network.layers[name]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values).view_as(layer.weight))


@pytest.mark.parametrize(
    ("sizes", "share", "places"),
    [
        ([3.0, 1.0, 2.0, 4.0], 0.5, [1, 2]),
        ([3.0, 1.0, 2.0, 4.0], 0.0, []),
        ([3.0, 1.0, 2.0, 4.0], 0.99, [1, 2, 0]),  # all but one
        ([2.0, 1.0, 1.0, 1.0], 0.5, [1, 2]),  # of equals the first
        ([1.0], 0.9, []),
        ([], 0.5, []),
    ],
)
def test_smallest(sizes: list[float], share: float, places: list[int]) -> None:
    assert smallest(torch.tensor(sizes), share).tolist() == places


def test_ownership_after_two_tasks_by_hand() -> None:
    method = tiny({"hidden": (2,)})
    set_weight(method, "fc1", [0.1, -0.9, 0.5, 0.3])
    set_weight(method, "head", [1, 2, 3, 4, 5, 6, 7, 8])
    finish(method.learn(task_of(0)))
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    assert first.frozen.int().tolist() == [[0, 1], [1, 0]]
    assert method.owners.places["fc1"].tolist() == [0, 0]
    assert first.plastic_index.tolist() == [0, 3]
    assert first.weight.tolist() == [0.0, 0.0]
    assert head.frozen_index.tolist() == [0, 1, 2, 3]
    assert head.weight.tolist() == [5.0, 6.0, 7.0, 8.0]

    set_weight(method, "fc1", [0.7, -0.2])
    finish(method.learn(task_of(1)))
    assert method.owners.tasks == [0, 1]
    assert first.frozen_index.tolist() == [0, 1, 2]
    assert method.owners.places["fc1"].tolist() == [1, 0, 0]
    assert first.plastic_index.tolist() == [3]
    assert method.owners.places["head"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]

    views = [method.network_for(task_of(place).info) for place in (0, 1)]
    images = torch.tensor([[[[1.0, 0.5]]]])
    assert views[0].layers["fc1"].pattern.int().tolist() == [[0, 1], [1, 0]]
    assert views[1].layers["fc1"].pattern.int().tolist() == [[1, 1], [1, 0]]
    # hidden units of task 0: relu(-0.45) and 0.5; of task 1: 0.7 - 0.45 = 0.25 and 0.5
    logits = [view(images)[0].detach() for view in views]
    torch.testing.assert_close(logits[0][:2], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(logits[1][2:], torch.tensor([4.25, 5.75]))


def test_a_kernel_is_kept_or_freed_as_one() -> None:
    shape = {"architecture": "convnet", "channels": (4,), "fc": (), "pool_every": 2}
    method = tiny(shape, (1, 3, 3))
    kernels = torch.zeros(4, 3, 3)
    kernels[0, 0, 0] = 5.0  # the largest weight, but not the largest kernel
    kernels[1] = 1.0
    kernels[2] = -0.8
    kernels[3] = 0.1
    set_weight(method, "conv1", kernels.flatten().tolist())
    finish(method.learn(task_of(0, (1, 3, 3))))
    layer = method.network.layers["conv1"]
    assert layer.frozen_index.tolist() == [1, 2]
    assert torch.equal(layer.frozen_weight, kernels[1:3])
    assert torch.equal(layer.weight, torch.zeros(2, 3, 3))


def test_freed_connections_are_dead_while_the_rest_is_trained_again() -> None:
    method = packnet({"hidden": (16, 12), "density": 0.5}, prune=(0.75, 0.5))
    live = {}
    for event in method.learn(toy_task(0)):
        if isinstance(event, PhaseStart | PhaseEnd):
            layers = method.network.layers
            live[type(event).__name__, event.phase] = [layers[name].live_count for name in layers]
        if isinstance(event, PhaseEnd) and event.phase == 1:
            assert event.dropped == {"fc1": 96, "fc2": 72}
    # 128, 96 and 48 live connections, of which the hidden layers lose three quarters
    assert live["PhaseStart", 1] == [128, 96, 48]
    assert live["PhaseEnd", 1] == live["PhaseStart", 2] == live["PhaseEnd", 2] == [32, 24, 48]
    counts = {name: layer.live_count for name, layer in method.network.layers.items()}
    assert counts == {"fc1": 128, "fc2": 96, "head": 48}
    finish(method.learn(toy_task(1)))  # half of the 96 and the 72 that were free
    assert [method.network.layers[name].frozen_count for name in ("fc1", "fc2")] == [80, 60]


def test_the_pool_stays_the_first_pattern() -> None:
    method = packnet()
    before = method.network.patterns()
    for index in range(3):
        finish(method.learn(toy_task(index)))
    for name, pattern in method.network.patterns().items():
        assert torch.equal(pattern, before[name])


def test_hidden_biases_are_learned_with_the_first_task_alone() -> None:
    method = packnet()
    finish(method.learn(toy_task(0)))
    names = ("fc1", "fc2")
    before = {name: method.network.layers[name].dense_bias() for name in names}
    assert all(bool((bias != 0).any()) for bias in before.values())
    finish(method.learn(toy_task(1)))
    for name in names:
        assert torch.equal(method.network.layers[name].dense_bias(), before[name])
        assert len(method.network.layers[name].bias) == 0
    assert method.network.layers["head"].frozen_bias_index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("free_values", ["zero", "draw"])
def test_what_free_weights_begin_with(free_values: str) -> None:
    method = packnet(free_values=free_values)
    finish(method.learn(toy_task(0)))
    free = method.network.layers["fc1"].weight
    assert len(free) == 77  # of 154 = round(0.6 * 256) the half
    assert bool((free == 0).all()) == (free_values == "zero")
    assert bool((free != 0).all()) == (free_values == "draw")


def own_logits(method: PackNet, task: Task) -> Tensor:
    images, _ = task.test.batch(slice(None))
    with torch.no_grad():
        logits: Tensor = method.network_for(task.info).eval()(images)
    return logits[:, list(task.classes)]


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
def test_learns_and_forgets_nothing(network: str, density: float) -> None:
    method = packnet(NETWORKS[network] | {"density": density})
    seen: list[Tensor] = []
    for index in range(3):
        finish(method.learn(toy_task(index)))
        seen.append(own_logits(method, toy_task(index)))
        for earlier in range(index + 1):
            assert torch.equal(own_logits(method, toy_task(earlier)), seen[earlier])
            assert accuracy_on(method, toy_task(earlier)) >= 0.9


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    network=st.sampled_from(sorted(NETWORKS)),
    density=st.sampled_from([0.2, 0.7, 1.0]),
    prune=st.sampled_from([(0.0,), (0.5, 0.75), (0.99,)]),
    free_values=st.sampled_from(["zero", "draw"]),
    retrain_epochs=st.integers(0, 2),
)
def test_whatever_is_learned_later_old_logits_stay(
    seed: int,
    network: str,
    density: float,
    prune: tuple[float, ...],
    free_values: str,
    retrain_epochs: int,
) -> None:
    method = packnet(
        NETWORKS[network] | {"density": density},
        seed=seed,
        epochs=2,
        retrain_epochs=retrain_epochs,
        prune=prune,
        free_values=free_values,
        learning_rate=0.1,
        optimiser="adamw",
        weight_decay=0.1,
    )
    assume(not {0, 1} <= set(method.unreached))  # it would refuse the first task
    seen: list[Tensor] = []
    for index in range(3):
        finish(method.learn(toy_task(index)))
        seen.append(own_logits(method, toy_task(index)))
    for index, logits in enumerate(seen):
        assert torch.equal(own_logits(method, toy_task(index)), logits)


def test_the_network_of_a_task_is_the_one_that_was_trained() -> None:
    method = packnet()
    task = toy_task(0)
    images, _ = task.test.batch(slice(None))
    trained = None
    for event in method.learn(task):
        if isinstance(event, PhaseEnd) and event.phase == 2:
            trained = method.network(images)[:, list(task.classes)].detach()
    assert trained is not None
    assert torch.equal(own_logits(method, task), trained)


def test_with_nothing_free_only_the_new_outputs_learn() -> None:
    method = packnet(prune=(0.0,))
    events, report = finish(method.learn(toy_task(0)))
    assert (report.phases, report.stop_reason) == (1, "epochs")  # nothing freed: no second phase
    assert sum(isinstance(event, PhaseStart) for event in events) == 1
    before = own_logits(method, toy_task(0))
    hidden = {name: method.network.layers[name].dense_weight() for name in ("fc1", "fc2")}
    for index in (1, 2, 3):
        _, report = finish(method.learn(toy_task(index)))
        assert (report.phases, report.stop_reason) == (1, "capacity")
        assert accuracy_on(method, toy_task(index)) >= 0.9
    for name, weight in hidden.items():
        assert torch.equal(method.network.layers[name].dense_weight(), weight)
    assert torch.equal(own_logits(method, toy_task(0)), before)


def test_more_tasks_than_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of one connection keeps it for the first task; the others learn with what is left."""
    monkeypatch.setattr(SparseNetwork, "unreached", lambda self: ())  # or it would be refused
    method = packnet({"hidden": (1, 12), "density": 0.001}, prune=(0.9,), epochs=2)
    for index in range(4):
        finish(method.learn(toy_task(index)))
    assert method.census().connections["fc1"] == (1, 1, 16)
    assert method.owners.places["fc1"].tolist() == [0]


def test_without_training_again_there_is_one_phase() -> None:
    method = packnet(retrain_epochs=0)
    events, report = finish(method.learn(toy_task(0)))
    starts = [event for event in events if isinstance(event, PhaseStart)]
    assert [(start.phase, start.phases) for start in starts] == [(1, 1)]
    assert report.phases == 1
    assert report.samples_trained == 20 * 48
    assert method.network.layers["fc1"].frozen_count == 77


@pytest.mark.parametrize("prune", [(1.0,), (-0.1,), (), (0.5, 1.5), "nan"])
def test_shares_that_leave_nothing_or_make_no_sense_are_refused(prune: Any) -> None:
    with pytest.raises(ConfigError, match="prune"):
        build(PackNetConfig, {"prune": prune})


def test_the_last_share_holds_for_all_that_follow() -> None:
    config = build(PackNetConfig, {"prune": "0.5,0.75"})
    assert [config.share(place) for place in range(4)] == [0.5, 0.75, 0.75, 0.75]


def test_must_be_told_a_task_that_it_has_learned() -> None:
    method = packnet()
    finish(method.learn(toy_task(0)))
    images, _ = toy_task(0).test.batch(slice(None))
    with pytest.raises(NotLearnedError, match="told the task"):
        method.predict(images, None)
    with pytest.raises(NotLearnedError, match="not been learned yet"):
        method.predict(images, TaskInfo(1, (2, 3)))


@pytest.mark.parametrize("network", NETWORKS)
def test_saved_it_goes_on_identically(network: str) -> None:
    method, other = packnet(network), packnet(network)
    for index in (0, 1):
        finish(method.learn(toy_task(index)))
    other.load_state(method.state())
    other.learned = list(method.learned)
    assert torch.equal(own_logits(other, toy_task(0)), own_logits(method, toy_task(0)))
    for each in (method, other):
        finish(each.learn(toy_task(2)))
    assert same_tensors(method.state().tensors, other.state().tensors)
    assert method.state().values == other.state().values == {"tasks": [0, 1, 2]}


def test_counts_the_bytes_of_its_masks() -> None:
    method = packnet({"hidden": (16, 12), "density": 1.0}, prune=(0.5,))
    assert method.census().storage == {"masks": 0}
    finish(method.learn(toy_task(0)))
    # half of 16 * 16 and of 16 * 12, and two outputs with 12 connections each; two bytes each
    assert method.census().storage == {"masks": 2 * (128 + 96 + 24)}
    counts = method.census().connections
    assert counts == {"fc1": (256, 128, 256), "fc2": (192, 96, 192), "head": (96, 24, 96)}


def without_a_mask(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors.pop("mask.fc1")


def another_type(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc1"].float()


def another_size(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc1"][:-1]


def a_task_to_come(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc1"] + 1


def no_task_at_all(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc1"] - 1


def tasks_forgotten(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values.pop("tasks")


def tasks_twice(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = [0, 0]


def tasks_of_text(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = ["0"]


def no_task_but_owners(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = []


def a_plastic_bias(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    path = next(name for name in tensors if name.endswith(".bias")).removesuffix(".bias")
    size = len(tensors[f"{path}.frozen_bias"])
    assert size == 16
    for kind, bias in (("", torch.zeros(size)), ("frozen_", torch.zeros(0))):
        tensors[f"{path}.{kind}bias"] = bias
        tensors[f"{path}.{kind}bias_index"] = torch.arange(len(bias))


@pytest.mark.parametrize(
    "damage",
    [
        without_a_mask,
        another_type,
        another_size,
        a_task_to_come,
        no_task_at_all,
        tasks_forgotten,
        tasks_twice,
        tasks_of_text,
        no_task_but_owners,
        a_plastic_bias,
    ],
)
def test_a_damaged_state_is_refused(
    damage: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> None:
    method = packnet(epochs=1, retrain_epochs=1)
    finish(method.learn(toy_task(0)))
    tensors, values = dict(method.state().tensors), dict(method.state().values)
    packnet().load_state(MethodState(tensors, values))
    damage(tensors, values)
    with pytest.raises(FormatError, match=r"task|owner|frozen"):
        packnet().load_state(MethodState(tensors, values))


def test_what_cannot_follow_the_data_is_refused_at_once() -> None:
    with pytest.raises(NispaError, match=r"follows the data 'foo'"):
        build(PackNetConfig, {"derived": ("foo",)})
    with pytest.raises(NispaError, match="augment"):
        build(PackNetConfig, {"augment": "foo"})
