"""Parameters of which only some entries are learned: the rest is dead, or held where it is.

Each is a parametrisation of PyTorch: the module that owns the parameter reads it as before, and
what an optimiser sees is the learned part. What must not change is a buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LiveWeight(nn.Module):
    """A weight of connections as its plastic values, in the order of their places.

    Attributes:
        shape: Of the weight, ``(rows, columns, *kernel)``.
        plastic: Places ``row * columns + column`` of learned connections, ``(plastic,)`` int64.
        frozen: Places of frozen ones.
        values: Of the frozen ones, ``(frozen, *kernel)``.
    """

    plastic: Tensor
    frozen: Tensor
    values: Tensor

    def __init__(self, weight: Tensor, pattern: Tensor) -> None:
        """A ``weight`` that is live where ``pattern``, ``(rows, columns)`` bool, is True."""
        super().__init__()
        self.shape = tuple(weight.shape)
        empty = torch.zeros(0, dtype=torch.int64, device=weight.device)
        self.register_buffer("plastic", pattern.flatten().nonzero().flatten())
        self.register_buffer("frozen", empty)
        self.register_buffer("values", weight.detach().flatten(0, 1)[empty].clone())

    def forward(self, plastic: Tensor) -> Tensor:
        """The weight as the module reads it."""
        rows, columns, *kernel = self.shape
        dense = plastic.new_zeros((rows * columns, *kernel))
        dense = dense.index_copy(0, self.plastic, plastic)
        return dense.index_copy(0, self.frozen, self.values).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The plastic values of a weight."""
        return weight.flatten(0, 1)[self.plastic].clone()

    @property
    def pattern(self) -> Tensor:
        """Live connections, ``(rows, columns)`` bool."""
        return self._marked(torch.cat([self.plastic, self.frozen]))

    @property
    def held(self) -> Tensor:
        """Frozen connections, ``(rows, columns)`` bool."""
        return self._marked(self.frozen)

    def _marked(self, places: Tensor) -> Tensor:
        marked = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=places.device)
        marked[places] = True
        return marked.view(self.shape[:2])


class HeldValues(nn.Module):
    """A parameter with values of units, of which some are held.

    Attributes:
        frozen: Which entries are held, bool of the parameter's shape.
        values: The held ones; elsewhere anything.
    """

    frozen: Tensor
    values: Tensor

    def __init__(self, values: Tensor) -> None:
        """All of ``values`` are learned at first."""
        super().__init__()
        self.register_buffer("frozen", torch.zeros_like(values, dtype=torch.bool))
        self.register_buffer("values", values.detach().clone())

    def forward(self, learned: Tensor) -> Tensor:
        """The parameter as the module reads it."""
        return torch.where(self.frozen, self.values, learned)


class Parameter:
    """A parametrised parameter of a module."""

    def __init__(self, owner: nn.Module, name: str, rule: nn.Module) -> None:
        """Registers a rule for a parameter that has none yet."""
        parametrize.register_parametrization(owner, name, rule, unsafe=True)
        chain = owner.parametrizations[name]  # type: ignore[index]
        assert isinstance(chain, parametrize.ParametrizationList)
        self._chain = chain
        self.rule = rule

    @property
    def learned(self) -> nn.Parameter:
        """What an optimiser sees."""
        learned = self._chain.original
        assert isinstance(learned, nn.Parameter)
        return learned

    def dense(self) -> Tensor:
        """The parameter as the module reads it, without gradient."""
        with torch.no_grad():
            weight: Tensor = self._chain()
            return weight.clone()

    def connect(self, weight: Tensor, pattern: Tensor, held: Tensor) -> None:
        """Gives a weight another pattern.

        Args:
            weight: Values at all live places.
            pattern: Live connections, ``(rows, columns)`` bool.
            held: Those of them that are frozen; they must have been, or become so now.
        """
        assert isinstance(self.rule, LiveWeight)
        rule = self.rule
        assert not (held & ~pattern).any()
        rule.plastic = (pattern & ~held).flatten().nonzero().flatten()
        rule.frozen = held.flatten().nonzero().flatten()
        rule.values = weight.detach().flatten(0, 1)[rule.frozen].clone()
        self._chain.original = nn.Parameter(rule.right_inverse(weight.detach()))

    def hold(self, entries: Tensor) -> None:
        """Holds more entries of values where they are now; ``entries`` is bool, of their shape."""
        assert isinstance(self.rule, HeldValues)
        self.rule.values = self.dense()
        self.rule.frozen = self.rule.frozen | entries
