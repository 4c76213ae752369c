from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nispa.errors import UnknownNameError
from nispa.mechanism.grow import (
    GROWTH_RULES,
    PUBLISHED_NAMES,
    Wish,
    choose,
    grow,
    growth_rule,
    growth_values,
    needs_gradients,
    smallest,
)
from nispa.network.topology import ConnectionLayer
from tests.mechanism.drawing import drawn, units


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Four sources, of which the first is kept; three targets, of which the first is kept. Absent into
# plastic targets: row 1 columns 1-3 (positions 5-7), row 2 columns 0-3 (positions 8-11); of these
# only position 8 leaves the kept source.
LAYER = ConnectionLayer("l", "s", "t")
PATTERN = drawn("....", "x...", "....")
SOURCES, TARGETS = units("x..."), units("x..")


def grown(
    rule: str, count: int, *, seed: int = 0, depth: float = 0.0, pattern: Tensor = PATTERN
) -> list[int]:
    wishes = growth_rule(rule)(depth)
    found = grow(LAYER, pattern, SOURCES, TARGETS, count, wishes, seeded(seed))
    assert found.dtype == torch.int64
    return sorted(found.tolist())


@pytest.mark.parametrize("rule", [*GROWTH_RULES, *PUBLISHED_NAMES])
def test_nothing_grows_where_nothing_was_dropped(rule: str) -> None:
    assert grown(rule, 0) == []


def test_full_grows_anywhere_into_plastic_targets() -> None:
    reached = {position for seed in range(60) for position in grown("full", 1, seed=seed)}
    assert reached == {5, 6, 7, 8, 9, 10, 11}


def test_from_stable_takes_kept_sources_first_and_then_any() -> None:
    assert all(grown("from_stable", 1, seed=seed) == [8] for seed in range(20))
    more = [grown("from_stable", 3, seed=seed) for seed in range(60)]
    assert all(8 in found and len(found) == 3 for found in more)
    assert {position for found in more for position in found} == {5, 6, 7, 8, 9, 10, 11}


def test_from_plastic_takes_plastic_sources_first_and_then_any() -> None:
    assert all(grown("from_plastic", 6, seed=seed) == [5, 6, 7, 9, 10, 11] for seed in range(20))
    assert grown("from_plastic", 7) == [5, 6, 7, 8, 9, 10, 11]


def test_progressive_goes_from_all_stable_to_half_of_each() -> None:
    assert all(grown("progressive", 1, seed=seed, depth=0.0) == [8] for seed in range(20))
    for seed in range(20):
        found = grown("progressive", 2, seed=seed, depth=1.0)
        assert found[0] == 8 or found[1] == 8
        assert sum(position != 8 for position in found) == 1


@pytest.mark.parametrize(
    ("depth", "stable", "plastic"), [(0.0, 1.0, 0.0), (0.5, 0.75, 0.25), (1.0, 0.5, 0.5)]
)
def test_progressive_shares(depth: float, stable: float, plastic: float) -> None:
    wishes = growth_rule("progressive")(depth)
    assert wishes == (Wish(stable, "stable"), Wish(plastic, "plastic"))


# Sizes of gradients. The largest belong to a live connection and to those into a kept target.
SIZES = torch.tensor([[9.0, 9.0, 9.0, 9.0], [8.0, 1.0, 5.0, 0.0], [2.0, 5.0, 3.0, 7.0]])


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [11]), (2, [11, 6]), (3, [11, 6, 9]), (5, [11, 6, 9, 10, 8])]
)
def test_gradient_grows_where_the_loss_asks_for_it_most(count: int, expected: list[int]) -> None:
    wishes = growth_rule("gradient")(0.5)
    found = grow(LAYER, PATTERN, SOURCES, TARGETS, count, wishes, seeded(), SIZES)
    assert found.tolist() == expected  # of 6 and 9, which are equal, the first


def test_only_gradient_asks_for_gradients() -> None:
    assert [name for name in GROWTH_RULES if needs_gradients(growth_rule(name))] == ["gradient"]
    wishes = growth_rule("full")(0.5)
    with_sizes = grow(LAYER, PATTERN, SOURCES, TARGETS, 4, wishes, seeded(), SIZES)
    assert sorted(with_sizes.tolist()) == grown("full", 4)


def test_the_smallest_are_a_share_rounded_down() -> None:
    allowed = drawn("....", "xxxx", "x...")
    assert smallest(SIZES, allowed, 0.0).tolist() == []
    assert smallest(SIZES, allowed, 0.39).tolist() == [7]
    assert smallest(SIZES, allowed, 0.4).tolist() == [7, 5]
    assert smallest(SIZES, allowed, 1.0).tolist() == [7, 5, 8, 6, 4]


