from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nispa.mechanism.select import (
    most_active,
    select_candidates,
    supported,
    without_outgoing,
)
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from tests.mechanism.drawing import Net, chain, drawn, nets, units


@pytest.mark.parametrize(
    ("activity", "tau", "expected"),
    [
        ([4, 1, 3, 2], 0.7, "x.x."),  # 4 + 3 are 7 of 10
        ([4, 1, 3, 2], 0.71, "x.xx"),
        ([4, 1, 3, 2], 0.4, "x..."),
        ([4, 1, 3, 2], 0.01, "x..."),
        ([4, 1, 3, 2], 1.0, "xxxx"),
        ([4, 1, 3, 2], 0.0, "...."),
        ([2, 2, 2, 2], 0.5, "xx.."),  # ties go to the lower index
        ([1, 2, 2, 1], 0.5, ".xx."),
        ([0, 0, 5, 0], 1.0, "..x."),  # silent units are never picked
        ([0, 0, 0, 0], 1.0, "...."),
        ([3], 0.05, "x"),
        ([3], 0.0, "."),
        ([0], 1.0, "."),
    ],
)
def test_the_most_active_units_by_hand(activity: list[float], tau: float, expected: str) -> None:
    found = most_active(torch.tensor(activity, dtype=torch.float64), tau)
    assert found.tolist() == units(expected).tolist()


def test_ties_go_to_the_lower_index_in_large_groups_too() -> None:
    # Half of 1,000 equal units: a sort that is not stable would mix them.
    found = most_active(torch.ones(1000, dtype=torch.float64), 0.5)
    assert found.tolist() == [True] * 500 + [False] * 500


@examples(deadline=None)
@given(
    activity=st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    eighths=st.integers(0, 8),
)
def test_the_picked_units_are_the_fewest_that_hold_the_share(
    activity: list[int], eighths: int
) -> None:
    picked = most_active(torch.tensor(activity, dtype=torch.float64), eighths / 8).tolist()
    held = sorted(value for value, chosen in zip(activity, picked, strict=True) if chosen)
    others = [value for value, chosen in zip(activity, picked, strict=True) if not chosen]
    assert 8 * sum(held) >= eighths * sum(activity)
    assert 0 not in held
    if held:
        assert 8 * sum(held[1:]) < eighths * sum(activity)
        assert max(others, default=0) <= held[0]


def test_candidates_join_the_stable_units_of_hidden_groups_only() -> None:
    topology = chain(2, 3, 2)
    stable = topology.no_units() | {"a": units("..x"), "out": units("x.")}
    activity = {"a": torch.tensor([5.0, 1.0, 0.0])}
    candidates = select_candidates(topology, activity, stable, 0.5)
    assert candidates["in"].tolist() == [True, True]
    assert candidates["a"].tolist() == units("x.x").tolist()
    assert candidates["out"].tolist() == units("x.").tolist()
    assert stable["a"].tolist() == units("..x").tolist()


def test_each_group_has_a_threshold_of_its_own() -> None:
    # Activations a million times apart, as behind a convolution and behind a Linear layer: one
    # threshold, or one share, over all groups together would pick units of b alone.
    topology = chain(2, 4, 5, 3, 2)
    activity = {
        "a": torch.tensor([0.04, 0.01, 0.03, 0.02]),
        "b": torch.tensor([1e3, 5e3, 0.0, 3e3, 1e3]),
        "c": torch.tensor([2.0, 7.0, 1.0]),
    }
    found = select_candidates(topology, activity, topology.no_units(), 0.69)
    assert found["a"].tolist() == units("x.x.").tolist()  # 4 + 3 of 10
    assert found["b"].tolist() == units(".x.x.").tolist()  # 5 + 3 of 10
    assert found["c"].tolist() == units(".x.").tolist()  # 7 of 10
    other = select_candidates(topology, activity, topology.no_units(), 0.71)
    assert other["a"].tolist() == units("x.xx").tolist()  # 4 + 3 + 2
    assert other["b"].tolist() == units(".x.x.").tolist()
    assert other["c"].tolist() == units("xx.").tolist()  # 7 + 2


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1.0, "xx.xxx"), (0.5, "xx.xx."), (0.34, "xx..x."), (0.01, "x...x.")],
)
def test_a_task_takes_at_most_a_share_beside_stable_units(most: float, expected: str) -> None:
    topology = chain(2, 6, 2)
    activity = {group.name: torch.zeros(group.size) for group in topology.hidden}
    (name,) = activity
    activity[name] = torch.tensor([5, 3, 0, 2, 9, 1], dtype=torch.float64)
    stable = {**topology.no_units(), name: units("x.....")}
    found = select_candidates(topology, activity, stable, 1.0, most)
    assert found[name].tolist() == units(expected).tolist()


