"""The same code on a GPU: invariants hold there, and the result is as good."""

from __future__ import annotations

import pytest
import torch

from nispa.devices import choose_device
from nispa.learner import make_method
from nispa.methods.base import Method, PhaseEnd
from nispa.presets import Settings

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


def test_a_state_moves_between_devices() -> None:
    method = on_gpu("nispa")
    finish(method.learn(toy_task(0)))
    other = toy_method("nispa")
    other.load_state(method.state())
    assert same_tensors(other.state().tensors, method.state().tensors)
    assert accuracy_on(other, toy_task(0)) >= 0.9
    assert choose_device("cuda:0").index == 0
