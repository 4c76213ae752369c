"""Floating-point operations of passes through networks, counted by purpose.

A multiply-add is two operations. Connections are counted: each live one makes a multiply-add per
sample (and, for a kernel, per weight and output pixel) in the forward pass; another if it is
plastic, for its weight's gradient; and another if the unit it leaves needs a gradient. A unit needs
one if anything that it is computed from can still learn: no gradient flows into a stable unit. The
numbers follow from the pattern and from which values are frozen, so they are the same on every
device, with every kernel, and whatever is cached between passes. docs/cost.md says what is not
counted, and why.

A :class:`Ledger` is the account of one task. While it is in force (:func:`counting`), every network
enters its passes into it. ``fit`` says where a step begins: samples that pass in a step beyond
those of its batch are replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nispa.errors import FormatError
from nispa.network.layers import SparseLayer
from nispa.network.topology import Topology

PURPOSES = {
    "forward": "forward passes of the batches of training",
    "weight_gradients": "gradients of plastic weights for these batches",
    "input_gradients": "gradients into units for these batches",
    "updates": "the optimiser's arithmetic",
    "replay": "passes in a step beyond its batch: samples from memory",
    "projection": "gradients that those of a step are held against",
    "importance": "gradients between fits, such as Fisher information",
    "validation": "accuracy on validation images, while training and after pruning",
    "activity": "passes that measure how active units are",
    "other": "other passes without gradients: outputs and features that are kept",
}
"""The purposes of operations, in the order in which records list them."""

MOST = 10**30  # of one purpose: more is no count


class PerSample(NamedTuple):
    """Operations of one sample's pass: forward, to plastic weights, and back into units."""

    forward: int
    weights: int
    inputs: int


def per_sample(
    layers: Mapping[str, SparseLayer], topology: Topology, *, into_input: bool = False
) -> PerSample:
    """Operations of one sample's pass, from what is live and what is frozen.

    Args:
        layers: The sparse layers by name, each after a pass, which tells its places.
        topology: Who feeds whom.
        into_input: Whether a gradient flows into the images, too.
    """
    needing = _needing(layers, topology, into_input)
    forward = weights = inputs = 0
    for spec in topology.layers:
        layer = layers[spec.name]
        each = 2 * layer.weights_each * layer.places
        forward += each * layer.live_count
        weights += each * len(layer.plastic_index)
        inputs += each * _leaving(layer, needing[spec.source])
    return PerSample(forward, weights, inputs)


def traced_cost(
    layers: Mapping[str, SparseLayer],
    topology: Topology,
    others: int,
    *,
    into_input: bool = False,
) -> PerSample:
    """Operations of one sample's pass through a network whose units may have several rows.

    Args:
        layers: The sparse layers by name.
        topology: Who feeds whom.
        others: Operations forward beside connections: norms, attention, depthwise kernels.
            Backward they are twice as many.
        into_input: Whether a gradient flows into the images, too.
    """
    needing = {
        group.name: torch.full((group.size,), into_input and group.role == "input")
        for group in topology.groups
    }
    patterns = {name: layer.pattern for name, layer in layers.items()}
    plastic = {name: patterns[name] & ~layer.frozen for name, layer in layers.items()}
    changed = True
    while changed:
        changed = False
        for spec in topology.layers:
            wanted = plastic[spec.name] | (patterns[spec.name] & spec.columns_in(needing))
            for name, units in spec.units_fed(wanted.any(1)).items():
                changed = changed or bool((units & ~needing[name]).any())
                needing[name] |= units
    forward = weights = inputs = 0
    for spec in topology.layers:
        layer = layers[spec.name]
        each = 2 * layer.weights_each * layer.places
        forward += each * layer.live_count
        weights += each * len(layer.plastic_index)
        inputs += each * int((patterns[spec.name] & spec.columns_in(needing)).sum())
    return PerSample(forward + others, weights, inputs + (2 * others if weights else 0))


