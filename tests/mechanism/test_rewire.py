from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from nispa.graph.units import Span, UnitMap
from nispa.mechanism.grow import GROWTH_RULES, Wish, growth_rule
from nispa.mechanism.rewire import Rewiring, rewire
from nispa.network.topology import (
    ConnectionLayer,
    MappedLayer,
    Topology,
    UnitGroup,
    complement,
    live_between,
    source_columns,
)
from tests.mechanism.drawing import Net, chain, drawn, nets, units


def rewired(
    topology: Topology,
    patterns: dict[str, Tensor],
    *,
    seed: int = 0,
    owed: dict[str, int] | None = None,
    rule: str = "full",
    refill: dict[str, str] | None = None,
    **kept: str,
) -> dict[str, Rewiring]:
    sets = topology.no_units() | {name: units(text) for name, text in kept.items()}
    candidates = None
    if refill is not None:
        none = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in topology.groups}
        candidates = none | {name: units(text) for name, text in refill.items()}
    return rewire(
        topology,
        patterns,
        sets,
        growth_rule(rule),
        owed=owed,
        refill=candidates,
        generator=torch.Generator().manual_seed(seed),
    )


TINY = chain(3, 4, 3, 2)


def tiny_patterns() -> dict[str, Tensor]:
    return {
        "to_a": drawn("x..", ".x.", "..x", "xx."),
        "to_b": drawn("xx.x", "x.x.", ".x.."),
        "to_out": drawn("xxx", "..."),
    }


def test_a_rewiring_by_hand() -> None:
    # Kept: the inputs, a0, b0 and output 0.
    for seed in range(30):
        changes = rewired(TINY, tiny_patterns(), seed=seed, a="x...", b="x..", out="x.")

        first = changes["to_a"]  # every source is an input, so nothing is ever dropped
        assert torch.equal(first.pattern, tiny_patterns()["to_a"])
        assert (first.dropped, len(first.revived), len(first.grown), first.ungrown) == (0, 0, 0, 0)

        # b0 loses a1 and a3; a3 then feeds nothing and gets b1 or b2 (columns 3); one more grows.
        middle = changes["to_b"]
        assert middle.dropped == 2
        assert middle.revived.tolist() in ([1 * 4 + 3], [2 * 4 + 3])
        assert len(middle.grown) == 1
        assert middle.ungrown == 0
        assert middle.pattern[0].tolist() == units("x...").tolist()
        survivors = drawn("x...", "x.x.", ".x..")
        added = (middle.pattern & ~survivors).flatten().nonzero().flatten().tolist()
        assert sorted([*middle.revived.tolist(), *middle.grown.tolist()]) == added

        # Output 0 loses b1 and b2; both then feed nothing, and only output 1 is plastic.
        last = changes["to_out"]
        assert torch.equal(last.pattern, drawn("x..", ".xx"))
        assert sorted(last.revived.tolist()) == [4, 5]
        assert (last.dropped, len(last.grown), last.ungrown) == (2, 0, 0)


def test_revival_and_growth_reach_every_place_they_may() -> None:
    revived, grown = set(), set()
    for seed in range(150):
        change = rewired(TINY, tiny_patterns(), seed=seed, a="x...", b="x..", out="x.")["to_b"]
        revived |= set(change.revived.tolist())
        grown |= set(change.grown.tolist())
    assert revived == {7, 11}
    assert grown == {5, 7, 8, 10, 11}  # absent in rows 1 and 2 once the drop is done


def test_candidates_get_back_what_they_lost() -> None:
    # Kept: the inputs, a0 and a2, b0 (a candidate) and b1 (stable), output 0 (a candidate).
    for seed in range(30):
        changes = rewired(
            TINY,
            {**tiny_patterns(), "to_b": drawn("xx.x", ".xx.", ".x..")},
            seed=seed,
            refill={"b": "x..", "out": "x."},
            a="x.x.",
            b="xx.",
            out="x.",
        )
        # b0 loses a1 and a3, and finds room for a2 alone; b1 is stable and gets nothing back.
        middle = changes["to_b"]
        assert middle.refilled.tolist() == [2]
        assert middle.dropped == 3
        assert middle.pattern[:2].tolist() == drawn("x.x.", "..x.").tolist()
        # One of what is left revives a3 or a1; all of it enters b2.
        assert len(middle.revived) + len(middle.grown) + middle.ungrown == 2
        # Output 0 reads b0 and b1 already: nothing is absent that it could get.
        assert changes["to_out"].refilled.tolist() == []


