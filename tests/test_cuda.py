"""The same code on a GPU: every method learns there, and what must not change does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.devices import choose_device
from nispa.data.tasks import Task
from nispa.methods import METHODS
from nispa.methods.base import Method, PhaseEnd
from nispa.network.models import SparseNetwork, build_network
from nispa.network.operations import Ledger, counting
from nispa.training.fit import (
    ClassMask,
    OptimiserConfig,
    batch_of,
    gradient_step,
    make_optimiser,
    network_step,
)
from nispa.training.pausing import FitBegin, FitPause, FitState

from .methods.toy import FREEZES, finish, same_tensors, toy_method, toy_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GPU = torch.device("cuda")


def on(device: str, name: str, network: str = "mlp", **changes: object) -> Method:
    """A toy method on a device, not started."""
    return toy_method(name, network, device=torch.device(device), **changes)  # type: ignore[arg-type]


def on_gpu(name: str, network: str = "mlp", **changes: object) -> Method:
    method = on("cuda", name, network, **changes)
    method.start()
    return method


def accuracy_on(method: Method, task: Task) -> float:
    images, labels = task.test.to(method.device).batch(slice(None))
    return float((method.predict(images, task.info) == labels).float().mean())


def logits_of(method: Method, task: Task) -> Tensor:
    """What a method that forgets nothing makes of a task's test images, for its classes."""
    images = task.test.to(method.device).batch(slice(None))[0]
    network = getattr(method, "network", None)
    if method.name in ("packnet", "wsn", "piggyback", "supsup"):
        network = method.network_for(task.info)
    elif method.name.startswith("stl"):
        network = method.networks[task.index]  # type: ignore[attr-defined]
    assert isinstance(network, SparseNetwork)
    with torch.no_grad():
        found: Tensor = network.eval()(images)[:, list(task.classes)]
    return found.clone()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name: str) -> None:
    method = on_gpu(name)
    for index in range(2):
        finish(method.learn(toy_task(index)))
        assert accuracy_on(method, toy_task(index)) >= 0.9
    assert method.census().live > 0
    for values in method.state().tensors.values():
        assert values.device.type == "cpu"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("name", sorted(FREEZES))
def test_what_freezes_keeps_its_logits(name: str, network: str, precision: str) -> None:
    method = on_gpu(name, network, network_settings={"precision": precision})
    before: list[Tensor] = []
    for index in range(3):
        events, _ = finish(method.learn(toy_task(index)))
        assert any(isinstance(event, PhaseEnd) for event in events)
        for task, logits in enumerate(before):
            assert torch.equal(logits, logits_of(method, toy_task(task)))
        before.append(logits_of(method, toy_task(index)))


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_frozen_values_are_the_same_bits(network: str) -> None:
    method = on_gpu("nispa", network)
    finish(method.learn(toy_task(0)))
    layers = method.network.layers
    before = {
        name: (layer.frozen_index.clone(), layer.frozen_weight.clone())
        for name, layer in layers.items()
    }
    finish(method.learn(toy_task(1)))
    for name, (index, values) in before.items():
        layer = layers[name]
        still = torch.isin(layer.frozen_index, index)
        assert torch.equal(layer.frozen_index[still], index)
        assert torch.equal(layer.frozen_weight[still], values)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_moves_between_devices(name: str) -> None:
    method = on_gpu(name)
    finish(method.learn(toy_task(0)))
    state = method.state()
    for device in ("cpu", "cuda"):
        other = on(device, name)
        other.learned = list(method.learned)
        other.load_state(state)
        assert same_tensors(other.state().tensors, state.tensors)
        assert accuracy_on(other, toy_task(0)) >= 0.9
        finish(other.learn(toy_task(1)))
        assert accuracy_on(other, toy_task(1)) >= 0.9
    assert choose_device("cuda:0").index == 0


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_result(name: str) -> None:
    states = []
    for _ in range(2):
        method = on_gpu(name)
        for index in range(2):
            finish(method.learn(toy_task(index)))
        states.append(method.state())
    assert same_tensors(states[0].tensors, states[1].tensors)


