"""Interrupting a fit at any batch and resuming it in another process, bit for bit.

``fit`` yields a :class:`FitBegin` before it starts and a :class:`FitPause` at each point where it
can be interrupted. The caller takes the state at a pause, and in a later process sends it back when
the same fit begins: ``events.send(state)``. The fit then goes on from there, or returns at once if
it was over. A method's ``learn`` passes both through. So a task is resumed by learning it from its
start and sending each of its fits its saved state; what a method computes between two fits is
computed again, from the same values and the same derived random streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nispa.errors import FormatError

_MISFITS = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class FitState:
    """The complete state of a fit: tensors by name, on the CPU, and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class FitBegin:
    """A fit is about to start; a :class:`FitState` may be sent back."""


@dataclass(frozen=True)
class FitPause:
    """A point where a fit can be interrupted.

    Attributes:
        over: Whether the fit is over.
        state: Gives the state of the fit; valid until the fit goes on.
    """

    over: bool
    state: Callable[[], FitState]


@dataclass(frozen=True)
class EpochEnd:
    """The result of one epoch.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean training loss over the epoch's images.
        validation_accuracy: Accuracy on the validation set, or None if it is empty.
        samples: Training images seen in this epoch.
        seconds: Wall time, validation included.
    """

    epoch: int
    loss: float
    validation_accuracy: float | None
    samples: int
    seconds: float


@dataclass(frozen=True)
class Carried:
    """State beside the network that steps change, such as a memory.

    Attributes:
        save: Gives its tensors by name and JSON values.
        load: Restores both; raises FormatError if they do not fit.
    """

    save: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    load: Callable[[Mapping[str, Tensor], Any], None]


@dataclass
class Progress:
    """The progress of a fit, between two batches.

    Attributes:
        epoch: Number of the present epoch, from 1.
        batches: Batches of it that are over.
        loss: Sum of the losses of its images so far, a float64 scalar.
        seconds: Wall time of it so far.
        ends: The epochs that are over.
        best: Accuracy of the best epoch so far, whose number is ``best_epoch``.
        kept: Values of the best epoch.
        over: Whether the fit is over.
    """

    loss: Tensor
    epoch: int = 1
    batches: int = 0
    seconds: float = 0.0
    ends: list[EpochEnd] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    over: bool = False

    def save(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer | None,
        carried: Sequence[Carried],
    ) -> FitState:
        """Copies of all state. A fit that is over leaves out optimiser and best epoch."""
        tensors = _under("network.", network.state_dict())
        values: dict[str, Any] = {
            "epoch": self.epoch,
            "batches": self.batches,
            "seconds": self.seconds,
            "ends": [asdict(end) for end in self.ends],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "over": self.over,
            "carried": [],
        }
        for number, each in enumerate(carried):
            state, rest = each.save()
            tensors |= _under(f"carried{number}.", state)
            values["carried"].append(rest)
        if not self.over:
            tensors |= _under("kept.", self.kept) | _under("", {"loss": self.loss})
            tensors |= _under("optimiser.", _moments(optimiser))
        return FitState(tensors, values)

    def load(
        self,
        state: FitState,
        network: nn.Module,
        optimiser: torch.optim.Optimizer | None,
        carried: Sequence[Carried],
    ) -> None:
        """Restores the state that :meth:`save` gave.

        Raises:
            FormatError: It does not fit.
        """
        try:
            self._take(state.values)
            network.load_state_dict(_below("network.", state.tensors))
            for number, (each, values) in enumerate(
                zip(carried, state.values["carried"], strict=True)
            ):
                each.load(_below(f"carried{number}.", state.tensors), values)
            if not self.over:
                device = self.loss.device
                self.loss = state.tensors["loss"].to(device, torch.float64).reshape(())
                kept = _below("kept.", state.tensors).items()
                self.kept = {name: value.to(device) for name, value in kept}
                _put_moments(optimiser, _below("optimiser.", state.tensors))
        except _MISFITS as error:
            text = " ".join(str(error).split())
            raise FormatError(f"the saved state of training does not fit: {text}") from None

    def _take(self, values: Mapping[str, Any]) -> None:
        for name in ("epoch", "batches", "best_epoch"):
            if type(values[name]) is not int or values[name] < 0:
                raise ValueError(f"{name} is {values[name]!r}")
            setattr(self, name, values[name])
        self.over, self.seconds = values["over"] is True, float(values["seconds"])
        self.best = None if values["best"] is None else float(values["best"])
        self.ends = [_epoch_end(end, number) for number, end in enumerate(values["ends"], 1)]
        if self.epoch != len(self.ends) + 1 or (self.over and not self.ends):
            raise ValueError(f"epoch {self.epoch} after {len(self.ends)} epochs")
        if (self.best, self.best_epoch) != best_of(self.ends):
            raise ValueError(f"epoch {self.best_epoch} is not the best one")


def best_of(ends: Sequence[EpochEnd]) -> tuple[float | None, int]:
    """Accuracy and number of the best epoch, the first of equals; without validation the last."""
    best, number = None, 0
    for end in ends:
        accuracy = end.validation_accuracy
        if accuracy is None or best is None or accuracy > best:
            best, number = accuracy, end.epoch
    return best, number


def _epoch_end(values: Mapping[str, Any], number: int) -> EpochEnd:
    """An epoch from a file, checked: its numbers go into sums and records."""
    end = EpochEnd(**values)
    numbers = (end.loss, end.seconds, end.validation_accuracy or 0.0)
    if type(end.samples) is not int or not 0 <= end.samples < 2**63:
        raise ValueError(f"epoch {number} saw {end.samples!r} images")
    if end.epoch != number or not all(math.isfinite(each) for each in numbers):
        raise ValueError(f"epoch {number} holds {end}")
    return end


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value.detach().cpu().clone() for name, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _moments(optimiser: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """The optimiser's tensors, by the number of the parameter and their own name."""
    if optimiser is None:
        return {}
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimiser))
        for name, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _put_moments(optimiser: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]) -> None:
    """Restores the tensors that :func:`_moments` gave."""
    parameters = _parameters(optimiser) if optimiser is not None else []
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(f"'{key}' of shape {tuple(value.shape)} is not a parameter's")
        assert optimiser is not None
        optimiser.state[parameter][name] = value.to(parameter.device).clone()


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
