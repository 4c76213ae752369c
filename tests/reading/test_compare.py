from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nispa.errors import ConfigError, InputError, UnknownNameError
from nispa.reading import compare as module
from nispa.reading.compare import Comparison, compare
from nispa.reading.groups import Run
from nispa.reading.samples import Pair
from nispa.reading.statistics import (
    cohens_d_z,
    hedges_factor,
    holm,
    interval,
    least_p,
    seeds_needed,
    sign_flip_p,
    spread,
    wilcoxon_p,
)
from nispa.runs.record import DataEntry, ScenarioEntry, measured
from tests.records import ENVIRONMENT, record

PERCENT = st.lists(st.integers(-40, 40), min_size=1, max_size=9)


def run(method: str, seed: int, acc: float, name: str = "", **changes: Any) -> Run:
    """A run whose last row has the accuracy ``acc`` twice, after 1.0 on the first task."""
    rows = [[1.0, 0.5], [acc, acc]]
    values = {"method": method, "seed": seed, "accuracy_matrix": rows} | changes
    return Run(name or f"{method}-s{seed}", record(**values))


def runs(**accuracies: list[float]) -> list[Run]:
    """For each method the accuracies at seeds 0, 1, 2 and on."""
    return [
        run(method, seed, acc)
        for method, values in accuracies.items()
        for seed, acc in enumerate(values)
    ]


def only(found: Comparison) -> Pair:
    (pair,) = found.pairs
    return pair


def said(found: Comparison, *words: str) -> bool:
    """Whether one of the warnings has all the words."""
    return any(all(word in note for word in words) for note in found.warnings)


# Statistics


def test_the_sign_flip_test_by_hand() -> None:
    assert sign_flip_p([0.03, 0.01, 0.02]) == 2 / 8  # only all signs alike reach 0.06
    assert sign_flip_p([0.03, -0.01, 0.02]) == 4 / 8  # 0.06 and 0.04, and both negative
    assert sign_flip_p([0.02, 0.02, 0.0, 0.02]) == 4 / 16  # a zero counts with either sign
    assert sign_flip_p([0.25]) == 1
    assert sign_flip_p([0.0, 0.0]) == 1


@given(PERCENT)
def test_the_sign_flip_test_by_brute_force(percents: list[int]) -> None:
    flips = itertools.product((-1, 1), repeat=len(percents))
    sums = [abs(sum(s * p for s, p in zip(signs, percents, strict=True))) for signs in flips]
    expected = sum(value >= abs(sum(percents)) for value in sums) / len(sums)
    assert sign_flip_p([percent / 100 for percent in percents]) == expected


def test_the_sign_flip_test_as_scipy_has_it() -> None:
    differences = np.random.default_rng(3).normal(0.01, 0.02, 11)
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_more_differences_than_can_be_flipped_are_sampled() -> None:
    differences = np.random.default_rng(0).normal(0.2, 0.5, 21)
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate((sums + value, sums - value))
    exact = float((np.abs(sums) >= abs(differences.sum()) - 1e-12).mean())
    assert exact > 0.01  # or the sample would hold too few to compare
    assert sign_flip_p(differences) == pytest.approx(exact, rel=0.1)
    assert sign_flip_p(np.full(30, 0.25)) == least_p(30) == 1 / 100_000


@pytest.mark.parametrize("count", range(1, 11))
def test_no_p_is_below_the_least(count: int) -> None:
    assert sign_flip_p(np.arange(1, count + 1) / 100) == least_p(count) == 2 / 2**count


def test_seeds_needed_by_hand() -> None:
    assert seeds_needed(0.05) == 6  # 2/2^5 = 0.0625, 2/2^6 = 0.03125
    assert seeds_needed(0.05, 10) == 9  # 20/2^8 = 0.078, 20/2^9 = 0.039
    assert seeds_needed(0.0625) == 5


