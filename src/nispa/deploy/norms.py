"""Norms of what is kept.

A norm over units counts by generations (:mod:`nispa.network.norms`): an entry is normalised by the
statistics of its own generation and of older ones. All of these are kept with it, so PyTorch's own
norm of just them gives the same numbers, once for each generation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from nispa.deploy.cutter import Cutter, Done, Result, aten
from nispa.deploy.layers import gone
from nispa.graph.found import Call
from nispa.network.norms import GenerationNorm

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def batch_norm(to: Cutter, node: fx.Node, call: Call) -> Result:
    """The channels that are kept."""
    x = to.of(node.args[0])
    if x.gone:
        return gone(to, node)
    channels = x.places[1]
    made = BATCH_NORMS[len(x.shape)](len(channels), call["eps"])
    state = {
        name: _tensor(to, call[name])[channels]
        for name in ("weight", "bias", "running_mean", "running_var")
        if call[name] is not None
    }
    made.load_state_dict(state, strict=False)
    new = to.module(call.path, made, x.node)
    new.meta["dims"] = len(x.shape)
    return Done(new, x.places, x.shape)


def _tensor(to: Cutter, argument: fx.Node) -> Tensor:
    known = to.noted(argument)
    name = known.name
    return to.recorded.state[name].detach()


def mixing_norm(to: Cutter, node: fx.Node, call: Call) -> Result:
    """A norm over units; scales and shifts come after it."""
    x = to.of(node.args[0])
    if x.gone:
        return gone(to, node)
    norm = _OverUnits(to, node, call, x)
    normed = norm.written()
    for name, target in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if call[name] is not None:
            value = _tensor(to, call[name]).flatten()[norm.entries]
            if norm.over_channels:
                value = value.view(-1, *[1] * (len(x.shape) - 2))
            normed = to.call(target, normed, to.constant(value, f"{call.path}.{name}"))
    if norm.dims > 1:
        normed = to.call(aten.reshape.default, normed, to.sizes(node, x.places))
    return Done(normed, x.places, x.shape)


class _OverUnits:
    """One call of a norm over units.

    Attributes:
        over_channels: Whether it is a group norm.
        dims: How many dimensions it runs over; 1 of a group norm, whose pixels do not count.
        entries: Which of the normalised entries are kept, rising.
    """

    def __init__(self, to: Cutter, node: fx.Node, call: Call, x: Done) -> None:
        self.to, self.node, self.call, self.x = to, node, call, x
        self.over_channels = call.name == "group_norm"
        self.dims = 1 if self.over_channels else len(call["normalized_shape"])
        self.sets = int(call["num_groups"]) if self.over_channels else 1
        first = 1 if self.over_channels else len(x.shape) - self.dims
        shape = x.shape[first : first + self.dims]
        index = torch.arange(math.prod(shape)).view(shape)
        for dim, places in enumerate(x.places[first : first + self.dims]):
            index = index.index_select(dim, places)
        self.entries, self.each = index.flatten(), math.prod(shape) // self.sets
        self.along = 1 if self.over_channels else -1
        self.norm: GenerationNorm | None = to.norms.get(call.path)

    def written(self) -> fx.Node:
        """The entries, normalised."""
        flat = self.x.node
        if self.dims > 1:
            flat = self.to.call(aten.flatten.using_ints, flat, -self.dims)
        idle = self._idle()
        parts = self._parts(idle)
        groups = self.entries.div(self.each, rounding_mode="floor").unique_consecutive()
        if all(new == len(inside) == self.each for inside, new in parts) and not len(idle):
            return self._normed(flat, len(self.entries), len(groups))
        ends, order = [], [inside[len(inside) - new :] for inside, new in parts]
        if len(idle):
            ends.append(self._selected(flat, idle))
            order.insert(0, idle)
        for inside, new in parts:
            done = self._normed(self._selected(flat, inside), len(inside), 1)
            if new < len(inside):
                start = len(inside) - new
                done = self.to.call(aten.slice.Tensor, done, self.along, start, len(inside))
            ends.append(done)
        joined = ends[0] if len(ends) == 1 else self.to.call(aten.cat.default, ends, self.along)
        return self._selected(joined, torch.cat(order).argsort())

    def _parts(self, idle: Tensor) -> list[tuple[Tensor, int]]:
        """Entries that are normalised together, older ones first, and how many of them are new."""
        found = []
        for number in range(self.sets):
            mine = (self.entries // self.each == number).nonzero().flatten()
            mine = mine[~torch.isin(mine, idle)]
            ages = torch.ones(self.each, dtype=torch.int64)
            if self.norm is not None:
                ages = self.norm.generation[number].cpu()
                ages = torch.where(ages == 0, ages.max() + 1, ages)  # plastic ones count all
            theirs = ages[self.entries[mine] % self.each]
            for age in theirs.unique().tolist():
                older = theirs <= age
                self.to.unless(int(older.sum()) == int((ages <= age).sum()), self.node)
                order = theirs[older].argsort(stable=True)
                found.append((mine[older][order], int((theirs == age).sum())))
        return found

    def _idle(self) -> Tensor:
        """Entries that only fill a place; they are not normalised."""
        if self.norm is None:  # all entries of a set are of one unit
            return torch.zeros(0, dtype=torch.int64)
        numbers: Tensor = self.to.noted(self.node)
        if self.over_channels:
            numbers = numbers[0].flatten(1)[:, 0] if numbers.dim() > 2 else numbers[0]
        else:
            numbers = numbers.flatten(-self.dims).flatten(0, -2)[0]
        return self.to.kept.fills(numbers)[self.entries].nonzero().flatten()

    def _selected(self, node: fx.Node, index: Tensor) -> fx.Node:
        if torch.equal(index, torch.arange(len(self.entries))):
            return node
        index_node = self.to.constant(index, "index")
        return self.to.call(aten.index_select.default, node, self.along, index_node)

    def _normed(self, node: fx.Node, size: int, groups: int) -> fx.Node:
        eps = self.call["eps"]
        eps = float(torch.finfo(torch.float32).eps if eps is None else eps)
        if self.over_channels:
            return self.to.call(aten.group_norm.default, node, groups, None, None, eps)
        if self.call.name == "rms_norm":
            return self.to.call(aten.rms_norm.default, node, [size], None, eps)
        return self.to.call(aten.layer_norm.default, node, [size], None, None, eps)
