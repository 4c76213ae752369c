"""Named settings as data: published hyper-parameters per benchmark, and published behaviour.

A run's settings are put together in one order, later ones winning:

1. the defaults of the settings classes;
2. the *benchmark*: hyper-parameters for a network and a method on one kind of data, and for the
   preset ``default`` what was tuned where the published ones do not suit the correct version;
3. the *behaviour*: ``paper`` sets every choice in which the published code and a correct version
   differ to the published one; otherwise the correct one stays;
4. what the user says (``--set key=value``).

The presets ``default`` and ``paper`` take the benchmark that belongs to the scenario; ``NAME`` and
``paper-NAME`` take the published hyper-parameters of the benchmark of that name, whatever the
scenario.

Sources: Gurbuz and Dovrolis 2022 (arXiv 2206.09117) and its published scripts for ``efmnist``,
``cifar10`` and ``cifar100``: NISPA's settings, and those of its single-task networks, which
fine-tuning and joint training share here. ``digits`` is chosen for 8x8 images, by hand. What
was tuned, and why, is in docs/log.md: with a fan that counts live connections, first values come
out two to three times as large as those that the published learning rate was chosen for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nispa.config import as_json, build, canonical_keys, describe
from nispa.errors import ConfigError, UnknownNameError, unknown_name
from nispa.methods import METHODS, method_class
from nispa.methods.base import Method, MethodConfig
from nispa.models import NetworkConfig

Values = Mapping[str, Any]


def _plain(learning_rate: float, batch_size: int, epochs: int) -> dict[str, Values]:
    """Settings that all methods share which train a task in one go."""
    return {
        method: {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
        for method in ("stl", "stl-iso", "finetune", "joint")
    }


@dataclass(frozen=True)
class Benchmark:
    """Hyper-parameters for one kind of data: of the network, and of each method by name."""

    doc: str
    network: Values
    methods: Mapping[str, Values]


BENCHMARKS: dict[str, Benchmark] = {
    "efmnist": Benchmark(
        "published: MLP 784-400-400-400, EMNIST and Fashion-MNIST in 5 tasks",
        {"architecture": "mlp", "hidden": (400, 400, 400), "density": 0.2},
        {
            "nispa": {"learning_rate": 0.01, "batch_size": 512, "accuracy_drop": 0.75},
            **_plain(0.01, 128, 20),
        },
    ),
    "cifar10": Benchmark(
        "published: ConvNet 64-64-128-128, CIFAR-10 in 5 tasks of 2 classes",
        {"architecture": "convnet", "density": 0.1},
        {
            "nispa": {"learning_rate": 0.002, "batch_size": 128, "accuracy_drop": 0.75},
            **_plain(0.001, 256, 40),
        },
    ),
    "cifar100": Benchmark(
        "published: ConvNet 64-64-128-128, CIFAR-100 in 20 tasks of 5 classes",
        {"architecture": "convnet", "density": 0.1},
        {
            "nispa": {"learning_rate": 0.002, "batch_size": 64, "accuracy_drop": 2.5},
            **_plain(0.001, 64, 40),
        },
    ),
    "digits": Benchmark(
        "small MLP 64-100-100-100 for 8x8 digits",
        {"architecture": "mlp", "hidden": (100, 100, 100), "density": 0.2},
        {
            "nispa": {"learning_rate": 0.01, "batch_size": 32, "accuracy_drop": 2.0},
            **_plain(0.01, 32, 20),
        },
    ),
}


@dataclass(frozen=True)
class Tuning:
    """What validation accuracy chose for the correct version: of the network, of the method."""

    network: Values
    method: Values


TUNED: dict[tuple[str, str], Tuning] = {
    ("efmnist", "nispa"): Tuning({"gain": 0.5}, {"optimiser": "adamw", "weight_decay": 0.1}),
}

SCENARIO_BENCHMARKS = {
    "efmnist": "efmnist",
    "split-digits": "digits",
    "split-cifar10": "cifar10",
    "split-cifar100": "cifar100",
}

PAPER_NETWORK: dict[str, Values] = {
    "mlp": {"mask": "bernoulli", "fan": "positions", "init": "fan_out", "bias": "uniform"},
    "convnet": {"mask": "bernoulli", "fan": "positions", "init": "fan_in", "bias": "zero"},
}

PAPER_METHODS: dict[str, Values] = {
    "nispa": {
        "restart_init": "fan_out",
        "other_logits": "zero",
        "demote_unsupported": False,
        "revive_with_growth": False,
        "carry_over": False,
    },
}


def preset_names() -> dict[str, str]:
    """Every preset with a line about it."""
    names = {
        "default": "the correct version, with hyper-parameters that suit it and the scenario",
        "paper": "the published behaviour, with the hyper-parameters of the scenario's benchmark",
    }
    for name, benchmark in BENCHMARKS.items():
        names[name] = f"the correct version, hyper-parameters as they are; {benchmark.doc}"
    for name, benchmark in BENCHMARKS.items():
        names[f"paper-{name}"] = f"the published behaviour; {benchmark.doc}"
    return names


def benchmark_of(scenario: str, input_shape: tuple[int, int, int]) -> str:
    """The benchmark whose hyper-parameters suit a scenario: its own, or by the kind of images."""
    if scenario in SCENARIO_BENCHMARKS:
        return SCENARIO_BENCHMARKS[scenario]
    channels, height, width = input_shape
    if channels * height * width <= 64:
        return "digits"
    return "efmnist" if channels == 1 else "cifar10"


@dataclass(frozen=True)
class Settings:
    """The resolved settings of a run, complete.

    Attributes:
        method: Name of the method.
        preset: Name of the preset they were resolved from.
        network: The network.
        config: The method's own.
    """

    method: str
    preset: str
    network: NetworkConfig
    config: MethodConfig

    def as_json(self) -> dict[str, Any]:
        """Both parts as JSON values."""
        return {"network": as_json(self.network), "method": as_json(self.config)}

    @property
    def method_class(self) -> type[Method]:
        """The method."""
        return method_class(self.method)


def resolve(
    method: str,
    preset: str,
    scenario: str,
    input_shape: tuple[int, int, int],
    given: Values | None = None,
) -> Settings:
    """The settings of a run, in the order this module's text tells.

    Args:
        method: Name of the method.
        preset: Name of the preset.
        scenario: Name of the scenario, which chooses the benchmark for ``default`` and ``paper``.
        input_shape: Channels, height and width of the images, which choose it otherwise.
        given: The user's own settings, of the network or of the method; texts are converted.

    Raises:
        UnknownNameError: No such method, preset or setting.
        ConfigError: A value is out of range, or settings contradict each other.
    """
    config_class = method_class(method).config_class
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    behaviour, _, named = preset.partition("-")
    if behaviour != "paper":
        behaviour, named = "default", "" if preset == "default" else preset
    name = named or benchmark_of(scenario, input_shape)
    benchmark = BENCHMARKS[name]
    for_network, for_method = _sort_out(given or {}, config_class)

    network = {**benchmark.network}
    config = {**benchmark.methods.get(method, {})}
    if preset == "default" and (name, method) in TUNED:
        network |= TUNED[name, method].network
        config |= TUNED[name, method].method
    if behaviour == "paper":
        architecture = str(for_network.get("architecture", network["architecture"]))
        network |= PAPER_NETWORK.get(architecture, {})
        config |= PAPER_METHODS.get(method, {})
    settings = Settings(
        method,
        preset,
        build(NetworkConfig, {**network, **for_network}),
        build(config_class, {**config, **for_method}),
    )
    able = method_class(method).incremental
    if settings.config.incremental not in able:
        raise ConfigError(
            f"method '{method}' cannot learn with incremental={settings.config.incremental}; it "
            f"can with {' or '.join(able)}"
        )
    return settings


def _sort_out(
    given: Values, config_class: type[MethodConfig]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The user's settings by the class they belong to, under their proper names."""
    parts: list[dict[str, Any]] = [{}, {}]
    names = [
        {name for field in describe(cls) for name in (field.name, *field.aliases)}
        for cls in (NetworkConfig, config_class)
    ]
    for key, value in given.items():
        owners = [part for part, known in zip(parts, names, strict=True) if key in known]
        if not owners:
            raise _unknown_setting(key, names[0] | names[1], config_class)
        owners[0][key] = value
    return canonical_keys(NetworkConfig, parts[0]), canonical_keys(config_class, parts[1])


def _unknown_setting(
    key: str, known: set[str], config_class: type[MethodConfig]
) -> UnknownNameError | ConfigError:
    owners = sorted(
        name
        for name, method in METHODS.items()
        if method.config_class is not config_class
        and any(key in (field.name, *field.aliases) for field in describe(method.config_class))
    )
    if owners:
        return ConfigError(
            f"'{key}' is a setting of {', '.join(owners)}, not of this method; leave it out"
        )
    return unknown_name("setting", key, known)
