from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nispa.errors import ConfigError, InputError, UnknownNameError
from nispa.reading import compare as module
from nispa.reading.compare import Comparison, compare
from nispa.reading.groups import Run
from nispa.reading.samples import Pair
from nispa.runs.record import DataEntry, ScenarioEntry, measured
from tests.records import ENVIRONMENT, record


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


def named(seed: int, **options: Any) -> ScenarioEntry:
    """A scenario's settings as the command line writes them."""
    resolved = {"seed": seed, "tasks": [[seed, 2], [3, 4]]}
    given: dict[str, Any] = {"seed": seed, "options": options, "resolved": resolved}
    return ScenarioEntry(name="split-digits", settings=given)


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
