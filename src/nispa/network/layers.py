"""Layers that store live connections only.

A live connection is either plastic, and then a value of the parameter ``weight``, or frozen, and
then a value of the buffer ``frozen_weight``. No optimiser ever sees a buffer, so momentum or weight
decay cannot move what is frozen. The same holds for biases, one per target unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nispa.kernels import dispatch
from nispa.network.topology import ConnectionLayer


class SparseLayer(nn.Module):
    """A layer of sparse connections, the common part of Linear and Conv2d.

    Attributes:
        weight: Values of plastic connections, ``(plastic, *kernel)``.
        plastic_index: Their flat positions in the pattern, ``(plastic,)`` int64, ascending.
        frozen_weight: Values of frozen connections, ``(frozen, *kernel)``.
        frozen_index: Their flat positions, ``(frozen,)`` int64, ascending.
        bias: Biases of plastic units, ``(plastic units,)``.
        bias_index: Their units, int64, ascending; ``frozen_bias`` and ``frozen_bias_index``
            likewise.
        changes: A counter of changes to which connections are live, plastic or frozen.
        places: Outputs of one unit for one sample (the pixels of a convolution's output), as of
            the last pass; 0 before the first.
        biases: How many biases there are: one for each row, or none.
    """

    plastic_index: Tensor
    frozen_weight: Tensor
    frozen_index: Tensor
    bias_index: Tensor
    frozen_bias: Tensor
    frozen_bias_index: Tensor

    def __init__(
        self, spec: ConnectionLayer, shape: tuple[int, int], *, biased: bool = True
    ) -> None:
        """An empty layer: no live connection, all biases zero and plastic.

        Args:
            spec: The groups that the layer joins.
            shape: Rows (target units) and columns (source features) of its pattern.
            biased: Whether it has biases.
        """
        super().__init__()
        self.spec = spec
        self.shape = shape
        self.biases = shape[0] if biased else 0
        self.changes = self.places = 0
        self.compiled = dispatch.Compiled()
        none = torch.zeros(0, dtype=torch.int64)
        self.weight = nn.Parameter(torch.zeros(0, *spec.kernel))
        self.bias = nn.Parameter(torch.zeros(self.biases))
        self.register_buffer("plastic_index", none)
        self.register_buffer("frozen_weight", torch.zeros(0, *spec.kernel))
        self.register_buffer("frozen_index", none)
        self.register_buffer("bias_index", torch.arange(self.biases))
        self.register_buffer("frozen_bias", torch.zeros(0))
        self.register_buffer("frozen_bias_index", none)

    # Which connections are live, and how many.

    @property
    def pattern(self) -> Tensor:
        """The live connections, ``(target, source * block)`` bool, on the CPU."""
        return self._mark(self.plastic_index) | self._mark(self.frozen_index)

    @property
    def frozen(self) -> Tensor:
        """The frozen connections, ``(target, source * block)`` bool, on the CPU."""
        return self._mark(self.frozen_index)

    @property
    def live_count(self) -> int:
        """Number of live connections."""
        return len(self.plastic_index) + len(self.frozen_index)

    @property
    def frozen_count(self) -> int:
        """Number of frozen connections."""
        return len(self.frozen_index)

    @property
    def position_count(self) -> int:
        """Number of connections a full layer would have."""
        return self.shape[0] * self.shape[1]

    @property
    def weights_each(self) -> int:
        """Number of weights of one connection (9 for a 3 x 3 kernel)."""
        return math.prod(self.spec.kernel)

    def values(self) -> tuple[Tensor, ...]:
        """Every tensor that it stores: values and positions, plastic and frozen."""
        return tuple(getattr(self, name) for name in _STATE)

    def _mark(self, index: Tensor) -> Tensor:
        marks = torch.zeros(self.position_count, dtype=torch.bool)
        marks[index.cpu()] = True
        return marks.view(self.shape)

    # Values, for the kernels and as dense tensors.

    def live_weight(self) -> dispatch.LiveValues:
        """The weights in the form that kernels take."""
        return dispatch.LiveValues(
            self.weight, self.plastic_index, self.frozen_weight, self.frozen_index, self.shape
        )

    def live_bias(self) -> dispatch.LiveValues:
        """The biases in the form that kernels take."""
        return dispatch.LiveValues(
            self.bias, self.bias_index, self.frozen_bias, self.frozen_bias_index, (self.biases,)
        )

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """A full copy of the weights, ``(target, source * block, *kernel)``, zero where dead."""
        return dispatch.to_dense(self.live_weight()).clone()

    @torch.no_grad()
    def dense_bias(self) -> Tensor:
        """A copy of the biases, ``(target,)``."""
        return dispatch.to_dense(self.live_bias()).clone()

    @torch.no_grad()
    def values_at(self, positions: Tensor) -> Tensor:
        """The values of live connections within a mask, in unspecified order.

        Args:
            positions: ``(target, source * block)`` bool.

        Returns:
            ``(live and in the mask, *kernel)`` on the CPU.
        """
        mask = positions.flatten()
        plastic = self.weight.cpu()[mask[self.plastic_index.cpu()]]
        return torch.cat([plastic, self.frozen_weight.cpu()[mask[self.frozen_index.cpu()]]])

    # Changes. Each makes new parameters, so the optimiser must be a new one afterwards: the moments
    # of the old one belong to other connections.

    @torch.no_grad()
    def connect(self, pattern: Tensor, values: Tensor) -> None:
        """Makes exactly ``pattern`` live and plastic, with ``values`` in order of position.

        Args:
            pattern: ``(target, source * block)`` bool.
            values: ``(pattern.sum(), *kernel)``.
        """
        assert not len(self.frozen_index), "frozen connections cannot be replaced"
        index = pattern.flatten().nonzero().squeeze(1).to(self.weight.device)
        self._set_plastic(index, values.to(self.weight))

    @torch.no_grad()
    def rewire(self, pattern: Tensor, grown: Tensor, values: Tensor) -> None:
        """Replaces the pattern; connections live before and after keep their values.

        Args:
            pattern: The new live connections, ``(target, source * block)`` bool, all frozen ones
                among them.
            grown: Flat positions of those not live before, ``(grown,)`` int64.
            values: Their starting values, ``(grown, *kernel)``.
        """
        device = self.weight.device
        keep = pattern.flatten()[self.plastic_index.cpu()].to(device)
        assert bool(pattern.flatten()[self.frozen_index.cpu()].all()), (
            "a frozen connection is dropped"
        )
        index = torch.cat([self.plastic_index[keep], grown.to(device)])
        self._set_plastic(index, torch.cat([self.weight[keep], values.to(self.weight)]))
        assert self.live_count == int(pattern.count_nonzero()), "grown does not match the pattern"

    def ends(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The units that connections at flat positions ``index`` enter and leave."""
        columns = self.shape[1]
        return index // columns, index % columns // self.spec.block

    @torch.no_grad()
    def freeze(self, connections: Tensor, biases: Tensor) -> None:
        """Turns plastic values into frozen ones without changing a bit of them.

        Args:
            connections: Which connections, ``(target, source * block)`` bool; dead and frozen ones
                are ignored.
            biases: Which target units' biases, ``(target,)`` bool.
        """
        device = self.weight.device
        chosen = connections.flatten()[self.plastic_index.cpu()].to(device)
        index = torch.cat([self.frozen_index, self.plastic_index[chosen]])
        order = index.argsort()
        self.frozen_weight = torch.cat([self.frozen_weight, self.weight[chosen]])[order]
        self.frozen_index = index[order]
        self._set_plastic(self.plastic_index[~chosen], self.weight[~chosen])

        chosen = biases[self.bias_index.cpu()].to(device)
        index = torch.cat([self.frozen_bias_index, self.bias_index[chosen]])
        order = index.argsort()
        self.frozen_bias = torch.cat([self.frozen_bias, self.bias[chosen]])[order]
        self.frozen_bias_index = index[order]
        self.bias = nn.Parameter(self.bias[~chosen].clone())
        self.bias_index = self.bias_index[~chosen]
        self.changes += 1

    @torch.no_grad()
    def thaw(self, connections: Tensor, biases: Tensor) -> None:
        """Turns frozen values into plastic ones without changing a bit of them.

        Args:
            connections: Which connections, ``(target, source * block)`` bool; dead and plastic ones
                are ignored.
            biases: Which target units' biases, ``(target,)`` bool.
        """
        device = self.weight.device
        chosen = connections.flatten()[self.frozen_index.cpu()].to(device)
        index = torch.cat([self.plastic_index, self.frozen_index[chosen]])
        values = torch.cat([self.weight, self.frozen_weight[chosen]])
        self.frozen_weight = self.frozen_weight[~chosen]
        self.frozen_index = self.frozen_index[~chosen]
        self._set_plastic(index, values)

        chosen = biases[self.frozen_bias_index.cpu()].to(device)
        index = torch.cat([self.bias_index, self.frozen_bias_index[chosen]])
        order = index.argsort()
        self.bias = nn.Parameter(torch.cat([self.bias, self.frozen_bias[chosen]])[order].clone())
        self.bias_index = index[order]
        self.frozen_bias = self.frozen_bias[~chosen]
        self.frozen_bias_index = self.frozen_bias_index[~chosen]
        self.changes += 1

    @contextmanager
    def full(self) -> Iterator[None]:
        """While active, all connections are live and all values plastic; what was dead is 0."""
        before = self.values()
        with torch.no_grad():
            weights, everything = self.dense_weight(), torch.ones(self.shape, dtype=torch.bool)
            self.thaw(everything, torch.ones(self.shape[0], dtype=torch.bool))
            self.connect(everything, weights.flatten(0, 1))
        try:
            yield
        finally:
            for name, value in zip(_STATE, before, strict=True):
                setattr(self, name, value)
            self.changes += 1

    @torch.no_grad()
    def restart_plastic(self, weight: Tensor, bias: Tensor) -> None:
        """Replaces every plastic value.

        Args:
            weight: Values for all live connections in order of position, ``(live, *kernel)``;
                those at frozen positions are ignored.
            bias: Values for all target units, ``(target,)``; those of frozen biases are ignored.
        """
        # The rank of each plastic position among all live ones: its place in ``weight``.
        index = torch.cat([self.plastic_index, self.frozen_index])
        place = index.argsort().argsort()[: len(self.plastic_index)]
        self.weight.copy_(weight.to(self.weight)[place])
        self.bias.copy_(bias.to(self.bias)[self.bias_index])

    def _set_plastic(self, index: Tensor, values: Tensor) -> None:
        order = index.argsort()
        self.plastic_index = index[order]
        # Indexing may leave strides of 0 where nothing is left, of which autograd warns.
        self.weight = nn.Parameter(values[order].clone(memory_format=torch.contiguous_format))
        self.changes += 1

    # Saving and loading. Positions are int64 in memory, since PyTorch indexes with nothing smaller
    # without a copy, and int32 in a state, where they are half as large. A state from before that
    # holds int64. A layer takes the sizes it finds, after checking that they make sense.

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        fits = self.position_count <= 2**31  # every network of nispa's own
        for name in _POSITIONS if fits else ():
            destination[prefix + name] = destination[prefix + name].to(torch.int32)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problem = self._problem_with(
            {name: state_dict[prefix + name] for name in _STATE if prefix + name in state_dict}
        )
        if problem:
            error_msgs.append(f"layer {self.spec.name}: {problem}")
            return
        for name in _STATE:
            tensor = state_dict.get(prefix + name)
            if tensor is None or tensor.shape == getattr(self, name).shape:
                continue  # of equal size: loaded in place, so that an optimiser stays valid
            dtype = getattr(self, name).dtype
            empty = torch.empty(tensor.shape, dtype=dtype, device=self.weight.device)
            if name in ("weight", "bias"):
                setattr(self, name, nn.Parameter(empty))
            else:
                setattr(self, name, empty)
        self.changes += 1
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem_with(self, state: Mapping[str, Tensor]) -> str:
        missing = [name for name in _STATE if name not in state]
        if missing:
            return f"{missing[0]} is missing"
        for weight, index, size, kernel, positions in (
            ("weight", "plastic_index", self.position_count, self.spec.kernel, "frozen_index"),
            ("bias", "bias_index", self.biases, (), "frozen_bias_index"),
        ):
            frozen = f"frozen_{weight}"
            for values, places in ((weight, index), (frozen, positions)):
                known = state[places].dtype in (torch.int32, torch.int64)
                if not known or state[places].dim() != 1:
                    return f"{places} must be a vector of int32 or int64"
                if state[values].dtype != self.weight.dtype:
                    return f"{values} must be {self.weight.dtype}, not {state[values].dtype}"
                if state[values].shape != (len(state[places]), *kernel):
                    return f"{values} and {places} do not fit each other"
            flat = torch.cat([state[index], state[positions]])
            if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= size):
                return f"{index} has a position outside the layer's {size}"
            if len(flat.unique()) != len(flat):
                return f"{index} names a position twice"
            for places in (index, positions):
                if bool((state[places].diff() < 0).any()):
                    return f"{places} must rise"
            if weight == "bias" and len(flat) != size:
                return f"{len(flat)} biases for {size} units"
        return ""


