"""Named settings as data: published hyper-parameters per benchmark, and published behaviour.

The settings of a run come from four sources; later ones override earlier ones:

1. the defaults of the settings classes;
2. the *benchmark*: hyper-parameters for a network and a method on one kind of data, and for the
   presets ``default`` and ``best`` what was tuned where the published ones do not suit the correct
   version;
3. the *behaviour*: ``paper`` sets every choice in which the published code and a correct version
   differ to the published one; otherwise the correct one stays;
4. what the user says (``--set key=value``).

The presets ``default``, ``best`` and ``paper`` take the benchmark that belongs to the scenario;
``NAME`` and ``paper-NAME`` take the published hyper-parameters of the benchmark of that name,
whatever the scenario. Where no benchmark belongs to the scenario, ``default`` and ``best`` follow
the data instead (``nispa.methods.defaults``), and ``paper`` takes the benchmark of the most similar
images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from nispa.base.config import as_json, build, canonical_keys, describe
from nispa.base.shapes import Shape
from nispa.errors import ConfigError, UnknownNameError, unknown_name
from nispa.methods import METHODS, defaults, method_class
from nispa.methods.base import Method, MethodConfig
from nispa.methods.published import (
    BENCHMARKS,
    PAPER_METHODS,
    PAPER_NETWORK,
    PAPER_NETWORKS,
    SCENARIO_BENCHMARKS,
    Values,
    benchmark_with,
)
from nispa.methods.tuned import PRESETS, tuned
from nispa.network.backbone import Backbone
from nispa.network.models import ARCHITECTURES, UNPOOLED, NetworkConfig


def preset_names() -> dict[str, str]:
    """Every preset with a line about it."""
    names = {
        "default": "the correct version, with hyper-parameters that suit it and the scenario, or "
        "that follow the data where it has none",
        "best": "as default, with what reaches more at the same density, most where images are "
        "shifted (augment=shift:1); for nispa and stl on efmnist",
        "paper": "the published behaviour, with the hyper-parameters of the scenario's benchmark",
    }
    for name, benchmark in BENCHMARKS.items():
        names[name] = f"the correct version, hyper-parameters as they are; {benchmark.doc}"
    for name, benchmark in BENCHMARKS.items():
        names[f"paper-{name}"] = f"the published behaviour; {benchmark.doc}"
    return names


def benchmark_of(scenario: str, input_shape: Shape) -> str:
    """The benchmark whose hyper-parameters suit a scenario: its own, or by the kind of images."""
    if scenario in SCENARIO_BENCHMARKS:
        return SCENARIO_BENCHMARKS[scenario]
    if math.prod(input_shape) <= 64:
        return "digits"
    return "cifar10" if len(input_shape) == 3 and input_shape[0] > 1 else "efmnist"


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
        method = as_json(self.config)
        unknown = dict.fromkeys(self.config.derived)  # until a task comes
        network = as_json(self.network)
        if not network["arguments"]:  # as before there were any
            del network["arguments"]
        return {"network": network, "method": method | unknown}

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
    names = config.get("derived") or ()
    known = {
        name: value for name, value in config.items() if value is not None or name not in names
    }
    if "stop_when_full" in {field.name for field in describe(config_class)}:
        known = {"stop_when_full": False, **known}  # as before there was such a setting
    # Files from before `pool_to` hold networks that never pooled their maps.
    shape = plain({"pool_to": UNPOOLED, **network})
    return Settings(method, preset, build(NetworkConfig, shape), build(config_class, plain(known)))


def resolve(
    method: str,
    preset: str,
    scenario: str,
    input_shape: Shape,
    given: Values | None = None,
    *,
    outputs: int = 2,
    tasks: int | None = None,
) -> Settings:
    """The settings of a run, resolved in the order that this module's text gives.

    Args:
        method: Name of the method.
        preset: Name of the preset.
        scenario: Name of the scenario, which chooses the benchmark for ``default`` and ``paper``.
        input_shape: The shape of a sample, which chooses it otherwise.
        given: The user's own settings, of the network or of the method; texts are converted.
        outputs: Classes of all tasks, which decide sizes where settings follow the data.
        tasks: How many tasks there will be, likewise; None where that is not known.

    Raises:
        UnknownNameError: No such method, preset or setting.
        ConfigError: A value is out of range, or settings contradict each other.
    """
    config_class = method_class(method).config_class
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    behaviour, _, named = preset.partition("-")
    if behaviour != "paper":
        behaviour, named = "default", "" if preset in PRESETS else preset
    name = named or benchmark_of(scenario, input_shape)
    benchmark = BENCHMARKS[name]
    for_network, for_method = _sort_out(given or {}, config_class)
    for_network |= _implied(for_network)

    network = {**benchmark.network, **benchmark.networks.get(method, {})}
    config = {**benchmark.methods.get(method, {})}
    other = isinstance(ARCHITECTURES.get(str(for_network.get("architecture"))), Backbone)
    if preset in PRESETS and (other or scenario not in SCENARIO_BENCHMARKS):
        network, config = _derived(method, input_shape, (outputs, tasks), for_network, for_method)
    elif preset in PRESETS:
        found = tuned(preset, name, method)
        network, config = {**network, **found.network}, {**config, **found.method}
    if behaviour == "paper":
        architecture = str(for_network.get("architecture", network["architecture"]))
        network |= {**PAPER_NETWORK.get(architecture, {}), **PAPER_NETWORKS.get(method, {})}
        config |= PAPER_METHODS.get(method, {})
    made = build(config_class, {**config, **for_method})
    settings = Settings(
        method,
        preset,
        build(NetworkConfig, {**network, **for_network}),
        # A value that is set follows nothing.
        replace(made, derived=tuple(name for name in made.derived if name not in for_method)),
    )
    check_network(method, settings.network)
    _check_by_hand(settings)
    able = method_class(method).incremental
    if settings.config.incremental not in able:
        raise ConfigError(
            f"method '{method}' cannot learn with incremental={settings.config.incremental}; it "
            f"can with {' or '.join(able)}"
        )
    return settings


def _check_by_hand(settings: Settings) -> None:
    """Refuses settings that are for networks built by hand, or for NISPA itself, elsewhere.

    Raises:
        ConfigError: The architecture or the method cannot.
    """
    backbone = isinstance(settings.network.kind, Backbone)
    if backbone and getattr(settings.config, "restart_level", False):
        raise ConfigError(
            f"restart_level is for mlp and convnet; model {settings.network.architecture} may have "
            "norms, which level by themselves; leave it false"
        )
    if not getattr(settings.config, "grow_when_full", 0.0):
        return
    if settings.method != "nispa":
        raise ConfigError(
            f"grow_when_full is for method nispa; '{settings.method}' keeps more about units than "
            "whether they are stable, so leave it 0"
        )
    if backbone:
        raise ConfigError(
            f"grow_when_full is for mlp and convnet; model {settings.network.architecture} has the "
            "sizes that its code gives it, so leave it 0"
        )


def check_network(method: str, network: NetworkConfig) -> None:
    """Whether a method can work on a network.

    Raises:
        ConfigError: It needs one that is built by hand.
    """
    if isinstance(network.kind, Backbone) and not method_class(method).any_network:
        able = [name for name, each in METHODS.items() if each.any_network]
        hand = [name for name, kind in ARCHITECTURES.items() if not isinstance(kind, Backbone)]
        why = method_class(method).not_any
        raise ConfigError(
            f"method '{method}' works on {' and '.join(hand)} alone, not on model "
            f"{network.architecture}{why and f': {why}'}; those for any model are "
            f"{', '.join(able)}"
        )


def _implied(given: Values) -> dict[str, Any]:
    """The architecture implied by the user's other settings, unless it is given itself.

    Raises:
        ConfigError: A setting is given that the architecture does not have.
    """
    meant = {
        name: kind
        for kind, architecture in ARCHITECTURES.items()
        for name in architecture.own_settings()
        if name in given
    }
    chosen = str(given.get("architecture", next(iter(meant.values()), "")))
    for name, kind in meant.items():
        if kind != chosen and chosen in ARCHITECTURES:
            other = next((each for each, its in meant.items() if its == chosen), "architecture")
            raise ConfigError(
                f"{name} is a setting of architecture={kind}, but {other} asks for "
                f"architecture={chosen}, which has none; leave one of the two out"
            )
    return {"architecture": chosen} if meant else {}


def _derived(
    method: str,
    input_shape: Shape,
    planned: tuple[int, int | None],
    for_network: Values,
    for_method: Values,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of network and method that follow the data, without the user's own.

    Settings without a rule, such as the strength of a penalty, come from the benchmark with the
    same architecture. Every method gets the same optimiser.
    """
    kind = str(for_network.get("architecture", defaults.architecture(input_shape)))
    if kind not in ARCHITECTURES:
        return {}, {}  # refused where the network's settings are built
    benchmark = benchmark_with(kind)
    network = {
        **defaults.network(kind, input_shape, *planned),
        **benchmark.networks.get(method, {}),
    }
    if "density" in for_network:  # it is meant as it stands
        network.pop("min_inputs", None)
    fields = {field.name for field in describe(method_class(method).config_class)}
    shared = {"optimiser", "momentum", "patience", *defaults.RULES}
    config = {
        name: value
        for name, value in benchmark.methods.get(method, {}).items()
        if name not in shared
    }
    if "memory" in fields:
        config["memory"] = defaults.memory(planned[0])
    names = tuple(name for name in defaults.RULES if name in fields and name not in for_method)
    return network, config | {"derived": names}


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
