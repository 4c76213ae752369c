"""One kind of learning in a sweep: accuracies of two kinds are two things, however close they are.

A method that is told the task chooses among a few classes, one that is not among all. Methods have
a kind of their own by default, so that a sweep of several would mix them unasked.
"""

from __future__ import annotations

from collections.abc import Iterable

from nispa.errors import ConfigError, InputError, either
from nispa.methods.presets import resolve
from nispa.sweep.plan import Cell

ANY_SHAPE = (1, 28, 28)  # what a method's kind is does not hang on the images


def check_kinds(cells: Iterable[Cell]) -> None:
    """Whether all runs of a scenario add the same, or each of them was told what.

    Raises:
        ConfigError: They do not; the message says what each method adds, and how to choose.
    """
    chosen = {
        (cell.scenario, cell.method, cell.preset, str(cell.given.get("incremental", "")))
        for cell in cells
    }
    found: dict[str, dict[str, set[str]]] = {}
    able: dict[str, tuple[str, ...]] = {}
    unasked = set()
    for scenario, method, preset, asked in sorted(chosen):
        given = {"incremental": asked} if asked else {}
        try:
            settings = resolve(method, preset, scenario, ANY_SHAPE, given)
        except InputError:  # whoever makes the run ready says it in full
            continue
        kind = settings.config.incremental
        found.setdefault(scenario, {}).setdefault(kind, set()).add(method)
        able[method] = settings.method_class.incremental
        if not asked:
            unasked.add(scenario)
    for scenario, kinds in found.items():
        if len(kinds) > 1 and scenario in unasked:
            raise ConfigError(f"{_told(scenario, kinds)}; {_fix(kinds, able)}")


def _told(scenario: str, kinds: dict[str, set[str]]) -> str:
    parts = [f"{', '.join(sorted(methods))} {kind}-incremental" for kind, methods in kinds.items()]
    return f"accuracies of these runs of {scenario} cannot be compared: {'; '.join(parts)}"


def _fix(kinds: dict[str, set[str]], able: dict[str, tuple[str, ...]]) -> str:
    shared = [
        kind
        for kind in ("task", "class", "domain")
        if all(kind in able[name] for methods in kinds.values() for name in methods)
    ]
    if not shared:
        return "no kind is one that all of them can learn, so sweep them apart"
    # Of the kinds that all can learn, one that some have already.
    kind = next((kind for kind in shared if kind in kinds), shared[0])
    return (
        f"give them one kind with {either(f'incremental={kind!r}', f'--incremental {kind}')} "
        f'(in a plan: incremental = "{kind}" under [set]), or give each its own to have both'
    )
