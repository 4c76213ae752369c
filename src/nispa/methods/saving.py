"""A learner's file: tensors, and in its header a JSON text with everything else.

It is a safetensors file with a SHA-256 over both. It is written whole or not at all; reading one
executes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from nispa import tensorfile
from nispa.base.devices import choose_device
from nispa.base.seeding import MAX_SEED
from nispa.base.shapes import MAX_SIDES
from nispa.data.standardise import UNCHANGED, Inputs, inputs_from
from nispa.data.tasks import TaskInfo
from nispa.errors import ConfigError, FormatError, GraphError, InputError, MissingPackageError
from nispa.files import first_fault, one_line
from nispa.methods.base import Method, MethodState, Problem
from nispa.methods.presets import Settings, settings_of
from nispa.network.models import NetworkSpec, OwnModel

FORMAT = "nispa-learner/1"
MAX_TASKS = 100_000
MAX_NAME = 200


def make_method(
    settings: Settings, problem: Problem, *, seed: int, device: str | torch.device
) -> Method:
    """The method that ``settings`` name, on a device.

    Raises:
        DeviceError: The device is not there.
    """
    return settings.method_class(
        problem, settings.network, settings.config, seed=seed, device=choose_device(device)
    )


@dataclass(frozen=True)
class Saved:
    """The content of a learner's file.

    Attributes:
        method: Between two tasks.
        settings: Its settings.
        labels: The user's name of each class, task by task.
        reach: The largest absolute value in the images of the first task, before any mean was
            subtracted; None if unknown.
        inputs: How given samples become the network's input.
        names: The user's name of each task; empty for one without.
        columns: Names of the columns of the tables learned, in order; None if they had none.
    """

    method: Method
    settings: Settings
    labels: list[list[Any]]
    reach: float | None = None
    inputs: Inputs = UNCHANGED
    names: Sequence[str] = ()
    columns: tuple[str, ...] | None = None


def check_task_name(name: Any) -> None:
    """Refuses a name of a task that is not one short line of text.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME or not (name + "x").isprintable():
        raise ConfigError(
            f"name={one_line(repr(name), 60)} must be a text of at most {MAX_NAME} characters on "
            "one line"
        )


def encode(
    method: Method,
    settings: Settings,
    labels: list[list[Any]] | None = None,
    reach: float | None = None,
    inputs: Inputs = UNCHANGED,
    names: Sequence[str] = (),
    columns: tuple[str, ...] | None = None,
) -> bytes:
    """The file of a method: the same state always gives the same bytes.

    Args:
        method: Between two tasks.
        settings: Its settings.
        labels: The user's name of each class, task by task; None for class numbers.
        reach: See :class:`Saved`.
        inputs: See :class:`Saved`.
        names: See :class:`Saved`.
        columns: See :class:`Saved`.
    """
    state, model = method.state(), method.problem.model
    more: dict[str, Any] = {} if reach is None else {_REACH: reach}
    if columns is not None:
        more[_COLUMNS] = list(columns)
    if model is not None:
        more[_GRAPH] = model.fingerprint
    if any(names):
        more[_NAMES] = list(names)
    if labels is None:
        labels = [list(task.classes) for task in method.learned]
    header = {
        "method": settings.method,
        "preset": settings.preset,
        "seed": method.seed,
        "problem": {
            "input_shape": list(method.problem.input_shape),
            "outputs": method.problem.outputs,
            "tasks": method.problem.tasks,
        },
        "config": settings.as_json(),
        "learned": [{"index": task.index, "classes": task.classes} for task in method.learned],
        "labels": labels,
        # Among the method's values, where versions that know nothing of it pass over it.
        "values": {**state.values, **more},
    }
    if inputs:
        header["inputs"] = inputs.as_json()
    return tensorfile.encode(FORMAT, header, state.tensors)


def decode(path: Path, device: str = "cpu") -> tuple[Method, Settings, list[list[Any]]]:
    """The method in a file, its settings and the names of its classes.

    Raises:
        InputError: There is no such file.
        FormatError: It is damaged, not a learner, or of a newer version.
    """
    saved = read_learner(path, device)
    return saved.method, saved.settings, saved.labels


