"""Maps of units by hand."""

from __future__ import annotations

import torch

from nispa.graph.units import Group, Layer, Norm, Span, UnitGraph, UnitMap, Values
from tests.mechanism.drawing import drawn, units

# a: three units, of which the last two have two entries each; then b's only unit; then a's first.
MAP = UnitMap((Span("a", 0, 1), Span("a", 1, 2, 2), Span("b", 0, 1), Span("a", 0, 1)))


def test_entries_and_their_units() -> None:
    assert len(MAP) == 7
    assert MAP.groups == ("a", "b")
    assert MAP.units() == [("a", 0), ("a", 1), ("a", 1), ("a", 2), ("a", 2), ("b", 0), ("a", 0)]


def test_spread_over_entries_and_back() -> None:
    sets = {"a": units("x.x"), "b": units(".")}
    assert torch.equal(MAP.spread(sets), units("x..xx.x"))
    sums = MAP.sums(torch.arange(7), {"a": 4, "b": 1})
    assert {name: each.tolist() for name, each in sums.items()} == {"a": [6, 3, 7, 0], "b": [5]}


def test_an_empty_map() -> None:
    assert len(UnitMap(())) == 0
    assert UnitMap(()).spread({}).tolist() == []


def test_connections_between_units() -> None:
    layer = Layer("f", "f.weight", UnitMap((Span("b", 0, 2),)), UnitMap((Span("a", 0, 2, 2),)), "")
    found = layer.between({"a": units(".x")}, {"b": units("x.")})
    assert torch.equal(found, drawn("..xx", "...."))
    assert layer.allowed() is None


def test_connections_of_a_grouped_convolution_as_its_weight_lies() -> None:
    layer = Layer(
        "g",
        "g.weight",
        UnitMap((Span("b", 0, 4),)),
        UnitMap((Span("a", 0, 4),)),
        "conv2d",
        (3, 3),
        blocks=2,
    )
    allowed = layer.allowed()
    assert allowed is not None
    assert torch.equal(allowed, drawn("xx..", "xx..", "..xx", "..xx"))
    # Rows 0 and 1 read units 0 and 1, rows 2 and 3 read units 2 and 3.
    found = layer.between({"a": units(".xx.")}, {"b": units("x.xx")})
    assert torch.equal(found, drawn(".x", "..", "x.", "x."))


def test_values_along_a_dimension_or_all() -> None:
    column = Values("table", "embedding", UnitMap((Span("a", 0, 3),)), 1)
    sets = {"a": units("x.x")}
    assert torch.equal(column.spread(sets, (2, 3)), drawn("x.x", "x.x"))
    each = Values("places", "value", UnitMap((Span("a", 0, 3, 2),)), None)
    assert torch.equal(each.spread(sets, (3, 2)), drawn("xx", "..", "xx"))


def test_which_norms_mix_units() -> None:
    one, two = UnitMap((Span("a", 0, 1, 4),)), UnitMap((Span("a", 0, 2),))
    assert [Norm("n", "layer", (one,)).mixes, Norm("n", "layer", (two,)).mixes] == [False, True]
    assert not Norm("n", "batch", (two,)).mixes


def test_a_graph_by_names() -> None:
    values = Values("f.bias", "bias", UnitMap((Span("b", 0, 2),)))
    graph = UnitGraph(
        (Group("a", 3, "input"), Group("b", 2, "output")),
        (),
        (values,),
        (Norm("n", "batch", (UnitMap((Span("b", 0, 2),)),)),),
    )
    assert graph.group("a").size == 3
    assert graph.output.name == "b"
    assert graph.values_of("b") == (values,)
    assert graph.values_of("a") == ()
    assert [norm.module for norm in graph.norms_of("b")] == ["n"]
    sets = {name: each.tolist() for name, each in graph.no_units().items()}
    assert sets == {"a": [True] * 3, "b": [False] * 2}
