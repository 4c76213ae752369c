"""What a walk notes: operators, parameters, weights, values and norms, by numbers of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nispa.graph.units import NormKind, ValueKind


class Refused(Exception):  # noqa: N818 - a verdict, turned into a GraphError by who asked
    """Something that cannot be told apart into units; its text says what, where and the way out."""


class Collapsed(Refused):
    """All rows of a layer are one unit.

    Attributes:
        shared: Parameters that may be why, since they have fewer numbers than the layer has rows.
    """

    def __init__(self, text: str, shared: frozenset[str]) -> None:
        super().__init__(text)
        self.shared = shared


@dataclass(frozen=True)
class Learned:
    """A parameter, or some of its rows, where no rule has read it yet.

    Attributes:
        name: Its path.
        rows: Which rows, ``(rows,)`` int64.
        shape: Of the whole parameter.
        turned: Whether it is a matrix that was transposed since.
    """

    name: str
    rows: Tensor
    shape: tuple[int, ...]
    turned: bool = False


@dataclass(frozen=True)
class Buffer:
    """A buffer, where no rule has read it yet."""

    name: str


@dataclass
class LayerFound:
    """A weight of connections: numbers of its rows and of its columns.

    In a parameter that lies ``turned``, columns come first: ``(columns, rows, *kernel)``.
    """

    weight: str
    rows: Tensor
    columns: Tensor
    operator: str
    kernel: tuple[int, ...]
    blocks: int
    first_row: int
    module: str | None
    bias: Learned | None = None
    calls: int = 1
    outputs: int = 0  # of all samples
    turned: bool = False


@dataclass
class ValuesFound:
    """A parameter or buffer of values per unit: numbers along ``dim``, or of all its entries."""

    kind: ValueKind
    ids: Tensor
    dim: int | None


@dataclass
class NormFound:
    """A norm: numbers of the units normalised together, ``(sets, units)``."""

    module: str
    kind: NormKind
    sets: Tensor


@dataclass
class Found:
    """All that a walk notes.

    Attributes:
        beside: What modules of norms do beside the norm, by their paths.
        operations: Beside those of layers, of all samples.
    """

    layers: dict[tuple[str, int], LayerFound] = field(default_factory=dict)
    values: dict[str, ValuesFound] = field(default_factory=dict)
    norms: dict[str, NormFound] = field(default_factory=dict)
    heads: list[Tensor] = field(default_factory=list)
    beside: dict[str, list[str]] = field(default_factory=dict)
    operations: int = 0
    random: bool = False


@dataclass(frozen=True)
class Call:
    """One operator of the graph.

    Attributes:
        name: Its name without overload and without the mark of working in place.
        shapes: Of the results that are tensors.
        path: Path of the module whose forward calls it; empty for the model itself.
        owner: That module.
        arguments: What it is called with, by the names of its schema.
        target: The function.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    path: str
    owner: nn.Module
    arguments: Mapping[str, Any]
    target: Callable[..., Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.shapes[0]

    @property
    def where(self) -> str:
        """The place in words."""
        return f"'{self.path}'" if self.path else "the model's own forward"

    @property
    def by(self) -> str:
        """The operator and its place in words."""
        return f"{self.name} in {self.where}"

    def within(self, name: str) -> str:
        """The path of an attribute of the module."""
        return f"{self.path}.{name}".lstrip(".")

    def __getitem__(self, argument: str) -> Any:
        return self.arguments.get(argument)
