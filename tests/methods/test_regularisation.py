"""L2, EWC, online EWC, SI and MAS against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, DivergedError, FormatError
from nispa.methods.base import Method, MethodState, Problem
from nispa.methods.ewc import Ewc
from nispa.methods.ewc_online import EwcOnline
from nispa.methods.finetune import Finetune
from nispa.methods.l2 import L2
from nispa.methods.mas import Mas
from nispa.methods.regularised import QuadraticPenalty, Regularised, Values, copies, zeros
from nispa.methods.si import Si
from nispa.network.models import DataSet, NetworkConfig, SparseNetwork
from nispa.training.pausing import EpochEnd

from .toy import INPUT_SHAPE, NETWORKS, finish, same_tensors, toy_problem, toy_task

METHODS: list[type[Regularised]] = [L2, Ewc, EwcOnline, Si, Mas]
every_method = pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)
ALL: dict[str, Any] = {"batch_size": 1000}  # one batch an epoch: plain gradient descent
PLAIN: dict[str, Any] = {**ALL, "optimiser": "sgd", "momentum": 0.0, "keep": "last"}


def make(
    cls: type[Any],
    network: str = "mlp",
    *,
    tasks: int = 3,
    network_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A method on a toy network, started."""
    fast: dict[str, object] = {"learning_rate": 0.01, "batch_size": 8, "epochs": 3}
    method = cls(
        toy_problem(tasks),
        build(NetworkConfig, NETWORKS[network] | (network_settings or {})),
        build(cls.config_class, fast | settings),
        seed=0,
    )
    method.start()
    return method


def learn(method: Method, *tasks: Task) -> None:
    for task in tasks:
        finish(method.learn(task))


def values_of(method: Regularised) -> Values:
    return copies(method.plastic())