def test_what_candidates_get_back_is_drawn_among_all_kept_sources() -> None:
    topology = chain(4, 2, 1)
    patterns = {"to_a": drawn("....", "...."), "to_out": drawn(".x")}
    wide = chain(2, 6, 2)
    drawn_from = set()
    for seed in range(60):
        made = rewired(
            wide,
            {"to_a": drawn(*["xx"] * 6), "to_out": drawn("....xx", "......")},
            seed=seed,
            refill={"out": "x."},
            a="xxxx..",
            out="x.",
        )["to_out"]
        assert made.pattern[0].sum() == 2
        assert not made.pattern[0, 4:].any()
        drawn_from |= set(made.refilled.tolist())
    assert drawn_from == {0, 1, 2, 3}
    made = rewired(topology, patterns, refill={"out": "x"}, a="..", out="x")["to_out"]
    assert (made.refilled.tolist(), made.ungrown) == ([], 1)  # no kept source: it stays owed


def test_equal_draws_give_back_no_more_than_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 0.5))
    made = rewired(
        chain(2, 6, 2),
        {"to_a": drawn(*["xx"] * 6), "to_out": drawn("....xx", "x....x")},
        refill={"out": "xx"},
        a="xxxx..",
        out="xx",
    )["to_out"]
    assert made.refilled.tolist() == [0, 1, 6 + 1]  # the first columns that are free
    assert made.pattern.sum(1).tolist() == [2, 2]


def test_inputs_stay_as_they_were() -> None:
    patterns = tiny_patterns()
    rewired(TINY, patterns, a="x...", b="x..", out="x.")
    assert all(torch.equal(patterns[name], kept) for name, kept in tiny_patterns().items())


def test_revival_stops_when_the_count_runs_out() -> None:
    topology = chain(1, 3, 2)
    patterns = {"to_a": drawn("x", "x", "x"), "to_out": drawn(".x.", "...")}
    # One connection falls (a1 -> output 0), three units then feed nothing: a0 comes first.
    last = rewired(topology, patterns, a="...", out="x.")["to_out"]
    assert last.revived.tolist() == [3]
    assert torch.equal(last.pattern, drawn("...", "x.."))
    assert (last.dropped, len(last.grown), last.ungrown) == (1, 0, 0)


def test_kept_units_are_not_revived() -> None:
    topology = chain(1, 3, 2)
    patterns = {"to_a": drawn("x", "x", "x"), "to_out": drawn(".x.", "...")}
    last = rewired(topology, patterns, a="x..", out="x.")["to_out"]
    assert last.revived.tolist() == [4]  # a0 feeds nothing but is kept, so a1 comes first


def test_what_finds_no_place_is_owed() -> None:
    topology = chain(1, 2, 2)
    patterns = {"to_a": drawn("x", "x"), "to_out": drawn("xx", ".x")}
    # All outputs are kept: both connections from the plastic unit a1 fall and none can grow.
    last = rewired(topology, patterns, a="x.", out="xx")["to_out"]
    assert torch.equal(last.pattern, drawn("x.", ".."))
    assert (last.dropped, len(last.revived), len(last.grown), last.ungrown) == (2, 0, 0, 2)


def test_what_was_owed_grows_when_there_is_room() -> None:
    topology = chain(1, 2, 2)
    patterns = {"to_a": drawn("x", "x"), "to_out": drawn("x.", "..")}
    last = rewired(topology, patterns, owed={"to_out": 2}, a="x.", out="x.")["to_out"]
    assert torch.equal(last.pattern, drawn("x.", "xx"))
    assert last.revived.tolist() == [3]
    assert last.grown.tolist() == [2]
    assert (last.dropped, last.ungrown) == (0, 0)


def test_what_is_still_owed_is_owed_again() -> None:
    topology = chain(1, 2, 2)
    patterns = {"to_a": drawn("x", "x"), "to_out": drawn("xx", "xx")}
    last = rewired(topology, patterns, owed={"to_out": 3}, a="x.", out="x.")["to_out"]
    assert torch.equal(last.pattern, drawn("x.", "xx"))
    assert (last.dropped, last.ungrown) == (1, 4)


