from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nispa.base.config import as_json
from nispa.errors import ConfigError, UnknownNameError
from nispa.methods import METHODS
from nispa.methods.presets import Settings, benchmark_of, preset_names, resolve
from nispa.methods.published import BENCHMARKS, SCENARIO_BENCHMARKS
from nispa.methods.tuned import BEST, DEFAULT, tuned

SHAPES = {
    "efmnist": (1, 28, 28),
    "split-mnist": (1, 28, 28),
    "split-cifar10": (3, 32, 32),
    "split-cifar100": (3, 32, 32),
    "split-digits": (1, 8, 8),
}


def settings(method: str, preset: str, scenario: str, **given: Any) -> dict[str, Any]:
    """The resolved settings of network and method in one, as JSON values."""
    found = resolve(method, preset, scenario, SHAPES[scenario], given)
    return {**as_json(found.network), **as_json(found.config)}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_method_has_settings_for_every_benchmark(benchmark: str) -> None:
    assert set(BENCHMARKS[benchmark].methods) == set(METHODS)


@pytest.mark.parametrize(
    ("scenario", "memory"), [("efmnist", 5700), ("split-cifar10", 1000), ("split-cifar100", 2000)]
)
def test_replay_has_a_memory_that_suits_the_benchmark(scenario: str, memory: int) -> None:
    for method in ("nispa-replay", "er", "icarl"):
        assert settings(method, "paper", scenario)["memory"] == memory


