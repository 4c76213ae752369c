"""The values of a metric in groups of runs, and the difference of two groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nispa.reading.groups import Run
from nispa.reading.statistics import (
    cohens_d_z,
    estimate,
    hedges_factor,
    interval,
    least_p,
    mean_of_all,
    sign_flip_p,
    spread,
    wilcoxon_p,
)
from nispa.runs.costs import KINDS
from nispa.runs.record import Record


@dataclass(frozen=True)
class Measured:
    """A run with its value of the metric, and whether the method was told the task."""

    run: Run
    value: float
    told: bool


@dataclass(frozen=True)
class Sample:
    """The values of a metric in one group of runs, one per seed.

    Attributes:
        label: The method, and the settings that distinguish the group from the others.
        scenario: Name of the scenario.
        incremental: What tasks add: ``task``, ``class`` or ``domain``.
        method: Name of the method.
        preset: Name of the preset, or None.
        seeds: In increasing order.
        values: The metric at each seed.
        mean: Their mean.
        sd: Their standard deviation (n - 1 in the denominator); None for one seed.
        interval: Confidence interval of the mean; None for one seed.
        costs: Mean of each cost, by the names in :data:`nispa.runs.costs.KINDS`; None unless known
            of every run.
    """

    label: str
    scenario: str
    incremental: str
    method: str
    preset: str | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """The difference of two groups, first minus second, over the seeds that both have.

    Attributes:
        first: Label of the first group.
        second: Label of the second group.
        seeds: Seeds of both, in increasing order.
        only_first: Seeds left out because the second group lacks them.
        only_second: Seeds left out because the first group lacks them.
        differences: At each common seed.
        mean: Mean difference; None without a common seed.
        sd: Standard deviation of the differences; None below two seeds.
        interval: Confidence interval of the mean difference; None below two seeds.
        d_z: Cohen's effect size; None if all differences are equal.
        g_z: The same with Hedges' correction; None below three seeds, too.
        p: p-value of the sign-flip test; None below two seeds.
        p_least: The least p that this test can give with so many seeds.
        p_holm: ``p`` after Holm's correction over all tested pairs.
        p_wilcoxon: p-value of the signed-rank test, not corrected.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    d_z: float | None
    g_z: float | None
    p: float | None
    p_least: float | None
    p_holm: float | None
    p_wilcoxon: float | None


Scope = Callable[["Sample | Record"], tuple[str, ...]]
"""What two groups must have in common to be compared."""


def sample_of(
    label: str, members: Sequence[Measured], least: float = 0.0, level: float = 0.05
) -> Sample:
    """The sample of a group from its runs, one per seed; no value is below ``least``."""
    record = members[0].run.record
    values = tuple(member.value for member in members)
    found = estimate(values, low=least, level=level)
    return Sample(
        label=label,
        scenario=record.scenario.name,
        incremental=record.incremental,
        method=record.method,
        preset=record.preset,
        seeds=tuple(member.run.record.seed for member in members),
        values=values,
        mean=found.mean,
        sd=found.sd,
        interval=found.interval,
        costs={name: mean_of_all(member.run.cost(name) for member in members) for name in KINDS},
    )


def pair_of(first: Sample, second: Sample, most: float = 1.0, level: float = 0.05) -> Pair:
    """First minus second at each common seed; ``p_holm`` is for this pair alone.

    ``most`` is the greatest possible difference.
    """
    ones, others = (dict(zip(s.seeds, s.values, strict=True)) for s in (first, second))
    seeds = tuple(seed for seed in first.seeds if seed in others)
    # Rounded, so that equal differences are equal: ties decide tests and effect sizes.
    differences = np.array([ones[seed] - others[seed] for seed in seeds]).round(12) + 0.0
    count = len(seeds)
    d_z, factor = cohens_d_z(differences) if count > 1 else None, hedges_factor(count)
    p = sign_flip_p(differences) if count > 1 else None
    return Pair(
        first=first.label,
        second=second.label,
        seeds=seeds,
        only_first=tuple(seed for seed in first.seeds if seed not in others),
        only_second=tuple(seed for seed in second.seeds if seed not in ones),
        differences=tuple(differences.tolist()),
        mean=float(differences.mean().round(12)) if count else None,
        sd=spread(differences),
        interval=interval(differences, -most, most, level=level),
        d_z=d_z,
        g_z=None if d_z is None or factor is None else d_z * factor,
        p=p,
        p_least=None if p is None else least_p(count),
        p_holm=p,
        p_wilcoxon=None if p is None else wilcoxon_p(differences),
    )
