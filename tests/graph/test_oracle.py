"""Groups of convolutional networks held against Torch-Pruning's, where that is installed.

It takes operators that it does not know for element-wise ones, so it is asked about networks of
convolutions only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from nispa.backbones import BACKBONES
from nispa.graph.trace import find_units
from nispa.graph.units import UnitGraph
from tests.extent import optional

pruning = optional("torch_pruning")

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "convnet": ((2, 16, 16), {"channels": (4, 4, 6, 6), "fc": (8,)}),
    "resnet18": ((3, 16, 16), {"width": 4}),
    "vgg11-bn": ((3, 32, 32), {"width": 2}),
    "mobilenet-small": ((3, 16, 16), {"width": 4}),
    "conv1d": ((5, 20), {"channels": (4, 6), "kernels": (5, 3)}),
}
Ends = set[tuple[str, str, int]]


def ours(graph: UnitGraph) -> dict[tuple[str, int], Ends]:
    """Rows and columns of each unit."""
    ends: dict[tuple[str, int], Ends] = {}
    for layer in graph.layers:
        for side, units in (("row", layer.rows), ("column", layer.columns)):
            for place, unit in enumerate(units.units()):
                ends.setdefault(unit, set()).add((layer.name, side, place))
    return ends


def theirs(group: Iterable[Any], names: dict[nn.Module, str], layers: set[str]) -> Ends:
    """Rows and columns that go with a channel."""
    ends: Ends = set()
    for dependency, places in group:
        name = names.get(dependency.target.module, "")
        if name in layers:
            side = "row" if "out" in dependency.handler.__name__ else "column"
            ends |= {(name, side, place) for place in places}
    return ends


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_groups_as_torch_pruning_finds_them(name: str) -> None:
    shape, settings = CASES[name]
    model = BACKBONES[name].build(shape, 3, **settings)
    graph = find_units(model, torch.zeros(2, *shape))
    names = {module: path for path, module in model.named_modules()}
    layers = {layer.name for layer in graph.layers}
    dependencies = pruning.DependencyGraph().build_dependency(model, torch.zeros(2, *shape))
    of_unit = ours(graph)
    for layer in graph.layers:
        if layer.rows.groups == ("output",):
            continue
        module = model.get_submodule(layer.name)
        linear = isinstance(module, nn.Linear)
        prune = pruning.prune_linear_out_channels if linear else pruning.prune_conv_out_channels
        for row in (0, len(layer.rows) - 1):
            group = dependencies.get_pruning_group(module, prune, idxs=[row])
            assert theirs(group, names, layers) == of_unit[layer.rows.units()[row]], layer.name