@pytest.mark.parametrize("name", METHODS)
def test_a_task_goes_on_in_another_process_where_it_was_left(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nispa.training.fit.PAUSE_S", 0.0)
    whole = on_gpu(name)
    finish(whole.learn(toy_task(0)))
    first = on_gpu(name)
    saved: list[FitState] = []
    learning, seen, fits = first.learn(toy_task(0)), 0, 0
    for event in learning:
        if isinstance(event, FitBegin):
            fits += 1
            saved.append(FitState({}, {}))
        elif isinstance(event, FitPause):
            seen += 1
            saved[-1] = event.state()
            if seen == 30:
                break
    second = on_gpu(name)
    learning = second.learn(toy_task(0))
    left, event = list(saved), next(learning)
    try:
        while True:
            sent = isinstance(event, FitBegin) and left
            event = learning.send(left.pop(0)) if sent else next(learning)
    except StopIteration:
        pass
    assert fits
    ended, other = whole.state(), second.state()
    assert ended.tensors.keys() == other.tensors.keys()
    for key, values in ended.tensors.items():
        torch.testing.assert_close(values, other.tensors[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("name", METHODS)
def test_operations_are_those_of_the_cpu(name: str, network: str) -> None:
    tables = []
    for method in (toy_method(name, network), on_gpu(name, network)):
        method.start()
        ledger = Ledger()
        with counting(ledger):
            finish(method.learn(toy_task(0)))
        tables.append(ledger.table())
    if name.startswith(("nispa", "clnp")):  # decisions may differ in rounding, passes with them
        assert tables[0].keys() == tables[1].keys()
    else:
        assert tables[0] == tables[1]


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "adadelta"])
@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_the_steps_one_by_one(
    network: str,
    precision: Literal["float32", "bfloat16"],
    optimiser: Literal["adam", "adamw", "sgd", "adadelta"],
) -> None:
    model = toy_method("nispa", network)
    config = replace(model.network_config, precision=precision)
    task = toy_task(0)
    samples = task.train.to(GPU)
    mask = ClassMask(task.classes, 6, "slice", GPU)
    found = []
    for record in (False, True):
        net = build_network(config, samples.shape, 6, seed=0).cuda()
        update = make_optimiser(
            OptimiserConfig(optimiser=optimiser, learning_rate=1e-3), net.parameters()
        )
        step = network_step(net, mask.loss, update)
        if not record:
            step = gradient_step(lambda x, y, net=net: mask.loss(net(x), y), update)  # type: ignore[misc]
        losses: list[Tensor] = []
        for size in (32, 32, 32, 7, 32, 32):  # the fourth batch has a shape of its own
            index = torch.arange(size, device="cuda")
            update.param_groups[0]["lr"] = 1e-3 / (1 + len(losses))
            losses.append(step(batch_of(samples, index)))
        values = [each.detach().clone() for each in net.parameters()]
        found.append((torch.stack(losses), values))
    (plain, before), (recorded, after) = found
    torch.testing.assert_close(recorded, plain, rtol=1e-3, atol=1e-4)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_gradients_are_those_of_the_cpu(network: str) -> None:
    model = toy_method("nispa", network)
    samples, found = toy_task(0).train, []
    for device in ("cpu", "cuda"):
        net = build_network(model.network_config, samples.shape, 6, seed=0).to(device).double()
        images, labels = samples.to(torch.device(device)).batch(slice(None))
        net.gradients(images.double(), labels, functional.cross_entropy)
        found.append([v.grad.cpu() for v in net.parameters() if v.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_prepared_images_are_the_images(network: str) -> None:
    net = on_gpu("nispa", network).network
    samples = toy_task(0).train.to(GPU)
    ready = net.prepare(samples, 2**20)
    assert ready is not samples
    index = torch.tensor([3, 0, 7], device=GPU)
    for one, other in zip(ready.batch(index), samples.batch(index), strict=True):
        assert torch.equal(one, other)
    for part, plain in zip(ready.batches(10), samples.batches(10), strict=True):
        assert torch.equal(part[0], plain[0])
        assert torch.equal(part[1], plain[1])
    assert net.prepare(samples, 10) is samples


def test_a_copy_of_a_network_keeps_weights_of_its_own() -> None:
    net = on_gpu("nispa").network
    images = toy_task(0).train.to(GPU).batch(slice(None))[0]
    with torch.no_grad():
        before = net(images).clone()
        other = copy.deepcopy(net)
        for values in other.parameters():
            values.mul_(2)
        assert not torch.equal(other(images), before)
        assert torch.equal(net(images), before)