def test_a_channel_is_revived_through_any_feature_of_its_block() -> None:
    topology = Topology(
        (UnitGroup("in", 1, "input"), UnitGroup("c", 2), UnitGroup("out", 3, "output")),
        (
            ConnectionLayer("conv", "in", "c", kernel=(3, 3)),
            ConnectionLayer("fc", "c", "out", block=3),
        ),
    )
    # Channel 0 feeds output 2 through its last feature; channel 1 loses its only connection.
    patterns = {"conv": drawn("x", "x"), "fc": drawn("....x.", "......", "..x...")}
    places = set()
    for seed in range(100):
        change = rewired(topology, patterns, seed=seed, c="..", out="x..")["fc"]
        assert change.dropped == 1
        assert len(change.revived) == 1
        assert change.pattern[0].tolist() == units("......").tolist()
        assert change.pattern[2, 2]
        places |= set(change.revived.tolist())
    assert places == {9, 10, 11, 15, 16, 17}  # rows 1 and 2, columns 3 to 5 of six


def test_a_kept_channel_keeps_its_whole_block_and_a_plastic_one_loses_it() -> None:
    topology = Topology(
        (UnitGroup("in", 1, "input"), UnitGroup("c", 2), UnitGroup("out", 1, "output")),
        (ConnectionLayer("conv", "in", "c"), ConnectionLayer("fc", "c", "out", block=2)),
    )
    patterns = {"conv": drawn("x", "x"), "fc": drawn("xxxx")}
    change = rewired(topology, patterns, c="x.", out="x")["fc"]
    assert torch.equal(change.pattern, drawn("xx.."))
    assert (change.dropped, change.ungrown) == (2, 2)


READERS = Topology(
    (
        UnitGroup("in", 1, "input"),
        UnitGroup("s", 2),
        UnitGroup("left", 2),
        UnitGroup("right", 2),
        UnitGroup("out", 1, "output"),
    ),
    (
        ConnectionLayer("stem", "in", "s"),
        ConnectionLayer("to_left", "s", "left"),
        ConnectionLayer("to_right", "s", "right"),
        ConnectionLayer("head_left", "left", "out"),
        ConnectionLayer("head_right", "right", "out"),
    ),
)


def test_a_unit_heard_by_another_reader_is_not_revived() -> None:
    patterns = {
        "stem": drawn("x", "x"),
        "to_left": drawn(".x", ".."),  # s1 -> left0 falls, but s1 still feeds right1
        "to_right": drawn("..", "xx"),
        "head_left": drawn("xx"),
        "head_right": drawn("xx"),
    }
    change = rewired(READERS, patterns, s="x.", left="x.", right="..", out=".")["to_left"]
    assert change.dropped == 1
    assert change.revived.tolist() == []
    assert len(change.grown) == 1


def test_a_unit_is_revived_through_the_reader_that_has_something_to_give() -> None:
    patterns = {
        "stem": drawn("x", "x"),
        "to_left": drawn(".x", ".."),  # s1 -> left0 falls and was all that s1 fed
        "to_right": drawn("x.", "x."),
        "head_left": drawn("xx"),
        "head_right": drawn("xx"),
    }
    for seed in range(20):
        changes = rewired(READERS, patterns, seed=seed, s="x.", left="x.", right="..", out=".")
        assert changes["to_left"].revived.tolist() == [3]  # the only plastic unit there is left1
        assert changes["to_right"].revived.tolist() == []
        assert torch.equal(changes["to_right"].pattern, patterns["to_right"])


def test_a_unit_is_not_revived_through_a_layer_that_reads_others_of_its_group() -> None:
    """As in a grouped convolution: of s, the layer reads unit 0 alone."""
    half = MappedLayer(
        "half",
        "s",
        "left",
        rows=UnitMap((Span("left", 0, 2),)),
        columns=UnitMap((Span("s", 0, 1),)),
        sizes={"s": 2, "left": 2},
    )
    groups = (
        UnitGroup("input", 1, "input"), UnitGroup("s", 2), UnitGroup("left", 2),
        UnitGroup("output", 1, "output"),
    )  # fmt: skip
    stem, head = ConnectionLayer("stem", "input", "s"), ConnectionLayer("head", "left", "output")
    patterns = {"stem": drawn("x", "x"), "half": drawn("x", "."), "head": drawn("xx")}
    changes = rewired(
        Topology(groups, (stem, half, head)),
        patterns,
        owed={"half": 1},
        s="..",
        left="..",
        output=".",
    )
    assert changes["half"].revived.tolist() == []
    assert changes["half"].grown.tolist() == [1]  # what is owed finds the only place there is