@pytest.mark.parametrize("count", [2, 5, 8, 12])
def test_wilcoxon_by_brute_force(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    half = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - half)
    sums = [
        abs(sum(r for r, chosen in zip(ranks, signs, strict=True) if chosen) - half)
        for signs in itertools.product((False, True), repeat=count)
    ]
    expected = sum(value >= observed for value in sums) / len(sums)
    assert wilcoxon_p(differences) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_leaves_out_zeros() -> None:
    assert wilcoxon_p([0.0, 0.01, 0.02, 0.03]) == wilcoxon_p([0.01, 0.02, 0.03]) == 0.25
    assert wilcoxon_p([0.0, 0.0]) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3x, 1x, 2x
    assert holm([0.5, None, 0.02]) == [0.5, None, 0.04]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_effect_sizes_by_hand() -> None:
    assert spread([0.01, 0.02, 0.03]) == pytest.approx(0.01)
    assert cohens_d_z([0.01, 0.02, 0.03]) == pytest.approx(2)
    assert hedges_factor(3) == pytest.approx(1 / math.sqrt(math.pi))  # gamma(1) / gamma(1/2)
    assert hedges_factor(5) == pytest.approx(math.sqrt(2 / math.pi))
    assert hedges_factor(51) == pytest.approx(1 - 3 / 199, abs=1e-4)
    assert hedges_factor(2) is None
    assert cohens_d_z([0.1, 0.1, 0.1]) is None
    assert cohens_d_z([0.0, 0.0]) is None
    assert spread([0.5]) is None


def test_hedges_factor_makes_d_z_right_on_average() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (40_000, 5))
    effects = draws.mean(axis=1) / draws.std(axis=1, ddof=1)
    factor = hedges_factor(5)
    assert factor is not None
    assert effects.mean() > 1.2
    assert effects.mean() * factor == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("count", [2, 3, 5, 25])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_an_interval_is_that_of_scipy(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(0.5, 0.02, count)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(1 - level)
    assert interval(values, level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-11)


def test_no_interval_reaches_beyond_what_there_can_be() -> None:
    assert interval([0.999, 0.99, 1.0]) == pytest.approx((0.98266, 1.0), abs=1e-5)
    assert interval([0.0, 0.002, 0.01]) == pytest.approx((0.0, 0.01715), abs=1e-5)
    assert interval([0.0, 1.0]) == (0.0, 1.0)
    assert interval([-0.9, -0.5], -1.0, 1.0) == (-1.0, 1.0)
    assert interval([-3.0, 7.0], -math.inf, math.inf) == pytest.approx((-61.531, 65.531), abs=1e-3)


def test_the_example_of_the_page() -> None:
    """The numbers that docs/compare.md works out by hand."""
    differences = [0.01, 0.02, 0.03, 0.02, -0.01]
    factor = hedges_factor(5)
    d_z = cohens_d_z(differences)
    assert d_z is not None
    assert factor is not None
    assert spread(differences) == pytest.approx(0.0152, abs=5e-5)
    assert d_z == pytest.approx(0.923, abs=5e-4)
    assert d_z * factor == pytest.approx(0.737, abs=5e-4)
    assert sign_flip_p(differences) == 6 / 32
    assert interval(differences, -1, 1) == pytest.approx((-0.0048, 0.0328), abs=5e-5)


def test_values_that_do_not_vary_have_no_width() -> None:
    assert interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))
    assert spread([0.1, 0.1, 0.1]) == 0
    assert interval([0.1]) is None
    assert str(interval([0.0, 0.0], -1, 1)) == "(0.0, 0.0)"  # neither -0 nor -1e-19


def test_few_seeds_hold_the_mean_as_often_as_many() -> None:
    for count in (3, 5, 40):
        draws = np.random.default_rng(5).normal(0.5, 0.02, (1000, count))
        found = [interval(values) for values in draws]
        held = np.mean([ends is not None and ends[0] <= 0.5 <= ends[1] for ends in found])
        assert 0.935 <= held <= 0.965


# Groups and pairs


def test_a_comparison_by_hand() -> None:
    found = compare(runs(er=[0.8, 0.82, 0.84], ewc=[0.79, 0.8, 0.81]))
    assert (found.metric, found.told, found.level) == ("acc", True, 0.05)
    first, second = found.groups
    assert (first.label, second.label) == ("er", "ewc")
    assert first.seeds == (0, 1, 2)
    assert first.mean == pytest.approx(0.82)
    assert first.sd == pytest.approx(0.02)
    pair = only(found)
    assert (pair.first, pair.second) == ("er", "ewc")
    assert pair.differences == (0.01, 0.02, 0.03)
    assert pair.mean == 0.02
    assert pair.sd == pytest.approx(0.01)
    assert pair.d_z == pytest.approx(2)
    assert pair.g_z == pytest.approx(2 / math.sqrt(math.pi))
    assert (pair.p, pair.p_least, pair.p_holm, pair.p_wilcoxon) == (0.25, 0.25, 0.25, 0.25)
    assert pair.interval == pytest.approx((-0.004841, 0.044841), abs=1e-6)  # t is 4.30265


