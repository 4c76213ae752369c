"""A comparison of groups of runs as tables for a terminal; they fit 80 columns.

Texts from records are never taken for markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from nispa.errors import needs
from nispa.files import one_line
from nispa.reading.compare import Comparison
from nispa.reading.samples import Pair, Sample
from nispa.reading.tables import LABELS, new_table
from nispa.runs.costs import KINDS
from nispa.runs.metrics import METRICS, percent

with needs("reports", "a table on the terminal"):
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

WIDE = 140  # columns of a terminal that show all costs in one table
SOURCES = {True: "told the task", False: "not told the task", None: "PARTLY TOLD THE TASK"}


def render(found: Comparison, width: int = 80) -> Iterable[RenderableType]:
    """The comparison as tables, for a terminal of ``width`` columns."""
    metric = METRICS[found.metric]
    better = "lower is better" if found.metric == "forgetting" else "higher is better"
    yield Text(f"{LABELS[found.metric]}, %, {SOURCES[found.told]}; {better}", style="bold")
    yield Text(f"{metric.formula} ({metric.source})", style="dim")
    hold = f"{100 * (1 - found.level):g} %"

    def problem(group: Sample) -> str:
        """What groups have in common that are compared with each other."""
        kind = f", {group.incremental}-incremental" if found.by_kind else ""
        return f"{group.scenario}{kind}"

    for title, groups in groupby(found.groups, problem):
        yield _title(title)
        members = list(groups)
        yield _group_table(members, hold)
        yield from _cost_tables(members, width)
    if found.pairs:
        versus = f", each minus {found.baseline}" if found.baseline else ""
        title = f"Differences over common seeds, percentage points, {hold} intervals{versus}"
        yield _title(title)
        yield from _pair_tables(found, width)
        yield _legend(found)
    elif len(found.groups) == 1:
        yield Text("\nOne group alone: nothing to compare it with.")
    yield from _warnings(found)


def _title(text: str) -> Text:
    return Text(f"\n{one_line(text, 200)}", style="bold")


def _group_table(groups: Sequence[Sample], hold: str) -> Table:
    table = new_table("group", "seeds", "mean", "sd", f"{hold} from", "to", fold=True)
    for group in groups:
        low, high = _bounds(group.interval)
        table.add_row(
            Text(group.label),
            str(len(group.seeds)),
            Text(percent(group.mean), style="bold"),
            percent(group.sd),
            low,
            high,
        )
    return table


COSTS = (
    ("train_operations", "inference_operations", "train_cpu_s", "train_s"),
    ("live", "model_bytes", "kept_bytes", "peak_bytes", "eval_cpu_s"),
)


def _cost_tables(groups: Sequence[Sample], width: int) -> Iterable[RenderableType]:
    """Means of what runs cost, in two tables so that they fit; nothing where none is known."""
    if not any(value is not None for group in groups for value in group.costs.values()):
        return
    yield Text("\nCost, means over seeds; op.: floating-point operations", style="bold")
    tables = COSTS if width < WIDE else (tuple(name for names in COSTS for name in names),)
    for number, names in enumerate(tables):
        table = new_table("group", *(KINDS[name].head for name in names), fold=True)
        for group in groups:
            table.add_row(Text(group.label), *(KINDS[n].text(group.costs[n]) for n in names))
        if number:
            yield Text()
        yield table


def _pair_tables(found: Comparison, width: int) -> Iterable[RenderableType]:
    """A table per first group with aligned columns; a single table if there is a baseline."""
    heads = ("n", "mean", "from", "to", "d_z", "g_z", "p", "Holm", "Wilcox.")
    rows = [(pair, _cells(pair)) for pair in found.pairs]
    widths = [max(map(len, column)) for column in zip(heads, *(c for _, c in rows), strict=True)]
    room = width - sum(widths) - 2 * len(widths)
    against = found.baseline is not None
    labels = [pair.first if against else pair.second for pair in found.pairs]
    room = max(8, min(room, max(map(len, labels))))
    tables = groupby(rows, lambda row: "" if against else row[0].first)
    for number, (first, members) in enumerate(tables):
        table = new_table("group", *heads, fold=True)
        table.show_header = number == 0
        for column, fixed in zip(table.columns, (room, *widths), strict=True):
            column.width = fixed
        for pair, cells in members:
            table.add_row(Text(pair.first if against else pair.second), *cells)
        if first and number:
            yield Text()
        if first:
            yield Text(f"{first} minus", style="bold")
        yield table


def _cells(pair: Pair) -> list[str]:
    return [
        str(len(pair.seeds)),
        percent(pair.mean, signed=True),
        *_bounds(pair.interval, signed=True),
        _effect(pair.d_z),
        _effect(pair.g_z),
        _probability(pair.p),
        _probability(pair.p_holm),
        _probability(pair.p_wilcoxon),
    ]


def _bounds(interval: tuple[float, float] | None, *, signed: bool = False) -> tuple[str, str]:
    if interval is None:
        return "-", "-"
    low, high = interval
    return percent(low, signed=signed), percent(high, signed=signed)


def _effect(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e5 else "large"


def _probability(value: float | None) -> str:
    """Three decimals, or one significant digit for smaller values."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def _legend(found: Comparison) -> Text:
    tested = sum(pair.p is not None for pair in found.pairs)
    return Text(
        "\nmean: positive where the first group is higher. d_z: mean / sd of the differences; g_z: "
        "corrected for few seeds. p: sign-flip test; Holm: the same corrected over "
        f"{tested} pair{'' if tested == 1 else 's'}; Wilcox.: signed-rank test, not corrected. "
        "-: not defined.",
        style="dim",
    )


def _warnings(found: Comparison) -> Iterable[Text]:
    if found.warnings:
        yield Text()
    for note in found.warnings:
        yield Text(f"Warning: {note}", style="yellow")
