"""What a network of any module keeps, gives back and renews of units beside their connections.

These are its values (scales, depthwise kernels, positions) and the statistics of its norms.
"""

from __future__ import annotations

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
        for norm, module in self.norms:
            if isinstance(module, GenerationNorm):
                module.settle(torch.stack([each.spread(units) for each in norm.sets]))

    @torch.no_grad()
    def hold(self, units: UnitSets) -> None:
        """Keeps values and statistics of units as they are, now that their rows are frozen."""
        for norm, module in self.norms:
            entries = torch.stack([each.spread(units) for each in norm.sets])
            module.hold(entries[0] if isinstance(module, UnitBatchNorm) else entries)
        for values in self.graph.values:
            made = self._values_of(values.name)
            if made is not None:
                made.hold(values.spread(units, made.shape))

    def holds(self, units: UnitSets) -> bool:
        """Whether exactly the values and statistics of these units are kept."""
        for norm, module in self.norms:
            entries = torch.stack([each.spread(units) for each in norm.sets])
            wanted = entries[0] if isinstance(module, UnitBatchNorm) else entries
            if not torch.equal(module.stable.cpu(), wanted):
                return False
        for values in self.graph.values:
            made = self._values_of(values.name)
            if made is not None and not torch.equal(made.frozen, values.spread(units, made.shape)):
                return False
        return True

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
        touched = []
        for values in self.graph.values:
            made = self._values_of(values.name)
            if made is not None:
                places = made.renew(values.spread(units, made.shape))
                if bool(places.any()):
                    touched.append((made.value, places))
        for norm, module in self.norms:
            if isinstance(module, UnitBatchNorm):
                module.renew(norm.sets[0].spread(units))
        return touched

    @torch.no_grad()
    def thaw(self, units: UnitSets) -> None:
        """Makes plastic what :meth:`hold` kept of units that nothing kept depends on."""
        for norm, module in self.norms:
            entries = torch.stack([each.spread(units) for each in norm.sets])
            module.thaw(entries[0] if isinstance(module, UnitBatchNorm) else entries)
        for values in self.graph.values:
            made = self._values_of(values.name)
            if made is not None:
                made.thaw(values.spread(units, made.shape))

    def tied(self, units: UnitSets) -> dict[str, Tensor]:
        """Units, and those whose statistics count in their norms: of their generation and older."""
        found = dict(units)
        for norm, module in self.norms:
            if isinstance(module, GenerationNorm):
                entries = torch.stack([each.spread(units) for each in norm.sets])
                counted = module.counted(entries)
                for each, row in zip(norm.sets, counted, strict=True):
                    for name, more in _units(each, row, found).items():
                        found[name] = found[name] | more
        return found

    def _values_of(self, name: str) -> UnitValues | None:
        key = key_of(name)
        if key not in self.values:
            return None
        made = self.values[key]
        assert isinstance(made, UnitValues)
        return made


def _units(places: UnitMap, entries: Tensor, units: UnitSets) -> dict[str, Tensor]:
    sizes = {name: len(each) for name, each in units.items()}
    return {name: sums > 0 for name, sums in places.sums(entries.long(), sizes).items()}


def key_of(name: str) -> str:
    """A path as a key of ``nn.ModuleDict``, which takes neither dots nor names of its own."""
    key = name.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key
