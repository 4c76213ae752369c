"""What tells tasks apart, worked out by hand on networks of a few units."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nispa.base.config import build
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, FormatError
from nispa.methods.base import MethodState, Problem, derive
from nispa.methods.context import (
    Activations,
    ContextConfig,
    Detector,
    Features,
    Statistics,
    make_detector,
    posterior,
)
from nispa.methods.nispa import Nispa
from nispa.methods.nispa_context import NispaContext
from nispa.methods.saving import decode, encode
from nispa.network.models import NetworkConfig, SparseNetwork, build_network

from .test_contract import settings_of
from .toy import finish, same_tensors, toy_method, toy_task


def network(*rows: tuple[float, float]) -> SparseNetwork:
    """Two inputs, and a hidden unit relu(row . inputs) for each row."""
    config = NetworkConfig(architecture="mlp", hidden=(len(rows),), density=1.0)
    made = build_network(config, (1, 1, 2), 4, seed=0)
    layer = made.layers["fc1"]
    layer.connect(torch.ones(len(rows), 2, dtype=torch.bool), torch.tensor(rows).flatten())
    return made


def task(index: int, classes: tuple[int, ...], images: list[tuple[float, float]]) -> Task:
    """As many images of the first class as of the second, in this order."""
    labels = torch.tensor(classes).repeat_interleave(len(images) // len(classes))
    samples = Samples(torch.tensor(images).view(-1, 1, 1, 2), labels)
    return Task(index, str(index), classes, samples, samples, samples)


def stable(*marks: bool) -> dict[str, Tensor]:
    return {"input": torch.ones(2, dtype=torch.bool), "fc1": torch.tensor(marks)}


def learn(detector: Detector, of: SparseNetwork, which: Task, *marks: bool) -> None:
    detector.learn(of, which, stable(*marks), torch.Generator().manual_seed(which.index))


def test_the_chain_gives_each_task_its_share_of_what_is_left() -> None:
    # p_1 = 3/4, p_2 = 1/2: P = 3/4, 1/4 x 1/2, and the last task 1/4 x 1/2.
    odds = [torch.tensor([math.log(3.0)]).double(), torch.zeros(1).double()]
    assert posterior(odds, 1).exp().tolist() == [[pytest.approx(p) for p in (0.75, 0.125, 0.125)]]
    assert posterior([], 3).tolist() == [[0.0]] * 3


def test_the_chain_stays_exact_where_probabilities_vanish() -> None:
    found = posterior([torch.tensor([-800.0, 800.0]).double()] * 2, 2)
    assert found.tolist() == [[-800.0, -800.0, 0.0], [0.0, -800.0, -1600.0]]


def test_features_are_listed_as_units_become_stable() -> None:
    features = Features({"input": 2, "fc1": 3}, "input")
    features.extend({"fc1": torch.tensor([False, True, False])})
    features.extend({"fc1": torch.tensor([True, True, False])})
    assert (features.places.tolist(), features.counts) == ([0, 1, 3, 2], [3, 4])
    x = features.of(network((1, 0), (0, 1), (1, 1)), torch.tensor([[[[2.0, 5.0]]]]))
    assert x.tolist() == [[2.0, 5.0, 5.0, 2.0]]


def test_a_channel_is_a_feature_with_the_mean_of_its_map() -> None:
    config = build(
        NetworkConfig,
        {"architecture": "convnet", "channels": (2,), "fc": (), "density": 1, "pool_every": 9},
    )
    made = build_network(config, (1, 2, 2), 4, seed=0)
    layer = made.layers["conv1"]
    kernels = torch.zeros(2, 3, 3)
    kernels[:, 1, 1] = torch.tensor([1.0, -1.0])  # the image itself, and its negative
    layer.connect(torch.ones(2, 1, dtype=torch.bool), kernels)
    features = Features({"conv1": 2}, "input")
    features.extend({"conv1": torch.ones(2, dtype=torch.bool)})
    x = features.of(made, torch.tensor([[[[0.0, 1.0], [2.0, -1.0]]]]))
    assert x.tolist() == [[0.75, 0.25]]


def test_the_discriminant_by_hand() -> None:
    # One feature, a + b of the inputs. Class means 1, 5 | 11, 15, each with scatter 2: variance 1,
    # doubled by the shrinkage. g(x) = x mu / 2 - mu^2 / 4 + log 2.
    config = ContextConfig(context="statistics", context_inputs=False, shrinkage=1.0)
    made = network((1, 1))
    detector = make_detector(config, made, ["fc1"])
    assert isinstance(detector, Statistics)
    learn(detector, made, task(0, (0, 1), [(0, 0), (1, 1), (4, 0), (0, 6)]), True)
    assert detector.odds(torch.zeros(3, 1)) == []
    learn(detector, made, task(1, (2, 3), [(5, 5), (12, 0), (14, 0), (0, 16)]), True)
    assert detector.scatters[0].tolist() == [[8.0]]
    assert detector.scatters[1].tolist() == [[4.0]]
    (found,) = detector.odds(torch.tensor([[8.0], [6.0]]))
    expected = math.log(math.exp(2.75) + math.exp(8.75)) - math.log(
        math.exp(2.75) + math.exp(-11.25)
    )
    assert found.tolist() == [pytest.approx(0.0), pytest.approx(expected)]
    images = torch.tensor([[[[4.0, 2.0]]]])
    chance = 1 / (1 + math.exp(-expected))
    found = detector.log_posterior(made, images).exp()
    assert found.tolist() == [[pytest.approx(chance), pytest.approx(1 - chance)]]


def test_a_covariance_is_pooled_over_a_task_and_later_ones() -> None:
    # The first unit is stable from task 0 on, the second from task 1.
    config = ContextConfig(context="statistics", context_inputs=False)
    made = network((1, 0), (0, 1))
    detector = make_detector(config, made, ["fc1"])
    assert isinstance(detector, Statistics)
    learn(detector, made, task(0, (0, 1), [(0, 7), (2, 9), (4, 1), (6, 0)]), True, False)
    learn(detector, made, task(1, (2, 3), [(1, 1), (7, 5), (0, 2), (6, 4)]), True, True)
    # First feature: scatters 2 + 2 and 18 + 18. Second: 8 + 2; product of both 12 + 6.
    assert detector.scatters[0].tolist() == [[40.0]]
    assert detector.scatters[1].tolist() == [[36.0, 18.0], [18.0, 10.0]]
    assert [each.tolist() for each in detector.means] == [[[1.0], [5.0]], [[4.0, 3.0], [3.0, 3.0]]]


def test_bits_are_above_mean_and_deviation_of_the_first_task() -> None:
    config = ContextConfig(context="activations", context_inputs=True)
    made = network((1, 0), (0, 1))
    detector = make_detector(config, made, ["fc1"])
    assert isinstance(detector, Activations)
    learn(detector, made, task(0, (0, 1), [(0, 0), (0, 2), (4, 2), (4, 4)]), False, True)
    # Inputs 0 0 0 2 4 2 4 4: mean 2, variance 3. The units, stable or not, see the same.
    above = 2 + math.sqrt(3)
    assert detector.thresholds.tolist() == [pytest.approx(above), pytest.approx(above)]
    # Features are both inputs and the second unit; 4 is above, 2 is not.
    bits = sorted(detector.bits[0].flatten().tolist())
    assert bits == [0b00000000, 0b00000000, 0b10000000, 0b11100000]
    learn(detector, made, task(1, (2, 3), [(9, 0), (9, 0), (9, 0), (9, 0)]), True, True)
    assert detector.thresholds.tolist() == [pytest.approx(above), pytest.approx(above)]
    assert detector.bits[1].flatten().tolist() == [0b10010000] * 4  # the first unit, too
    assert detector.features.counts == [3, 4]


def test_at_most_so_many_samples_of_each_class_are_kept() -> None:
    config = ContextConfig(context="activations", samples_per_class=3)
    made = network((1, 0))
    detector = make_detector(config, made, ["fc1"])
    assert isinstance(detector, Activations)
    learn(detector, made, task(0, (0, 1), [(n, n) for n in range(8)]), True)
    assert detector.bits[0].shape == (6, 1)


def test_the_logistic_model_is_the_minimum_of_its_loss() -> None:
    config = ContextConfig(context="activations", context_inputs=False, fit_strength=2.0)
    made = network((1, 0), (0, 1))
    detector = make_detector(config, made, ["fc1"])
    assert isinstance(detector, Activations)
    images = [(9.0, 0.0), (9.0, 9.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    learn(detector, made, task(0, (0, 1), images), True, True)
    learn(detector, made, task(1, (2, 3), [(0.0, 9.0)] * 3 + [(0.0, 0.0)] * 3), True, True)
    x = torch.tensor([*images, *[(0.0, 9.0)] * 3, *[(0.0, 0.0)] * 3])
    (odds,) = detector.odds(x)
    y = (torch.arange(12) < 6).double()
    missed = y - odds.sigmoid()
    zero, one, two = detector.odds(torch.tensor([(0.0, 0.0), (9.0, 0.0), (0.0, 9.0)]))[0].tolist()
    weights = [one - zero, two - zero]
    # The gradient of |w|^2 / 2 + C sum of losses is 0: w = C sum (y - p) x, 0 = sum (y - p).
    assert float(missed.sum()) == pytest.approx(0, abs=1e-3)
    wanted = [2 * float(missed[x[:, n] > 0].sum()) for n in (0, 1)]
    assert weights == [pytest.approx(each, abs=1e-3) for each in wanted]
    assert weights[0] > 0.3 > -0.3 > weights[1]


@pytest.mark.parametrize("context", ["activations", "statistics"])
def test_without_any_feature_the_numbers_of_images_decide(context: str) -> None:
    config = build(ContextConfig, {"context": context, "context_inputs": False})
    made = network((1, 0))
    detector = make_detector(config, made, ["fc1"])
    assert detector is not None
    learn(detector, made, task(0, (0, 1), [(0.0, 0.0)] * 6), False)
    learn(detector, made, task(1, (2, 3), [(0.0, 0.0)] * 2), False)
    found = detector.log_posterior(made, torch.zeros(1, 1, 1, 2)).exp()
    assert found.tolist() == [[pytest.approx(0.75), pytest.approx(0.25)]]


def test_too_many_features_are_refused() -> None:
    made = build_network(NetworkConfig(hidden=(4,), density=1.0), (1, 91, 91), 4, seed=0)
    with pytest.raises(ConfigError, match=r"8285 features.*pass context_inputs=false"):
        make_detector(ContextConfig(context="statistics"), made, ["fc1"])
    assert make_detector(ContextConfig(context="activations"), made, ["fc1"]) is not None


# The method.


@functools.cache
def nispa_context(tasks: int = 3, **settings: Any) -> NispaContext:
    """A method that no test changes."""
    method = toy_method("nispa-context", **settings)
    assert isinstance(method, NispaContext)
    method.start()
    for index in range(tasks):
        finish(method.learn(toy_task(index)))
    return method


def untold(context: str) -> float:
    """Share of right predictions on two tasks (the third has the first one's images)."""
    method, tasks = nispa_context(2, context=context), [toy_task(index) for index in range(2)]
    tests = [task.test.batch(slice(None)) for task in tasks]
    right = [(method.predict(images, None) == labels).float().mean() for images, labels in tests]
    return float(torch.stack(right).mean())


CONTEXTS = ["activations", "statistics", "entropy", "energy"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_told_the_task_it_is_nispa(context: str) -> None:
    nispa = toy_method("nispa")
    nispa.start()
    for index in range(3):
        finish(nispa.learn(toy_task(index)))
    method = nispa_context(context=context)
    state = method.state().tensors
    own = {name: tensor for name, tensor in state.items() if not name.startswith("memory.")}
    assert same_tensors(own, nispa.state().tensors)
    for index in range(3):
        (images, _), info = toy_task(index).test.batch(slice(None)), toy_task(index).info
        assert torch.equal(method.predict(images, info), nispa.predict(images, info))
        assert torch.equal(method.scores(images, info), nispa.scores(images, info))


@pytest.mark.parametrize("incremental", ["task", "class"])
def test_derived_settings_are_those_of_nispa(incremental: str) -> None:
    network_config = NetworkConfig()
    names = ("settle_fresh", "unit_share", "epochs_per_phase")
    problem, first = Problem((1, 4, 4), 6, 3), toy_task(0)
    nispa = build(Nispa.config_class, {"derived": names})
    ours = build(NispaContext.config_class, {"derived": names, "incremental": incremental})
    expected = derive(nispa, network_config, problem, first, [])
    own_heads = NispaContext.own_heads
    assert derive(ours, network_config, problem, first, [], own_heads=own_heads) == expected


def test_tells_toy_tasks_apart() -> None:
    assert untold("energy") < 0.8
    assert untold("statistics") > 0.95
    assert untold("activations") > 0.9


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_task_comes_first_and_then_its_best_class(context: str) -> None:
    method = nispa_context(context=context)
    images = torch.cat([toy_task(index).test.batch(slice(None))[0] for index in range(3)])
    with torch.no_grad():
        logits = method.network(images).double()
    scores = method.scores(images, None)
    tasks = method.task_scores(images, logits)
    if context in ("activations", "statistics"):
        assert torch.allclose(tasks.exp().sum(1), torch.ones(len(images)).double())
    for row, z, s, predicted in zip(
        scores, logits, tasks, method.predict(images, None).tolist(), strict=True
    ):
        best = int(s.argmax())
        assert predicted == 2 * best + int(z[2 * best : 2 * best + 2].argmax())
        for place in range(3):
            assert float(row[2 * place : 2 * place + 2].max()) == float(s[place])
            assert float(row[2 * place] - row[2 * place + 1]) == pytest.approx(
                float(z[2 * place] - z[2 * place + 1]), abs=1e-9
            )


def test_entropy_and_energy_by_hand() -> None:
    for context, expected in (
        # Head one: probabilities 1/2 and 1/2. Head two: 3/4 and 1/4.
        ("entropy", [-math.log(2), 0.75 * math.log(0.75) + 0.25 * math.log(0.25)]),
        ("energy", [math.log(4.0), math.log(1 + 1 / 3)]),
    ):
        method = nispa_context(2, context=context)
        logits = torch.tensor([[math.log(2), math.log(2), 0.0, -math.log(3), 9.0, 9.0]]).double()
        found = method.task_scores(torch.zeros(1, 1, 4, 4), logits)
        assert found.tolist() == [[pytest.approx(each) for each in expected]]


@pytest.mark.parametrize("context", ["activations", "statistics"])
def test_a_saved_detector_tells_the_same(context: str, tmp_path: Any) -> None:
    method = nispa_context(context=context)
    file = tmp_path / "network.safetensors"
    file.write_bytes(encode(method, settings_of(method)))
    loaded, _, _ = decode(file)
    images, _ = toy_task(1).test.batch(slice(None))
    assert torch.equal(loaded.scores(images, None), method.scores(images, None))


@pytest.mark.parametrize(
    ("context", "name", "change"),
    [
        ("statistics", "counts", lambda t: t.flip(0)),
        ("statistics", "counts", lambda t: t[:1]),
        ("statistics", "places", lambda t: t.clamp(max=1)),
        ("statistics", "places", lambda t: t + 30),
        ("statistics", "images0", lambda t: t * 0),
        ("statistics", "means1", lambda t: t * torch.nan),
        ("statistics", "means1", lambda t: t[:, :3]),
        ("statistics", "scatter1", lambda t: t[1:]),
        ("activations", "bits0", lambda t: t[:, :1]),
        ("activations", "bits1", lambda t: t[:0]),
        ("activations", "bits1", lambda t: t.repeat(99, 1)),
        ("activations", "thresholds", lambda t: t[1:]),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(context: str, name: str, change: Any) -> None:
    state = nispa_context(2, context=context).state()
    method = toy_method("nispa-context", context=context)
    method.learned = [toy_task(0).info, toy_task(1).info]
    tensors = {**state.tensors, f"memory.{name}": change(state.tensors[f"memory.{name}"])}
    with pytest.raises(FormatError):
        method.load_state(MethodState(tensors, state.values))
    method.load_state(state)
