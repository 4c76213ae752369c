"""Rehearsal, ER, DER and DER++: one step of each by plain autograd, and what memory is good for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.base.seeding import stream
from nispa.data.tasks import Samples, Task, TaskInfo
from nispa.errors import ConfigError, FormatError
from nispa.methods.agem import AGem
from nispa.methods.base import Method, MethodState, PhaseEnd
from nispa.methods.der import Der
from nispa.methods.derpp import Derpp
from nispa.methods.er import Er
from nispa.methods.fdr import Fdr
from nispa.methods.finetune import Finetune
from nispa.methods.gem import Gem
from nispa.methods.rehearsal import Rehearsal
from nispa.methods.replay import Replay
from nispa.network.models import NetworkConfig
from nispa.training.fit import Batch
from nispa.training.pausing import EpochEnd

from .toy import NETWORKS, accuracy_on, finish, same_tensors, toy_problem, toy_task

REPLAY: list[type[Replay]] = [Rehearsal, Er, Der, Derpp]
every = pytest.mark.parametrize("cls", REPLAY, ids=lambda cls: cls.name)
TINY = {"architecture": "mlp", "hidden": (5,), "density": 1.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def started(
    cls: type[Method], network: dict[str, Any] = NETWORKS["mlp"], *, seed: int = 0, **values: Any
) -> Any:
    """A method on the toy problem, started."""
    fast = {"learning_rate": 0.01, "batch_size": 8, "epochs": 10, "incremental": "class"}
    if issubclass(cls, Replay):
        fast |= {"memory": 24}
    config = build(cls.config_class, fast | values)
    method = cls(toy_problem(3), build(NetworkConfig, network), config, seed=seed)
    method.start()
    return method


def learned(cls: type[Method], tasks: int = 3, **values: Any) -> Any:
    method = started(cls, **values)
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def untold_on(method: Method, samples: Samples) -> float:
    """Share of samples predicted rightly without being told their task."""
    images, labels = samples.batch(slice(None))
    return float((method.predict(images, None) == labels).float().mean())


def untold(method: Method, task: Task) -> float:
    """Share of a task's test images predicted rightly without being told the task."""
    return untold_on(method, task.test)


# One step by plain autograd.


def values_of(method: Any) -> list[Tensor]:
    """Weights and biases of a dense MLP, layer by layer."""
    layers = method.network.layers.values()
    return [each.detach().clone() for ly in layers for each in (ly.dense_weight(), ly.bias)]


def forward(values: list[Tensor], images: Tensor) -> Tensor:
    hidden = functional.linear(images.flatten(1), values[0], values[1]).relu()
    return functional.linear(hidden, values[2], values[3])


def with_memory(cls: type[Replay], count: int = 5, **settings: Any) -> tuple[Any, Samples]:
    """A method that has learned task 0, and remembers some samples of it with logits 0, 0.1, ..."""
    plain: dict[str, Any] = {
        "optimiser": "sgd",
        "momentum": 0,
        "learning_rate": 0.5,
        "epochs": 1,
        "batch_size": 48,
    }
    method = started(cls, TINY, **plain, **settings)
    method.learned = [TaskInfo(0, (0, 1))]
    samples = toy_task(0).train.subset(torch.tensor([3, 8, 13, 20, 31, 46])[:count])
    extras = {"logits": torch.arange(30.0).view(5, 6) / 10} if isinstance(method, Der) else {}
    method.memory.offer(samples, torch.arange(count), 0, stream(0, "test"), **extras)
    return method, samples


def one_step(method: Any, loss: Callable[[list[Tensor]], Tensor]) -> None:
    """Learns task 1 in one step, and compares with a step down the gradient of ``loss``."""
    values = [value.requires_grad_() for value in values_of(method)]
    expected = loss(values)
    gradients = torch.autograd.grad(expected, values)
    events, _ = finish(method.learn(toy_task(1)))
    for value, gradient, now in zip(values, gradients, values_of(method), strict=True):
        assert float(gradient.abs().max()) > 1e-3
        torch.testing.assert_close(now, value.detach() - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    epoch = next(event for event in events if isinstance(event, EpochEnd))
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-5)