def read_learner(
    path: Path, device: str | torch.device = "cpu", module: torch.nn.Module | None = None
) -> Saved:
    """The content of a learner's file, checked.

    Args:
        path: The file.
        device: Where to compute.
        module: The user's module that it learned with, if it did; its values do not matter.

    Raises:
        GraphError: The module is another one.
        InputError: There is no such file.
        FormatError: It is damaged, not a learner, or of a newer version.
    """
    tensors, header = _read(path)
    try:
        settings = settings_of(
            header.method, header.preset, header.config.network, header.config.method
        )
    except InputError as error:
        raise FormatError(f"{path} has settings that this version does not know: {error}") from None
    shape = header.problem.input_shape
    values = dict(header.values)
    model = _model(path, values.pop(_GRAPH, None), module, shape, header.problem.outputs)
    problem = Problem(shape, header.problem.outputs, header.problem.tasks, model)
    network = NetworkSpec(settings.network, problem.input_shape, problem.outputs, model)
    holds_one = any(name.startswith("network") for name in tensors)  # stl begins without any
    if holds_one and network.units * _BIAS_BYTES > path.stat().st_size:
        raise FormatError(f"{path} is damaged: it is too small for the network it describes")
    _check_finite(path, tensors)
    method = make_method(settings, problem, seed=header.seed, device=device)
    method.learned = [TaskInfo(task.index, task.classes) for task in header.learned]
    reach = values.pop(_REACH, None)
    if reach is not None and (type(reach) is not float or not 0 <= reach < math.inf):
        raise FormatError(f"{path} is damaged: '{_REACH}' must be a number that is not negative")
    names = _names(path, values.pop(_NAMES, None), len(header.learned))
    columns = values.pop(_COLUMNS, None)
    if columns is not None and not _are_columns(columns, shape):
        raise FormatError(f"{path} is damaged: '{_COLUMNS}' must name the columns of a row")
    try:
        method.load_state(MethodState(tensors, values))
    except MissingPackageError:
        raise
    except InputError as error:
        raise FormatError(f"{path} is damaged: {error}") from None
    inputs = UNCHANGED
    if header.inputs is not None:
        try:
            inputs = inputs_from(header.inputs, len(header.learned), shape)
        except FormatError as error:
            raise FormatError(f"{path} is damaged: {error}") from None
    labels = [list(each) for each in header.labels]
    return Saved(method, settings, labels, reach, inputs, names, columns and tuple(columns))


def _names(path: Path, found: Any, tasks: int) -> list[str]:
    """The names of tasks in a file, checked."""
    if found is None:
        return [""] * tasks
    if not isinstance(found, list) or len(found) != tasks:
        raise FormatError(f"{path} is damaged: '{_NAMES}' must list a name for each task")
    for name in found:
        try:
            check_task_name(name)
        except ConfigError as error:
            raise FormatError(f"{path} is damaged: {error}") from None
    return found


def _are_columns(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == math.prod(shape)
        and all(isinstance(name, str) for name in value)
    )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses NaN and infinities: learning never ends with one, and predictions would be wrong."""
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FormatError(f"{path} is damaged: '{name}' holds a value that is not finite")


def _model(
    path: Path,
    known: Any,
    module: torch.nn.Module | None,
    shape: tuple[int, ...],
    outputs: int,
) -> OwnModel | None:
    """The user's module, held against what the file says of it."""
    if known is None:
        if module is not None:
            raise ConfigError(f"{path} was not learned with a module of your own; leave model out")
        return None
    if module is None:
        raise ConfigError(
            f"{path} was learned with a module of your own, which no file holds; pass model=, a "
            "module built the same way"
        )
    model = OwnModel(module, torch.zeros(2, *shape), outputs)
    if not model.fits(known):
        raise GraphError(
            f"model={type(module).__name__} has other units, layers or constants than the one that "
            f"{path} was learned with; build it the same way"
        )
    return model


_REACH = "reach"
_GRAPH = "graph"
_NAMES = "task_names"
_COLUMNS = "columns"

_BIAS_BYTES = 4
"""Smallest size of a unit in a file."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


_Size = Annotated[int, Field(ge=1, le=2**31)]
_Class = Annotated[int, Field(ge=0, le=2**31)]
_Sizes = Annotated[tuple[_Size, ...], Field(strict=False, min_length=1, max_length=MAX_SIDES)]
_Classes = Annotated[tuple[_Class, ...], Field(strict=False)]


class _Problem(_Part):
    input_shape: _Sizes
    outputs: _Size
    tasks: _Size | None


class _Config(_Part):
    network: dict[str, Any]
    method: dict[str, Any]


class _Learned(_Part):
    index: _Class
    classes: _Classes


class _Header(_Part):
    """All of a learner but its tensors, as the file's header keeps it."""

    format: str
    nispa: str
    method: str
    preset: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    problem: _Problem
    config: _Config
    learned: Annotated[list[_Learned], Field(max_length=MAX_TASKS)]
    labels: list[list[int | str]]
    values: dict[str, Any]
    inputs: dict[str, Any] | None = None
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> _Header:
        if [len(task.classes) for task in self.learned] != [len(names) for names in self.labels]:
            raise ValueError("labels do not fit the classes learned")
        if any(label >= self.problem.outputs for task in self.learned for label in task.classes):
            raise ValueError("a class lies outside the outputs")
        if any(len(set(task.classes)) < len(task.classes) for task in self.learned):
            raise ValueError("a class stands twice in a task")
        if any(task.index != place for place, task in enumerate(self.learned)):
            raise ValueError("the tasks learned are not numbered in order")
        return self


def _read(path: Path) -> tuple[dict[str, Tensor], _Header]:
    """Tensors and header of a learner's file, checked against their hash."""
    tensors, plain = tensorfile.read(path, FORMAT, "learner")
    try:
        return tensors, _Header.model_validate(plain)
    except ValidationError as error:
        raise FormatError(f"{path} is damaged: {first_fault(error)}") from None
