"""Groups and maps of units from the numbers that a walk has found."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nispa.graph.found import Collapsed, Found, LayerFound, NormFound, Refused, ValuesFound
from nispa.graph.ids import CONSTANT, Ids, Tie, merged
from nispa.graph.units import (
    MAY_BE_SHARED,
    Group,
    Kind,
    Layer,
    Norm,
    UnitGraph,
    UnitMap,
    Values,
    unit_map,
)


class _Places:
    """Group and place of each unit, by its label."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.members: dict[str, list[int]] = {}
        self.at: dict[int, tuple[str, int]] = {}

    def add(self, name: str, labels: Iterable[int]) -> str:
        """Adds units to the group ``name``, or to a new one of nearly that name if there is one."""
        free, number = name, 1
        while free in self.members:
            number += 1
            free = f"{name}/{number}"
        self.members[free] = list(labels)
        for place, label in enumerate(self.members[free]):
            self.at[label] = (free, place)
        return free

    def map(self, ids: Tensor) -> UnitMap:
        """The map of a vector of numbers."""
        return unit_map(self.at[label] for label in self.ids.labels(ids).tolist())


def assemble(
    ids: Ids, found: Found, inputs: dict[str, Tensor], logits: Tensor, samples: int
) -> UnitGraph:
    """All that a walk has found, with names.

    Args:
        ids: Numbers and ties.
        found: Layers, values and norms.
        inputs: Numbers of each input, by its name.
        logits: Numbers of the logits of a sample, ``(classes,)``.
        samples: How many there were.

    Raises:
        Refused: Rows of a weight collapse into one unit, or the logits are not units of their own.
    """
    _no_collapse(ids, found)
    out = ids.labels(logits).tolist()
    places = _Places(ids)
    for name, numbers in inputs.items():
        labels = torch.unique(ids.labels(numbers)).tolist()
        places.add("input" if len(inputs) == 1 else name, labels)
    if any((ids.labels(each.columns) == CONSTANT).any() for each in found.layers.values()):
        places.add("constant", [CONSTANT])
    written = _written(ids, found)
    _check_logits(out, ids, found, written)
    for signature in dict.fromkeys(written.values()):
        members = [label for label, by in written.items() if by == signature]
        if members[0] not in out:
            first = signature[0]
            places.add(first, members)
    places.add("output", out)
    heads = set(
        torch.cat([ids.labels(each) for each in found.heads]).tolist() if found.heads else []
    )
    layers = tuple(_layer(places, layer, samples) for layer in found.layers.values())
    values = tuple(_values(places, name, entry) for name, entry in found.values.items())
    norms = tuple(
        _norm(places, norm, found.beside.get(path, [])) for path, norm in found.norms.items()
    )
    groups = []
    for name, labels in places.members.items():
        writers = tuple(layer.name for layer in layers if name in layer.rows.groups)
        readers = tuple(layer.name for layer in layers if name in layer.columns.groups)
        fixed = labels[0] < ids.fixed if labels else True
        kind: Kind = "hidden"
        if fixed:
            kind = "input"
        elif labels == out:
            kind = "output"
        elif heads.intersection(labels):
            kind = "head"
        elif len(writers) > 1:
            kind = "stream"
        groups.append(Group(name, len(labels), kind, writers, readers))
    operations = found.operations // samples
    return UnitGraph(tuple(groups), layers, values, norms, operations, found.random)


def _written(ids: Ids, found: Found) -> dict[int, tuple[str, ...]]:
    """Who writes each unit that can change: names of layers, or of the first values without any."""
    writers: dict[int, list[str]] = {}
    for layer in found.layers.values():
        name = _name(layer)
        for label in dict.fromkeys(ids.labels(layer.rows).tolist()):
            writers.setdefault(label, []).append(name)
    for path, values in found.values.items():
        if values.kind == "shared":
            continue
        for label in dict.fromkeys(ids.labels(values.ids).flatten().tolist()):
            if label not in writers:
                writers[label] = [path.removesuffix(".weight")]
    return {label: tuple(names) for label, names in writers.items()}


def _name(layer: LayerFound) -> str:
    name = layer.weight.removesuffix(".weight")
    return f"{name}[{layer.first_row}:]" if layer.first_row else name