def batches(samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All images and labels of task 1, and those remembered."""
    return (*toy_task(1).train.batch(slice(None)), *samples.batch(slice(None)))


def test_er_steps_down_the_mean_over_new_and_remembered_samples() -> None:
    method, samples = with_memory(Er, memory_batch=5)
    new, labels, old, old_labels = batches(samples)

    def loss(values: list[Tensor]) -> Tensor:
        logits = forward(values, torch.cat([new, old]))[:, :4]  # of the classes seen
        return functional.cross_entropy(logits, torch.cat([labels, old_labels]))

    one_step(method, loss)


def test_er_scores_remembered_samples_against_their_own_task() -> None:
    method, samples = with_memory(Er, memory_batch=5, incremental="task")
    new, labels, old, old_labels = batches(samples)

    def loss(values: list[Tensor]) -> Tensor:
        here = functional.cross_entropy(forward(values, new)[:, 2:4], labels - 2)
        there = functional.cross_entropy(forward(values, old)[:, :2], old_labels)
        return (48 * here + 5 * there) / 53

    one_step(method, loss)


def test_rehearsal_draws_as_many_remembered_samples_as_there_are_new_ones() -> None:
    method, samples = with_memory(Rehearsal, 6)  # each eight times, beside 48 new ones
    new, labels, old, old_labels = batches(samples)

    def loss(values: list[Tensor]) -> Tensor:
        here = functional.cross_entropy(forward(values, new)[:, :4], labels)
        return (here + functional.cross_entropy(forward(values, old)[:, :4], old_labels)) / 2

    one_step(method, loss)


def test_rehearsal_draws_no_sample_twice_where_it_need_not() -> None:
    method, _ = with_memory(Rehearsal, 6)
    images, labels = toy_task(1).train.batch(torch.arange(15))
    for count in (4, 6, 15):
        index = torch.arange(count)
        batch = Batch(images[:count], labels[:count], index, epoch=1, number=1)
        often = method.as_many(toy_task(1), batch).index.bincount(minlength=6)
        assert int(often.sum()) == count
        assert int(often.max() - often.min()) <= 1


def distance(values: list[Tensor], old: Tensor) -> Tensor:
    """Mean squared distance from the stored logits, over samples and outputs."""
    stored = torch.arange(30.0).view(5, 6) / 10
    return (forward(values, old) - stored).square().sum() / 30


def test_der_holds_all_logits_to_what_they_were() -> None:
    method, samples = with_memory(Der, memory_batch=5, alpha=0.7)
    new, labels, old, _ = batches(samples)

    def loss(values: list[Tensor]) -> Tensor:
        here = functional.cross_entropy(forward(values, new)[:, :4], labels)
        return here + 0.7 * distance(values, old)

    one_step(method, loss)


def test_derpp_learns_the_labels_too() -> None:
    method, samples = with_memory(Derpp, memory_batch=5, alpha=0.7, beta=0.3)
    new, labels, old, old_labels = batches(samples)

    def loss(values: list[Tensor]) -> Tensor:
        here = functional.cross_entropy(forward(values, new)[:, :4], labels)
        there = functional.cross_entropy(forward(values, old)[:, :4], old_labels)
        return here + 0.7 * distance(values, old) + 0.3 * there

    one_step(method, loss)


def test_derpp_draws_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    method, _ = with_memory(Derpp, memory_batch=2)
    drawn: list[list[int]] = []
    recall = Replay.recall

    def watch(*given: Any, **named: Any) -> Any:
        found = recall(*given, **named)
        drawn.append(found.index.tolist())
        return found

    monkeypatch.setattr(Replay, "recall", watch)
    finish(method.learn(toy_task(1)))
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("cls", [Der, Derpp])
@pytest.mark.parametrize("count", [48, 2000])  # the latter is more than kernels take at a time
def test_the_logits_stored_are_those_before_the_update(cls: type[Der], count: int) -> None:
    method = started(
        cls, TINY, optimiser="sgd", learning_rate=0.5, epochs=1, batch_size=count, memory=count
    )
    task = toy_task(0, count)
    before = values_of(method)
    finish(method.learn(task))
    assert not torch.equal(before[0], values_of(method)[0])
    kept = method.memory.take(torch.arange(count))
    torch.testing.assert_close(kept.extras["logits"], forward(before, kept.images))
    order = torch.randperm(count, generator=stream(0, "batches", 0, 1))
    assert torch.equal(kept.images, task.train.batch(order)[0])
    assert torch.equal(kept.wanted[:, 0], task.train.labels[order])


# What follows from that.


@pytest.mark.parametrize("cls", [Der, Derpp])
def test_der_without_weights_is_finetuning(cls: type[Der]) -> None:
    nothing = {"alpha": 0} | ({"beta": 0} if cls is Derpp else {})
    method = learned(cls, epochs=1, **nothing).state()
    expected = learned(Finetune, epochs=1).state().tensors
    # Up to rounding: finetune reads fewer outputs, so its sums have fewer terms.
    for name, value in expected.items():
        torch.testing.assert_close(method.tensors[name], value, rtol=1e-3, atol=1e-5)
    assert len(method.tensors) > len(expected)


@every
def test_a_memory_helps_where_fine_tuning_forgets(cls: type[Replay]) -> None:
    # Two tasks: the third has the images of the first, so nothing tells their classes apart.
    finetuned, method = learned(Finetune, 2, epochs=20), learned(cls, 2, epochs=20)
    assert untold(finetuned, toy_task(0)) <= 0.1
    assert untold(method, toy_task(0)) >= 0.8
    assert untold(method, toy_task(1)) >= 0.8


@every
def test_tasks_with_outputs_of_their_own(cls: type[Replay]) -> None:
    method = learned(cls, incremental="task")
    assert min(accuracy_on(method, toy_task(index)) for index in range(3)) >= 0.9


def domain_task(index: int) -> Task:
    """Task ``index`` with the classes of the first, its pixels in another order."""
    task, order = toy_task(0), torch.randperm(16, generator=stream(index, "order"))
    parts = {
        part: replace(getattr(task, part), pixel_order=order)
        for part in ("train", "validation", "test")
    }
    return replace(task, index=index, name=f"order {index}", **parts)


@every
def test_other_images_of_the_same_classes(cls: type[Replay]) -> None:
    method = started(cls, incremental="domain", epochs=20)
    tasks = [domain_task(index) for index in range(3)]
    for task in tasks:
        finish(method.learn(task))
    assert min(untold(method, task) for task in tasks) >= 0.8
    assert set(method.memory.places.tolist()) == {0, 1, 2}
    assert set(method.memory.labels.tolist()) == {0, 1}


@every
def test_a_convnet_learns_and_remembers(cls: type[Replay]) -> None:
    method = learned(cls, 2, network=NETWORKS["convnet"], epochs=15)
    assert min(untold(method, toy_task(index)) for index in range(2)) >= 0.8


@every
def test_the_same_seed_keeps_the_same_samples(cls: type[Replay]) -> None:
    first, same, other = (learned(cls, 2, epochs=2, seed=seed).state() for seed in (3, 3, 4))
    assert same_tensors(first.tensors, same.tensors)
    assert first.values == same.values
    images = "memory.images"
    assert not torch.equal(first.tensors[images], other.tensors[images])


@every
def test_loaded_it_goes_on_identically(cls: type[Replay]) -> None:
    method = learned(cls, 2, epochs=3)
    other = started(cls, epochs=3)
    other.learned = list(method.learned)
    other.load_state(method.state())
    for each in (method, other):
        finish(each.learn(toy_task(2)))
    assert same_tensors(method.state().tensors, other.state().tensors)
    assert method.state().values == other.state().values


@every
def test_the_last_epoch_is_kept(cls: type[Replay]) -> None:
    method = started(cls, epochs=3)
    events, _ = finish(method.learn(toy_task(0)))
    last, end = events[-2:]
    assert isinstance(last, EpochEnd)
    assert isinstance(end, PhaseEnd)
    assert end.accuracy == last.validation_accuracy
    assert end.accuracy == untold_on(method, toy_task(0).validation)


# The memory of a method.


@every
def test_the_memory_is_never_larger_than_asked_for(cls: type[Replay]) -> None:
    method = started(cls, memory=10, epochs=2)
    for index in range(3):
        finish(method.learn(toy_task(index)))
        assert len(method.memory) == 10
    logits = 6 * 4 if cls in (Der, Derpp) else 0
    assert method.census().storage == {"memory": 10 * (16 + 8 + 8 + logits)}


def test_rehearsal_keeps_the_same_number_of_each_class() -> None:
    method = learned(Rehearsal, memory=20, epochs=1)
    assert method.memory.labels.bincount().tolist() == [4, 4, 3, 3, 3, 3]
    assert method.memory.places.bincount().tolist() == [8, 6, 6]


def test_reservoirs_count_every_sample_offered() -> None:
    assert learned(Er, memory=20, epochs=2).memory.offered == 3 * 2 * 48


@every
def test_a_memory_smaller_than_the_number_of_classes_is_refused(cls: type[Replay]) -> None:
    method = started(cls, memory=5)
    earlier = [toy_task(0).info, toy_task(1).info]
    method.check(toy_task(1), earlier[:1])
    with pytest.raises(ConfigError, match=r"memory=5 must be at least 6.* pass a larger memory"):
        method.check(toy_task(2), earlier)


def test_only_shares_need_a_sample_for_each_class_of_each_task() -> None:
    tasks = [domain_task(index) for index in range(3)]
    earlier = [task.info for task in tasks[:2]]
    for drawn in (Er, Der, Derpp):
        started(drawn, memory=2, incremental="domain").check(tasks[2], earlier)
    for shared in (Rehearsal, Fdr, Gem, AGem):
        with pytest.raises(ConfigError, match="memory=5 must be at least 6"):
            started(shared, memory=5, incremental="domain").check(tasks[2], earlier)


@every
def test_a_state_with_a_damaged_memory_is_refused(cls: type[Replay]) -> None:
    state = learned(cls, 1, epochs=1).state()
    whole = started(cls)
    before = whole.state()
    for damaged in (
        MethodState({k: v for k, v in state.tensors.items() if "labels" not in k}, state.values),
        MethodState(state.tensors | {"memory.labels": torch.full((24,), 6)}, state.values),
        MethodState(state.tensors, {}),
    ):
        with pytest.raises(FormatError, match="memory"):
            whole.load_state(damaged)
    assert same_tensors(whole.state().tensors, before.tensors)


def test_a_memory_of_tasks_that_were_not_learned_is_refused() -> None:
    state = learned(Er, 2, epochs=1).state()
    method = started(Er)
    method.learned = [toy_task(0).info]
    with pytest.raises(FormatError, match="not learned"):
        method.load_state(state)
    method.learned.append(toy_task(1).info)
    method.load_state(state)


def test_a_larger_memory_does_not_fit_a_smaller_one() -> None:
    with pytest.raises(FormatError, match="more than 20"):
        started(Er, memory=20).load_state(learned(Er, 1, epochs=1).state())