@pytest.mark.parametrize("rule", GROWTH_RULES)
def test_more_than_is_absent_leaves_a_remainder(rule: str) -> None:
    assert grown(rule, 100) == [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("rule", GROWTH_RULES)
def test_a_full_layer_grows_nothing(rule: str) -> None:
    assert grown(rule, 3, pattern=drawn("....", "xxxx", "xxxx")) == []


@pytest.mark.parametrize("rule", GROWTH_RULES)
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_rule_grows_the_whole_count_while_there_is_room(
    rule: str, depth: float, count: int
) -> None:
    found = grown(rule, count, depth=depth)
    assert len(set(found)) == count


def test_a_kept_channel_stands_for_its_whole_block() -> None:
    # Two channels of three features each, the second kept: its features are columns 3 to 5.
    layer = ConnectionLayer("l", "c", "t", block=3)
    found = grow(
        layer,
        drawn("......", "...x.."),
        units(".x"),
        units("x."),
        2,
        growth_rule("from_stable")(0.0),
        seeded(),
    )
    assert sorted(found.tolist()) == [10, 11]  # row 1 of six columns: 6 + 4 and 6 + 5


def test_inputs_stay_as_they_were() -> None:
    pattern, sources, targets = PATTERN.clone(), SOURCES.clone(), TARGETS.clone()
    grow(LAYER, pattern, sources, targets, 4, growth_rule("full")(0.0), seeded())
    assert torch.equal(pattern, PATTERN)
    assert torch.equal(sources, SOURCES)
    assert torch.equal(targets, TARGETS)


def test_published_names_are_aliases() -> None:
    assert growth_rule("full_random") is growth_rule("full")
    assert growth_rule("forwardT_random") is growth_rule("from_stable")
    assert growth_rule("flow_random") is growth_rule("from_plastic")
    assert growth_rule("progressive_rewiring") is growth_rule("progressive")


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(UnknownNameError, match="growth rule 'forwardT'; did you mean"):
        growth_rule("forwardT")


def test_choose_draws_without_repetition_and_reaches_everything() -> None:
    allowed = drawn("x.x", ".xx")
    assert sorted(choose(allowed, 10, seeded()).tolist()) == [0, 2, 4, 5]
    picks = [choose(allowed, 2, seeded(seed)).tolist() for seed in range(60)]
    assert all(len(set(pick)) == 2 for pick in picks)
    assert {tuple(sorted(pick)) for pick in picks} == {
        (0, 2), (0, 4), (0, 5), (2, 4), (2, 5), (4, 5),
    }  # fmt: skip
    assert choose(drawn("..."), 2, seeded()).tolist() == []


# Values: the live weights are -1, 0 and 3. Zeros do not count: mean 1, deviation 2.
LIVE = torch.tensor([-1.0, 0.0, 3.0])


def test_normal_values_have_the_mean_and_deviation_of_live_weights() -> None:
    values = growth_values("normal", LIVE, 40_000, seeded())
    assert values.dtype == torch.float32
    assert float(values.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(values.std()) == pytest.approx(2.0, abs=0.05)


def test_uniform_values_fill_the_range_of_live_weights() -> None:
    values = growth_values("uniform", LIVE, 40_000, seeded())
    assert -1.0 <= float(values.min()) < -0.99
    assert 2.99 < float(values.max()) <= 3.0
    assert float(values.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_range_of_live_weights_leaves_zeros_out() -> None:
    values = growth_values("uniform", torch.tensor([2.0, 0.0, 3.0]), 1000, seeded())
    assert float(values.min()) >= 2.0


def test_zero_values() -> None:
    assert growth_values("zero", LIVE, 3, seeded()).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("init", ["normal", "uniform", "zero"])
def test_values_are_whole_kernels_whatever_the_count(init: str) -> None:
    live = torch.randn(5, 3, 3, generator=seeded())
    assert growth_values(init, live, 2, seeded()).shape == (2, 3, 3)
    assert growth_values(init, live, 0, seeded()).shape == (0, 3, 3)


@pytest.mark.parametrize("init", ["normal", "uniform"])
@pytest.mark.parametrize("live", [[], [0.0, 0.0]])
def test_without_live_weights_new_connections_start_at_zero(init: str, live: list[float]) -> None:
    assert growth_values(init, torch.tensor(live), 2, seeded()).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_a_single_live_weight_is_copied(init: str) -> None:
    assert growth_values(init, torch.tensor([0.5]), 2, seeded()).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_values_depend_on_the_generator_alone(init: str) -> None:
    first = growth_values(init, LIVE, 4, seeded(7))
    assert torch.equal(first, growth_values(init, LIVE, 4, seeded(7)))
    assert not torch.equal(first, growth_values(init, LIVE, 4, seeded(8)))


def test_an_unknown_growth_init_is_named() -> None:
    with pytest.raises(UnknownNameError, match="growth init 'normale'; did you mean 'normal'"):
        growth_values("normale", LIVE, 1, seeded())