def test_seeds_without_a_partner_are_left_out_and_named() -> None:
    er = [run("er", seed, 0.5 + seed / 100) for seed in (1, 2, 3, 7)]
    ewc = [run("ewc", seed, 0.4) for seed in (9, 3, 2, 1)]
    found = compare([*er, *ewc])
    pair = only(found)
    assert pair.seeds == (1, 2, 3)
    assert pair.differences == (0.11, 0.12, 0.13)
    assert (pair.only_first, pair.only_second) == ((7,), (9,))
    assert [len(group.seeds) for group in found.groups] == [4, 4]
    assert said(found, "Without seed 9,", ": er")
    assert said(found, "Without seed 7,", ": ewc")


def test_groups_that_are_equal() -> None:
    found = compare(runs(er=[0.8, 0.7, 0.9], ewc=[0.8, 0.7, 0.9]))
    pair = only(found)
    assert pair.differences == (0.0, 0.0, 0.0)
    assert (pair.mean, pair.sd) == (0, 0)
    assert pair.interval is not None
    assert pair.interval[0] == pair.interval[1] == 0
    assert (pair.p, pair.p_holm, pair.p_wilcoxon) == (1, 1, 1)
    assert (pair.d_z, pair.g_z) == (None, None)


def test_a_difference_that_is_always_the_same() -> None:
    found = compare(runs(er=[0.9, 0.8, 0.7, 0.3], ewc=[0.8, 0.7, 0.6, 0.2]))
    pair = only(found)
    assert pair.differences == (0.1, 0.1, 0.1, 0.1)  # 0.9 - 0.8 alone is 0.09999999999999998
    assert (pair.mean, pair.sd) == (0.1, 0)
    assert pair.interval == pytest.approx((0.1, 0.1))
    assert (pair.d_z, pair.g_z) == (None, None)
    assert (pair.p, pair.p_wilcoxon) == (0.125, 0.125)


def test_one_seed_only() -> None:
    found = compare(runs(er=[0.9], ewc=[0.5]))
    assert [(group.sd, group.interval) for group in found.groups] == [(None, None)] * 2
    pair = only(found)
    assert pair.mean == 0.4
    assert (pair.sd, pair.interval, pair.d_z, pair.p, pair.p_holm) == (None,) * 5
    assert said(found, "One seed only", "no interval", "er, ewc")


def test_no_seed_in_common() -> None:
    found = compare([run("er", 0, 0.9), run("er", 1, 0.9), run("ewc", 2, 0.5), run("ewc", 3, 0.5)])
    pair = only(found)
    assert pair.seeds == ()
    assert (pair.mean, pair.sd, pair.interval, pair.d_z, pair.p) == (None,) * 5
    assert said(found, "No common seed: er and ewc")


def test_two_seeds_have_no_corrected_effect() -> None:
    pair = only(compare(runs(er=[0.9, 0.8], ewc=[0.7, 0.5])))
    assert pair.d_z == pytest.approx(0.25 / math.sqrt(0.005))
    assert pair.g_z is None


def test_holm_runs_over_the_pairs() -> None:
    base = [0.5] * 6
    better = [0.5 + k / 100 for k in range(1, 7)]
    mixed = [0.52, 0.48, 0.53, 0.47, 0.51, 0.5]
    found = compare(runs(a=better, b=mixed, c=base), baseline="c")
    by_name = {pair.first: pair for pair in found.pairs}
    assert by_name["a"].p == 2 / 64
    assert by_name["a"].p_holm == 4 / 64
    assert by_name["b"].p == by_name["b"].p_holm
    alone = compare(runs(a=better, c=base))
    assert only(alone).p_holm == 2 / 64


def test_a_baseline_is_subtracted_from_each() -> None:
    found = compare(runs(er=[0.8, 0.8], ewc=[0.5, 0.5], si=[0.6, 0.6]), baseline="ewc")
    assert found.baseline == "ewc"
    assert [(p.first, p.second, p.mean) for p in found.pairs] == [
        ("er", "ewc", 0.3),
        ("si", "ewc", 0.1),
    ]


def test_a_baseline_in_each_scenario() -> None:
    other = ScenarioEntry(name="split-mnist")
    given = [
        *runs(er=[0.5], si=[0.6]),
        *(run(m, 0, acc, scenario=other) for m, acc in (("er", 0.7), ("si", 0.9))),
    ]
    found = compare(given, baseline="er")
    assert [(p.first, p.second, p.mean) for p in found.pairs] == [
        ("split-digits si", "split-digits er", 0.1),
        ("split-mnist si", "split-mnist er", 0.2),
    ]
    assert found.baseline == "split-digits er or split-mnist er"


