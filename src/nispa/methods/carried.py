"""What a method carries from task to task, declared once.

A method lists its parts in ``carries``: a network, sets of units, a memory, tensors, numbers
(:mod:`nispa.methods.parts` has a class for each kind). A part knows how one attribute of the method
begins and how it is saved, loaded and counted. ``start``, ``state``, ``load_state`` and ``census``
of :class:`nispa.methods.base.Method` follow from the list; a method adds at most a check that its
parts fit each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nispa.network.models import SparseNetwork

if TYPE_CHECKING:
    from nispa.methods.base import Method


@dataclass(frozen=True)
class MethodState:
    """All that a method needs to continue in another process: tensors by name, JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Census:
    """Units, connections and bytes of a method, counted.

    Attributes:
        stable: Stable units and size of each hidden group.
        connections: Live, frozen and possible connections of each layer.
        owed: Connections of each layer that were dropped and have not grown elsewhere yet.
        live: Live weights and biases in all.
        total: Weights and biases that the same networks would have if they were dense.
        storage: Bytes kept beside the networks from one task to the next, by purpose:
            ``"memory"`` (samples), ``"importance"``, ``"masks"``.
        model_bytes: Bytes of the networks: live values and their positions. None if unknown.
    """

    stable: dict[str, tuple[int, int]]
    connections: dict[str, tuple[int, int, int]]
    owed: dict[str, int]
    live: int
    total: int
    storage: Mapping[str, int] = field(default_factory=dict)
    model_bytes: int | None = None


@dataclass
class Tally:
    """The arguments of :func:`count`, collected part by part."""

    networks: dict[str, SparseNetwork] = field(default_factory=dict)
    stable: Mapping[str, Tensor] | None = None
    owed: Mapping[str, int] | None = None
    storage: dict[str, int] = field(default_factory=dict)


class Part(ABC):
    """One attribute of a method that outlives a task.

    Attributes:
        name: The attribute's name.
        purpose: What its bytes are kept for, see :class:`Census`; empty if they are not counted.
    """

    def __init__(self, name: str, purpose: str = "") -> None:
        self.name, self.purpose = name, purpose

    @abstractmethod
    def first(self, method: Method, parts: Mapping[str, Any]) -> Any:
        """The value before the first task.

        Args:
            method: The method that carries it.
            parts: The parts listed before this one, by name.
        """

    @abstractmethod
    def save(self, value: Any) -> MethodState:
        """Copies of the value's tensors, on the CPU, and JSON values."""

    @abstractmethod
    def load(self, state: MethodState, method: Method, parts: Mapping[str, Any]) -> Any:
        """The value in a state of the whole method; arguments as in :meth:`first`.

        Raises:
            FormatError: The state has no such value, or one that does not fit.
        """

    def count(self, value: Any, tally: Tally) -> None:
        """Adds the value to a census: the bytes of its tensors, if they are kept for a purpose."""
        if self.purpose:
            size = sum(tensor.nbytes for tensor in self.save(value).tensors.values())
            tally.storage[self.purpose] = tally.storage.get(self.purpose, 0) + size


def count(
    networks: Mapping[str, SparseNetwork],
    stable: Mapping[str, Tensor] | None = None,
    owed: Mapping[str, int] | None = None,
    storage: Mapping[str, int] | None = None,
) -> Census:
    """The census of some networks.

    Args:
        networks: By the prefix of their layers' names, such as ``"task0/"``, or ``""``.
        stable: Stable units per group of the network ``""``, ``(units,)`` bool.
        owed: Connections per layer that found no place.
        storage: Bytes kept beside the networks, by purpose.
    """
    groups = {}
    if stable is not None:
        groups = {
            group.name: (int(stable[group.name].sum()), group.size)
            for group in networks[""].topology.hidden
        }
    layers = {
        prefix + name: (layer.live_count, layer.frozen_count, layer.position_count)
        for prefix, network in networks.items()
        for name, layer in network.layers.items()
    }
    return Census(
        groups,
        layers,
        dict(owed or {}),
        sum(network.live_count() for network in networks.values()),
        sum(network.position_count() for network in networks.values()),
        dict(storage or {}),
        sum(network.stored_bytes() for network in networks.values()),
    )


def take_tensors(state: MethodState, prefix: str) -> dict[str, Tensor]:
    """The tensors of a state whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }
