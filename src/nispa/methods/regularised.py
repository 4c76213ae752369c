"""A quadratic penalty on leaving what earlier tasks need: what L2, EWC, SI and MAS share.

While a task is learned, its loss is

    L(theta) + strength * sum_i Omega_i (theta_i - theta*_i)^2

with an importance ``Omega`` and an anchor ``theta*`` for each live plastic value; dead connections
have neither. There is no factor of one half. A method measures importances after each task and
passes them to ``hold``; before that there is no penalty.

The gradient of the penalty, ``2 strength Omega (theta - theta*)``, is added to that of the loss
value by value, without a graph: three passes over the live values per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.errors import DivergedError, FormatError
from nispa.methods.base import Learning, Part
from nispa.methods.epochs import Keep, KeepConfig
from nispa.methods.one_network import OneNetwork
from nispa.methods.parts import Network, PerValue, PositiveNumber
from nispa.network.models import DataSet
from nispa.training.fit import network_step

Values = dict[str, Tensor]
"""One tensor for each tensor of live plastic values, by its name in the network."""


@settings
class RegularisedConfig(KeepConfig):
    """Settings of methods with a quadratic penalty."""

    strength: float = setting(
        1.0, "weight of the penalty", ge=0, aliases=("lambda", "reg_coef"), hint="0 is finetune"
    )
    keep: Keep = setting(
        "best", "epoch whose values stay: of the best validation accuracy, or the last (published)"
    )


class QuadraticPenalty:
    """``strength * (offset + sum of importance * (value - anchor)^2)`` and its gradient."""

    def __init__(
        self,
        strength: float,
        values: Sequence[nn.Parameter],
        importance: Sequence[Tensor],
        anchor: Sequence[Tensor],
        offset: float = 0.0,
    ) -> None:
        """A penalty on ``values``, with an importance and an anchor for each."""
        self.strength = strength
        self.values = list(values)
        self.importance = list(importance)
        self.anchor = list(anchor)
        self.offset = offset

    @torch.no_grad()
    def add(self) -> Tensor:
        """Adds its gradient to the ``grad`` of every value; returns the penalty, a scalar."""
        distance = torch._foreach_sub(list[Tensor](self.values), self.anchor)
        pull = torch._foreach_mul(distance, self.importance)
        torch._foreach_add_(gradients_of(self.values), pull, alpha=2.0 * self.strength)
        parts = [
            torch.dot(one.flatten(), other.flatten())
            for one, other in zip(distance, pull, strict=True)
        ]
        return self.strength * (torch.stack(parts).sum() + self.offset)


class Regularised(OneNetwork):
    """One network, held near earlier values; a subclass writes ``learn_task``.

    Attributes:
        importance: Omega, by the names of the network's tensors; empty before the first task.
        anchor: theta*, likewise.
        offset: A constant added to the sum of squares; it shows in the loss, not in the gradient.
    """

    carries: ClassVar[tuple[Part, ...]] = (
        Network(),
        PositiveNumber("offset"),
        PerValue("importance", "importance"),
        PerValue("anchor", "importance"),
    )
    config: RegularisedConfig
    importance: Values
    anchor: Values
    offset: float

    def train(self, task: Task, train: DataSet) -> Learning:
        """Trains on the task under the penalty."""
        optimiser, penalty = self.fresh_optimiser(), self.penalty()
        pull = None if penalty is None else penalty.add
        step = network_step(self.network, self.competing(task).loss, optimiser, pull=pull)
        return self.train_by(step, task, train, self.config.keep)

    def penalty(self) -> QuadraticPenalty | None:
        """The current penalty; None before the first task and with strength 0."""
        if not self.importance or self.config.strength == 0:
            return None
        values = self.plastic()
        return QuadraticPenalty(
            self.config.strength,
            list(values.values()),
            [self.importance[name] for name in values],
            [self.anchor[name] for name in values],
            self.offset,
        )

    def hold(self, importance: Values, anchor: Values | None = None, offset: float = 0.0) -> None:
        """Holds the values near ``anchor``, by default where they are now.

        Raises:
            DivergedError: An importance is no longer a finite number.
        """
        if not all(bool(each.isfinite().all()) for each in importance.values()):
            raise DivergedError(
                "the importances are no longer finite; pass a smaller learning_rate or strength"
            )
        self.importance = importance
        self.anchor = copies(self.plastic()) if anchor is None else anchor
        self.offset = offset

    def check_parts(self, parts: dict[str, Any]) -> None:
        """Each importance has an anchor, and none is negative."""
        if parts["importance"].keys() != parts["anchor"].keys():
            raise FormatError("the saved importances and anchors are not of the same values")
        if any(bool((each < 0).any()) for each in parts["importance"].values()):
            raise FormatError("a saved importance is negative")


def gradients_of(values: Iterable[Tensor]) -> list[Tensor]:
    """The ``grad`` of each value; none may be missing."""
    return [value.grad for value in values]  # type: ignore[misc]


def copies(values: Mapping[str, Tensor]) -> Values:
    """Detached copies."""
    return {name: value.detach().clone() for name, value in values.items()}


def zeros(values: Mapping[str, Tensor]) -> Values:
    """A tensor of zeros for each tensor."""
    return {name: torch.zeros_like(value) for name, value in values.items()}
