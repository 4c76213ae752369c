"""NISPA's invariants, over random networks, schedules, optimisers and growth rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa.errors import ConfigError, ScenarioError
from nispa.mechanism.grow import GROWTH_RULES
from nispa.methods.base import PhaseEnd, PhaseStart
from nispa.methods.nispa import Nispa
from nispa.methods.nispa_config import NispaConfig
from nispa.methods.presets import resolve
from nispa.network.topology import complement, live_between
from nispa.training.pausing import EpochEnd, FitBegin, FitPause

from .toy import finish, toy_method, toy_task

MLPS = st.builds(
    lambda hidden, density: {"architecture": "mlp", "hidden": tuple(hidden), "density": density},
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.floats(0.15, 0.9),
)
CONVNETS = st.builds(
    lambda channels, fc, density: {
        "architecture": "convnet",
        "channels": tuple(channels),
        "fc": tuple(fc),
        "density": density,
    },
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.lists(st.integers(2, 6), min_size=0, max_size=1),
    st.floats(0.3, 0.9),
)
STARTS = st.fixed_dictionaries(
    {
        "mask": st.sampled_from(["exact", "bernoulli"]),
        "fan": st.sampled_from(["live", "positions"]),
        "distribution": st.sampled_from(["uniform", "erk"]),
        "bias": st.sampled_from(["zero", "uniform"]),
    }
)
SCHEDULES = st.sampled_from(
    [
        {"schedule": "cosine", "k": 4.0},
        {"schedule": "cosine", "k": 9.0},
        {"schedule": "linear", "k": 0.3},
        {"schedule": "exponential", "k": 1.5},
    ]
)
OPTIMISERS = st.sampled_from(
    [
        {"optimiser": "adam", "learning_rate": 0.02, "weight_decay": 0.1},
        {"optimiser": "adamw", "learning_rate": 0.02, "weight_decay": 0.1},
        {"optimiser": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        {"optimiser": "adadelta", "learning_rate": 1.0, "weight_decay": 0.1},
    ]
)
CHOICES = st.fixed_dictionaries(
    {
        "growth": st.sampled_from(sorted(GROWTH_RULES)),
        "growth_init": st.sampled_from(["normal", "uniform", "zero"]),
        "restart": st.booleans(),
        "other_logits": st.sampled_from(["slice", "zero"]),
        "demote_unsupported": st.booleans(),
        "revive_with_growth": st.booleans(),
        "refill": st.booleans(),
        "restart_level": st.booleans(),
        "accuracy_drop": st.sampled_from([0.0, 5.0, 100.0]),
        "drop_share": st.sampled_from([0.0, 0.0, 0.3, 0.9]),
    }
)
LAST_FITS = st.sampled_from(
    [
        {"settle_epochs": 0},
        {"settle_epochs": 1},
        {"settle_epochs": 1, "settle_fresh": True},
        {"settle_epochs": 4, "settle_fresh": True, "settle_moves": 2, "settle_move_share": 0.9},
    ]
)


def nispa(seed: int, network: dict[str, Any], **values: Any) -> Nispa:
    method = toy_method(
        "nispa",
        str(network["architecture"]),
        seed=seed,
        network_settings=network,
        epochs_per_phase=1,
        max_phases=6,
        **values,
    )
    assert isinstance(method, Nispa)
    method.start()
    return method


def frozen(method: Nispa) -> dict[str, Tensor]:
    """Dense weights and biases with all but the frozen values blanked out."""
    values = {}
    for name, layer in method.network.layers.items():
        marks = layer.frozen.view(*layer.shape, *[1] * len(layer.spec.kernel))
        values[name] = torch.where(marks, layer.dense_weight(), 0.0)
        biases = torch.zeros(layer.shape[0], dtype=torch.bool)
        biases[layer.frozen_bias_index] = True
        values[f"{name}.bias"] = torch.where(biases, layer.dense_bias(), 0.0)
    return values


def owned(method: Nispa) -> dict[str, int]:
    """Live connections and those owed, per layer."""
    return {
        name: layer.live_count + method.owed[name] for name, layer in method.network.layers.items()
    }


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**63 - 1),
    network=st.one_of(MLPS, CONVNETS),
    start=STARTS,
    schedule=SCHEDULES,
    optimiser=OPTIMISERS,
    choices=CHOICES,
    last_fit=LAST_FITS,
)
def test_invariants_hold_after_every_epoch_of_every_task(
    seed: int,
    network: dict[str, Any],
    start: dict[str, Any],
    schedule: dict[str, Any],
    optimiser: dict[str, Any],
    choices: dict[str, Any],
    last_fit: dict[str, Any],
) -> None:
    try:
        method = nispa(seed, network | start, **schedule, **optimiser, **choices, **last_fit)
    except ConfigError:  # a network without any path is refused, as a task without one is
        reject()
    assume(not {0, 1} <= set(method.unreached))
    connections = owned(method)
    first_layer = method.network.topology.layers[0].name
    first_pattern = method.network.layers[first_layer].pattern
    probe = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    promised: Tensor | None = None

    for index in range(3):
        task = toy_task(index, count=24)
        fixed, stable = frozen(method), method.stable
        positions = {name: layer.frozen for name, layer in method.network.layers.items()}
        learning = method.learn(task)
        while True:
            try:
                event = next(learning)
            except StopIteration as end:
                report = end.value
                break
            assert isinstance(event, (PhaseStart, EpochEnd, PhaseEnd, FitBegin, FitPause))
            with torch.no_grad():
                logits = method.network.eval()(probe)[:, : 2 * index]
            if promised is not None:
                assert torch.equal(logits, promised), "a logit of an earlier task changed"
            now = frozen(method)
            assert all(torch.equal(now[name], value) for name, value in fixed.items())
            assert owned(method) == connections, "the density changed"
            assert all(
                torch.equal(layer.frozen, positions[name])
                for name, layer in method.network.layers.items()
            )

        assert 3 <= report.phases <= 8
        # What is stable stays stable; outputs of the classes seen are.
        assert all((stable[name] <= method.stable[name]).all() for name in stable)
        assert method.stable["output"].tolist() == [place < 2 * (index + 1) for place in range(6)]
        # No live connection runs from a plastic unit into a stable one.
        patterns = method.network.patterns()
        across = live_between(method.topology, patterns, complement(method.stable), method.stable)
        assert not any(bool(live.any()) for live in across.values())
        # Exactly the connections between stable units are frozen, and the biases of stable units.
        inside = live_between(method.topology, patterns, method.stable, method.stable)
        for name, layer in method.network.layers.items():
            assert torch.equal(layer.frozen, inside[name])
            biases = torch.zeros(layer.shape[0], dtype=torch.bool)
            biases[layer.frozen_bias_index] = True
            assert torch.equal(biases, method.stable[layer.spec.target])
        # Every value frozen earlier is still there, bit for bit.
        now = frozen(method)
        for name, value in fixed.items():
            was_frozen = value != 0
            assert torch.equal(now[name][was_frozen], value[was_frozen])
        # Input units count as stable, so the first layer loses none but the smallest.
        moves = choices["drop_share"] or last_fit.get("settle_moves")
        assert moves or torch.equal(patterns[first_layer], first_pattern)
        assert owned(method) == connections
        with torch.no_grad():
            promised = method.network.eval()(probe)[:, : 2 * (index + 1)]
        # Restarting the plastic part is over: what was promised is what the task ended with.


def test_restart_changes_no_logit_of_a_seen_class() -> None:
    method = nispa(0, {"architecture": "mlp", "hidden": (12, 10), "density": 0.5}, restart=False)
    finish(method.learn(toy_task(0)))
    other = nispa(0, {"architecture": "mlp", "hidden": (12, 10), "density": 0.5}, restart=True)
    finish(other.learn(toy_task(0)))
    images, _ = toy_task(0).test.batch(slice(None))
    with torch.no_grad():
        first, second = method.network(images), other.network(images)
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.equal(first[:, 2:], second[:, 2:])


def test_stops_when_the_schedule_ends() -> None:
    method = toy_method("nispa", k=4, epochs_per_phase=1, accuracy_drop=100)
    method.start()
    events, report = finish(method.learn(toy_task(0)))
    # tau(1..4) = 0.854, 0.5, 0.146, 0: the fourth phase stops, its candidates had tau(2).
    assert (report.phases, report.stop_reason) == (4, "schedule_end")
    assert report.tau == pytest.approx(0.5)
    starts = [event for event in events if isinstance(event, PhaseStart)]
    assert [start.tau for start in starts] == [
        None,
        *(pytest.approx(value) for value in (0.8535534, 0.5, 0.1464466)),
    ]
    assert [start.phases for start in starts] == [4] * 4


def test_stops_when_accuracy_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    method = toy_method("nispa", k=30, accuracy_drop=5, epochs_per_phase=1)
    method.start()
    # By hand: phase 2 may fall (t > 2 is asked for), phase 3 is within 5 points of the best, 4 not.
    reached = iter([0.9, 0.5, 0.86, 0.84])
    monkeypatch.setattr("nispa.methods.base.accuracy", lambda *_: next(reached))
    events, report = finish(method.learn(toy_task(0)))
    assert (report.phases, report.stop_reason) == (4, "accuracy_drop")
    assert report.tau == pytest.approx(0.989074)  # tau(2): what phase 3 was trained with
    assert isinstance(events[-1], PhaseEnd)


def test_returns_to_the_network_of_the_phase_before() -> None:
    method = nispa(
        5,
        {"architecture": "mlp", "hidden": (8, 8), "density": 0.5},
        k=30,
        restart=False,
        accuracy_drop=100,
    )
    learning = method.learn(toy_task(0))
    images, _ = toy_task(0).test.batch(slice(None))
    after_phase: dict[int, Tensor] = {}
    live: dict[int, Tensor] = {}
    phase = 0
    while True:
        try:
            event = next(learning)
        except StopIteration as end:
            report = end.value
            break
        if isinstance(event, PhaseStart):
            phase = event.phase
        if isinstance(event, EpochEnd):  # one epoch a phase: its end is the phase's network
            with torch.no_grad():
                after_phase[phase] = method.network.eval()(images)
            live[phase] = method.network.layers["fc2"].pattern
    assert report.phases == 6
    with torch.no_grad():
        assert torch.equal(method.network.eval()(images), after_phase[5])
    assert torch.equal(method.network.layers["fc2"].pattern, live[5])


def test_a_class_cannot_be_learned_twice() -> None:
    method = toy_method("nispa")
    method.start()
    finish(method.learn(toy_task(0)))
    before = method.state()
    with pytest.raises(ScenarioError, match="classes seen before"):
        finish(method.learn(toy_task(0)))
    assert all(torch.equal(before.tensors[n], t) for n, t in method.state().tensors.items())


def test_without_carry_over_what_finds_no_place_is_reported_and_lost() -> None:
    # The last task leaves no output plastic, so the head's dropped connections find no place.
    method = nispa(
        1,
        {"architecture": "mlp", "hidden": (8, 8), "density": 0.6},
        carry_over=False,
        k=9,
        accuracy_drop=100,
    )
    for index in range(2):
        finish(method.learn(toy_task(index)))
    live = method.network.layers["head"].live_count
    events, _ = finish(method.learn(toy_task(2)))
    # Of six phases the last is given up, and so is the rewiring that it was trained with.
    ends = [event for event in events if isinstance(event, PhaseEnd)]
    lost = sum(event.ungrown["head"] for event in ends[:-2])
    assert lost > 0
    assert method.network.layers["head"].live_count == live - lost
    assert method.owed["head"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "linear"}, "k=30 ends the linear schedule at once"),
        ({"schedule": "exponential"}, "k=30 ends the exponential schedule at once"),
        ({"k": 1}, "k=1 ends the cosine schedule at once"),
        ({"k": 2}, r"tau\(2\)=0 must lie above"),
    ],
)
def test_a_schedule_that_ends_at_once_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NispaConfig(**values)


def test_a_network_that_is_full_keeps_what_it_learned() -> None:
    # Two hidden units are both stable after the first task: nothing is left to learn with, but for
    # the connections from them into the outputs of later classes.
    method = nispa(1, {"architecture": "mlp", "hidden": (2,), "density": 1.0}, k=30)
    images, _ = toy_task(0).test.batch(slice(None))
    finish(method.learn(toy_task(0)))
    hidden, before = method.stable["fc1"], method.predict(images, toy_task(0).info)
    live = owned(method)
    for index in (1, 2):
        finish(method.learn(toy_task(index)))
    assert torch.equal(method.predict(images, toy_task(0).info), before)
    assert owned(method) == live
    assert hidden.tolist() == method.stable["fc1"].tolist() == [True, True]
    assert method.network.layers["fc1"].frozen_count == method.network.layers["fc1"].live_count
    assert method.census().stable == {"fc1": (2, 2)}


def test_values_are_levelled_once_there_are_trained_units() -> None:
    """A factor for each layer but the first; before the first task nothing is scaled."""
    both = []
    for leveled in (False, True):
        method = toy_method("nispa", restart_level=leveled)
        assert isinstance(method, Nispa)
        method.start()
        start = [layer.weight.clone() for layer in method.network.layers.values()]
        finish(method.learn(toy_task(0)))
        both.append((start, [layer.weight.detach() for layer in method.network.layers.values()]))
    (start, plain), (same_start, scaled) = both
    assert all(map(torch.equal, start, same_start))
    assert torch.equal(plain[0], scaled[0])
    for one, other in zip(plain[1:], scaled[1:], strict=True):
        factors = (other / one)[one != 0]
        assert not torch.equal(one, other)
        torch.testing.assert_close(factors, factors[:1].expand_as(factors))


def test_levelling_is_refused_where_norms_may_do_it() -> None:
    given: dict[str, Any] = {"restart_level": True}
    with pytest.raises(ConfigError, match="restart_level is for mlp and convnet"):
        resolve("nispa", "default", "", (3, 8, 8), {"architecture": "resnet18", **given}, outputs=4)
