"""GEM and A-GEM: projections by hand, by brute force and by optimality; what the methods keep."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, FormatError
from nispa.methods import agem, gem
from nispa.methods.agem import AGem
from nispa.methods.base import Method, MethodState
from nispa.methods.finetune import Finetune
from nispa.methods.gem import Gem, Projecting, dual_weights, flat_gradient, put_gradient
from nispa.network.models import NetworkConfig
from nispa.training.fit import batch_of

from .toy import (
    NETWORKS,
    accuracy_on,
    finish,
    same_tensors,
    toy_images,
    toy_problem,
    toy_task,
)

BOTH = pytest.mark.parametrize("cls", [Gem, AGem])
IMAGE = 16  # bytes of a 4 x 4 image; label and place of its task take 8 each


def made(cls: type[Method], network: str = "mlp", seed: int = 0, **settings: object) -> Method:
    fast = {"learning_rate": 0.01, "batch_size": 8, "epochs": 10}
    method = cls(
        toy_problem(3),
        build(NetworkConfig, NETWORKS[network]),
        build(cls.config_class, fast | settings),
        seed=seed,
    )
    method.start()
    return method


def learned(cls: type[Method], tasks: int = 3, **settings: object) -> Method:
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


def told_right(method: Method, tasks: int) -> float:
    return sum(accuracy_on(method, toy_task(index)) for index in range(tasks)) / tasks


# The projections.


@pytest.mark.parametrize(
    ("gradient", "past", "expected"),
    [
        ([1.0, -1.0], [[0.0, 1.0]], [1.0, 0.0]),  # onto the edge of a half-plane
        ([-3.0, 1.0], [[2.0, 0.0]], [0.0, 1.0]),  # the constraint's length does not matter
        ([-1.0, -1.0], [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]),  # into the corner of a quadrant
        ([-1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], [0.0, 2.0]),  # one of two is violated
        ([-2.0, 1.0], [[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0]),  # the nearer one is not enough
        ([0.0, -1.0], [[1.0, 1.0], [-1.0, 1.0]], [0.0, 0.0]),  # a wedge that points up
        ([-1.0, 1.0], [[1.0, 0.0], [-1.0, 0.0]], [0.0, 1.0]),  # opposite: only a line is left
        ([-1.0, 1.0], [[1.0, 0.0], [2.0, 0.0]], [0.0, 1.0]),  # the same twice
        ([-1.0, 1.0], [[1.0, 0.0], [0.0, 0.0]], [0.0, 1.0]),  # a task without gradient
    ],
)
def test_gem_projects_as_by_hand(
    gradient: list[float], past: list[list[float]], expected: list[float]
) -> None:
    found = gem.project(torch.tensor(gradient), torch.tensor(past))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


def test_margin_by_hand() -> None:
    """v >= 1/2: u_1 = 1/2 brings the first constraint to 0; the second has its margin alone."""
    found = gem.project(torch.tensor([-1.0, 2.0]), torch.eye(2), 0.5)
    torch.testing.assert_close(found, torch.tensor([0.0, 2.5]))
    beyond = gem.project(torch.tensor([-0.25, 2.0]), torch.eye(2), 0.5)
    torch.testing.assert_close(beyond, torch.tensor([0.25, 2.5]))


def test_agem_projects_as_by_hand() -> None:
    """g . r = -4 and r . r = 8, so g + r / 2."""
    found = agem.project(torch.tensor([1.0, -3.0]), torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0]))


def test_agem_is_gem_with_one_constraint() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradient, reference = torch.randn(2, 30, generator=generator)
        reference = reference * -torch.sign(gradient @ reference)
        expected = gem.project(gradient, reference.unsqueeze(0))
        torch.testing.assert_close(agem.project(gradient, reference), expected)


def by_brute_force(
    gradient: NDArray[np.float64], past: NDArray[np.float64], margin: float
) -> NDArray[np.float64]:
    """Solves for every set of free weights and takes the feasible one of least objective."""
    target = gradient + margin * past.sum(axis=0)
    best: NDArray[np.float64] = target
    least = float("inf")
    for chosen in itertools.product([False, True], repeat=len(past)):
        rows = past[np.array(chosen)]
        weights = np.linalg.lstsq(rows.T, -target, rcond=None)[0] if len(rows) else np.zeros(0)
        found = target + weights @ rows
        if (weights >= -1e-9).all() and found @ found < least - 1e-12:
            best, least = found, float(found @ found)
    return best


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_gem_is_the_best_of_all_active_sets(tasks: int, margin: float) -> None:
    random = np.random.default_rng(tasks)
    for _ in range(100):
        past, gradient = random.normal(size=(tasks, 6)), random.normal(size=6)
        weights = dual_weights(past @ past.T, past @ gradient, margin)
        expected = by_brute_force(gradient, past, margin)
        np.testing.assert_allclose(gradient + weights @ past, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_meets_the_conditions_of_optimality(margin: float) -> None:
    """Primal and dual feasible, and complementary; also where rows depend on each other."""
    random = np.random.default_rng(7)
    for case in range(500):
        tasks = int(random.integers(1, 12))
        past = random.normal(size=(tasks, 20)) * 10.0 ** random.integers(-4, 4, size=(tasks, 1))
        if tasks > 2 and case % 3 == 0:
            past[0], past[1] = 2 * past[2], 0.0
        gradient = random.normal(size=20)
        weights = dual_weights(past @ past.T, past @ gradient, margin)
        slack, free = past @ (gradient + weights @ past), weights - margin
        size = float(np.linalg.norm(gradient + margin * past.sum(axis=0)))
        assert (slack >= -1e-8 * size * np.linalg.norm(past, axis=1)).all()
        assert (free >= -1e-12).all()
        np.testing.assert_allclose(free * slack, 0, atol=1e-8 * size**2)


def test_gradients_go_out_and_in() -> None:
    values = [torch.zeros(2, 2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    values[0].grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert flat_gradient(values).tolist() == [1, 2, 3, 4, 0, 0, 0]
    put_gradient(values, torch.arange(7.0))
    assert [value.grad.tolist() for value in values if value.grad is not None] == [
        [[0, 1], [2, 3]],
        [4, 5, 6],
    ]


# The methods.


def plain_gradient(
    method: Projecting, images: Tensor, labels: Tensor, classes: list[int]
) -> Tensor:
    """By PyTorch's autograd alone, against some classes."""
    values = list(method.plastic().values())
    logits = method.network(images)[:, classes]
    loss = functional.cross_entropy(logits, labels - classes[0])
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, values)])


