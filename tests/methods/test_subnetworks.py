"""Methods that give each task a part of one network: exact gradients, and nothing forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError, NotLearnedError
from nispa.methods import METHODS
from nispa.methods.base import MethodState
from nispa.methods.parts import hidden_layers
from nispa.methods.subnetworks import MaskedPass, Numbered, Subnetworks, live_index
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork
from nispa.network.operations import Ledger, counting
from nispa.network.taskmasks import decoded
from nispa.training.fit import Batch

from .toy import (
    INPUT_SHAPE,
    NETWORKS,
    accuracy_on,
    finish,
    same_tensors,
    toy_method,
    toy_task,
)

METHODS_HERE = ("wsn", "piggyback")


def made(name: str, network: str = "mlp", **values: Any) -> Subnetworks:
    method = toy_method(name, network, tasks=4, **values)
    assert isinstance(method, Subnetworks)
    method.start()
    return method


def own_logits(method: Subnetworks, task: Task) -> Tensor:
    images, _ = task.test.batch(slice(None))
    with torch.no_grad():
        logits: Tensor = method.network_for(task.info).eval()(images)
    return logits[:, list(task.classes)]


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("network", NETWORKS)
def test_learns_and_forgets_nothing(name: str, network: str) -> None:
    method = made(name, network, network_settings={"density": 1.0})
    seen: list[Tensor] = []
    for index in range(4):
        finish(method.learn(toy_task(index)))
        seen.append(own_logits(method, toy_task(index)))
        for earlier in range(index + 1):
            assert torch.equal(own_logits(method, toy_task(earlier)), seen[earlier])
            assert accuracy_on(method, toy_task(earlier)) >= 0.9


OPTIMISERS: list[dict[str, Any]] = [
    {"optimiser": "adamw", "learning_rate": 0.1, "weight_decay": 0.1},
    {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"optimiser": "adadelta", "learning_rate": 1.0, "decay": "linear"},
]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    network=st.sampled_from(sorted(NETWORKS)),
    density=st.sampled_from([0.3, 0.7, 1.0]),
    chosen=st.sampled_from(
        [
            ("wsn", {"capacity": 0.01}),
            ("wsn", {"capacity": 0.5}),
            ("wsn", {"capacity": 1.0}),
            ("piggyback", {"mask_rate": 0.1}),
            ("piggyback", {"mask_rate": 0.1, "first_value": 0.006}),  # many bits change
        ]
    ),
    optimiser=st.sampled_from(OPTIMISERS),
    keep=st.sampled_from(["best", "last"]),
)
def test_whatever_is_learned_later_old_logits_stay(
    seed: int,
    network: str,
    density: float,
    chosen: tuple[str, dict[str, Any]],
    optimiser: dict[str, Any],
    keep: str,
) -> None:
    name, values = chosen
    shape = {"density": density}
    values = {"epochs": 2, "keep": keep} | values | optimiser
    method = made(name, network, seed=seed, network_settings=shape, **values)
    assume(not {0, 1} <= set(method.unreached))  # it would refuse the first task
    seen: list[Tensor] = []
    for index in range(4):
        finish(method.learn(toy_task(index)))
        seen.append(own_logits(method, toy_task(index)))
        for earlier, logits in enumerate(seen):
            assert torch.equal(own_logits(method, toy_task(earlier)), logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_of_a_masked_pass_are_those_of_autograd(network: str) -> None:
    """Weights times bits as one graph, with half the connections frozen."""
    spec = NetworkSpec(build(NetworkConfig, NETWORKS[network]), INPUT_SHAPE, 6)
    net, reference = spec.draw(3), spec.draw(3)
    random = torch.Generator().manual_seed(1)
    numbers, bits = {}, {}
    for name, layer in net.layers.items():
        half = torch.rand(layer.shape, generator=random) < 0.5
        layer.freeze(half, torch.rand(layer.shape[0], generator=random) < 0.5)
        if name in hidden_layers(net):
            numbers[name] = torch.rand(layer.live_count, generator=random)
            bits[name] = torch.rand(layer.live_count, generator=random) < 0.6
    numbered = Numbered(net, numbers)
    masked = MaskedPass(numbered, spec.empty(), functional.cross_entropy)
    images, labels = toy_task(0).train.batch(slice(None))
    masked.take(bits)
    loss = masked.gradients(Batch(images, labels, labels, 1, 1), lambda number, bit: bit * 3)

    # The same by autograd: w m with m real, so that its gradient can be asked for.
    factors = {name: each.float().requires_grad_() for name, each in bits.items()}
    weights = {}
    for name, layer in reference.layers.items():
        whole = layer.weight.detach().clone().requires_grad_()
        factor = factors.get(name, torch.ones(len(whole)))
        weights[name] = whole
        del layer.weight
        layer.weight = whole * factor.view(-1, *(1,) * (whole.dim() - 1))  # type: ignore[assignment]
    expected = functional.cross_entropy(reference(images), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, layer in net.layers.items():
        plastic = torch.isin(live_index(layer), layer.plastic_index)
        of_weight, bias = weights[name].grad, reference.layers[name].bias.grad
        assert of_weight is not None
        assert bias is not None
        torch.testing.assert_close(layer.weight.grad, of_weight[plastic])
        torch.testing.assert_close(layer.bias.grad, bias[layer.bias_index])
        if name in factors:
            wanted = factors[name].grad
            assert wanted is not None
            torch.testing.assert_close(numbered.numbers[name].grad, 3 * wanted)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_task_is_predicted_with_its_own_connections_alone(name: str) -> None:
    method = made(name, network_settings={"density": 1.0})
    for index in range(3):
        finish(method.learn(toy_task(index)))
    for index in range(3):
        network = method.network_for(toy_task(index).info)
        for layer_name, bits in method.masks.of(index).items():
            layer, whole = network.layers[layer_name], method.network.layers[layer_name]
            own = live_index(whole)[bits]
            assert torch.equal(live_index(layer), own)
            assert len(layer.plastic_index) == 0
            expected = whole.dense_weight().flatten()[own]
            assert torch.equal(layer.frozen_weight, expected)
        # Into the outputs: those of the task's two classes, from twelve units.
        first = 12 * toy_task(index).classes[0]
        own = network.layers["head"].frozen_index
        assert own.tolist() == list(range(first, first + 24))


@pytest.mark.parametrize("name", METHODS_HERE)
def test_hidden_biases_are_learned_with_the_first_task_alone(name: str) -> None:
    method = made(name)
    finish(method.learn(toy_task(0)))
    before = {each: layer.dense_bias() for each, layer in hidden_layers(method.network).items()}
    assert all(bool((bias != 0).any()) for bias in before.values())
    finish(method.learn(toy_task(1)))
    for each, layer in hidden_layers(method.network).items():
        assert torch.equal(layer.dense_bias(), before[each])
        assert len(layer.bias) == 0
    assert method.network.layers["head"].frozen_bias_index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", METHODS_HERE)
def test_every_connection_is_counted_in_training_and_the_task_s_own_in_prediction(
    name: str,
) -> None:
    method = made(name, epochs=2, network_settings={"density": 1.0})
    finish(method.learn(toy_task(0)))
    ledger = Ledger()
    with counting(ledger):
        finish(method.learn(toy_task(1)))
    live = [layer.live_count for layer in method.network.layers.values()]
    assert live == [256, 192, 8 * 12]
    table = ledger.table()
    assert table["forward"] == 96 * 2 * sum(live)  # 48 images, twice
    assert table["weight_gradients"] == 96 * 2 * sum(live)
    assert table["input_gradients"] == 96 * 2 * (192 + 96)
    assert table["validation"] == 2 * 16 * 2 * sum(live)
    # Adam takes 13 for each number, free weight and free output.
    numbers, outputs = 256 + 192, 6 * 12 + 6  # eight outputs, two of them frozen
    bits = method.masks.of(0)
    free = sum(int((~bits[each]).sum()) for each in hidden_layers(method.network))
    assert table["updates"] == 12 * 13 * (numbers + outputs + free)
    images, _ = toy_task(1).test.batch(slice(0, 1))
    ledger = Ledger()
    with counting(ledger):
        method.predict(images, toy_task(1).info)
    own = sum(int(bits.sum()) for bits in method.masks.of(1).values())
    assert ledger.table() == {"other": 2 * own}


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_bytes_of_masks_are_those_of_the_file(name: str) -> None:
    method = made(name)
    sizes = []
    for index in range(3):
        finish(method.learn(toy_task(index)))
        sizes.append(method.census().storage["masks"])
    tensors = method.state().tensors
    stored = {each: data for each, data in tensors.items() if each.startswith("mask.")}
    assert sizes[-1] == sum(len(data) for data in stored.values())
    assert all(data.dtype == torch.uint8 for data in stored.values())
    for each, bits in method.masks.tensors().items():
        assert torch.equal(decoded(stored[f"mask.{each}"], *bits.shape), bits)


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("network", NETWORKS)
def test_saved_it_goes_on_identically(name: str, network: str) -> None:
    method, other = made(name, network), made(name, network)
    for index in (0, 1):
        finish(method.learn(toy_task(index)))
    other.load_state(method.state())
    other.learned = list(method.learned)
    assert torch.equal(own_logits(other, toy_task(0)), own_logits(method, toy_task(0)))
    for each in (method, other):
        finish(each.learn(toy_task(2)))
    assert same_tensors(method.state().tensors, other.state().tensors)
    assert method.state().values == other.state().values == {"tasks": [0, 1, 2]}


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_layer_without_connections_is_no_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparseNetwork, "unreached", lambda self: ())  # or it would be refused
    shape = {"density": 0.001, "mask": "bernoulli"}
    method = made(name, epochs=1, network_settings=shape)
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert 0 in [layer.live_count for layer in method.network.layers.values()]
    made(name, epochs=1, network_settings=shape).load_state(method.state())


@pytest.mark.parametrize("name", METHODS_HERE)
def test_must_be_told_a_task_that_it_has_learned(name: str) -> None:
    method = made(name, epochs=1)
    finish(method.learn(toy_task(0)))
    images, _ = toy_task(0).test.batch(slice(None))
    with pytest.raises(NotLearnedError, match="told the task"):
        method.predict(images, None)
    with pytest.raises(NotLearnedError, match="not been learned yet"):
        method.predict(images, TaskInfo(1, (2, 3)))


def no_layer(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors.pop("mask.fc1")


def cut_short(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc1"][:-1]


def another_layer(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["mask.fc1"] = tensors["mask.fc2"]


def a_task_more(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = [0, 1]


def more_tasks_than_outputs(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = list(range(1_000_000))


def no_task(_: dict[str, Tensor], values: dict[str, Any]) -> None:
    values["tasks"] = []


def a_free_connection_owned(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    """One frozen connection less than the mask says."""
    path = next(each for each in tensors if each.endswith("frozen_index")).rpartition(".")[0]
    for kind in ("weight", "index"):
        tensors[f"{path}.frozen_{kind}"] = tensors[f"{path}.frozen_{kind}"][1:]


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize(
    "damage",
    [
        no_layer,
        cut_short,
        another_layer,
        a_task_more,
        more_tasks_than_outputs,
        no_task,
        a_free_connection_owned,
    ],
)
def test_a_damaged_state_is_refused(
    name: str, damage: Callable[[dict[str, Tensor], dict[str, Any]], None]
) -> None:
    method = made(name, epochs=1)
    finish(method.learn(toy_task(0)))
    state = method.state()
    tensors, values = dict(state.tensors), dict(state.values)
    made(name).load_state(MethodState(tensors, values))
    damage(tensors, values)
    with pytest.raises(FormatError):
        made(name).load_state(MethodState(tensors, values))


def test_these_are_all_methods_of_the_kind() -> None:
    kinds = {name for name, method in METHODS.items() if issubclass(method, Subnetworks)}
    assert kinds == {*METHODS_HERE, "supsup"}  # its network never learns: test_supsup.py
