from __future__ import annotations

import pytest

from nispa.mechanism.room import has_room, needed
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from tests.mechanism.drawing import chain, drawn, units

TINY = chain(2, 3, 3, 2)
PATTERNS = {
    "to_a": drawn("xx", "x.", ".x"),
    "to_b": drawn("xx.", ".x.", "..x"),
    "to_out": drawn("x..", ".xx"),
}


@pytest.mark.parametrize(
    ("outputs", "a", "b", "inputs"),
    [
        ("x.", "xx.", "x..", "xx"),
        (".x", ".xx", ".xx", "xx"),
        ("xx", "xxx", "xxx", "xx"),
        ("..", "...", "...", ".."),
    ],
)
def test_needed_are_the_units_that_live_paths_lead_from(
    outputs: str, a: str, b: str, inputs: str
) -> None:
    found = needed(TINY, PATTERNS, units(outputs))
    expected = {"in": inputs, "a": a, "b": b, "out": outputs}
    assert {name: each.tolist() for name, each in found.items()} == {
        name: units(text).tolist() for name, text in expected.items()
    }


def test_needed_through_a_group_that_feeds_itself_and_through_blocks() -> None:
    topology = Topology(
        (UnitGroup("in", 1, "input"), UnitGroup("a", 3), UnitGroup("out", 1, "output")),
        (
            ConnectionLayer("first", "in", "a"),
            ConnectionLayer("loop", "a", "a"),
            ConnectionLayer("last", "a", "out", block=2),
        ),
    )
    patterns = {
        "first": drawn("x", ".", "."),
        "loop": drawn("...", "x..", ".x."),  # 0 feeds 1, and 1 feeds 2
        "last": drawn(".....x"),  # the second feature of unit 2
    }
    found = needed(topology, patterns, units("x"))
    assert found["a"].tolist() == [True, True, True]
    assert found["in"].tolist() == [True]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("...", "...", True),
        ("xxx", "xx.", True),
        ("xx.", "xxx", False),  # a plastic unit of a feeds stable units alone
        ("xxx", "xxx", False),
    ],
)
def test_room_is_a_plastic_unit_that_can_reach_outputs(a: str, b: str, expected: bool) -> None:
    stable = {"in": units("xx"), "a": units(a), "b": units(b), "out": units("..")}
    assert has_room(TINY, stable) is expected