def test_gem_has_a_constraint_for_each_task() -> None:
    method = learned(Gem, 2, incremental="task", memory=9, epochs=1)
    assert isinstance(method, Gem)
    past = method.constraints(toy_task(2))(batch_of(toy_task(2).train, torch.arange(4)))
    for place, row in enumerate(past):
        old = method.memory.take(method.memory.select(place=place))
        own = [2 * place, 2 * place + 1]
        expected = plain_gradient(method, old.images, old.wanted[:, 0], own)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_agem_has_one_constraint_on_a_drawn_batch() -> None:
    method = learned(AGem, 2, incremental="class", memory_batch=5, epochs=1)
    assert isinstance(method, AGem)
    batch = batch_of(toy_task(2).train, torch.arange(4))
    (row,) = method.constraints(toy_task(2))(batch)
    drawn = method.recall(toy_task(2), batch, 5)
    assert len(drawn) == 5
    expected = plain_gradient(method, drawn.images, drawn.wanted[:, 0], list(range(6)))
    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


@BOTH
def test_a_step_does_not_raise_what_is_remembered(cls: type[Projecting]) -> None:
    """With plain SGD and a small step: the whole memory, drawn as one batch, loses nothing."""
    settings = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 1e-4, "memory_batch": 1000}
    if cls is Gem:
        settings |= {"margin": 0.0}
        del settings["memory_batch"]
    method = learned(cls, 1, epochs=1, **settings)
    assert isinstance(method, Projecting)
    task, old = toy_task(1), method.memory.take(method.memory.select())
    loss = method.rehearsed(task)

    @torch.no_grad()
    def before() -> float:
        return float(loss(method.network(old.images).double(), old.wanted))

    first, step = before(), method.step(task)
    batch = batch_of(task.train, torch.arange(8))
    gradient = plain_gradient(method, *task.train.batch(torch.arange(8)), list(range(4)))
    reference = plain_gradient(method, old.images, old.wanted[:, 0], list(range(4)))
    assert gradient @ reference < 0  # a plain step would do harm
    step(batch)
    assert before() <= first + 1e-7
    moved = flat_gradient(list(method.plastic().values()))
    expected = agem.project(gradient, reference)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


@BOTH
def test_forgets_less_than_finetune_when_told_the_task(cls: type[Projecting]) -> None:
    method, plain = learned(cls, incremental="task"), learned(Finetune, incremental="task")
    assert told_right(method, 3) >= 0.9
    assert told_right(method, 2) > told_right(plain, 2)


def test_gem_forgets_less_than_finetune_among_all_classes() -> None:
    """A-GEM does so little, see its page; of three toy tasks, the third has images of the first."""
    method, plain = learned(Gem, 2), learned(Finetune, 2, incremental="class")
    assert seen_right(method, 2) >= 0.9
    assert seen_right(plain, 2) <= 0.6


@BOTH
def test_learns_other_images_of_the_same_classes(cls: type[Projecting]) -> None:
    method, plain = made(cls, incremental="domain"), made(Finetune, incremental="domain")
    for index in range(2):
        finish(method.learn(domain_task(index)))
        finish(plain.learn(domain_task(index)))
    assert isinstance(method, Projecting)
    assert sorted(method.memory.places.unique().tolist()) == [0, 1]
    assert accuracy_on(method, domain_task(1)) >= 0.9
    assert accuracy_on(method, domain_task(0)) >= accuracy_on(plain, domain_task(0))


@BOTH
def test_a_convnet_learns(cls: type[Projecting]) -> None:
    method = made(cls, "convnet", incremental="task")
    for index in range(2):
        finish(method.learn(toy_task(index)))
    assert told_right(method, 2) >= 0.9


@BOTH
def test_the_memory_is_shared_and_counted(cls: type[Projecting]) -> None:
    method = learned(cls, memory=10, epochs=1)
    assert isinstance(method, Projecting)
    assert method.memory.labels.bincount().tolist() == [2, 2, 2, 2, 1, 1]
    assert method.census().storage == {"memory": 10 * (IMAGE + 16)}


@BOTH
def test_goes_on_identically_from_a_state(cls: type[Projecting]) -> None:
    first = learned(cls, 2, epochs=2)
    second = made(cls, epochs=2)
    second.learned = list(first.learned)
    second.load_state(first.state())
    finish(first.learn(toy_task(2)))
    finish(second.learn(toy_task(2)))
    assert same_tensors(first.state().tensors, second.state().tensors)


@BOTH
def test_refuses_what_does_not_fit(cls: type[Projecting]) -> None:
    with pytest.raises(ConfigError, match="memory=3 must be at least 4"):
        learned(cls, 2, memory=3, epochs=1)
    state = learned(cls, 1, epochs=1).state()
    tensors = state.tensors | {"memory.labels": state.tensors["memory.labels"] + 6}
    with pytest.raises(FormatError):
        made(cls).load_state(MethodState(tensors, state.values))
