"""What a network of any module keeps, gives back and renews of units beside their connections.

These are its values (scales, depthwise kernels, positions) and the statistics of its norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nispa.graph.units import UnitGraph, UnitMap, UnitSets
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.sparse_network import SparseNetwork
from nispa.network.unit_values import UnitValues

Norms = UnitBatchNorm | GenerationNorm


class HoldsUnits(SparseNetwork):
    """The hooks of :class:`.SparseNetwork` for values and norms.

    Attributes:
        graph: The units.
        norms: What the trace says of each norm, and its module.
        values: Whatever else is learned, by :func:`key_of` its path.
    """

    graph: UnitGraph
    norms: list[tuple[Any, Norms]]
    values: nn.ModuleDict

    def settle(self, units: UnitSets) -> None:
        """Lets units be normalised without those that are neither among them nor stable.

        They still learn. It is called when they are chosen, since it changes what they compute;
        making them stable later does not. A later call puts others in place of those that are not
        stable yet.
        """
        for module, entries in self._entries(units):
            if isinstance(module, GenerationNorm):
                module.settle(entries)

    @torch.no_grad()
    def hold(self, units: UnitSets) -> None:
        """Keeps values and statistics of units as they are, now that their rows are frozen."""
        for module, entries in self._entries(units):
            module.hold(entries)
        for made, places in self._places(units, shared=True):
            made.hold(places)

    def holds(self, units: UnitSets) -> bool:
        """Whether exactly the values and statistics of these units are kept."""
        norms = all(
            torch.equal(module.stable.cpu(), entries) for module, entries in self._entries(units)
        )
        return norms and all(
            torch.equal(made.frozen, places) for made, places in self._places(units, shared=True)
        )

    @torch.no_grad()
    def restart(self) -> None:
        """Gives values and statistics of plastic units their first values."""
        for _, module in self.norms:
            module.restart()
        for made in self.values.values():
            assert isinstance(made, UnitValues)
            made.restart()

    @torch.no_grad()
    def renew(self, units: UnitSets) -> list[tuple[nn.Parameter, Tensor]]:
        """Gives some plastic units their first values, and norms no memory of them."""
        for module, entries in self._entries(units):
            if isinstance(module, UnitBatchNorm):
                module.renew(entries)
        touched = [(made.value, made.renew(places)) for made, places in self._places(units)]
        return [(value, places) for value, places in touched if bool(places.any())]

    @torch.no_grad()
    def thaw(self, units: UnitSets) -> None:
        """Makes plastic what :meth:`hold` kept of units that nothing kept depends on."""
        for module, entries in self._entries(units):
            module.thaw(entries)
        for made, places in self._places(units):
            made.thaw(places)

    def tied(self, units: UnitSets) -> dict[str, Tensor]:
        """Units, and those whose statistics count in their norms: of their generation and older."""
        found = dict(units)
        for norm, module in self.norms:
            if isinstance(module, GenerationNorm):
                counted = module.counted(_spread(norm, units))
                for each, row in zip(norm.sets, counted, strict=True):
                    for name, more in _units(each, row, found).items():
                        found[name] = found[name] | more
        return found

    def _entries(self, units: UnitSets) -> Iterator[tuple[Norms, Tensor]]:
        """Each norm, and which of its entries belong to units; of a batch norm, its channels."""
        for norm, module in self.norms:
            entries = _spread(norm, units)
            yield module, entries[0] if isinstance(module, UnitBatchNorm) else entries

    def _places(
        self, units: UnitSets, *, shared: bool = False
    ) -> Iterator[tuple[UnitValues, Tensor]]:
        """Whatever else is learned, and which of it belongs to units.

        What all units share belongs to any, if ``shared``, else to none.
        """
        inputs = {group.name for group in self.graph.groups if group.kind == "input"}
        some = shared and any(
            bool(each.any()) for name, each in units.items() if name not in inputs
        )
        for values in self.graph.values:
            key = key_of(values.name)
            if key in self.values:  # not statistics and biases, which norms and layers hold
                made = self.values[key]
                assert isinstance(made, UnitValues)
                if values.kind == "shared":
                    yield made, torch.full(made.shape, some)
                else:
                    yield made, values.spread(units, made.shape)


def _spread(norm: Any, units: UnitSets) -> Tensor:
    """The entries of a norm that belong to units, ``(sets, entries)`` bool."""
    return torch.stack([each.spread(units) for each in norm.sets])


def _units(places: UnitMap, entries: Tensor, units: UnitSets) -> dict[str, Tensor]:
    sizes = {name: len(each) for name, each in units.items()}
    return {name: sums > 0 for name, sums in places.sums(entries.long(), sizes).items()}


def key_of(name: str) -> str:
    """A path as a key of ``nn.ModuleDict``, which takes neither dots nor names of its own."""
    key = name.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key
