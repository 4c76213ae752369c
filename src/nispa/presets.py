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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nispa.config import as_json, build, canonical_keys, describe
from nispa.errors import ConfigError, UnknownNameError, unknown_name
from nispa.methods import METHODS, method_class
from nispa.methods.base import Method, MethodConfig
from nispa.models import UNPOOLED, NetworkConfig
from nispa.published import (
    BENCHMARKS,
    PAPER_METHODS,
    PAPER_NETWORK,
    PAPER_NETWORKS,
    SCENARIO_BENCHMARKS,
    TUNED,
    Values,
)


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


def settings_of(method: str, preset: str, network: Values, config: Values) -> Settings:
    """The settings that :meth:`Settings.as_json` gave, as a file holds them.

    Args:
        method: Name of the method.
        preset: Name of the preset.
        network: JSON values of the network's settings.
        config: Those of the method's.

    Raises:
        UnknownNameError: No such method or setting.
        ConfigError: A value is out of range.
    """

    def plain(values: Values) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}

    config_class = method_class(method).config_class
    known = plain(of_before({"network": network})["network"])
    return Settings(method, preset, build(NetworkConfig, known), build(config_class, plain(config)))


def of_before(config: Values) -> dict[str, Any]:
    """Both parts of a file's settings, where one that came later says what held without it."""
    network = config.get("network")
    if not isinstance(network, dict):
        return {**config}
    return {**config, "network": {"pool_to": UNPOOLED, **network}}


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

    network = {**benchmark.network, **benchmark.networks.get(method, {})}
    config = {**benchmark.methods.get(method, {})}
    if preset == "default" and (name, method) in TUNED:
        network |= TUNED[name, method].network
        config |= TUNED[name, method].method
    if behaviour == "paper":
        architecture = str(for_network.get("architecture", network["architecture"]))
        network |= {**PAPER_NETWORK.get(architecture, {}), **PAPER_NETWORKS.get(method, {})}
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