def test_a_baseline_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="unknown baseline 'ewcc'; did you mean 'ewc'"):
        compare(runs(er=[0.8], ewc=[0.5]), baseline="ewcc")
    both = [run("er", 0, 0.5, preset=preset) for preset in ("paper", "default")]
    with pytest.raises(InputError, match="baseline=er names 2 groups; pass one: 'er"):
        compare(both, baseline="er")
    assert compare(both, baseline="er paper").baseline == "er paper"


def test_the_best_group_stands_first() -> None:
    given = runs(er=[0.6, 0.6], ewc=[0.9, 0.9], si=[0.7, 0.7])
    assert [group.label for group in compare(given).groups] == ["ewc", "si", "er"]
    worst = compare(given, "forgetting")
    assert [group.label for group in worst.groups] == ["ewc", "si", "er"]
    assert [group.mean for group in worst.groups] == pytest.approx([0.1, 0.3, 0.4])


def test_labels_say_no_more_than_they_must() -> None:
    config = {"network": {"density": 0.2}, "method": {"seed": 1, "strength": 1}}
    other = {"network": {"density": 0.1}, "method": {"seed": 2, "strength": 1}}
    found = compare(
        [
            run("er", 0, 0.9),
            run("ewc", 0, 0.8, preset=None, config=config),
            run("ewc", 0, 0.7, config=config),
            run("ewc", 0, 0.6, config=other),
            run("si", 0, 0.5, incremental="class"),
            run("si", 0, 0.4, incremental="domain"),
        ]
    )
    assert [group.label for group in found.groups] == [
        "er",
        "ewc no preset",
        "ewc paper density=0.2",
        "ewc paper density=0.1",
        "si class-incremental",
        "si domain-incremental",
    ]


def test_settings_of_one_name_keep_their_paths() -> None:
    config: list[dict[str, Any]] = [
        {"a": {"rate": 1, "hidden": [4, 5]}, "b": {"rate": 2}},
        {"a": {"rate": 3, "hidden": [6]}, "b": {"rate": 4}},
    ]
    found = compare(
        [run("er", 0, acc, config=c) for acc, c in zip((0.9, 0.8), config, strict=True)]
    )
    assert [group.label for group in found.groups] == [
        "er a.rate=1 hidden=4,5 b.rate=2",
        "er a.rate=3 hidden=6 b.rate=4",
    ]


def test_labels_that_are_cut_stay_different() -> None:
    config = [{"word": "x" * 200 + end} for end in "ab"]
    found = compare(
        [run("er", 0, acc, config=c) for acc, c in zip((0.9, 0.8), config, strict=True)]
    )
    first, second = (group.label for group in found.groups)
    assert second == f"{first} #2"
    assert len(first) == 80


def named(seed: int, **options: Any) -> ScenarioEntry:
    """A scenario's settings as the command line writes them."""
    resolved = {"seed": seed, "tasks": [[seed, 2], [3, 4]]}
    given: dict[str, Any] = {"seed": seed, "options": options, "resolved": resolved}
    return ScenarioEntry(name="split-digits", settings=given)


def test_what_hangs_on_the_seed_alone_does_not_split_a_group() -> None:
    given = [run("er", seed, 0.5, scenario=named(seed, validation=0.1)) for seed in (0, 1)]
    (group,) = compare(given).groups
    assert group.seeds == (0, 1)


def test_settings_of_the_scenario_that_differ() -> None:
    found = compare([run("er", 0, acc, scenario=named(0, validation=acc)) for acc in (0.2, 0.1)])
    assert [group.label for group in found.groups] == ["er validation=0.2", "er validation=0.1"]
    assert said(found, "Settings of the scenario differ", "validation is 0.2 or 0.1")


def test_different_scenarios_are_not_paired() -> None:
    other = ScenarioEntry(name="split-mnist")
    given = [*runs(er=[0.5, 0.5], si=[0.6, 0.6]), run("er", 0, 0.7, scenario=other)]
    found = compare(given)
    labels = ["split-digits si", "split-digits er", "split-mnist er"]
    assert [group.label for group in found.groups] == labels
    assert only(found).first == "split-digits si"
    assert said(found, "different scenarios", "split-digits, split-mnist")


# Warnings


def changed(**fields: Any) -> dict[str, Any]:
    return {"environment": ENVIRONMENT.model_copy(update=fields)}


