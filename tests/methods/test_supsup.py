"""SupSup: fixed signs, the gradient of the entropy by alpha worked out by hand, inferred tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.config import build
from nispa.data.named import build_scenario
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import MethodState, Problem
from nispa.methods.presets import resolve
from nispa.methods.saving import make_method
from nispa.methods.supsup import (
    Superposition,
    SupSup,
    SupSupConfig,
    entropy,
    infer,
    surplus_size,
)
from nispa.network.models import NetworkConfig

from .test_wsn import step_of
from .toy import finish, same_tensors, toy_domain, toy_method, toy_task


def tiny(**values: Any) -> SupSup:
    """Two inputs, two units, two outputs; a task is one step of gradient descent by 0.01."""
    plain = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.01, "epochs": 1}
    method = SupSup(
        Problem((1, 1, 2), 4, 2),
        build(NetworkConfig, {"hidden": (2,), "density": 1.0}),
        build(SupSupConfig, plain | {"keep": "last"} | values),
        seed=0,
    )
    method.start()
    return method


def toys(tasks: int, network: str = "mlp", **values: Any) -> SupSup:
    method = toy_method("supsup", network, tasks=tasks, **values)
    assert isinstance(method, SupSup)
    method.start()
    return method


@pytest.mark.parametrize(("network", "fan"), [("mlp", "live"), ("convnet", "positions")])
def test_weights_are_signed_constants_and_never_move(network: str, fan: str) -> None:
    method = toys(
        2, network, epochs=2, network_settings={"fan": fan, "gain": 0.5, "bias": "uniform"}
    )
    for layer in method.network.layers.values():
        assert layer.frozen_count == layer.live_count > 0
        assert layer.dense_bias().eq(0).all()
        rows = layer.frozen_index // layer.shape[1]
        inputs = layer.pattern.sum(1)[rows] if fan == "live" else layer.shape[1]
        expected = 0.5 * (2 / (torch.as_tensor(inputs) * layer.weights_each)) ** 0.5
        sizes = (
            layer.frozen_weight.abs().flatten(1)
            if layer.weights_each > 1
            else (layer.frozen_weight.abs().unsqueeze(1))
        )
        torch.testing.assert_close(sizes, expected.view(-1, 1).expand_as(sizes))
        assert bool((layer.frozen_weight > 0).any())
        assert bool((layer.frozen_weight < 0).any())
    before = method.state().tensors
    for index in range(2):
        finish(method.learn(toy_task(index)))
    after = method.state().tensors
    assert same_tensors(
        *({k: v for k, v in each.items() if k.startswith("network.")} for each in (before, after))
    )


def test_one_step_by_hand() -> None:
    """Two units of weights (1, -1) and (1, 1) on the image (1, 0.5); four outputs."""
    method = tiny(capacity=0.5)
    first, head = method.network.layers["fc1"], method.network.layers["head"]
    first.frozen_weight.copy_(torch.tensor([1.0, -1, 1, 1]))
    head.frozen_weight.copy_(torch.tensor([1.0, -1, 1, 1, -1, 1, 1, -1]))
    scores = {
        "fc1": torch.tensor([0.9, 0.1, -0.2, -0.8]),  # units 1 and 0.5
        "head": torch.tensor([0.9, 0.1, 0.2, -0.7, -0.9, 0.3, 0.1, -0.8]),
    }
    method.first_scores = lambda task: scores  # type: ignore[method-assign]
    seen: list[dict[str, Tensor]] = []
    choose = method.choose

    def watched(each: Tensor) -> Tensor:
        seen.append({"scores": each.clone()})
        return choose(each)

    method.choose = watched  # type: ignore[method-assign, assignment]
    finish(method.learn(step_of(0)))
    # The head's mask is [[1, 0], [0, 1], [1, 0], [0, 1]]: logits 1, 0.5, -1, -0.5. One image of
    # each class 0 and 1: the slope of the loss by output o is p_o - (1/2, 1/2, 0, 0).
    logits = torch.tensor([1.0, 0.5, -1, -0.5])
    slope = logits.softmax(0) - torch.tensor([0.5, 0.5, 0, 0])
    units = torch.tensor([1.0, 0.5])
    head_weights = torch.tensor([[1.0, -1], [1, 1], [-1, 1], [1, -1]])
    head_mask = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    of_head = slope[:, None] * units * head_weights * scores["head"].view(4, 2).sign()
    of_units = slope @ (head_weights * head_mask)
    first_weights = torch.tensor([[1.0, -1], [1, 1]])
    of_first = (
        of_units[:, None] * torch.tensor([1, 0.5]) * first_weights * scores["fc1"].view(2, 2).sign()
    )
    torch.testing.assert_close(seen[-2]["scores"], scores["fc1"] - 0.01 * of_first.flatten())
    torch.testing.assert_close(seen[-1]["scores"], scores["head"] - 0.01 * of_head.flatten())
    assert {name: bits.tolist() for name, bits in method.masks.of(0).items()} == {
        "fc1": [True, False, False, True],
        "head": [True, False, False, True, True, False, False, True],
    }


def test_the_rule_positive_takes_scores_that_are_not_negative() -> None:
    method = tiny(rule="positive")
    assert method.choose(torch.tensor([-0.5, 0.0, 0.1, -1e-9])).tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_the_entropy_by_hand() -> None:
    # Soft-max of (ln 3, 0) is (3/4, 1/4), of (0, 0) a half each.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    first = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(entropy(logits)) == pytest.approx((first + math.log(2)) / 2)


def test_the_surplus_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0, math.log(4)]], requires_grad=True)
    size = surplus_size(2)(logits)
    assert float(size.detach()) == pytest.approx(math.log(8))
    (slope,) = torch.autograd.grad(size, logits)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 0.5]]))


MASKS: list[dict[str, list[int]]] = [
    {"fc1": [1, 0, 0, 1], "head": [1, 1, 0, 0, 1, 0, 0, 0]},
    {"fc1": [1, 1, 0, 1], "head": [0, 1, 1, 0, 0, 0, 0, 1]},
    {"fc1": [0, 0, 1, 1], "head": [1, 0, 1, 0, 1, 1, 0, 1]},
]


def superposed(method: SupSup) -> Superposition:
    masks = [{name: torch.tensor(bits).bool() for name, bits in mask.items()} for mask in MASKS]
    return Superposition(method.network, method.spec().empty(), masks)


def test_the_gradient_of_the_entropy_by_alpha_by_hand() -> None:
    """One hidden unit each way, so that every derivative can be written down."""
    method = tiny()
    method.network.layers["fc1"].frozen_weight.copy_(torch.tensor([1.0, 1, 1, 1]))
    method.network.layers["head"].frozen_weight.copy_(torch.tensor([1.0, -1, 1, 1, 1, 1, -1, 1]))
    alphas = torch.tensor([0.5, 0.25, 0.25])
    image = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    found = superposed(method).slopes(image, entropy, alphas)
    # Sums of alpha_i m_i: [[.75, .25], [.25, 1]] and [[.75, .75], [.5, 0], [.75, .25], [0, .5]].
    # Units: .75 + .25/2 = .875 and .25 + 1/2 = .75.
    units = torch.tensor([0.875, 0.75])
    head = torch.tensor([[0.75, -0.75], [0.5, 0], [0.75, 0.25], [0, 0.5]])
    logits = head @ units
    p = logits.softmax(0)
    h = -(p * p.log()).sum()
    slope = -p * (p.log() + h)  # dH/dy_o
    signs = torch.tensor([[1.0, -1], [1, 1], [1, 1], [-1, 1]])
    of_head = slope[:, None] * units * signs
    of_units = slope @ head
    of_first = of_units[:, None] * torch.tensor([1, 0.5])
    expected = [
        (of_first.flatten() * torch.tensor(mask["fc1"])).sum()
        + (of_head.flatten() * torch.tensor(mask["head"])).sum()
        for mask in MASKS
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_gradient_by_alpha_is_that_of_finite_differences(network: str) -> None:
    method = toys(3, network, epochs=2)
    for index in range(3):
        finish(method.learn(toy_task(index)))
    masks = [method.masks.of(index) for index in range(3)]
    every = Superposition(method.network, method.spec().empty(), masks)
    images, _ = toy_task(1).test.batch(slice(0, 8))
    alphas = torch.full((3,), 1 / 3)
    found = every.slopes(images, entropy, alphas)

    def value(by: Tensor) -> float:
        every.slopes(images, entropy, by)
        with torch.no_grad():
            return float(entropy(every.network(images)))

    for task in range(3):
        step = 1e-2 * functional.one_hot(torch.tensor(task), 3)
        numeric = (value(alphas + step) - value(alphas - step)) / 2e-2
        assert numeric == pytest.approx(float(found[task]), rel=0.02, abs=2e-3)


def test_one_gradient_decides_or_halves_do() -> None:
    """The slope of a task depends on who is left: halving may end elsewhere."""
    asked: list[list[float]] = []

    def slopes(alphas: Tensor) -> Tensor:
        asked.append(alphas.tolist())
        left = alphas > 0
        first = torch.tensor([3.0, 0.5, 2.0, 1.0, 0.0])
        return first if left.all() else torch.tensor([0.0, 1.0, 0.0, 0.5, 0.7])

    assert infer(slopes, 5, "gradient") == 4
    assert asked == [[pytest.approx(0.2)] * 5]
    asked.clear()
    # Of five the smallest three stay: 4, 1, 3; of these two: 3, 4; of these 3.
    assert infer(slopes, 5, "halving") == 3
    third = pytest.approx(1 / 3)
    assert asked[1:] == [[0, third, 0, third, third], [0, 0, 0, 0.5, 0.5]]
    assert infer(slopes, 1, "gradient") == 0


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("incremental", ["class", "domain"])
def test_earlier_logits_stay_whatever_is_learned(network: str, incremental: str) -> None:
    method = toys(4, network, incremental=incremental, epochs=3)
    seen: list[Tensor] = []
    for index in range(4):
        task = (toy_domain if incremental == "domain" else toy_task)(index)
        finish(method.learn(task))
        for earlier in range(index + 1):
            images, _ = toy_task(earlier).test.batch(slice(None))
            with torch.no_grad():
                logits = method.network_for(method.learned[earlier])(images)
            if earlier == index:
                seen.append(logits)
            assert torch.equal(logits, seen[earlier])


def test_what_is_inferred_is_predicted_with_that_tasks_mask() -> None:
    method = toys(3, incremental="class", together=4, epochs=3)
    for index in range(3):
        finish(method.learn(toy_task(index)))
    images, _ = toy_task(1).test.batch(slice(0, 30))
    tasks = method.infer_tasks(images)
    assert len(tasks) == 30
    assert all(len(set(tasks[start : start + 4])) == 1 for start in range(0, 30, 4))
    alone = [method.infer_tasks(images[start : start + 4])[0] for start in range(0, 30, 4)]
    assert alone == tasks[::4]
    predicted = method.predict(images, None)
    for number, task in enumerate(tasks):
        told = method.predict(images[number : number + 1], toy_task(task).info)
        assert int(told) == int(predicted[number])


def test_surplus_outputs_are_no_classes() -> None:
    method = toys(2, surplus=5, objective="surplus", incremental="class", epochs=3)
    assert method.network.topology.output.size == 4 + 5
    finish(method.learn(toy_task(0)))
    finish(method.learn(toy_task(1)))
    images, _ = toy_task(0).test.batch(slice(None))
    assert set(method.predict(images, None).tolist()) <= {0, 1, 2, 3}
    other = toys(2, surplus=5, objective="surplus", incremental="class", epochs=3)
    other.learned = list(method.learned)
    other.load_state(method.state())
    assert torch.equal(other.predict(images, None), method.predict(images, None))


def test_variant_g_needs_surplus_outputs() -> None:
    with pytest.raises(ConfigError, match="surplus=90"):
        build(SupSupConfig, {"objective": "surplus"})


def test_more_tasks_than_outputs_may_share_them() -> None:
    method = toys(2, incremental="domain", epochs=1)
    for index in range(6):
        finish(method.learn(toy_domain(index)))
    other = toys(2, incremental="domain", epochs=1)
    other.learned = list(method.learned)
    other.load_state(method.state())
    assert other.masks.tasks == [0, 1, 2, 3, 4, 5]


def test_a_network_that_is_not_all_frozen_is_refused() -> None:
    method = toys(2)
    plain = toy_method("wsn", tasks=2)
    plain.start()
    tensors = {k: v for k, v in plain.state().tensors.items() if k.startswith("network.")}
    state = method.state()
    with pytest.raises(FormatError, match="not frozen"):
        toys(2).load_state(MethodState({**state.tensors, **tensors}, state.values))


def test_the_task_of_permuted_digits_is_inferred() -> None:
    scenario = build_scenario(
        "permuted-mnist", seed=0, options={"dataset": "digits", "tasks": 3, "shared_classes": True}
    )
    given = {"incremental": "domain", "density": 1.0, "hidden": (100,), "rule": "positive"}
    given |= {"surplus": 90, "objective": "surplus", "infer": "halving", "together": 32}
    shape = scenario.input_shape
    found = resolve("supsup", "digits", scenario.name, shape, given | {"epochs": 4})
    problem = Problem(shape, scenario.outputs, len(scenario.tasks))
    method = make_method(found, problem, seed=0, device="cpu")
    assert isinstance(method, SupSup)
    method.start()
    for task in scenario.tasks:
        finish(method.learn(task))
    for task in scenario.tasks:
        images, _ = task.test.batch(slice(0, 128))
        inferred = method.infer_tasks(images)
        assert sum(each == task.index for each in inferred) >= 0.9 * len(inferred)