def _needing(
    layers: Mapping[str, SparseLayer], topology: Topology, into_input: bool
) -> dict[str, Tensor]:
    """The units of each group whose gradient is needed, ``(units,)`` bool."""
    needing = {
        group.name: torch.full((group.size,), into_input and group.role == "input")
        for group in topology.groups
    }
    for spec in topology.layers:
        layer, units = layers[spec.name], needing[spec.target]
        units[layer.bias_index.cpu()] = True
        if not units.all():
            units[layer.plastic_index.cpu() // layer.shape[1]] = True
    changed = True
    while changed:  # a group may feed itself
        changed = False
        for spec in topology.layers:
            if not needing[spec.source].any() or needing[spec.target].all():
                continue
            rows, units = _ends(layers[spec.name], layers[spec.name].frozen_index)
            reached = rows[needing[spec.source][units]]
            changed = changed or not bool(needing[spec.target][reached].all())
            needing[spec.target][reached] = True
    return needing


def _leaving(layer: SparseLayer, units: Tensor) -> int:
    """How many live connections leave some units of the source group, ``(units,)`` bool."""
    if not units.any():
        return 0
    if units.all():
        return layer.live_count
    indices = (layer.plastic_index, layer.frozen_index)
    return sum(int(units[_ends(layer, index)[1]].sum()) for index in indices)


def _ends(layer: SparseLayer, index: Tensor) -> tuple[Tensor, Tensor]:
    """The target and the source unit of connections at flat positions, on the CPU."""
    index = index.cpu()
    return index // layer.shape[1], index % layer.shape[1] // layer.spec.block


class Ledger:
    """Operations by purpose.

    Attributes:
        purpose: The present purpose of passes: a name in ``PURPOSES``; ``""`` between fits,
            ``"step"`` in a step of training.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.purpose = ""
        self._counts = dict.fromkeys(PURPOSES, 0)
        self._ahead = self._behind = 0  # samples of the step's batch still to pass, and back

    def step(self, samples: int) -> None:
        """A step with a batch of so many samples begins."""
        self.purpose, self._ahead, self._behind = "step", samples, samples

    def forward(self, samples: int, cost: PerSample, *, learning: bool) -> None:
        """Enters a forward pass; ``learning`` says whether a gradient may follow."""
        if self.purpose == "step" and learning:
            of_batch = min(samples, self._ahead)
            self._ahead -= of_batch
            self._counts["forward"] += of_batch * cost.forward
            self._counts["replay"] += (samples - of_batch) * cost.forward
            return
        aim = self.purpose if self.purpose in PURPOSES else "importance" if learning else "other"
        self._counts[aim] += samples * cost.forward

    def backward(self, samples: int, cost: PerSample) -> None:
        """Enters a backward pass."""
        if self.purpose == "step":
            of_batch = min(samples, self._behind)
            self._behind -= of_batch
            self._counts["weight_gradients"] += of_batch * cost.weights
            self._counts["input_gradients"] += of_batch * cost.inputs
            self._counts["replay"] += (samples - of_batch) * (cost.weights + cost.inputs)
            return
        aim = self.purpose if self.purpose in PURPOSES else "importance"
        self._counts[aim] += samples * (cost.weights + cost.inputs)

    def add(self, purpose: str, operations: int) -> None:
        """Adds operations other than passes."""
        self._counts[purpose] += operations

    def table(self) -> dict[str, int]:
        """Operations by purpose, in the order of ``PURPOSES``, without the zeros."""
        return {name: count for name, count in self._counts.items() if count}

    def known(self) -> dict[str, int] | None:
        """The table, or None if no pass was counted: then networks were not sparse networks."""
        table = self.table()
        return table if table.keys() - {"updates"} else None

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        """Operations since :meth:`table` gave ``before``."""
        return {
            name: count - before.get(name, 0)
            for name, count in self._counts.items()
            if count > before.get(name, 0)
        }

    def take(self, values: Any) -> None:
        """Adds operations that :meth:`since` gave in another process.

        Raises:
            FormatError: ``values`` is not such a table.
        """
        if not isinstance(values, dict) or not values.keys() <= PURPOSES.keys():
            raise FormatError("the saved operations do not name what they are for")
        for name, count in values.items():
            if type(count) is not int or not 0 <= count <= MOST:
                raise FormatError(f"the saved operations for '{name}' are no count")
            self._counts[name] += count


_in_force: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def current() -> Ledger | None:
    """The ledger in force, if there is one."""
    return _in_force.get()


@contextmanager
def counting(ledger: Ledger | None) -> Iterator[None]:
    """Puts a ledger in force; None stops counting."""
    token = _in_force.set(ledger)
    try:
        yield
    finally:
        _in_force.reset(token)


@contextmanager
def purpose(name: str) -> Iterator[None]:
    """Sets the purpose of passes to a name in ``PURPOSES``."""
    ledger = current()
    if ledger is None:
        yield
        return
    before, ledger.purpose = ledger.purpose, name
    try:
        yield
    finally:
        ledger.purpose = before


def count_updates(
    ledger: Ledger, optimiser: torch.optim.Optimizer | None
) -> RemovableHandle | None:
    """Counts every update of an optimiser from now on, until the handle is removed."""
    if optimiser is None:
        return None
    cost = update_operations(optimiser)
    return optimiser.register_step_post_hook(lambda *_: ledger.add("updates", cost))


_RULES: dict[type[torch.optim.Optimizer], tuple[int, int]] = {
    torch.optim.Adam: (13, 2),
    torch.optim.AdamW: (13, 1),
    torch.optim.SGD: (2, 2),
    torch.optim.Adadelta: (16, 2),
}
"""Operations of each rule per value, and of its weight decay; docs/cost.md derives them."""


def update_operations(optimiser: torch.optim.Optimizer) -> int:
    """Operations of one update of all values. An unknown rule counts as plain gradient descent."""
    total = 0
    for group in optimiser.param_groups:
        known = (_RULES[kind] for kind in type(optimiser).__mro__ if kind in _RULES)
        each, decay = next(known, (2, 0))
        each += decay if group.get("weight_decay") else 0
        each += 2 if group.get("momentum") else 0
        total += each * sum(values.numel() for values in group["params"])
    return total
