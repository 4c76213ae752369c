"""A user's module whose connections are live or dead, and whose kept units stay what they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.errors import ConfigError, GraphError
from nispa.graph.table import groups_table
from nispa.graph.trace import find_units, logits_of
from nispa.graph.units import Layer, UnitGraph, UnitSets
from nispa.masked.norms import GenerationNorm, UnitBatchNorm
from nispa.masked.weights import HeldValues, LiveWeight, Parameter

BATCH = (nn.BatchNorm1d, nn.BatchNorm2d)
MIXING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class MaskedNetwork(nn.Module):
    """A module made sparse. It starts with all positions of all layers live.

    Attributes:
        body: The module, with norms of this package in place of its own.
        graph: Its units.
        stable: Units that stay what they are, a bool vector per group.
    """

    def __init__(self, body: nn.Module, graph: UnitGraph) -> None:
        """Takes over ``body``, whose units are ``graph``; see :func:`sparsify`."""
        super().__init__()
        self.body = body
        self.graph = graph
        self.stable = graph.no_units()
        self.training = body.training
        self._refuse_shared()
        self._batch: dict[str, UnitBatchNorm] = {}
        self._mixing: dict[str, GenerationNorm] = {}
        self._swap_norms()
        self._parameters_by_name: dict[str, Parameter] = {}
        statistics = {values.name for values in graph.values if values.kind == "statistic"}
        learned = dict(body.named_parameters())
        for layer in graph.layers:
            if layer.weight not in self._parameters_by_name:
                weight = learned[layer.weight]
                everywhere = torch.ones(weight.shape[:2], dtype=torch.bool, device=weight.device)
                self._own(layer.weight, LiveWeight(weight, everywhere))
        for values in graph.values:
            if values.name not in statistics:
                self._own(values.name, HeldValues(learned[values.name]))
        for module in body.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # its fast path would pass the norms by

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Logits ``(batch, classes)`` of whatever the module takes."""
        logits: Tensor = logits_of(self.body(*arguments, **named))
        return logits

    def groups(self) -> str:
        """Who writes and reads each group, as a table."""
        return groups_table(self.graph)

    def patterns(self) -> dict[str, Tensor]:
        """Live connections of each layer, ``(rows, columns / blocks)`` bool."""
        return {
            layer.name: self._rows(layer, self._live(layer).pattern) for layer in self.graph.layers
        }

    def weight(self, layer: str) -> Tensor:
        """The weight of a layer, dead places zero."""
        found = self.graph.layer(layer)
        return self._rows(found, self._parameters_by_name[found.weight].dense())

    def connect(self, layer: str, pattern: Tensor, values: Tensor | None = None) -> None:
        """Gives a layer another pattern; frozen connections must stay in it.

        Args:
            layer: Its name.
            pattern: Live connections, ``(rows, columns / blocks)`` bool.
            values: Weights of the layer's shape to take at live places that are not frozen; as they
                are now if None, zero where a connection is new.
        """
        found = self.graph.layer(layer)
        parameter, rule = self._parameters_by_name[found.weight], self._live(found)
        live, held = rule.pattern.clone(), rule.held
        rows = slice(found.first_row, found.first_row + len(found.rows))
        assert not (held[rows] & ~pattern).any(), "a frozen connection would be lost"
        weight = parameter.dense()
        if values is not None:
            kept = held[rows].reshape(*pattern.shape, *[1] * (weight.dim() - 2))
            weight[rows] = torch.where(kept, weight[rows], values.to(weight))
        live[rows] = pattern
        parameter.connect(weight, live, held)

    def drop_into(self, kept: UnitSets) -> int:
        """Lets every plastic connection from other units into some die; returns how many."""
        rest = {name: ~units for name, units in kept.items()}
        dropped = 0
        for layer in self.graph.layers:
            pattern = self._rows(layer, self._live(layer).pattern)
            leaving = pattern & layer.between(rest, kept).to(pattern.device)
            if leaving.any():
                self.connect(layer.name, pattern & ~leaving)
                dropped += int(leaving.sum())
        return dropped

    def settle(self, units: UnitSets) -> None:
        """Lets units be normalised without those that are not among them or stable, from now on.

        They still learn. Call it when they are chosen, for it changes what they compute; freezing
        them later does not.
        """
        for norm in self.graph.norms:
            module = self._mixing.get(norm.module)
            if module is None:
                continue
            for row, each in zip(module.generation, norm.sets, strict=True):
                entries = each.spread(units).to(row.device) & (row == 0)
                row[entries] = self._generation
        self._generation += 1

    def freeze(self, units: UnitSets) -> None:
        """Makes units stable: rows, values and statistics stay what they are now.

        Args:
            units: A bool vector per group; inputs and stable ones may be among them.

        Raises:
            ConfigError: A live connection leads into them from other units.
        """
        kept = {name: self.stable[name] | units[name] for name in self.stable}
        rest = {name: ~each for name, each in kept.items()}
        for layer in self.graph.layers:
            pattern = self._rows(layer, self._live(layer).pattern)
            entering = int((pattern & layer.between(rest, kept).to(pattern.device)).sum())
            if entering:
                raise ConfigError(
                    f"{entering} live connections of '{layer.name}' lead from plastic into stable "
                    "units; call drop_into first"
                )
        self.settle(kept)
        for layer in self.graph.layers:
            parameter, rule = self._parameters_by_name[layer.weight], self._live(layer)
            held = rule.held.clone()
            rows = slice(layer.first_row, layer.first_row + len(layer.rows))
            held[rows] |= rule.pattern[rows] & layer.rows.spread(kept).to(held.device)[:, None]
            parameter.connect(parameter.dense(), rule.pattern, held)
        for values in self.graph.values:
            parameter_of = self._parameters_by_name.get(values.name)
            if parameter_of is not None:
                shape = tuple(parameter_of.learned.shape)
                parameter_of.hold(values.spread(kept, shape).to(parameter_of.learned.device))
        for norm in self.graph.norms:
            if norm.module in self._batch:
                stable = self._batch[norm.module].stable
                stable.copy_(norm.sets[0].spread(kept))
        self.stable = kept

    def _rows(self, layer: Layer, whole: Tensor) -> Tensor:
        return whole[layer.first_row : layer.first_row + len(layer.rows)]

    def _live(self, layer: Layer) -> LiveWeight:
        rule = self._parameters_by_name[layer.weight].rule
        assert isinstance(rule, LiveWeight)
        return rule

    def _own(self, path: str, rule: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        self._parameters_by_name[path] = Parameter(self.body.get_submodule(owner), name, rule)

    def _swap_norms(self) -> None:
        self._generation = 1
        for norm in self.graph.norms:
            module = self.body.get_submodule(norm.module)
            if isinstance(module, BATCH):
                self._batch[norm.module] = UnitBatchNorm(module)
                _replace(self.body, module, self._batch[norm.module])
            elif norm.mixes and isinstance(module, MIXING):
                swapped = GenerationNorm(module)
                if len(swapped.generation) != len(norm.sets):
                    raise GraphError(
                        f"'{norm.module}' normalises several sets of units; use a norm for each"
                    )
                self._mixing[norm.module] = swapped
                _replace(self.body, module, swapped)
            elif norm.mixes or norm.kind == "batch":
                raise GraphError(
                    f"'{norm.module}' is a {type(module).__name__}, whose statistics cannot be "
                    "held still; use nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm or "
                    "nn.GroupNorm"
                )

    def _refuse_shared(self) -> None:
        owners: dict[int, tuple[str, int]] = {}
        for path, module in self.body.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{path}.{name}".lstrip(".")
                if owners.setdefault(id(parameter), (full, id(module)))[1] != id(module):
                    raise GraphError(
                        f"'{full}' and '{owners[id(parameter)][0]}' are one parameter in two "
                        "modules; call one module twice, or give each its own"
                    )


def _replace(body: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Puts a module in the place of another one, wherever that is a child."""
    for parent in list(body.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out second names
            if child is module:
                setattr(parent, name, other)


def sparsify(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    density: float = 0.1,
    classes: int | None = None,
    values: Literal["draw", "model"] = "draw",
    dense: tuple[str, ...] = (),
    seed: int = 0,
) -> MaskedNetwork:
    """A sparse copy of a module.

    Args:
        model: Any module whose units ``find_units`` can tell apart.
        example: What it is called with.
        density: Share of live connections of each layer.
        classes: How many logits it must have.
        values: First values of connections: drawn anew (Kaiming-normal over live ones), or the
            model's. All else starts as the model has it.
        dense: Names of layers that stay dense.
        seed: Seed of the streams "pattern" and "initialisation".

    Raises:
        GraphError: It cannot be made sparse.
        ConfigError: A setting is out of range.
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density={density} must be in (0, 1]; for 90 % sparsity pass 0.1")
    if isinstance(model, nn.Module) and any(map(parametrize.is_parametrized, model.modules())):
        raise GraphError("the model is parametrised or sparse already; pass a plain module")
    body = copy.deepcopy(model)  # traced itself: what a copy reaches by a closure, it has not
    graph = find_units(body, example, classes)
    names = [layer.name for layer in graph.layers]
    wrong = [name for name in dense if name not in names]
    if wrong:
        raise ConfigError(f"dense={wrong[0]!r} is no layer; there are {', '.join(names)}")
    with usual_modes():
        network = MaskedNetwork(body, graph)
        for layer in graph.layers:
            share = 1.0 if layer.name in dense else density
            weight = network.weight(layer.name)
            pattern = _drawn(weight.shape[:2], share, stream(seed, "pattern", layer.name))
            if values == "draw":
                fan = pattern.sum(1).float().mean() * max(weight[0, 0].numel(), 1)
                noise = torch.randn(
                    weight.shape, generator=stream(seed, "initialisation", layer.name)
                )
                weight = noise * (2.0 / fan.clamp(min=1.0)).sqrt()
            network.connect(layer.name, pattern.to(weight.device), weight)
    return network


def _drawn(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """A random pattern with the share's count of live connections, at least one."""
    count = shape[0] * shape[1]
    pattern = torch.zeros(count, dtype=torch.bool)
    pattern[torch.randperm(count, generator=generator)[: max(1, round(share * count))]] = True
    return pattern.view(shape)
