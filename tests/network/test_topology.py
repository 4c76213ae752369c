from __future__ import annotations

import pytest

from nispa.errors import ConfigError
from nispa.network.topology import (
    ConnectionLayer,
    Topology,
    UnitGroup,
    column_units,
    complement,
    live_between,
    source_columns,
    union,
)
from tests.mechanism.drawing import drawn, units

# A convolution, flattened into blocks of two features, and a residual stream s fed twice.
NET = Topology(
    (
        UnitGroup("in", 1, "input"),
        UnitGroup("c", 2),
        UnitGroup("s", 3),
        UnitGroup("m", 1),
        UnitGroup("out", 2, "output"),
    ),
    (
        ConnectionLayer("conv", "in", "c", kernel=(3, 3)),
        ConnectionLayer("flat", "c", "s", block=2),
        ConnectionLayer("up", "s", "m"),
        ConnectionLayer("down", "m", "s"),
        ConnectionLayer("head", "s", "out"),
    ),
)


def test_groups_and_layers_by_name() -> None:
    assert NET.group("s").size == 3
    assert NET.layer("flat").block == 2
    assert NET.output.name == "out"
    assert [group.name for group in NET.hidden] == ["c", "s", "m"]


def test_readers_and_feeders_of_a_group() -> None:
    assert [layer.name for layer in NET.readers("s")] == ["up", "head"]
    assert [layer.name for layer in NET.feeders("s")] == ["flat", "down"]
    assert NET.readers("out") == ()
    assert NET.feeders("in") == ()


def test_a_pattern_has_a_row_per_target_and_a_column_per_source_feature() -> None:
    shapes = {layer.name: NET.pattern_shape(layer) for layer in NET.layers}
    assert shapes == {"conv": (2, 1), "flat": (3, 4), "up": (1, 3), "down": (3, 1), "head": (2, 3)}


def test_inputs_never_change_and_nothing_else_is_stable_at_first() -> None:
    sets = {name: members.tolist() for name, members in NET.no_units().items()}
    assert sets == {
        "in": [True],
        "c": [False] * 2,
        "s": [False] * 3,
        "m": [False],
        "out": [False] * 2,
    }


def test_units_as_columns_and_back() -> None:
    flat, up = NET.layer("flat"), NET.layer("up")
    assert source_columns(flat, units(".x")).tolist() == units("..xx").tolist()
    assert source_columns(up, units(".xx")).tolist() == units(".xx").tolist()
    assert column_units(flat, units("...x")).tolist() == units(".x").tolist()
    assert column_units(flat, units("....")).tolist() == units("..").tolist()
    assert column_units(up, units("x.x")).tolist() == units("x.x").tolist()


def test_live_connections_between_sets_by_hand() -> None:
    patterns = {
        "conv": drawn("x", "x"),
        "flat": drawn("xx.x", "x..x", "...."),
        "up": drawn("xxx"),
        "down": drawn("x", ".", "x"),
        "head": drawn("x.x", ".xx"),
    }
    kept = NET.no_units() | {"c": units("x."), "s": units("x.."), "out": units(".x")}
    found = live_between(NET, patterns, complement(kept), kept)
    expected = {
        "conv": drawn(".", "."),  # inputs are kept
        "flat": drawn("...x", "....", "...."),  # c1 into s0
        "up": drawn("..."),
        "down": drawn("x", ".", "."),  # m0 into s0
        "head": drawn("...", ".xx"),  # s1 and s2 into output 1
    }
    assert {name: mask.tolist() for name, mask in found.items()} == {
        name: mask.tolist() for name, mask in expected.items()
    }


def test_complement_and_union_go_group_by_group() -> None:
    first, second = {"a": units("x.."), "b": units(".")}, {"a": units(".x."), "b": units(".")}
    assert complement(first)["a"].tolist() == units(".xx").tolist()
    assert union(first, second)["a"].tolist() == units("xx.").tolist()
    assert union(first, second)["b"].tolist() == units(".").tolist()
    assert first["a"].tolist() == units("x..").tolist()


IN, A, OUT = UnitGroup("in", 1, "input"), UnitGroup("a", 2), UnitGroup("out", 1, "output")


@pytest.mark.parametrize(
    ("groups", "layers", "message"),
    [
        ((IN, A, A), (), "unit groups .* must have different names"),
        (
            (IN, A, OUT),
            (ConnectionLayer("l", "in", "a"), ConnectionLayer("l", "a", "out")),
            "layers .* must have different names",
        ),
        ((IN, A, OUT), (ConnectionLayer("l", "in", "b"),), "layer l joins 'b', not one of"),
        ((IN, A, OUT), (ConnectionLayer("l", "x", "a"),), "layer l joins 'x', not one of"),
        ((IN, A, OUT), (ConnectionLayer("l", "a", "in"),), "must not feed the input 'in'"),
        ((IN, A, OUT), (ConnectionLayer("l", "out", "a"),), "must not read the output 'out'"),
    ],
)
def test_a_structure_that_makes_no_sense_is_refused(
    groups: tuple[UnitGroup, ...], layers: tuple[ConnectionLayer, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Topology(groups, layers)
