"""A quadratic penalty on leaving what earlier tasks need: what L2, EWC, SI and MAS share.

While a task is learned, its loss is

    L(theta) + strength * sum_i Omega_i (theta_i - theta*_i)^2

with an importance ``Omega`` and an anchor ``theta*`` for each live plastic value; dead connections
have neither. There is no factor of a half. A method measures importances once a task is learned,
and holds them (``hold``); before that there is no penalty.

The gradient of the penalty, ``2 strength Omega (theta - theta*)``, is added to that of the loss
value by value, without a graph: three passes over the live values per step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.errors import DivergedError, FormatError
from nispa.methods.base import (
    Census,
    Learning,
    MethodState,
    count,
    load_network,
    take_tensors,
)
from nispa.methods.epochs import Keep, KeepConfig, learn_by_steps
from nispa.methods.one_network import OneNetwork
from nispa.network.models import DataSet
from nispa.training.fit import Step, accuracy, network_step

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
    """One network, held to what it was; a method built on it writes ``learn_task``.

    Attributes:
        importance: Omega; empty before the first task is learned.
        anchor: theta*, likewise.
        offset: What the sum of squares has besides, whatever the values are.
    """

    config: RegularisedConfig

    def start(self) -> None:
        """A fresh network that nothing holds."""
        super().start()
        self.importance: Values = {}
        self.anchor: Values = {}
        self.offset = 0.0

    def train(self, task: Task, train: DataSet) -> Learning:
        """Trains on the task under the penalty."""
        optimiser, penalty = self.fresh_optimiser(), self.penalty()
        pull = None if penalty is None else penalty.add
        step = network_step(self.network, self.competing(task).loss, optimiser, pull=pull)
        return self.train_by(step, task, train, self.network)

    def train_by(self, step: Step, task: Task, train: DataSet, kept: nn.Module) -> Learning:
        """Trains with a step; ``kept`` is or holds the network, and gets its best epoch back."""
        classes = self.competing(task)
        validation = task.validation.to(self.device)
        return learn_by_steps(
            kept,
            step,
            train,
            lambda: accuracy(self.network, classes.predict, validation),
            self.config,
            lambda epoch: stream(self.seed, "batches", task.index, epoch),
            self.optimiser,
            self.config.keep,
        )

    def plastic(self) -> dict[str, nn.Parameter]:
        """The tensors of live plastic values, by name; the empty ones are left out."""
        return {name: value for name, value in self.network.named_parameters() if value.numel()}

    def penalty(self) -> QuadraticPenalty | None:
        """The penalty as it stands; None where there is none."""
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
        """Holds the values at ``anchor`` (where they are now, unless said otherwise).

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

    def state(self) -> MethodState:
        """The network, importances and anchors."""
        state = super().state()
        for kind, held in (("importance.", self.importance), ("anchor.", self.anchor)):
            state.tensors.update({kind + name: each.cpu() for name, each in copies(held).items()})
        state.values["offset"] = self.offset
        return state

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        network = load_network(self, state)
        offset = state.values.get("offset")
        if type(offset) is not float or not 0 <= offset < math.inf:
            raise FormatError(f"'offset' of {offset!r} must be a number that is not negative")
        values = {name: value for name, value in network.named_parameters() if value.numel()}
        importance, anchor = (
            _fitting(take_tensors(state, kind), values, kind) for kind in ("importance.", "anchor.")
        )
        if importance.keys() != anchor.keys():
            raise FormatError("the saved importances and anchors are not of the same values")
        if any(bool((each < 0).any()) for each in importance.values()):
            raise FormatError("a saved importance is negative")
        self.network, self.offset = network, offset
        self.importance, self.anchor = importance, anchor

    def census(self) -> Census:
        """Connections, and the bytes of importances and anchors."""
        held = [*self.importance.values(), *self.anchor.values()]
        size = sum(each.numel() * each.element_size() for each in held)
        return count({"": self.network}, storage={"importance": size})


def gradients_of(values: Iterable[Tensor]) -> list[Tensor]:
    """The ``grad`` of each value, which must be there."""
    return [value.grad for value in values]  # type: ignore[misc]


def copies(values: Mapping[str, Tensor]) -> Values:
    """Copies of some tensors, detached."""
    return {name: value.detach().clone() for name, value in values.items()}


def zeros(values: Mapping[str, Tensor]) -> Values:
    """A tensor of zeros for each tensor."""
    return {name: torch.zeros_like(value) for name, value in values.items()}


def _fitting(saved: Values, values: Mapping[str, Tensor], kind: str) -> Values:
    """Saved tensors on the device of ``values``, if they are one finite number for each value.

    Raises:
        FormatError: They are not, and there are some.
    """
    if not saved:  # nothing learned yet
        return {}
    if saved.keys() != values.keys():
        raise FormatError(f"the saved '{kind}' tensors are not those of the network's values")
    for name, value in values.items():
        each = saved[name]
        if each.shape != value.shape or each.dtype != value.dtype:
            raise FormatError(
                f"'{kind}{name}' of shape {tuple(each.shape)} and type {each.dtype} must be of "
                f"shape {tuple(value.shape)} and type {value.dtype}"
            )
        if not bool(each.isfinite().all()):
            raise FormatError(f"'{kind}{name}' holds a value that is not finite")
    return {name: saved[name].to(value.device) for name, value in values.items()}