def test_a_unit_gets_one_outlet_from_one_of_several_readers() -> None:
    patterns = {
        "stem": drawn("x", "x"),
        "to_left": drawn(".x", ".."),
        "to_right": drawn(".x", ".."),
        "head_left": drawn("xx"),
        "head_right": drawn("xx"),
    }
    chosen = set()
    for seed in range(40):
        changes = rewired(READERS, patterns, seed=seed, s="x.", left="x.", right="x.", out=".")
        revived = [len(changes[name].revived) for name in ("to_left", "to_right")]
        assert sum(revived) == 1
        chosen.add(tuple(revived))
    assert chosen == {(1, 0), (0, 1)}


def test_a_residual_stream_is_one_set_of_units_for_all_its_layers() -> None:
    topology = Topology(
        (
            UnitGroup("in", 1, "input"),
            UnitGroup("s", 2),
            UnitGroup("m", 2),
            UnitGroup("out", 1, "output"),
        ),
        (
            ConnectionLayer("stem", "in", "s"),
            ConnectionLayer("up", "s", "m"),
            ConnectionLayer("down", "m", "s"),
            ConnectionLayer("head", "s", "out"),
        ),
    )
    patterns = {
        "stem": drawn("x", "x"),
        "up": drawn("xx", "x."),  # s1 -> m0 falls
        "down": drawn("xx", "x."),  # m1 -> s0 falls
        "head": drawn("xx"),  # s1 -> out falls
    }
    changes = rewired(topology, patterns, s="x.", m="x.", out="x")
    assert changes["stem"].dropped == 0
    # s1 and m1 feed nothing after the drop; each has one plastic unit to go to.
    assert torch.equal(changes["up"].pattern, drawn("x.", "xx"))
    assert torch.equal(changes["down"].pattern, drawn("x.", "xx"))
    assert changes["up"].revived.tolist() == [3]
    assert changes["down"].revived.tolist() == [3]
    assert torch.equal(changes["head"].pattern, drawn("x."))
    assert changes["head"].ungrown == 1


@pytest.mark.parametrize(
    ("sizes", "expected"), [((2, 1), [0]), ((2, 3, 1), [0, 1]), ((2, 3, 3, 1), [0, 0.5, 1])]
)
def test_depth_of_few_layers(sizes: tuple[int, ...], expected: list[float]) -> None:
    topology = chain(*sizes)
    patterns = {
        layer.name: torch.zeros(topology.pattern_shape(layer), dtype=torch.bool)
        for layer in topology.layers
    }
    asked: list[float] = []

    def rule(depth: float) -> tuple[Wish, ...]:
        asked.append(depth)
        return (Wish(1.0, "any"),)

    rewire(topology, patterns, topology.no_units(), rule, generator=torch.Generator())
    assert asked == expected


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    seen = []

    def rule(depth: float) -> tuple[()]:
        seen.append(depth)
        return ()

    patterns = tiny_patterns()
    rewire(TINY, patterns, TINY.no_units(), rule, generator=torch.Generator())
    assert seen == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("rule", GROWTH_RULES)
def test_a_net_of_plastic_units_alone_changes_nothing_but_outlets(rule: str) -> None:
    patterns = tiny_patterns()
    changes = rewired(TINY, patterns, rule=rule)
    assert all(torch.equal(changes[name].pattern, patterns[name]) for name in patterns)


