"""Modules as users write them: their groups by hand, and that kept units stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from nispa.graph.trace import find_units
from nispa.graph.units import Layer, Span, UnitGraph, UnitMap

from .foreign import FOREIGN
from .isolation import check_isolated, random_sets


def groups_of(graph: UnitGraph) -> tuple[tuple[str, str, int, str, str], ...]:
    return tuple(
        (group.name, group.kind, group.size, " ".join(group.writers), " ".join(group.readers))
        for group in graph.groups
    )


@pytest.mark.parametrize("name", FOREIGN)
def test_groups_of_a_users_module(name: str) -> None:
    case = FOREIGN[name]
    graph = find_units(case.build(), case.example())
    assert groups_of(graph) == case.groups


@pytest.mark.parametrize("name", FOREIGN)
def test_kept_units_of_a_users_module_stay(name: str) -> None:
    case = FOREIGN[name]
    torch.manual_seed(0)
    model, example = case.build(), case.example()
    graph = find_units(model, example)
    generator = torch.Generator().manual_seed(1)
    moved = [
        check_isolated(model, graph, example, random_sets(graph, generator), generator)
        for _ in range(4)
    ]
    assert any(moved)


def test_the_maps_of_a_packed_projection() -> None:
    graph = find_units(FOREIGN["standard"].build(), FOREIGN["standard"].example())
    heads = "encoder.layers.0.self_attn.in_proj_weight"
    packed = graph.layer(heads)
    assert packed.rows == UnitMap((Span(heads, 0, 4, 2),) * 3)  # q, k, v: four heads of two rows
    assert packed.module is None
    assert (packed.bias, packed.first_bias) == ("encoder.layers.0.self_attn.in_proj_bias", 0)
    out = graph.layer("encoder.layers.0.self_attn.out_proj")
    assert out.columns == UnitMap((Span(heads, 0, 4, 2),))
    assert out.module is None  # the attention reads its weight by itself
    assert graph.layer("encoder.layers.0.linear1").module == "encoder.layers.0.linear1"


def test_the_maps_of_concatenation_shuffle_and_groups() -> None:
    graph = find_units(FOREIGN["dense"].build(), FOREIGN["dense"].example())
    both = graph.layer("grow.1")
    assert both.columns == UnitMap((Span("first", 0, 4), Span("grow.0", 0, 4)))
    grouped = graph.layer("grouped")
    assert grouped.blocks == 2
    # Channel c = 6 h + i of three times four lands at place 2 i + h.
    names = [("first", 0), ("grow.0", 2), ("first", 1), ("grow.0", 3), ("first", 2), ("grow.1", 0)]
    assert grouped.columns.units()[:6] == names
    assert [(norm.kind, len(norm.sets), norm.mixes) for norm in graph.norms] == [("group", 2, True)]
    read = graph.layer("fc").columns
    assert read == UnitMap((Span("grouped", 0, 6), Span("grouped", 0, 3)))


def test_the_maps_of_a_flatten() -> None:
    case = FOREIGN["sequential"]
    wide = find_units(case.build(), case.example()).layer("wide")
    assert wide == Layer(
        name="wide",
        weight="wide.weight",
        rows=UnitMap((Span("wide", 0, 6),)),
        columns=UnitMap((Span("conv", 0, 4, repeat=4),)),
        operator="linear",
        bias="wide.bias",
        module="wide",
    )


def test_values_of_units() -> None:
    graph = find_units(FOREIGN["standard"].build(), FOREIGN["standard"].example())
    found = {values.name: (values.kind, values.dim) for values in graph.values_of("patches")}
    assert found["token"] == ("value", 0)
    assert found["gamma"] == ("value", 0)
    assert found["patches.bias"] == ("bias", 0)
    assert found["encoder.layers.0.norm1.weight"] == ("norm", 0)
    encoder = find_units(FOREIGN["encoder"].build(), FOREIGN["encoder"].example())
    places = {values.name: values for values in encoder.values}["places.weight"]
    assert (places.kind, places.dim) == ("embedding", 1)
    assert places.units == UnitMap((Span("embed", 0, 8),))


class Shared(nn.Module):
    """One norm and one layer under two names, each used twice; a table of all pairs as input."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 4)
        self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.second, self.again = self.first, self.norm
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        y = self.start(x)
        y = y + self.first(self.norm(y)).relu()
        y = y + pairs @ self.second(self.again(y)).relu()
        logits: Tensor = self.head(y.mean(1))
        return logits


def test_shared_modules_and_an_input_without_samples() -> None:
    model, example = Shared(), (torch.randn(4, 5, 3), torch.randn(5, 5))
    graph = find_units(model, example)
    assert groups_of(graph) == (
        ("x", "input", 3, "", "start"),
        ("pairs", "input", 1, "", ""),
        ("start", "stream", 4, "start first", "first head"),
        ("output", "output", 2, "head", ""),
    )
    assert graph.layer("first").calls == 2
    assert [norm.module for norm in graph.norms] == ["norm"]


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference", "autocast", "meta"],
)
def test_the_callers_modes_change_nothing(mode: Callable[[], AbstractContextManager[None]]) -> None:
    case = FOREIGN["sequential"]
    model, example = case.build(), torch.zeros(1, 2, 9, 9)
    usual = find_units(model, example)
    for value in model.parameters():
        value.requires_grad_(False)
    with mode():
        assert find_units(model, example) == usual


def test_the_module_is_left_as_it_was() -> None:
    case = FOREIGN["sequential"]
    model = case.build()
    model.train()
    model.get_submodule("bn").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_units(model, torch.zeros(4, 2, 9, 9))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