def dense(count: int, places: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(count).index_copy(0, places, values)


def plain_logits(network: SparseNetwork, images: Tensor) -> Tensor:
    """What an MLP computes, in plain dense PyTorch."""
    x = images.flatten(1)
    for number, layer in enumerate(network.layers.values()):
        rows, columns = layer.shape
        weight = dense(rows * columns, layer.plastic_index, layer.weight).view(rows, columns)
        x = functional.linear(
            x.relu() if number else x, weight, dense(rows, layer.bias_index, layer.bias)
        )
    return x


def plain_gradients(method: Regularised, loss: Tensor) -> Values:
    values = method.plastic()
    found = torch.autograd.grad(loss, list(values.values()))
    return dict(zip(values, found, strict=True))


def cross_entropy(method: Regularised, task: Task, classes: tuple[int, ...]) -> Tensor:
    images, labels = task.train.batch(slice(None))
    places = torch.tensor([classes.index(int(label)) for label in labels])
    logits = plain_logits(method.network, images)[:, list(classes)]
    return functional.cross_entropy(logits, places)


def one_pixel() -> Task:
    """One sample, one pixel of 1."""
    one = Samples(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(1).long(), None)
    one = replace(one, scale=1 / 255)
    return Task(0, "one pixel", (0, 1), one, one, one)


def by_hand(cls: type[Any], **settings: Any) -> Any:
    """x -> relu(2 x) = h -> (3 h, -h, 5 h): for x = 1, h = 2 and logits (6, -2, 10)."""
    method = cls(
        Problem((1, 1, 1), 3),
        build(NetworkConfig, {"hidden": (1,), "density": 1.0}),
        build(cls.config_class, settings),
        seed=0,
    )
    method.start()
    with torch.no_grad():
        method.network.layers["fc1"].weight.copy_(torch.tensor([2.0]))
        method.network.layers["head"].weight.copy_(torch.tensor([3.0, -1.0, 5.0]))
    return method


def in_order(values: Values, method: Regularised) -> list[list[float]]:
    """Hidden weight, head weights, hidden bias, head biases."""
    layers = method.network.layers
    wanted: list[nn.Parameter] = [
        layers["fc1"].weight,
        layers["head"].weight,
        layers["fc1"].bias,
        layers["head"].bias,
    ]
    return [
        values[name].tolist()
        for one in wanted
        for name, value in method.plastic().items()
        if value is one
    ]


def test_penalty_and_its_gradient_by_hand() -> None:
    value = nn.Parameter(torch.tensor([1.0, 2.0]))
    value.grad = torch.tensor([1.0, 1.0])
    penalty = QuadraticPenalty(
        2.0, [value], [torch.tensor([3.0, 0.5])], [torch.tensor([0.0, 4.0])], offset=1.5
    )
    assert float(penalty.add()) == 2.0 * (3.0 * 1.0 + 0.5 * 4.0 + 1.5)
    assert value.grad.tolist() == [1.0 + 2 * 2 * 3 * 1, 1.0 + 2 * 2 * 0.5 * -2]


def test_fisher_by_hand() -> None:
    method = by_hand(Ewc, samples=1)
    p = 1 / (1 + math.exp(8))  # of the other output; d log p(own) / d logits is (p, -p)
    hidden, head, hidden_bias, head_bias = in_order(
        method.fisher(one_pixel(), one_pixel().train), method
    )
    assert hidden == pytest.approx([(4 * p) ** 2], rel=1e-3)
    assert head == pytest.approx([(2 * p) ** 2, (2 * p) ** 2, 0.0], rel=1e-3)
    assert hidden_bias == pytest.approx([(4 * p) ** 2], rel=1e-3)
    assert head_bias == pytest.approx([p**2, p**2, 0.0], rel=1e-3)


def test_sensitivity_by_hand() -> None:
    method = by_hand(Mas)
    hidden, head, hidden_bias, head_bias = in_order(
        method.sensitivity(one_pixel(), one_pixel().train), method
    )  # (6^2 + 2^2) / 2 has the gradient (6, -2)
    assert hidden == pytest.approx([6 * 3 + 2 * 1])
    assert head == pytest.approx([6 * 2, 2 * 2, 0.0])
    assert hidden_bias == pytest.approx([20.0])
    assert head_bias == pytest.approx([6.0, 2.0, 0.0])


@pytest.mark.parametrize("incremental", ["task", "class", "domain"])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_fisher_is_that_of_plain_autograd(density: float, incremental: str) -> None:
    settings: dict[str, Any] = {"samples": None, "incremental": incremental}
    method = make(Ewc, network_settings={"density": density}, **settings)
    first, task = toy_task(0), toy_task(0 if incremental == "domain" else 1)
    learn(method, first)
    classes = {"task": (2, 3), "class": (0, 1, 2, 3), "domain": (0, 1)}[incremental]
    images, _ = task.train.batch(slice(None))
    expected = zeros(method.plastic())
    for image in images.split(1):
        chances = plain_logits(method.network, image)[:, list(classes)].log_softmax(1)
        for name, gradient in plain_gradients(method, chances.max()).items():
            expected[name] += gradient.square() / len(images)
    found = method.fisher(task, task.train)
    for name, each in expected.items():
        assert_close(found[name], each, rtol=1e-4, atol=1e-9)
    head = method.network.layers["head"]
    rows = {int(place) // head.shape[1] for place in head.plastic_index[found_of(found, head) > 0]}
    assert rows == set(classes)


def found_of(found: Values, layer: Any) -> Tensor:
    """The importances of a layer's weights: those of its shape under the last weight's name."""
    name = [name for name in found if name.endswith("weight")][-1]
    assert found[name].shape == layer.weight.shape
    return found[name]


@pytest.mark.parametrize("together", [None, 1, 7])
def test_sensitivity_is_that_of_plain_autograd(together: int | None) -> None:
    method = make(Mas, network_settings={"density": 0.5}, together=together, batch_size=1000)
    task = toy_task(1)
    images, _ = task.train.batch(slice(None))
    if together == 7:  # batches are drawn: hold on to one sample, of which all are alike
        images = images[:1].expand(48, -1, -1, -1)
        same = replace(task.train, rows=torch.zeros(48, dtype=torch.int64))
        task = replace(task, train=same)
    parts = images.split(together or 48)
    expected = zeros(method.plastic())
    for part in parts:
        size = plain_logits(method.network, part)[:, [2, 3]].square().mean()
        for name, gradient in plain_gradients(method, size).items():
            expected[name] += gradient.abs() / len(parts)
    found = method.sensitivity(task, task.train)
    for name, each in expected.items():
        assert_close(found[name], each, rtol=1e-4, atol=1e-7)


def test_sensitivities_add_up() -> None:
    seen: list[Values] = []

    class Watched(Mas):
        def sensitivity(self, task: Task, train: DataSet) -> Values:
            found = super().sensitivity(task, train)
            seen.append(copies(found))
            return found

    method = make(Watched)
    learn(method, toy_task(0), toy_task(1))
    for name, each in method.importance.items():
        assert torch.equal(each, seen[0][name] + seen[1][name])
        assert not torch.equal(each, seen[1][name])


class Counting:
    """Samples that count how often they are read."""

    def __init__(self, data: Samples) -> None:
        self.data, self.labels, self.read = data, data.labels, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Tensor) -> Any:
        self.read += len(index)
        return self.data.batch(index)


@pytest.mark.parametrize("cls", [Ewc, EwcOnline, Mas])
def test_as_many_samples_are_measured_as_told(cls: type[Regularised]) -> None:
    method, samples = make(cls, samples=5), Counting(toy_task(0).train)
    (method.sensitivity if cls is Mas else method.fisher)(toy_task(0), samples)
    assert samples.read == 5


def test_l2_holds_all_alike() -> None:
    method = make(L2)
    learn(method, toy_task(0))
    assert all(bool((each == 1).all()) for each in method.importance.values())
    assert same_tensors(method.anchor, values_of(method))


@every_method
def test_no_penalty_before_the_first_task_and_one_after_it(cls: type[Regularised]) -> None:
    method = make(cls)
    assert method.penalty() is None
    assert method.census().storage == {"importance": 0}
    learn(method, toy_task(0))
    gradient_of_zero(method)
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.add()) == 0.0  # at the anchor
    assert all(bool((value.grad == 0).all()) for value in penalty.values)
    with torch.no_grad():
        for value in penalty.values:
            value += 0.1
    expected = sum(float((each * 0.01).sum()) for each in method.importance.values())
    assert expected > 0
    assert float(penalty.add()) == pytest.approx(method.config.strength * expected, rel=1e-3)