_STATE = (
    "weight",
    "plastic_index",
    "frozen_weight",
    "frozen_index",
    "bias",
    "bias_index",
    "frozen_bias",
    "frozen_bias_index",
)
_POSITIONS = tuple(name for name in _STATE if name.endswith("_index"))


class SparseLinear(SparseLayer):
    """A Linear layer over live connections, ``(batch, columns)`` to ``(batch, target)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer."""
        places = math.prod(x.shape[1:-1])
        if places != self.places:
            self.places = places
        return dispatch.linear(x, self.live_weight(), self.live_bias(), self.compiled)


class SparseConv2d(SparseLayer):
    """A Conv2d whose connections are whole kernels, live or dead together."""

    def __init__(
        self, spec: ConnectionLayer, shape: tuple[int, int], *, stride: int = 1, padding: int = 0
    ) -> None:
        """An empty layer; see :class:`SparseLayer`."""
        super().__init__(spec, shape)
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to ``(batch, in, height, width)``."""
        out = dispatch.conv2d(
            x, self.live_weight(), self.live_bias(), self.stride, self.padding, self.compiled
        )
        places = math.prod(out.shape[2:])
        if places != self.places:
            self.places = places
        return out


class Units(nn.Module):
    """Marks where the activations of a unit group are final. It computes nothing."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, ``(batch, units)`` or ``(batch, units, height, width)``."""
        return x