@examples(deadline=None, max_examples=150)
@given(
    net=nets(),
    rule=st.sampled_from(sorted(GROWTH_RULES)),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_invariants_of_every_rewiring(net: Net, rule: str, seed: int, data: st.DataObject) -> None:
    topology, kept = net.topology, net.kept
    names = [layer.name for layer in topology.layers]
    owed = {name: data.draw(st.sampled_from([0, 0, 1, 4])) for name in names}
    before = {name: pattern.clone() for name, pattern in net.patterns.items()}
    kept_before = {name: members.clone() for name, members in kept.items()}
    refill = None
    if data.draw(st.booleans()):  # of the kept units, those that no earlier task made stable
        refill = {
            name: members
            & torch.tensor(
                data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool
            )
            for name, members in kept.items()
            for n in [len(members)]
        }

    def run() -> dict[str, Rewiring]:
        generator = torch.Generator().manual_seed(seed)
        rule_ = growth_rule(rule)
        return rewire(
            topology, net.patterns, kept, rule_, owed=owed, refill=refill, generator=generator
        )

    changes = run()
    after = {name: change.pattern for name, change in changes.items()}
    plastic = complement(kept)

    # No live connection runs from a plastic into a kept unit.
    assert not any(found.any() for found in live_between(topology, after, plastic, kept).values())

    silent_after = {group.name: plastic[group.name].clone() for group in topology.hidden}
    for layer in topology.layers:
        old, change = net.patterns[layer.name], changes[layer.name]
        leaving = source_columns(layer, kept[layer.source]).unsqueeze(0)
        entering = kept[layer.target].unsqueeze(1)
        # What was live survives, unless it ran from a plastic into a kept unit.
        assert not (old & (leaving | ~entering) & ~change.pattern).any()
        # Everything new enters a plastic unit, or a candidate in place of what it lost.
        new = change.pattern & ~old
        back = torch.zeros_like(old)
        back.view(-1)[change.refilled] = True
        assert torch.equal(new & entering, back)
        lost = (old & ~leaving & entering).sum(1)
        members = refill[layer.target] if refill is not None else torch.zeros_like(lost).bool()
        room = (~old & leaving).sum(1)
        assert back.sum(1).tolist() == torch.where(members, lost.minimum(room), 0).tolist()
        # It was absent, and is named exactly once.
        named = [*change.refilled.tolist(), *change.revived.tolist(), *change.grown.tolist()]
        assert sorted(named) == new.flatten().nonzero().flatten().tolist()
        # Nothing is lost without being reported.
        dropped = int((old & ~leaving & entering).sum())
        assert change.dropped == dropped
        assert int(change.pattern.sum()) + change.ungrown == int(old.sum()) + owed[layer.name]
        # A remainder means that the layer is full where it may grow.
        if change.ungrown:
            assert bool((change.pattern | entering).all())
        if layer.source in silent_after:
            heard = change.pattern.any(0).view(-1, layer.block).any(1)
            silent_after[layer.source] &= ~heard
    # A plastic unit stays without outlet only where no count was left to give it one.
    for group, silent in silent_after.items():
        for layer in topology.readers(group):
            if silent.any() and plastic[layer.target].any():
                change = changes[layer.name]
                given = len(change.revived) + len(change.refilled)
                assert given == change.dropped + owed[layer.name]
    # Inputs are not written to, and the generator decides everything.
    assert all(torch.equal(net.patterns[name], before[name]) for name in names)
    assert all(torch.equal(kept[name], kept_before[name]) for name in kept)
    again = run()
    for name, change in changes.items():
        assert torch.equal(again[name].pattern, change.pattern)
        assert torch.equal(again[name].revived, change.revived)
        assert torch.equal(again[name].grown, change.grown)


@examples(deadline=None)
@given(net=nets(), seed=st.integers(0, 2**31))
def test_restricted_growth_uses_up_its_own_sources_first(net: Net, seed: int) -> None:
    topology = net.topology
    for rule, wanted in (("from_stable", net.kept), ("from_plastic", complement(net.kept))):
        generator = torch.Generator().manual_seed(seed)
        changes = rewire(topology, net.patterns, net.kept, growth_rule(rule), generator=generator)
        for layer in topology.layers:
            change = changes[layer.name]
            grown = torch.zeros_like(change.pattern).view(-1)
            grown[change.grown] = True
            wished = (
                source_columns(layer, wanted[layer.source]).unsqueeze(0).expand_as(change.pattern)
            )
            elsewhere = grown.view_as(change.pattern) & ~wished
            if elsewhere.any():
                open_places = ~change.pattern & wished & ~net.kept[layer.target].unsqueeze(1)
                assert not open_places.any()
