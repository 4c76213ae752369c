"""iCaRL: targets, features, means and exemplars against hand calculation and plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Sequential, functional

from nispa.base.config import build
from nispa.data.tasks import JoinedSamples, TaskInfo
from nispa.errors import ConfigError, FormatError, NotLearnedError, ScenarioError
from nispa.methods.base import Method, MethodState
from nispa.methods.finetune import Finetune
from nispa.methods.icarl import ICarl
from nispa.network.models import NetworkConfig
from nispa.training.fit import batch_of

from .toy import NETWORKS, finish, same_tensors, toy_problem, toy_task


def made(cls: type[Method] = ICarl, network: str = "mlp", **settings: object) -> Method:
    fast = {"learning_rate": 0.01, "batch_size": 8, "epochs": 10, "incremental": "class"}
    method = cls(
        toy_problem(3),
        build(NetworkConfig, NETWORKS[network]),
        build(cls.config_class, fast | settings),
        seed=0,
    )
    method.start()
    return method


def icarl(tasks: int, **settings: object) -> ICarl:
    method = made(**settings)  # type: ignore[arg-type]
    assert isinstance(method, ICarl)
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def seen_right(method: Method, tasks: int) -> float:
    """Mean accuracy on some toy tasks among all classes seen."""
    right = []
    for index in range(tasks):
        images, labels = toy_task(index).test.batch(slice(None))
        right.append(float((method.predict(images, None) == labels).float().mean()))
    return sum(right) / tasks


def test_targets_are_old_outputs_and_new_labels() -> None:
    method = icarl(1, memory=4, epochs=1)
    new = toy_task(1).train.subset(torch.arange(3))  # of classes 2, 3, 2
    union = JoinedSamples((method.exemplars(), new))
    images, _ = union.batch(torch.arange(7))
    with torch.no_grad():
        old = torch.sigmoid(method.network(images)[:, :2])
    targets = method.targets(torch.tensor([0, 1, 2, 3]), union)
    torch.testing.assert_close(targets[:, :2], old)
    assert targets[:, 2:].tolist() == [[0, 0]] * 4 + [[1, 0], [0, 1], [1, 0]]


def test_the_gradient_is_that_of_the_cross_entropy_of_sigmoids() -> None:
    method = icarl(1, memory=4, epochs=1)
    union = JoinedSamples((method.exemplars(), toy_task(1).train))
    batch = batch_of(union, torch.tensor([0, 3, 4, 5, 6]))
    targets = method.targets(torch.tensor([0, 1, 2, 3]), union)[batch.index]
    share = torch.sigmoid(method.network(batch.images)[:, :4])
    loss = -(targets * share.log() + (1 - targets) * (1 - share).log()).mean()
    values = list(method.network.parameters())
    expected = torch.autograd.grad(loss, values)
    found = method.step(toy_task(1), union)(batch)
    torch.testing.assert_close(found, loss.detach())
    for value, gradient in zip(values, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_features_are_what_the_output_layer_reads(network: str) -> None:
    method = icarl(1, network=network, epochs=1)
    images, _ = toy_task(0).test.batch(slice(None))
    body = method.network.body
    assert isinstance(body, Sequential)
    with torch.no_grad():
        read = body[:-1](images)
    assert read.shape == (32, {"mlp": 12, "convnet": 8}[network])
    expected = read / read.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    torch.testing.assert_close(method.features(images), expected)


def test_features_without_a_linear_layer_are_channels_by_pixels() -> None:
    shape = {"architecture": "convnet", "channels": (4, 6), "fc": ()}
    method = ICarl(
        toy_problem(3), build(NetworkConfig, shape), build(ICarl.config_class, {}), seed=0
    )
    method.start()
    images, _ = toy_task(0).test.batch(slice(None))
    assert method.features(images).shape == (32, 6 * 2 * 2)


def test_predicts_the_nearest_mean_of_exemplars() -> None:
    method = icarl(2, memory=20, epochs=3)
    means = []
    for label in range(4):
        exemplars = method.memory.take(method.memory.select(label=label))
        assert len(exemplars) == 5
        mean = method.features(exemplars.images).double().mean(0)
        means.append(mean / mean.norm())
    images, _ = toy_task(0).test.batch(slice(None))
    apart = torch.cdist(method.features(images).double(), torch.stack(means))
    assert torch.equal(method.predict(images, None), apart.argmin(1))
    assert torch.equal(method.predict(images, toy_task(1).info), 2 + apart[:, 2:].argmin(1))


def test_exemplars_are_herded_and_cut_from_the_end() -> None:
    method = icarl(1, memory=12, epochs=1)
    first = method.memory.take(method.memory.select(label=0))
    of_class = toy_task(0).train.subset((toy_task(0).train.labels == 0).nonzero().squeeze(1))
    features = method.features(of_class.batch(slice(None))[0]).double()
    mean = functional.normalize(features.mean(0), dim=0)
    chosen: list[int] = []
    for _ in range(6):  # Algorithm 4 as it stands, without repeats
        apart = [
            float((mean - features[[*chosen, number]].mean(0)).norm())
            if number not in chosen
            else float("inf")
            for number in range(len(features))
        ]
        chosen.append(apart.index(min(apart)))
    torch.testing.assert_close(first.images, of_class.batch(torch.tensor(chosen))[0])
    finish(method.learn(toy_task(1)))
    left = method.memory.take(method.memory.select(label=0))
    assert torch.equal(left.images, first.images[:3])


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_forgets_less_than_finetune(network: str) -> None:
    """Two tasks: the third toy task has images of the first."""
    method, plain = icarl(2, network=network, memory=20), made(Finetune, network)
    for index in range(2):
        finish(plain.learn(toy_task(index)))
    assert seen_right(plain, 2) <= 0.6
    assert seen_right(method, 2) >= 0.9


def test_counts_what_is_stored() -> None:
    """Sixteen bytes of image, label and place of 8 each."""
    assert icarl(2, memory=10, epochs=1).census().storage == {"memory": 10 * 32}


def test_goes_on_identically_from_a_state() -> None:
    first, second = icarl(2, epochs=2), made(epochs=2)
    images, _ = toy_task(1).test.batch(slice(None))
    before = first.predict(images, None)
    second.learned = list(first.learned)
    second.load_state(first.state())
    assert torch.equal(second.predict(images, None), before)
    finish(first.learn(toy_task(2)))
    finish(second.learn(toy_task(2)))
    assert same_tensors(first.state().tensors, second.state().tensors)
    assert torch.equal(second.predict(images, None), first.predict(images, None))


def test_loading_forgets_the_means_of_before() -> None:
    first, second = icarl(1, epochs=3), made(epochs=1)
    assert isinstance(second, ICarl)
    finish(second.learn(toy_task(0)))
    assert not torch.equal(second.means(), first.means())
    second.learned = list(first.learned)
    second.load_state(first.state())
    assert torch.equal(second.means(), first.means())


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="memory=3 must be at least 4"):
        icarl(2, memory=3, epochs=1)
    method = icarl(1, epochs=1)
    images, _ = toy_task(0).test.batch(slice(None))
    with pytest.raises(NotLearnedError, match=r"no exemplars of classes \[2, 3\]"):
        method.predict(images, TaskInfo(1, (2, 3)))
    with pytest.raises(ScenarioError, match="classes seen before"):
        finish(method.learn(toy_task(0)))
    state = method.state()
    tensors = state.tensors | {"memory.images": state.tensors["memory.images"][:, :, :2]}
    with pytest.raises(FormatError):
        made().load_state(MethodState(tensors, state.values))
