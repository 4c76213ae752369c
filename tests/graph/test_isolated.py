"""The property that all else stands on: kept units stay, whatever happens to the others."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.errors import GraphError
from nispa.graph.trace import find_units
from nispa.graph.units import Layer, Span, UnitGraph, UnitMap, Values
from tests.extent import ALL

from .isolation import check_isolated, random_sets
from .random_nets import BUILDERS, RandomNet

MIXING = {"spatial_gate", "mixed", "token_mixing"}
USUAL = sorted(set(BUILDERS) - MIXING - {"start"})
plans = st.lists(st.tuples(st.sampled_from(USUAL), st.integers(0, 10**6)), min_size=1, max_size=7)
mixing_plans = st.lists(
    st.tuples(st.sampled_from(sorted({*BUILDERS} - {"start"})), st.integers(0, 10**6)),
    min_size=1,
    max_size=5,
)


def net_of(plan: list[tuple[str, int]], end: int) -> RandomNet:
    torch.manual_seed(end)
    return RandomNet([("start", 0), *plan], (2, 6, 6), end)


def check_random(plan: list[tuple[str, int]], end: int) -> None:
    model = net_of(plan, end)
    images = torch.randn(3, 2, 6, 6)
    try:
        graph = find_units(model, images)
    except GraphError:
        event("refused")
        return
    generator = torch.Generator().manual_seed(end)
    for share in (0.3, 0.7):
        kept = random_sets(graph, generator, share)
        check_isolated(model, graph, images, kept, generator)


@settings(max_examples=40 if ALL else 20, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.one_of(plans, mixing_plans), end=st.integers(0, 1000))
def test_a_random_network_is_isolated_or_refused(plan: list[tuple[str, int]], end: int) -> None:
    check_random(plan, end)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.one_of(plans, mixing_plans), end=st.integers(0, 1000))
def test_many_random_networks(plan: list[tuple[str, int]], end: int) -> None:
    check_random(plan, end)


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_operator_is_not_refused(name: str) -> None:
    refused: collections.Counter[str] = collections.Counter()
    for number in range(4):
        model = net_of([("activation", number), (name, number), ("convolution", 1)], number)
        try:
            graph = find_units(model, torch.zeros(2, 2, 6, 6))
        except GraphError as error:
            refused[str(error)] += 1
            continue
        generator = torch.Generator().manual_seed(number)
        kept = random_sets(graph, generator)
        check_isolated(model, graph, torch.randn(3, 2, 6, 6), kept, generator)
    assert refused.total() < 4, refused


@pytest.mark.parametrize("name", sorted(MIXING))
def test_an_operator_that_mixes_units_is_refused(name: str) -> None:
    for number in range(4):
        with pytest.raises(GraphError):
            find_units(net_of([(name, number)], number), torch.zeros(2, 2, 6, 6))


def small(name: str) -> tuple[nn.Module, UnitGraph, Tensor]:
    shape = (3, 8, 8)
    size = {"resnet18": {"width": 4}, "vit-tiny": {"width": 12, "heads": 3, "blocks": 1}}[name]
    torch.manual_seed(0)
    model = BACKBONES[name].build(shape, 4, **size)
    return model, find_units(model, torch.zeros(2, *shape)), torch.randn(3, *shape)


def untied(graph: UnitGraph, layer: str) -> UnitGraph:
    """A layer that seems to read inputs alone, so that none of its connections is dropped."""

    def changed(each: Layer) -> Layer:
        fixed = UnitMap((Span("input", 0, 1, len(each.columns)),))
        return dataclasses.replace(each, columns=fixed) if each.name == layer else each

    return dataclasses.replace(graph, layers=tuple(map(changed, graph.layers)))


def loose(graph: UnitGraph, kind: str) -> UnitGraph:
    """Values of a kind that seem to belong to no unit that is kept."""

    def changed(each: Values) -> Values:
        nobody = UnitMap((Span("nobody", 0, 1, len(each.units)),))
        return dataclasses.replace(each, units=nobody) if each.kind == kind else each

    return dataclasses.replace(graph, values=tuple(map(changed, graph.values)))


MUTATIONS: dict[str, tuple[str, Callable[[UnitGraph], UnitGraph]]] = {
    "statistics of batch norm not frozen": ("resnet18", lambda graph: loose(graph, "statistic")),
    "scales of batch norm not frozen": ("resnet18", lambda graph: loose(graph, "norm")),
    "a shortcut not tied": ("resnet18", lambda graph: untied(graph, "layer2.0.shortcut.0")),
    "one writer not dropped": ("resnet18", lambda graph: untied(graph, "layer1.1.conv2")),
    "plain layer norm": ("vit-tiny", lambda graph: dataclasses.replace(graph, norms=())),
    "positions not frozen": ("vit-tiny", lambda graph: loose(graph, "value")),
    "heads not tied": ("vit-tiny", lambda graph: untied(graph, "blocks.0.attention.qkv")),
    "biases not frozen": ("vit-tiny", lambda graph: loose(graph, "bias")),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_left_out_moves_kept_units(name: str) -> None:
    backbone, change = MUTATIONS[name]
    model, graph, images = small(backbone)
    generator = torch.Generator().manual_seed(0)
    kept = random_sets(graph, generator) | {"nobody": torch.zeros(1, dtype=torch.bool)}
    assert check_isolated(model, graph, images, kept, generator)
    with pytest.raises(AssertionError):
        check_isolated(model, change(graph), images, kept, generator)
