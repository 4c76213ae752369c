"""Architectures that are plain PyTorch modules: the backbones, and functions that build a module.

A module is traced once for each shape of samples, number of outputs and arguments.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from nispa.backbones import BACKBONES
from nispa.base.config import setting, settings
from nispa.errors import ConfigError
from nispa.network.architecture import (
    ARCHITECTURES,
    MAX_ALL_POSITIONS,
    MAX_POSITIONS,
    Architecture,
    ArchitectureSettings,
    Shape,
)
from nispa.network.own import OwnModel
from nispa.network.traced import TracedNetwork

KNOWN = 8  # modules that are kept, so that each is traced once


@settings
class BackboneSettings(ArchitectureSettings):
    """Settings that only backbones read."""

    arguments: tuple[str, ...] = setting(
        (),
        "arguments of a model, such as width=20,blocks=4; lists as channels=16x32 or fc=64x",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arguments and not isinstance(ARCHITECTURES[self.architecture], Backbone):
            raise ConfigError(
                f"arguments={','.join(self.arguments)} are for a model such as resnet18; "
                f"architecture={self.architecture} has settings of its own"
            )


class Backbone(Architecture):
    """A network of a module that a function builds from shape, classes and arguments."""

    config_class = BackboneSettings
    sizes = ()
    learning_rates = MappingProxyType({"adam": 0.002, "adamw": 0.002, "sgd": 0.05, "adadelta": 1.0})

    def __init__(self, name: str, build: Callable[..., nn.Module]) -> None:
        """The architecture ``name``, whose modules ``build`` makes."""
        self.name = name
        self._build = build
        self._known: dict[tuple[Any, ...], OwnModel] = {}

    def build(
        self, config: BackboneSettings, input_shape: Shape, outputs: int, seed: int = 0
    ) -> TracedNetwork:
        """See :meth:`.Architecture.build`; values that are no connections follow ``seed``."""
        arguments = parsed(config.arguments)
        self._check_size(input_shape, outputs, arguments)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            module = self._made(input_shape, outputs, arguments)
        key = (input_shape, outputs, config.arguments)
        model = self._known.get(key)
        if model is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            model = self._known[key] = OwnModel(module, torch.zeros(2, *input_shape), outputs)
        return TracedNetwork(module, model.graph, input_shape)

    def suggest(self, input_shape: Shape, width: float) -> dict[str, Any]:
        """A tenth of the connections, and more where that leaves a unit hardly any."""
        del input_shape, width
        return {"density": 0.1, "min_inputs": 6}

    def own_settings(self) -> tuple[str, ...]:
        """None: arguments imply no architecture."""
        return ()

    def values(self, config: BackboneSettings, input_shape: Shape, outputs: int) -> int:
        """How many values a network has at least, known before anything is built.

        Raises:
            ConfigError: It is more than a machine can hold.
        """
        sizes = self._check_size(input_shape, outputs, parsed(config.arguments))
        return max(outputs, sum(math.prod(size) for size in sizes if len(size) == 1))

    def _check_size(
        self, shape: Shape, outputs: int, arguments: Mapping[str, Any]
    ) -> list[tuple[int, ...]]:
        """The shapes of all parameters, without their values.

        A function of the user's may need values while it builds; it is then not asked.
        """
        try:
            with torch.device("meta"):
                module = self._made(shape, outputs, arguments)
        except (ConfigError, NotImplementedError):
            return []
        sizes = [tuple(value.shape) for value in module.parameters()]
        largest = max((math.prod(size[:2]) for size in sizes), default=0)
        total = sum(map(math.prod, sizes))
        if largest > MAX_POSITIONS or total > MAX_ALL_POSITIONS:
            raise ConfigError(
                f"model {self.name} would have {total:,} parameters, {largest:,} connections of "
                f"a layer, more than {MAX_ALL_POSITIONS:,} or {MAX_POSITIONS:,}; pass smaller "
                "arguments, or smaller images (resize)"
            )
        return sizes

    def _made(self, shape: Shape, outputs: int, arguments: Mapping[str, Any]) -> nn.Module:
        try:
            module = self._build(shape, outputs, **arguments)
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"model {self.name} cannot be built: {text}") from None
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"model {self.name} gives a {type(module).__name__}, not a torch.nn.Module; let "
                "the function return one, from the shape of a sample and the number of classes"
            )
        return module


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments by name, from texts such as ``width=20``.

    Raises:
        ConfigError: One is no name with a value.
    """
    found: dict[str, Any] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not (name.strip().isidentifier() and equals and value.strip()):
            raise ConfigError(
                f"arguments={text} must be a name and a value, such as width=20 or channels=16x32"
            )
        if name.strip() in found:
            raise ConfigError(f"arguments name {name.strip()} twice; keep one of the two")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if re.fullmatch(r"\d+x(\d+x)*\d*", text):  # a list of one is written 8x
        return tuple(int(part) for part in text.split("x") if part)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def source_of(name: str) -> bytes | None:
    """The file of a function of the user's; None for other architectures and what has no file."""
    known = ARCHITECTURES.get(name)
    if ":" not in name or not isinstance(known, Backbone):
        return None
    try:
        return Path(inspect.getfile(inspect.unwrap(known._build))).read_bytes()
    except (TypeError, OSError):
        return None


def enter(name: str, folder: Path | None = None) -> Backbone:
    """Makes a function of the user's an architecture, from now on known by its name.

    Args:
        name: Such as ``package.module:function``; it takes the shape of a sample and the number of
            classes, and arguments by name.
        folder: Where its module may be, beside where Python looks for modules.

    Raises:
        ConfigError: There is no such function.
    """
    known = ARCHITECTURES.get(name)
    if isinstance(known, Backbone):
        return known
    path, _, function = name.partition(":")
    if folder is not None and str(folder.absolute()) not in sys.path:
        sys.path.insert(0, str(folder.absolute()))
    try:
        build = getattr(importlib.import_module(path), function)
    except Exception as error:  # whatever the user's module raises
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"model {name} cannot be imported: {text}; pass package.module:function, with the "
            "module in the present folder or installed"
        ) from error
    if not callable(build):
        raise ConfigError(f"model {name} is no function; pass package.module:function")
    made = ARCHITECTURES[name] = Backbone(name, build)
    return made


def backbones() -> dict[str, Backbone]:
    """The architectures of the backbones, without those that have faster kernels of their own."""
    return {
        name: Backbone(name, backbone.build)
        for name, backbone in BACKBONES.items()
        if name not in ("mlp", "convnet")
    }