DIFFER: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"version": "0.2.0"}, ("Versions of nispa", "0.1.0 (er-s0)", "0.2.0 (si-s0)")),
    ({"incremental": "class"}, ("Incremental kinds", "task (er-s0)", "class (si-s0)")),
    (changed(kernels="avx2"), ("Kernels", "reference (er-s0)", "avx2 (si-s0)")),
    (changed(threads=8), ("Thread counts", "2 (er-s0)", "8 (si-s0)")),
    (changed(torch="2.14.0"), ("Versions of PyTorch", "2.14.0")),
    (changed(device="cuda"), ("Devices", "cuda")),
    (changed(cpu="Other CPU"), ("Processors", "Other CPU")),
    (
        {"data": [DataEntry(name="digits", canonical=False, sha256="1" * 64)]},
        ("Data differ", "digits 000000000000", "digits 111111111111"),
    ),
    ({"tasks": record().tasks[::-1]}, ("Tasks or data differ", "at seed 0")),
]


@pytest.mark.parametrize(("changes", "words"), DIFFER)
def test_what_should_be_the_same_and_is_not(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    found = compare([run("er", 0, 0.5), run("si", 0, 0.5, **changes)], told=True)
    assert said(found, *words)
    same = compare([run("er", 0, 0.5), run("si", 0, 0.5)], told=True)
    assert not said(same, words[0])


def test_own_data_may_hang_on_the_seed() -> None:
    def own(seed: int) -> list[DataEntry]:
        return [DataEntry(name="mine", canonical=None, sha256=f"{seed}" * 64)]

    alike = [run(name, seed, 0.5, data=own(seed)) for name in ("er", "si") for seed in (0, 1)]
    assert not said(compare(alike), "ata differ")
    apart = [*alike[:3], run("si", 1, 0.5, data=own(7))]
    assert said(compare(apart), "Tasks or data differ", "at seed 1")


def test_runs_that_are_not_complete_are_left_out() -> None:
    half = run("si", 0, 0.5, "half", status="running", accuracy_matrix=[[0.5, 0.5]])
    found = compare([*runs(er=[0.5, 0.5]), half])
    assert [group.label for group in found.groups] == ["er"]
    assert found.pairs == ()
    assert said(found, "half is left out", "running (1 of 2 tasks)")


def test_a_number_that_is_no_metric_is_left_out() -> None:
    wrong = record().metrics["acc"].model_copy(update={"value": 1e308})
    found = compare([*runs(er=[0.5]), run("si", 0, 0.5, metrics={"acc": wrong})])
    assert said(found, "si-s0 is left out", "1e+308 is no fraction in [-1, 1]")


def test_a_seed_that_comes_twice_counts_once() -> None:
    first, same, other = (
        run("er", 0, acc, name) for acc, name in ((0.5, "a"), (0.5, "b"), (0.7, "c"))
    )
    found = compare([first, same, other, run("er", 1, 0.6)])
    (group,) = found.groups
    assert (group.seeds, group.values) == ((0, 1), (0.5, 0.6))
    assert said(found, "b is left out: it repeats seed 0 of a with the same value")
    assert said(found, "c is left out: it repeats seed 0 of a with ANOTHER value")


def test_too_few_seeds_for_the_level() -> None:
    five = compare(runs(er=[0.9] * 5, si=[0.8] * 5))
    assert said(five, "5 common seeds (1 pair)", "2/2^5 = 0.0625 > 0.05", "at least 6 seeds")
    six = compare(runs(er=[0.9] * 6, si=[0.8] * 6))
    assert not said(six, "least possible p")
    three = compare(runs(er=[0.9] * 6, si=[0.8] * 6, gem=[0.7] * 6))
    assert said(three, "6 common seeds (3 pairs)", "Holm over 3 pairs", "0.0938 > 0.05", "7 seeds")
    strict = compare(runs(er=[0.9] * 6, si=[0.8] * 6), level=0.01)
    assert said(strict, "0.0312 > 0.01", "at least 8 seeds")


def test_intervals_keep_to_what_a_metric_can_be() -> None:
    """Accuracies lie in [0, 1], other metrics in [-1, 1], differences between all these."""
    given = runs(er=[0.99, 1.0, 0.999], si=[0.0, 0.01, 0.0])
    accuracy = compare(given)
    first, second = (group.interval for group in accuracy.groups)
    assert first == pytest.approx((0.98265, 1.0), abs=1e-5)
    assert second == pytest.approx((0.0, 0.01768), abs=1e-5)
    ends = only(accuracy).interval
    assert ends is not None
    assert ends[1] == 1.0
    transfer = compare(runs(er=[0.0, 0.5]), "bwt")
    assert transfer.groups[0].interval == (-1.0, 1.0)


# Told the task, or not


def class_incremental(method: str, seed: int, untold: float | None) -> Run:
    rows: list[list[float | None]] | None = None
    if untold is not None:
        rows = [[1.0, None], [untold, untold]]
    return run(
        method,
        seed,
        0.75,
        incremental="class",
        accuracy_matrix_task_agnostic=rows,
        metrics_task_agnostic=None if rows is None else measured(rows),
    )


def test_what_counts_is_compared() -> None:
    given = [class_incremental("er", 0, 0.25)]
    default, told, untold = (compare(given, told=choice) for choice in (None, True, False))
    assert (default.groups[0].mean, default.told) == (0.25, False)
    assert (told.groups[0].mean, told.told) == (0.75, True)
    assert (untold.groups[0].mean, untold.told) == (0.25, False)


def test_kinds_are_not_compared_with_each_other() -> None:
    """What was learned to be told the task stands apart from what was not, unless asked to."""
    given = [
        *(class_incremental("er", seed, 0.6) for seed in (0, 1)),
        *(class_incremental("si", seed, 0.5) for seed in (0, 1)),
        *(run("nispa", seed, 0.9) for seed in (0, 1)),
    ]
    found = compare(given)
    assert [(g.method, g.incremental) for g in found.groups] == [
        ("nispa", "task"),
        ("er", "class"),
        ("si", "class"),
    ]
    assert [(pair.first, pair.second) for pair in found.pairs] == [("er", "si")]
    assert said(found, "not compared with each other: task-incremental, class-incremental")
    told = compare(given, told=True)
    assert len(told.pairs) == 3
    assert said(told, "Incremental kinds differ")
    against = compare(given, baseline="si")
    assert [(pair.first, pair.second) for pair in against.pairs] == [("er", "si")]


def test_a_method_of_two_kinds_is_a_baseline_of_each() -> None:
    given = [
        *(class_incremental(name, 0, acc) for name, acc in (("er", 0.6), ("si", 0.5))),
        *(run(name, 0, acc) for name, acc in (("er", 0.9), ("si", 0.7))),
    ]
    found = compare(given, baseline="er")
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("si task-incremental", "er task-incremental"),
        ("si class-incremental", "er class-incremental"),
    ]