def test_a_silent_group_takes_nothing_from_the_others() -> None:
    topology = chain(2, 3, 3, 2)
    activity = {"a": torch.zeros(3), "b": torch.tensor([1.0, 2.0, 1.0])}
    found = select_candidates(topology, activity, topology.no_units(), 0.5)
    assert found["a"].tolist() == units("...").tolist()
    assert found["b"].tolist() == units(".x.").tolist()


def support(
    topology: Topology, patterns: dict[str, torch.Tensor], **candidates: str
) -> dict[str, list[bool]]:
    stable = topology.no_units()
    chosen = {name: stable[name] | units(text) for name, text in candidates.items()}
    found = supported(topology, patterns, stable, {**stable, **chosen})
    return {name: members.tolist() for name, members in found.items()}


def test_candidates_fed_by_nothing_kept_are_demoted_along_the_chain() -> None:
    topology = chain(3, 4, 3, 2)
    patterns = {
        "to_a": drawn("x..", "...", ".xx", "x.x"),  # a1 has no input
        "to_b": drawn(".x..", "..x.", "...x"),  # b0 hangs on a1, b2 on a3, which is no candidate
        "to_out": drawn("xxx", "xxx"),
    }
    found = support(topology, patterns, a="xxx.", b="xxx", out="x.")
    assert found["a"] == units("x.x.").tolist()
    assert found["b"] == units(".x.").tolist()
    assert found["out"] == units("x.").tolist()  # the outputs of a task are given


def test_one_live_connection_from_a_kept_unit_is_support_enough() -> None:
    topology = chain(2, 2, 2, 1)
    patterns = {"to_a": drawn("xx", ".."), "to_b": drawn("xx", "x."), "to_out": drawn("..")}
    found = support(topology, patterns, a="xx", b="xx")
    assert found["a"] == [True, False]
    assert found["b"] == [True, True]


def test_any_feature_of_a_channels_block_supports() -> None:
    topology = Topology(
        (
            UnitGroup("in", 1, "input"),
            UnitGroup("c", 2),
            UnitGroup("f", 3),
            UnitGroup("out", 1, "output"),
        ),
        (
            ConnectionLayer("conv", "in", "c", kernel=(3, 3)),
            ConnectionLayer("fc", "c", "f", block=3),
            ConnectionLayer("head", "f", "out"),
        ),
    )
    patterns = {
        "conv": drawn("x", "."),  # channel 1 has no input
        "fc": drawn("..x...", "...xxx", "......"),
        "head": drawn("xxx"),
    }
    found = support(topology, patterns, c="xx", f="xxx")
    assert found["c"] == [True, False]
    assert found["f"] == [True, False, False]


RESIDUAL = Topology(
    (
        UnitGroup("in", 2, "input"),
        UnitGroup("s", 3),  # the stream: fed by the stem and by the block's way back
        UnitGroup("m", 2),
        UnitGroup("out", 2, "output"),
    ),
    (
        ConnectionLayer("stem", "in", "s"),
        ConnectionLayer("up", "s", "m"),
        ConnectionLayer("down", "m", "s"),
        ConnectionLayer("head", "s", "out"),
    ),
)


def residual_patterns(stem: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "stem": stem,
        "up": drawn(".x.", "..x"),  # m0 <- s1, m1 <- s2
        "down": drawn("..", "x.", ".x"),  # s1 <- m0, s2 <- m1
        "head": drawn("xxx", "xxx"),
    }


def test_a_ring_of_candidates_in_a_tied_group_does_not_support_itself() -> None:
    found = support(RESIDUAL, residual_patterns(drawn("xx", "..", "..")), s="xxx", m="xx")
    assert found["s"] == [True, False, False]
    assert found["m"] == [False, False]


def test_a_ring_with_one_input_from_outside_is_supported() -> None:
    found = support(RESIDUAL, residual_patterns(drawn("xx", ".x", "..")), s="xxx", m="xx")
    assert found["s"] == [True, True, False]
    assert found["m"] == [True, False]


def test_a_chain_that_runs_against_the_order_of_layers_is_followed() -> None:
    # in -> s0 -> m0 -> s1 -> m1 -> s2: the walk has to pass the stream three times.
    patterns = {
        "stem": drawn("x.", "..", ".."),
        "up": drawn("x..", ".x."),
        "down": drawn("..", "x.", ".x"),
        "head": drawn("...", "..."),
    }
    found = support(RESIDUAL, patterns, s="xxx", m="xx")
    assert found["s"] == [True, True, True]
    assert found["m"] == [True, True]


