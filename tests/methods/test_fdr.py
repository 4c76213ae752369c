"""FDR: the distance by hand, what is recorded and when, and that it holds outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import FormatError
from nispa.methods.base import Method, MethodState
from nispa.methods.fdr import Fdr, distance, probabilities
from nispa.methods.finetune import Finetune
from nispa.network.models import NetworkConfig
from nispa.training.fit import batch_of

from .toy import NETWORKS, accuracy_on, finish, same_tensors, toy_images, toy_problem, toy_task


def made(cls: type[Method] = Fdr, network: str = "mlp", **settings: object) -> Method:
    fast = {"learning_rate": 0.01, "batch_size": 8, "epochs": 10}
    method = cls(
        toy_problem(3),
        build(NetworkConfig, NETWORKS[network]),
        build(cls.config_class, fast | settings),
        seed=0,
    )
    method.start()
    return method


def learned(tasks: int, cls: type[Method] = Fdr, **settings: object) -> Method:
    method = made(cls, **settings)  # type: ignore[arg-type]
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def domain_task(index: int) -> Task:
    """A toy task's images with classes 0 and 1."""
    parts = {}
    for part, count in (("train", 48), ("validation", 16), ("test", 32)):
        images = toy_images(index, count, part)
        parts[part] = Samples(images.images, images.labels % 2, scale=images.scale)
    train, validation, test = parts.values()
    return Task(index, f"domain {index}", (0, 1), train, validation, test)


def seen_right(method: Method, tasks: int) -> float:
    """Mean accuracy on some toy tasks among all classes seen."""
    right = []
    for index in range(tasks):
        images, labels = toy_task(index).test.batch(slice(None))
        right.append(float((method.predict(images, None) == labels).float().mean()))
    return sum(right) / tasks


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), 50.0]])
    found = probabilities(logits, torch.tensor([True, True, False]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75, 0.0]]))


def test_distance_by_hand() -> None:
    """(1/4, 3/4) is the root of 1/2 away from (3/4, 1/4); the second sample did not move."""
    logits = torch.tensor([[0.0, math.log(3.0), 50.0], [7.0, 1.0, -2.0]], requires_grad=True)
    records = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])
    heads = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = distance(logits, torch.stack([records, heads], dim=1))
    torch.testing.assert_close(found.detach(), torch.tensor(math.sqrt(0.5) / 2))
    found.backward()
    # d|p - q| / dp = (-1, 1) / sqrt(2), halved by the mean, and dp_2 / dlogit_2 = 3/16 = -dp_1.
    slope = math.sqrt(2.0) / 2 * 3 / 16
    expected = torch.tensor([[-slope, slope, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    ("incremental", "heads"),
    [
        ("task", [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]),
        ("class", [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]),
    ],
)
def test_what_competes(incremental: str, heads: list[list[int]]) -> None:
    method = learned(1, incremental=incremental, epochs=1)
    assert isinstance(method, Fdr)
    assert method.heads(toy_task(1)).int().tolist() == heads


def test_records_stay_as_they_were_made() -> None:
    method = learned(1, memory=12, epochs=2)
    assert isinstance(method, Fdr)
    old = method.memory.take(method.memory.select())
    with torch.no_grad():
        expected = method.network(old.images)[:, :2].softmax(dim=1)
    torch.testing.assert_close(old.extras["outputs"][:, :2], expected)
    assert int(old.extras["outputs"][:, 2:].count_nonzero()) == 0
    finish(method.learn(toy_task(1)))
    stayed = method.memory.take(method.memory.select(place=0))
    assert len(stayed) == 6
    for image, record in zip(stayed.images, stayed.extras["outputs"], strict=True):
        same = (old.images == image).flatten(1).all(dim=1)
        assert bool((old.extras["outputs"][same] == record).all(dim=1).any())
    new = method.memory.take(method.memory.select(place=1))
    assert bool((new.extras["outputs"][:, :4] > 0).all())


@pytest.mark.parametrize("incremental", ["task", "class"])
def test_the_gradient_is_that_of_loss_and_distance(incremental: str) -> None:
    method = learned(1, incremental=incremental, memory=20, memory_batch=6, alpha=0.7, epochs=2)
    assert isinstance(method, Fdr)
    task, index = toy_task(1), torch.arange(5)
    batch = batch_of(task.train, index)
    old = method.recall(task, batch, 6)
    network = method.network
    with torch.no_grad():  # away from where a distance has no gradient
        for value in network.parameters():
            value.add_(0.05 * torch.sin(torch.arange(value.numel()).view_as(value) * 1.0))
    current, past = ([2, 3], [0, 1]) if incremental == "task" else ([0, 1, 2, 3], [0, 1, 2, 3])
    logits = network(batch.images)[:, current]
    first = functional.cross_entropy(logits, batch.labels - current[0])
    moved = network(old.images)[:, past].softmax(1) - old.extras["outputs"][:, past]
    loss = first + 0.7 * moved.square().sum(1).sqrt().mean()
    values = list(network.parameters())
    expected = torch.autograd.grad(loss, values)
    found = method.step(task)(batch)
    torch.testing.assert_close(found, loss.detach())
    for value, gradient in zip(values, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_forgets_less_than_finetune_among_all_classes(network: str) -> None:
    """Two tasks: the third toy task has images of the first."""
    method = learned(2, network=network, alpha=3.0)
    plain = learned(2, Finetune, network=network, incremental="class")
    assert seen_right(plain, 2) <= 0.6
    assert seen_right(method, 2) >= 0.9


def test_forgets_less_than_finetune_when_told_the_task() -> None:
    method = learned(3, incremental="task")
    plain = learned(3, Finetune, incremental="task")
    right, before = (
        [accuracy_on(each, toy_task(index)) for index in range(3)] for each in (method, plain)
    )
    assert min(right) >= 0.9
    assert sum(right) > sum(before)


def test_learns_other_images_of_the_same_classes() -> None:
    method = made(incremental="domain", alpha=3.0)
    for index in range(2):
        finish(method.learn(domain_task(index)))
    assert isinstance(method, Fdr)
    assert method.memory.places.bincount().tolist() == [48, 48]
    assert accuracy_on(method, domain_task(0)) >= 0.9
    assert accuracy_on(method, domain_task(1)) >= 0.9


def test_counts_what_is_stored() -> None:
    """Sixteen bytes of image, label and place of 8 each, six probabilities of 4."""
    assert learned(2, memory=10, epochs=1).census().storage == {"memory": 10 * (16 + 16 + 24)}


def test_goes_on_identically_from_a_state() -> None:
    first, second = learned(2, epochs=2), made(epochs=2)
    second.learned = list(first.learned)
    second.load_state(first.state())
    finish(first.learn(toy_task(2)))
    finish(second.learn(toy_task(2)))
    assert same_tensors(first.state().tensors, second.state().tensors)


def test_a_state_without_records_is_refused() -> None:
    state = learned(1, epochs=1).state()
    del state.tensors["memory.outputs"]
    with pytest.raises(FormatError, match="memory"):
        made().load_state(MethodState(state.tensors, state.values))