@pytest.mark.parametrize("preset", ["paper", "named"])
@pytest.mark.parametrize(
    ("scenario", "architecture", "density", "learning_rate", "batch_size", "accuracy_drop"),
    [
        ("efmnist", "mlp", 0.2, 0.01, 512, 0.75),
        ("split-cifar10", "convnet", 0.1, 0.002, 128, 0.75),
        ("split-cifar100", "convnet", 0.1, 0.002, 64, 2.5),
    ],
)
def test_published_settings_of_nispa(
    preset: str,
    scenario: str,
    architecture: str,
    density: float,
    learning_rate: float,
    batch_size: int,
    accuracy_drop: float,
) -> None:
    named = {"efmnist": "efmnist", "split-cifar10": "cifar10", "split-cifar100": "cifar100"}
    found = settings("nispa", named[scenario] if preset == "named" else preset, scenario)
    expected = {
        "architecture": architecture,
        "hidden": [400, 400, 400],
        "channels": [64, 64, 128, 128],
        "kernel_size": 3,
        "pool_every": 2,
        "fc": [1024],
        "density": density,
        "distribution": "uniform",
        "optimiser": "adam",
        "learning_rate": learning_rate,
        "weight_decay": 0.0,
        "batch_size": batch_size,
        "accuracy_drop": accuracy_drop,
        "epochs_per_phase": 5,
        "k": 30.0,
        "schedule": "cosine",
        "tau_min": 0.05,
        "min_phases": 2,
        "max_phases": None,
        "growth": "full",
        "growth_init": "normal",
        "restart": True,
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("method", ["stl", "stl-iso"])
@pytest.mark.parametrize(
    ("scenario", "density", "learning_rate", "batch_size", "epochs"),
    [
        ("efmnist", 0.2, 0.01, 128, 20),
        ("split-cifar10", 0.1, 0.001, 256, 40),
        ("split-cifar100", 0.1, 0.001, 64, 40),
    ],
)
def test_published_settings_of_single_task_networks(
    method: str, scenario: str, density: float, learning_rate: float, batch_size: int, epochs: int
) -> None:
    for preset in ("paper", "default"):
        found = settings(method, preset, scenario)
        assert found["density"] == density
        assert found["learning_rate"] == learning_rate
        assert found["batch_size"] == batch_size
        assert found["epochs"] == epochs
        assert found["optimiser"] == "adam"


PAPER_BEHAVIOUR = {
    "mask": "bernoulli",
    "fan": "positions",
    "restart_init": "fan_out",
    "other_logits": "zero",
    "demote_unsupported": False,
    "revive_with_growth": False,
    "carry_over": False,
    "stop_when_full": False,
}
CORRECT_BEHAVIOUR = {
    "mask": "exact",
    "fan": "live",
    "init": "fan_in",
    "bias": "zero",
    "restart_init": "fan_in",
    "other_logits": "slice",
    "demote_unsupported": True,
    "revive_with_growth": True,
    "carry_over": True,
    "stop_when_full": True,
}


@pytest.mark.parametrize(
    ("scenario", "starts"),
    [
        ("efmnist", {"init": "fan_out", "bias": "uniform"}),
        ("split-cifar10", {"init": "fan_in", "bias": "zero"}),
        ("split-cifar100", {"init": "fan_in", "bias": "zero"}),
        ("split-digits", {"init": "fan_out", "bias": "uniform"}),
    ],
)
def test_paper_is_the_published_behaviour_and_default_the_correct_one(
    scenario: str, starts: dict[str, str]
) -> None:
    paper, default = settings("nispa", "paper", scenario), settings("nispa", "default", scenario)
    published = PAPER_BEHAVIOUR | starts
    tuned = {"gain": 0.5, "optimiser": "adamw", "weight_decay": 0.1}
    correct = CORRECT_BEHAVIOUR | (tuned if scenario == "efmnist" else {})
    published |= {"gain": 1.0, "optimiser": "adam", "weight_decay": 0.0}
    assert {name: paper[name] for name in published} == published
    assert {name: default[name] for name in correct} == correct
    different = {name for name in paper if paper[name] != default[name]}
    assert different == {name for name, value in correct.items() if published[name] != value}


def test_behaviour_follows_the_architecture_that_the_user_chose() -> None:
    found = settings("nispa", "paper", "split-cifar10", architecture="mlp")
    assert (found["architecture"], found["init"], found["bias"]) == ("mlp", "fan_out", "uniform")
    found = settings("nispa", "paper", "efmnist", architecture="convnet")
    assert (found["architecture"], found["init"], found["bias"]) == ("convnet", "fan_in", "zero")


def test_a_named_benchmark_counts_whatever_the_scenario() -> None:
    for preset in ("cifar100", "paper-cifar100"):
        found = settings("nispa", preset, "efmnist")
        assert (found["architecture"], found["accuracy_drop"]) == ("convnet", 2.5)
        assert found["other_logits"] == ("zero" if preset.startswith("paper") else "slice")


def test_the_user_has_the_last_word_over_benchmark_and_behaviour() -> None:
    found = settings(
        "nispa",
        "paper",
        "efmnist",
        density="0.05",
        lr="0.5",
        a_f=3,
        e=1,
        other_logits="slice",
        mask="exact",
        hidden="7",
    )
    assert (found["density"], found["learning_rate"], found["accuracy_drop"]) == (0.05, 0.5, 3.0)
    assert (found["epochs_per_phase"], found["other_logits"]) == (1, "slice")
    assert (found["mask"], found["hidden"]) == ("exact", [7])
    assert found["batch_size"] == 512  # what was not named stays the benchmark's
    assert found["fan"] == "positions"  # and the behaviour's


@pytest.mark.parametrize(
    ("scenario", "shape", "expected"),
    [
        ("efmnist", (1, 28, 28), "efmnist"),
        ("split-digits", (1, 8, 8), "digits"),
        ("split-cifar10", (3, 32, 32), "cifar10"),
        ("split-cifar100", (3, 32, 32), "cifar100"),
        ("split-mnist", (1, 28, 28), "mnist"),
        ("mine", (1, 8, 8), "digits"),
        ("mine", (3, 4, 4), "digits"),
        ("mine", (1, 9, 8), "efmnist"),
        ("mine", (3, 5, 5), "cifar10"),
    ],
)
def test_the_benchmark_of_a_scenario(
    scenario: str, shape: tuple[int, int, int], expected: str
) -> None:
    assert benchmark_of(scenario, shape) == expected


def test_every_preset_resolves_for_every_method_and_benchmark() -> None:
    assert set(preset_names()) == {
        "default",
        "best",
        "paper",
        *BENCHMARKS,
        *(f"paper-{name}" for name in BENCHMARKS),
    }
    for method in METHODS:
        for preset in preset_names():
            for scenario in SHAPES:
                found = resolve(method, preset, scenario, SHAPES[scenario])
                assert isinstance(found, Settings)
                assert (found.method, found.preset) == (method, preset)
                assert isinstance(found.config, METHODS[method].config_class)
                assert found.method_class is METHODS[method]


def test_best_adds_to_the_default_where_something_was_found() -> None:
    shape = SHAPES["efmnist"]
    default, best = (resolve("nispa", each, "efmnist", shape) for each in ("default", "best"))
    changed = {
        name
        for name in vars(default.config)
        if getattr(default.config, name) != getattr(best.config, name)
    }
    assert changed == set(BEST["efmnist", "nispa"].method)
    assert best.network == default.network
    assert tuned("best", "efmnist", "nispa").method["weight_decay"] == 0.1  # the default's
    for method, scenario in (("packnet", "efmnist"), ("nispa", "split-mnist"), ("nispa", "mine")):
        found = [resolve(method, each, scenario, shape) for each in ("default", "best")]
        assert found[0] == replace(found[1], preset="default")


def test_json_has_both_parts_complete() -> None:
    found = resolve("stl", "default", "efmnist", (1, 28, 28)).as_json()
    assert set(found) == {"network", "method"}
    assert found["network"]["density"] == 0.2
    assert found["method"]["patience"] is None


def test_resolving_leaves_the_tables_alone() -> None:
    before = settings("nispa", "default", "efmnist")
    settings("nispa", "paper", "efmnist", density=0.7, lr=0.3)
    assert settings("nispa", "default", "efmnist") == before


@pytest.mark.parametrize(
    ("method", "preset", "given", "error", "message"),
    [
        ("nipsa", "paper", {}, UnknownNameError, "unknown method 'nipsa'; did you mean 'nispa'"),
        ("nispa", "papr", {}, UnknownNameError, "unknown preset 'papr'; did you mean 'paper'"),
        ("nispa", "paper-", {}, UnknownNameError, "unknown preset 'paper-'"),
        ("nispa", "paper-paper", {}, UnknownNameError, "unknown preset 'paper-paper'"),
        ("nispa", "default-efmnist", {}, UnknownNameError, "unknown preset 'default-efmnist'"),
        (
            "nispa",
            "paper",
            {"densty": 1},
            UnknownNameError,
            "unknown setting 'densty'; did you mean 'density'",
        ),
        (
            "nispa",
            "paper",
            {"patience": 3},
            ConfigError,
            "'patience' is a setting of .*finetune, .*joint, .*stl, stl-iso, .*not of this method",
        ),
        (
            "stl",
            "paper",
            {"a_f": 1},
            ConfigError,
            "'a_f' is a setting of nispa, nispa-context, nispa-replay, not",
        ),
        ("nispa", "paper", {"density": 1.3}, ConfigError, "density=1.3 must be"),
        (
            "nispa",
            "paper",
            {"lr": 1, "learning_rate": 1},
            ConfigError,
            "'lr' and 'learning_rate' are the same setting",
        ),
        ("nispa", "paper", {"architecture": "cnn"}, UnknownNameError, "unknown architecture 'cnn'"),
        ("nispa", "paper", {"schedule": "linear"}, ConfigError, "k=30 ends the linear schedule"),
        ("nispa", "paper", {"kernel_size": 4}, ConfigError, "kernel_size=4 must be odd"),
        ("nispa", "paper", {"hidden": ""}, ConfigError, "hidden must name at least one layer"),
        (
            "nispa",
            "paper",
            {"hidden": "4,0"},
            ConfigError,
            "hidden=4,0 must all be whole numbers in .1, 1000000.$",
        ),
        ("nispa", "paper", {"fc": "1000001"}, ConfigError, "fc=1000001 must all be whole numbers"),
        (
            "nispa",
            "cifar10",
            {"channels": ""},
            ConfigError,
            "channels must name at least one layer",
        ),
    ],
)
def test_mistakes(
    method: str, preset: str, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        resolve(method, preset, "efmnist", (1, 28, 28), given)
    assert "\n" not in str(refused.value)


def test_a_named_benchmark_is_the_published_one_with_correct_behaviour() -> None:
    named, default = (
        settings("nispa", "efmnist", "efmnist"),
        settings("nispa", "default", "efmnist"),
    )
    different = {name for name in named if named[name] != default[name]}
    assert different == {"gain", "optimiser", "weight_decay"}
    assert {name: named[name] for name in CORRECT_BEHAVIOUR} == CORRECT_BEHAVIOUR
    assert settings("stl", "default", "efmnist")["gain"] == 1.0  # tuned for nispa alone


@pytest.mark.parametrize(("benchmark", "method"), DEFAULT)
def test_default_alone_has_what_was_tuned(benchmark: str, method: str) -> None:
    [scenario] = [name for name, own in SCENARIO_BENCHMARKS.items() if own == benchmark]
    named, default = (settings(method, preset, scenario) for preset in (benchmark, "default"))
    changed = {**DEFAULT[benchmark, method].network, **DEFAULT[benchmark, method].method}
    assert {key for key in named if named[key] != default[key]} == set(changed)
    assert {key: default[key] for key in changed} == changed