def test_numbers_told_and_not_are_not_mixed_in_silence() -> None:
    found = compare([class_incremental("er", 0, 0.25), class_incremental("si", 0, None)])
    assert found.told is None
    assert said(found, "told the task and not", "not told (er-s0)", "told (si-s0)")
    untold = compare(
        [class_incremental("er", 0, 0.25), class_incremental("si", 0, None)], told=False
    )
    assert [group.label for group in untold.groups] == ["er"]
    assert said(untold, "si-s0 is left out", "not measured without telling the task")


# Bad input


def test_bad_input_is_named() -> None:
    given = runs(er=[0.5])
    with pytest.raises(UnknownNameError, match="unknown metric 'bwd'; did you mean 'bwt'"):
        compare(given, "bwd")
    for level in (0.0, 0.0001, 0.7, math.nan):
        with pytest.raises(ConfigError, match=r"must be a number in \[0.001, 0.5\]"):
            compare(given, level=level)
    with pytest.raises(InputError, match="none of 0 runs"):
        compare([])
    with pytest.raises(InputError, match="none of 1 runs can be compared; er-s0 is left out"):
        compare([run("er", 0, 0.5, status="failed")])


def test_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 2)
    given = runs(er=[0.5], si=[0.6], gem=[0.7])
    with pytest.raises(InputError, match="3 groups make 3 pairs, more than 2; pass baseline="):
        compare(given)
    assert len(compare(given, baseline="er").pairs) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_the_order_of_runs_does_not_matter(values: list[tuple[int, int]]) -> None:
    given = runs(er=[a / 20 for a, _ in values], si=[b / 20 for _, b in values])
    found, turned = compare(given), compare(given[::-1])
    assert (found.groups, found.pairs) == (turned.groups, turned.pairs)
    pair = only(found)
    numbers = [pair.mean, pair.sd, pair.d_z, pair.g_z, pair.p, pair.p_holm, pair.p_wilcoxon]
    assert all(value is None or math.isfinite(value) for value in numbers)


def test_it_needs_no_torch() -> None:
    code = "import sys, nispa.reading.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