def _layer(places: _Places, layer: LayerFound, samples: int) -> Layer:
    return Layer(
        name=_name(layer),
        weight=layer.weight,
        rows=places.map(layer.rows),
        columns=places.map(layer.columns),
        operator=layer.operator,
        kernel=layer.kernel,
        blocks=layer.blocks,
        first_row=layer.first_row,
        bias=layer.bias.name if layer.bias else None,
        first_bias=int(layer.bias.rows[0]) if layer.bias else 0,
        module=layer.module,
        calls=layer.calls,
        places=layer.outputs // (samples * len(layer.rows)),
    )


def _values(places: _Places, name: str, values: ValuesFound) -> Values:
    if values.kind == "shared":
        return Values(name, values.kind, UnitMap(()), None)
    if values.dim is not None:
        return Values(name, values.kind, places.map(values.ids), values.dim)
    labels = places.ids.labels(values.ids)
    for dim in range(labels.dim()):
        others = [each for each in range(labels.dim()) if each != dim]
        along = labels.amax(others, keepdim=True) if others else labels
        if torch.equal(along.expand_as(labels), labels):
            return Values(name, values.kind, places.map(along.flatten()), dim)
    return Values(name, values.kind, places.map(labels.flatten()), None)


def _norm(places: _Places, norm: NormFound, beside: Iterable[str]) -> Norm:
    sets = places.ids.labels(norm.sets)
    if norm.kind in ("layer", "rms"):  # the same set at each sample and token
        sets = torch.unique(sets, dim=0)
    units = tuple(places.map(each) for each in sets)
    return Norm(norm.module, norm.kind, units, tuple(dict.fromkeys(beside)))


def _no_collapse(ids: Ids, found: Found) -> None:
    for layer in found.layers.values():
        units = torch.unique(ids.labels(layer.rows))
        if len(units) == 1 < len(layer.rows):
            culprit = _culprit(ids, layer.rows)
            shared = frozenset(
                name
                for name, values in found.values.items()
                if values.kind in MAY_BE_SHARED
                and values.ids.numel() < len(layer.rows)
                and bool(torch.isin(ids.labels(values.ids), units).any())
            )
            raise Collapsed(
                culprit.instead
                or f"all {len(layer.rows)} rows of '{layer.weight}' would be one unit, kept or "
                f"changed as a whole, because of {culprit.by}. Let it treat channels one by one: "
                "several heads of attention, not one; a depthwise convolution over tokens, not "
                "Linear",
                shared,
            )


def _culprit(ids: Ids, rows: Tensor) -> Tie:
    """What mixed some rows or what they were tied with, or what tied the last of them."""
    one = int(ids.labels(rows)[0])
    for tie in ids.ties:
        if tie.instead and bool((ids.labels(tie.pairs) == one).any()):
            return tie
    label = torch.arange(
        int(torch.cat([rows, *(tie.pairs.flatten() for tie in ids.ties)]).max()) + 1
    )
    for tie in ids.ties:
        label = merged(label, label[tie.pairs])
        if len(torch.unique(label[rows])) == 1:
            return tie
    raise AssertionError("no tie joins these rows")


def _check_logits(
    out: list[int], ids: Ids, found: Found, written: dict[int, tuple[str, ...]]
) -> None:
    fixed = [place for place, label in enumerate(out) if label < ids.fixed]
    if fixed:
        raise Refused(f"logit {fixed[0]} depends on no weight; let nn.Linear compute the logits")
    if len(set(out)) < len(out):
        raise Refused(
            "several logits are of one unit, so no class can be kept without the others; let "
            "nn.Linear compute them, with a row for each class"
        )
    for layer in found.layers.values():
        if set(out) & set(ids.labels(layer.columns).tolist()):
            raise Refused(
                f"'{layer.weight}' reads the logits, which no layer may; let nn.Linear of its own "
                "compute them, last"
            )
    others = {written[label] for label in out}
    for label, by in written.items():
        if by in others and label not in out:
            raise Refused(
                f"'{by[0]}' computes logits and other units, too; give the logits a layer of their "
                "own"
            )