def test_a_group_that_feeds_itself_gives_no_support_alone() -> None:
    topology = Topology(
        (UnitGroup("in", 1, "input"), UnitGroup("a", 3), UnitGroup("out", 1, "output")),
        (
            ConnectionLayer("stem", "in", "a"),
            ConnectionLayer("loop", "a", "a"),
            ConnectionLayer("head", "a", "out"),
        ),
    )
    patterns = {
        "stem": drawn(".", ".", "x"),
        "loop": drawn("x..", "..x", "..."),  # a0 feeds itself alone; a1 <- a2 <- in
        "head": drawn("xxx"),
    }
    assert support(topology, patterns, a="xxx")["a"] == [False, True, True]


def test_a_stable_unit_is_never_demoted() -> None:
    topology = chain(2, 2, 2)
    patterns = {"to_a": drawn("..", ".."), "to_out": drawn("..", "..")}
    stable = topology.no_units() | {"a": units("x.")}
    found = supported(topology, patterns, stable, stable | {"a": units("xx")})
    assert found["a"].tolist() == [True, False]


@examples(deadline=None)
@given(net=nets())
def test_support_lies_between_stable_units_and_candidates(net: Net) -> None:
    output = net.topology.output.name
    found = supported(net.topology, net.patterns, net.stable, net.kept)
    assert torch.equal(found[output], net.kept[output])
    for name, members in found.items():
        assert not (members & ~net.kept[name]).any()
        assert name == output or not (net.stable[name] & ~members).any()
    again = supported(net.topology, net.patterns, net.stable, found)
    assert all(torch.equal(again[name], found[name]) for name in found)


@examples(deadline=None)
@given(net=nets())
def test_the_supported_units_are_those_a_search_from_the_stable_ones_reaches(net: Net) -> None:
    topology = net.topology
    reached = {
        (name, unit)
        for name, members in net.stable.items()
        for unit in range(len(members))
        if members[unit]
    }
    front = set(reached)
    while front:  # unit by unit along live connections, through candidates only
        group, unit = front.pop()
        for layer in topology.readers(group):
            columns = net.patterns[layer.name][:, unit * layer.block : (unit + 1) * layer.block]
            for target in columns.any(1).nonzero().flatten().tolist():
                place = (layer.target, target)
                if net.kept[layer.target][target] and place not in reached:
                    reached.add(place)
                    front.add(place)
    found = supported(topology, net.patterns, net.stable, net.kept)
    for group_ in topology.hidden:
        expected = [(group_.name, unit) in reached for unit in range(group_.size)]
        assert found[group_.name].tolist() == expected


def test_units_without_an_outgoing_connection() -> None:
    topology = chain(2, 4, 2)
    patterns = {"to_a": drawn("xx", "xx", "xx", "xx"), "to_out": drawn("x...", "..x.")}
    everyone = {group.name: torch.ones(group.size, dtype=torch.bool) for group in topology.groups}
    assert without_outgoing(topology, patterns, everyone)["a"].tolist() == units(".x.x").tolist()
    some = everyone | {"a": units("xx..")}
    assert without_outgoing(topology, patterns, some)["a"].tolist() == units(".x..").tolist()
    assert set(without_outgoing(topology, patterns, everyone)) == {"a"}


def test_a_unit_heard_by_one_of_several_readers_has_an_outlet() -> None:
    patterns = {
        "stem": drawn("..", "..", ".."),
        "up": drawn("x..", "..."),
        "down": drawn("..", "..", ".."),
        "head": drawn(".x.", "..."),
    }
    everyone = {group.name: torch.ones(group.size, dtype=torch.bool) for group in RESIDUAL.groups}
    silent = without_outgoing(RESIDUAL, patterns, everyone)
    assert silent["s"].tolist() == [False, False, True]
    assert silent["m"].tolist() == [True, True]


def test_one_feature_of_a_block_is_an_outlet_of_its_channel() -> None:
    topology = Topology(
        (UnitGroup("in", 1, "input"), UnitGroup("c", 3), UnitGroup("out", 2, "output")),
        (ConnectionLayer("conv", "in", "c"), ConnectionLayer("fc", "c", "out", block=2)),
    )
    patterns = {"conv": drawn("x", "x", "x"), "fc": drawn(".x....", "....x.")}
    everyone = {group.name: torch.ones(group.size, dtype=torch.bool) for group in topology.groups}
    assert without_outgoing(topology, patterns, everyone)["c"].tolist() == [False, True, False]
