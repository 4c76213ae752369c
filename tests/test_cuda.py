"""The same code on a GPU: invariants hold there, and the result is as good."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from nispa.devices import choose_device
from nispa.learner import make_method
from nispa.methods.base import Method, PhaseEnd
from nispa.models import build_network
from nispa.operations import Ledger, counting
from nispa.presets import Settings
from nispa.training import (
    ClassMask,
    OptimiserConfig,
    batch_of,
    gradient_step,
    make_optimiser,
    network_step,
)

from .methods.toy import accuracy_on, finish, same_tensors, toy_method, toy_problem, toy_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def on_gpu(name: str, network: str = "mlp") -> Method:
    model = toy_method(name, network)
    settings = Settings(name, "default", model.network_config, model.config)
    method = make_method(settings, toy_problem(), seed=0, device="cuda")
    method.start()
    return method


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_nispa_learns_and_forgets_nothing_on_a_gpu(network: str) -> None:
    method = on_gpu("nispa", network)
    images = toy_task(0).test.to(method.device).batch(slice(None))[0]
    finish(method.learn(toy_task(0)))
    with torch.no_grad():
        before = method.network(images)[:, :2]  # type: ignore[attr-defined]
    events, _ = finish(method.learn(toy_task(1)))
    with torch.no_grad():
        after = method.network(images)[:, :2]  # type: ignore[attr-defined]
    assert torch.equal(before, after)
    assert any(isinstance(event, PhaseEnd) for event in events)
    labels = toy_task(1).test.labels.to(method.device)
    predicted = method.predict(
        toy_task(1).test.to(method.device).batch(slice(None))[0], toy_task(1).info
    )
    assert float((predicted == labels).float().mean()) >= 0.9


@pytest.mark.parametrize("name", ["finetune", "joint", "stl"])
def test_other_methods_run_on_a_gpu(name: str) -> None:
    method = on_gpu(name)
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert method.census().live > 0


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_operations_are_those_of_the_cpu(network: str) -> None:
    tables = []
    for method in (toy_method("ewc", network), on_gpu("ewc", network)):
        method.start()
        ledger = Ledger()
        with counting(ledger):
            finish(method.learn(toy_task(0)))
        tables.append(ledger.table())
    assert tables[0] == tables[1]


def test_a_state_moves_between_devices() -> None:
    method = on_gpu("nispa")
    finish(method.learn(toy_task(0)))
    other = toy_method("nispa")
    other.load_state(method.state())
    assert same_tensors(other.state().tensors, method.state().tensors)
    assert accuracy_on(other, toy_task(0)) >= 0.9
    assert choose_device("cuda:0").index == 0


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_the_steps_one_by_one(
    network: str, precision: Literal["float32", "bfloat16"]
) -> None:
    model = toy_method("nispa", network)
    config = replace(model.network_config, precision=precision)
    task = toy_task(0)
    samples = task.train.to(torch.device("cuda"))
    mask = ClassMask(task.classes, 6, "slice", samples.labels.device)
    found = []
    for record in (False, True):
        net = build_network(config, samples.shape, 6, seed=0).cuda()
        optimiser = make_optimiser(OptimiserConfig(learning_rate=1e-3), net.parameters())
        step = network_step(net, mask.loss, optimiser)
        if not record:
            step = gradient_step(lambda x, y, net=net: mask.loss(net(x), y), optimiser)  # type: ignore[misc]
        losses = []
        for size in (32, 32, 32, 7, 32):  # the fourth batch has a shape of its own
            index = torch.arange(size, device="cuda")
            losses.append(float(step(batch_of(samples, index))))
        found.append((losses, [values.detach().clone() for values in net.parameters()]))
    (plain, before), (recorded, after) = found
    assert recorded == pytest.approx(plain, rel=1e-3)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