def gradient_of_zero(method: Regularised) -> None:
    for value in method.plastic().values():
        value.grad = torch.zeros_like(value)


@every_method
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_steps_are_those_of_plain_autograd(cls: type[Regularised], density: float) -> None:
    """Four steps of gradient descent on the penalised loss, written out."""
    settings: dict[str, Any] = {**PLAIN, "epochs": 4, "learning_rate": 0.05, "strength": 2.0}
    method = make(cls, network_settings={"density": density}, **settings)
    learn(method, toy_task(0))
    copy = make(cls, network_settings={"density": density}, **settings)
    copy.load_state(method.state())
    held = copies(method.importance)
    anchor, values = values_of(method), copy.plastic()
    for _ in range(4):
        penalty = sum(
            (held[name] * (value - anchor[name]) ** 2).sum() for name, value in values.items()
        )
        loss = cross_entropy(copy, toy_task(1), (2, 3)) + 2.0 * penalty
        gradients = plain_gradients(copy, loss)
        with torch.no_grad():
            for name, value in values.items():
                value -= 0.05 * gradients[name]
    events, _ = finish(method.learn(toy_task(1)))
    losses = [event.loss for event in events if isinstance(event, EpochEnd)]
    assert losses[-1] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, value in method.plastic().items():
        assert_close(value.detach(), values[name].detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(value.detach(), anchor[name])


def test_path_of_two_steps_written_out() -> None:
    """Under a penalty, the path counts the gradient of the loss alone."""
    settings: dict[str, Any] = {
        **PLAIN,
        "epochs": 2,
        "learning_rate": 0.2,
        "strength": 5.0,
    }
    method, copy = make(Si, **settings), make(Si, **settings)
    learn(method, toy_task(0))
    copy.load_state(method.state())
    held, anchor, values = method.importance, values_of(method), copy.plastic()
    path = zeros(values)
    for _ in range(2):
        own = plain_gradients(copy, cross_entropy(copy, toy_task(1), (2, 3)))
        with torch.no_grad():
            for name, value in values.items():
                pull = 2 * 5.0 * held[name] * (value - anchor[name])
                move = -0.2 * (own[name] + pull)
                path[name] -= own[name] * move
                value += move
    learn(method, toy_task(1))
    for name, value in values.items():
        far = (value.detach() - anchor[name]) ** 2
        assert_close(
            method.importance[name], held[name] + path[name] / (far + 0.1), rtol=1e-3, atol=1e-6
        )
        assert_close(method.anchor[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_path_of_small_steps_is_the_fall_of_the_loss() -> None:
    settings: dict[str, Any] = {
        **PLAIN,
        "epochs": 100,
        "learning_rate": 0.03,
    }
    method = make(Si, **settings)
    begun = values_of(method)
    before = float(cross_entropy(method, toy_task(0), (0, 1)).detach())
    learn(method, toy_task(0))
    fall = before - float(cross_entropy(method, toy_task(0), (0, 1)).detach())
    path = sum(
        float((each * ((method.anchor[name] - begun[name]) ** 2 + 0.1)).sum())
        for name, each in method.importance.items()
    )
    assert fall > 0.1
    assert path == pytest.approx(fall, rel=0.02)


@pytest.mark.parametrize(("before", "after"), [(None, 0.0), (0.2, 0.0), (0.5, 0.2)])
def test_a_path_against_the_gradient_is_cut_at_zero(before: float | None, after: float) -> None:
    method = make(Si, damping=0.1)
    values = values_of(method)
    if before is not None:
        method.importance = {name: torch.full_like(each, before) for name, each in values.items()}
    path = [torch.full_like(each, -0.03) for each in values.values()]  # -0.3 over a damping of 0.1
    for each in method.weigh(values, path).values():
        assert_close(each, torch.full_like(each, after))


def test_ewc_is_the_sum_of_its_terms() -> None:
    terms: list[tuple[Values, Values]] = []

    class Watched(Ewc):
        def add_term(self, fisher: Values) -> None:
            terms.append((copies(fisher), values_of(self)))
            super().add_term(fisher)

    method = make(Watched, samples=20, strength=100.0, network_settings={"density": 0.5})
    learn(method, *[toy_task(index) for index in range(3)])
    assert len(terms) == 3
    values = method.plastic()
    with torch.no_grad():
        for value in values.values():
            value += 0.3
    total = (
        100.0
        * torch.stack(
            [
                (fisher[name] * (value - anchor[name]) ** 2).sum()
                for fisher, anchor in terms
                for name, value in values.items()
            ]
        ).sum()
    )
    expected = plain_gradients(method, total)
    gradient_of_zero(method)
    penalty = method.penalty()
    assert float(penalty.add()) == pytest.approx(float(total.detach()), rel=1e-4)
    for name, value in values.items():
        assert_close(value.grad, expected[name], rtol=1e-3, atol=1e-6)
    apart = [(terms[0][1][name] - terms[2][1][name]).abs().max() for name in values]
    assert max(apart) > 0.01  # anchors that differ, so that a sum is not one term


def test_online_ewc_runs_along() -> None:
    settings: dict[str, Any] = {"samples": 20, "strength": 10.0}
    plain, whole, half = make(Ewc, **settings), make(EwcOnline, **settings), None
    learn(plain, toy_task(0))
    learn(whole, toy_task(0))
    assert same_tensors(plain.importance, whole.importance)
    assert same_tensors(plain.anchor, whole.anchor)
    first = copies(whole.importance)
    half = make(EwcOnline, gamma=0.5, **settings)
    half.load_state(whole.state())
    for method in (plain, whole, half):
        learn(method, toy_task(1))
    for name, each in first.items():  # the first task holds all three alike while they learn
        assert_close(plain.importance[name], whole.importance[name])
        assert_close(half.importance[name], whole.importance[name] - 0.5 * each)
    assert same_tensors(whole.anchor, values_of(whole))
    assert not same_tensors(plain.anchor, values_of(plain))


@every_method
def test_without_strength_it_is_finetune(cls: type[Regularised]) -> None:
    free, plain = make(cls, strength=0.0), make(Finetune)
    for index in range(2):
        learn(free, toy_task(index))
        learn(plain, toy_task(index))
    assert same_tensors(dict(free.network.state_dict()), dict(plain.network.state_dict()))


@every_method
def test_what_the_best_epoch_had_is_put_back(cls: type[Regularised]) -> None:
    """Keeping the best of many epochs is the same as stopping there, importances included."""
    task = toy_task(0, 16)
    settings: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 4}
    best = make(cls, epochs=12, **settings)
    events, _ = finish(best.learn(task))
    ends = [event for event in events if isinstance(event, EpochEnd)]
    accuracies = [event.validation_accuracy or 0.0 for event in ends]
    epoch = 1 + accuracies.index(max(accuracies))
    assert epoch < 12
    last = make(cls, epochs=epoch, keep="last", **settings)
    finish(last.learn(task))
    assert same_tensors(best.state().tensors, last.state().tensors)
    other = make(cls, epochs=12, keep="last", **settings)
    finish(other.learn(task))
    assert not same_tensors(best.state().tensors, other.state().tensors)


STRENGTHS = {"l2": 0.3, "ewc": 1000.0, "ewc-online": 1000.0, "si": 30.0, "mas": 10.0}


def opposed(index: int) -> Task:
    """Shared images: bright left or right, top or bottom; a task tells one from the other."""
    generator = torch.Generator().manual_seed(index)

    def part(count: int) -> Samples:
        labels = torch.arange(count) % 2
        other = torch.arange(count) // 2 % 2
        images = torch.randint(0, 100, (count, *INPUT_SHAPE), generator=generator)
        for row, (own, free) in enumerate(zip(labels.tolist(), other.tolist(), strict=True)):
            across, down = (own, free) if index == 0 else (free, own)
            images[row, :, :, 2 * across : 2 * across + 2] += 70
            images[row, :, 2 * down : 2 * down + 2] += 70
        return Samples(images.to(torch.uint8), labels + 2 * index, scale=1 / 255)

    return Task(index, "opposed", (2 * index, 2 * index + 1), part(64), part(16), part(16))


def forgotten(cls: type[Any], **settings: Any) -> float:
    """How much the loss on the first task grows while the second is learned."""
    method = make(
        cls,
        tasks=2,
        network_settings={"hidden": (4,), "density": 1.0},
        epochs=30,
        learning_rate=0.02,
        **settings,
    )
    first, second = opposed(0), opposed(1)
    learn(method, first)
    images, labels = first.train.batch(slice(None))

    def loss() -> float:
        logits = method.network(images)[:, :2]
        return float(functional.cross_entropy(logits, labels).detach())

    before = loss()
    learn(method, second)
    images_, labels_ = second.train.batch(slice(None))
    learned = functional.cross_entropy(method.network(images_)[:, 2:], labels_ - 2)
    assert learned < 0.6  # below chance, ln 2
    return loss() - before


@every_method
def test_it_forgets_less_than_finetune(cls: type[Regularised]) -> None:
    plain = forgotten(Finetune)
    assert plain > 0.1
    assert forgotten(cls, strength=STRENGTHS[cls.name]) < plain / 2


@every_method
@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("incremental", ["task", "class", "domain"])
def test_loaded_it_goes_on_identically(
    cls: type[Regularised], network: str, incremental: str
) -> None:
    settings: dict[str, Any] = {"incremental": incremental, "strength": 0.5, "epochs": 2}
    tasks = (
        [toy_task(0, 16)] * 3 if incremental == "domain" else [toy_task(i, 16) for i in (0, 1, 2)]
    )
    method = make(cls, network, **settings)
    learn(method, *tasks[:2])
    copy = make(cls, network, **settings)
    copy.load_state(method.state())
    copy.learned = list(method.learned)
    learn(method, tasks[2])
    learn(copy, tasks[2])
    assert same_tensors(method.state().tensors, copy.state().tensors)
    assert method.state().values == copy.state().values
    assert all(bool((each != 0).any()) for each in method.importance.values())


def test_importances_of_a_convnet_are_those_of_autograd() -> None:
    ewc, mas = make(Ewc, "convnet", samples=None), make(Mas, "convnet", **ALL)
    task = toy_task(0, 12)
    images, _ = task.train.batch(slice(None))
    fisher = zeros(ewc.plastic())
    for image in images.split(1):
        chances = ewc.network(image)[:, :2].log_softmax(1)
        for name, gradient in plain_gradients(ewc, chances.max()).items():
            fisher[name] += gradient.square() / len(images)
    found = ewc.fisher(task, task.train)
    size = plain_gradients(mas, mas.network(images)[:, :2].square().mean())
    sensitivity = mas.sensitivity(task, task.train)
    for name in fisher:
        assert_close(found[name], fisher[name], rtol=1e-4, atol=1e-9)
        assert_close(sensitivity[name], size[name].abs(), rtol=1e-4, atol=1e-7)


@every_method
def test_storage_is_two_numbers_for_each_live_value(cls: type[Regularised]) -> None:
    method = make(cls, network_settings={"hidden": (10,), "density": 0.5})
    learn(method, toy_task(0, 16))
    live = 16 * 10 // 2 + 10 + 10 * 6 // 2 + 6  # 16 inputs, 10 units, 6 outputs, biases
    assert method.census().storage == {"importance": 2 * 4 * live}
    assert method.census().live == live


Damage = Callable[[dict[str, Tensor], dict[str, Any], str], object]


@every_method
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, values, name: tensors.pop("importance." + name), "not those of"),
        (lambda tensors, values, name: tensors.pop("anchor." + name), "not those of"),
        (
            lambda tensors, values, name: [
                tensors.pop(key) for key in list(tensors) if key.startswith("anchor.")
            ],
            "not of the same values",
        ),
        (
            lambda tensors, values, name: tensors.update({"anchor.more": torch.zeros(1)}),
            "not those of",
        ),
        (
            lambda tensors, values, name: tensors.update({"anchor." + name: torch.zeros(1, 1)}),
            "of shape",
        ),
        (
            lambda tensors, values, name: tensors.update(
                {"importance." + name: tensors["importance." + name].double()}
            ),
            "type torch.float64",
        ),
        (
            lambda tensors, values, name: tensors["importance." + name].fill_(torch.nan),
            "not finite",
        ),
        (lambda tensors, values, name: tensors["anchor." + name].fill_(torch.inf), "not finite"),
        (lambda tensors, values, name: tensors["importance." + name].fill_(-1), "negative"),
        (lambda tensors, values, name: values.pop("offset"), "offset"),
        (lambda tensors, values, name: values.update(offset=-1.0), "offset"),
        (lambda tensors, values, name: values.update(offset=math.nan), "offset"),
        (lambda tensors, values, name: values.update(offset="1"), "offset"),
    ],
)
def test_a_damaged_state_is_refused(cls: type[Regularised], damage: Damage, message: str) -> None:
    method = make(cls)
    learn(method, toy_task(0, 16))
    state, other = method.state(), make(cls)
    before = other.state()
    damage(state.tensors, state.values, next(iter(method.plastic())))
    with pytest.raises(FormatError, match=message):
        other.load_state(MethodState(state.tensors, state.values))
    assert same_tensors(other.state().tensors, before.tensors)  # nothing was taken over


@pytest.mark.parametrize("cls", [Ewc, EwcOnline])
def test_a_term_that_is_added_stays_as_it_was(cls: type[Ewc]) -> None:
    method = make(cls)
    learn(method, toy_task(0, 16))
    fisher = copies(method.importance)
    before = copies(fisher)
    method.add_term(fisher)
    assert same_tensors(fisher, before)
    assert not same_tensors(method.importance, before)


def test_importances_that_are_not_finite_are_an_error() -> None:
    method = make(Mas)
    with torch.no_grad():
        for value in method.plastic().values():
            value.fill_(1e15)
    task = toy_task(0, 16)
    with pytest.raises(DivergedError, match="importances"):
        method.hold(method.sensitivity(task, task.train))


@every_method
def test_strength_is_lambda_and_not_negative(cls: type[Regularised]) -> None:
    assert build(cls.config_class, {"lambda": 3.0}).strength == 3.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="strength=-1 must be"):
        build(cls.config_class, {"strength": -1})
