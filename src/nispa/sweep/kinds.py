"""Refuses a sweep whose accuracies would not compare, because its runs learn in different ways.

A method that is told the task chooses among a few classes; one that is not told chooses among all.
Methods differ in their default, so a sweep of several methods would mix the two by accident.
"""

from __future__ import annotations

from collections.abc import Iterable

from nispa.errors import ConfigError, InputError, either
from nispa.methods.presets import resolve
from nispa.sweep.plan import Cell

ANY_SHAPE = (1, 28, 28)  # a method's kind does not depend on the images


def check_kinds(cells: Iterable[Cell]) -> None:
    """Checks that all runs of a scenario have the same kind, or that each kind was chosen.

    Raises:
        ConfigError: They do not; the message names the kind of each method and how to choose.
    """
    chosen = {
        (cell.scenario, cell.method, cell.preset, str(cell.given.get("incremental", "")))
        for cell in cells
    }
    methods_of: dict[str, dict[str, set[str]]] = {}  # scenario to kind to methods
    able: dict[str, tuple[str, ...]] = {}
    by_default = set()  # scenarios with a run whose kind was not chosen
    for scenario, method, preset, asked in sorted(chosen):
        given = {"incremental": asked} if asked else {}
        try:
            settings = resolve(method, preset, scenario, ANY_SHAPE, given)
        except InputError:  # reported in full when the job is prepared
            continue
        kind = settings.config.incremental
        methods_of.setdefault(scenario, {}).setdefault(kind, set()).add(method)
        able[method] = settings.method_class.incremental
        if not asked:
            by_default.add(scenario)
    for scenario, kinds in methods_of.items():
        if len(kinds) > 1 and scenario in by_default:
            parts = [
                f"{', '.join(sorted(names))} {kind}-incremental" for kind, names in kinds.items()
            ]
            raise ConfigError(
                f"accuracies of these runs of {scenario} cannot be compared: {'; '.join(parts)}; "
                f"{_fix(kinds, able)}"
            )


def _fix(kinds: dict[str, set[str]], able: dict[str, tuple[str, ...]]) -> str:
    shared = [
        kind
        for kind in ("task", "class", "domain")
        if all(kind in able[name] for methods in kinds.values() for name in methods)
    ]
    if not shared:
        return "they have no kind in common, so use a sweep for each"
    kind = next((kind for kind in shared if kind in kinds), shared[0])  # one in use, if possible
    return (
        f"give them one kind with {either(f'incremental={kind!r}', f'--incremental {kind}')} "
        f'(in a plan: incremental = "{kind}" under [set]), or give each its own to have both'
    )
