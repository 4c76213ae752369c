"""What learning a task tells whoever drives it: events, and a report at the end.

``learn`` yields an event wherever the method's state is whole. The driver may show it, record it,
stop there, or leave the task and continue it later (:mod:`nispa.training.pausing`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from nispa.training.fit import FitResult
from nispa.training.pausing import EpochEnd, FitBegin, FitPause, FitState


@dataclass(frozen=True)
class PhaseStart:
    """A phase begins.

    Attributes:
        phase: Its number, from 1; methods without phases have one.
        tau: Share of activation that selected its candidates; None without candidates.
        epochs: Its number of epochs, at most.
        phases: The task's number of phases, at most.
        stable_share: Share of hidden units that are stable or candidates during the phase.
    """

    phase: int
    epochs: int
    phases: int = 1
    tau: float | None = None
    stable_share: float | None = None


@dataclass(frozen=True)
class PhaseEnd:
    """A phase is over.

    Attributes:
        phase: Its number, from 1.
        accuracy: Validation accuracy of the network it ends with.
        tau: Share of activation that selects the next candidates, None if none are selected.
        kept: Stable units and new candidates, per hidden group.
        dropped: Connections dropped per layer; ``revived``, ``grown`` and ``ungrown`` likewise.
        seconds: Wall time of the phase, rewiring included.
    """

    phase: int
    accuracy: float | None
    seconds: float
    tau: float | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    revived: Mapping[str, int] = field(default_factory=dict)
    grown: Mapping[str, int] = field(default_factory=dict)
    ungrown: Mapping[str, int] = field(default_factory=dict)


Event = PhaseStart | EpochEnd | PhaseEnd
"""An event of learning."""

Fitting = Generator[Event | FitBegin | FitPause, FitState | None, FitResult]
"""A fit within a task."""


@dataclass(frozen=True)
class LearnReport:
    """How a task was learned.

    Attributes:
        phases: Phases trained, including one that was undone.
        samples_trained: Training images seen, repetitions included.
        tau: Share of activation that selected the units now stable, or None.
        stop_reason: Why learning ended, such as ``"epochs"`` or ``"accuracy_drop"``.
        online_accuracy: Share of the training images told right just before the network first
            learned from them; None if it was not measured.
    """

    phases: int
    samples_trained: int
    tau: float | None
    stop_reason: str
    online_accuracy: float | None = None


@dataclass(frozen=True)
class Adoption:
    """What became of a trained network that was taken up as a first task.

    Attributes:
        before: Share of the examples that the module told right as it was given.
        after: Share of them that the units kept tell right.
        units: Stable units and size of each hidden group.
    """

    before: float
    after: float
    units: Mapping[str, tuple[int, int]]


Learning = Generator[Event | FitBegin | FitPause, FitState | None, LearnReport]
"""Learning one task; the driver may ignore :class:`FitBegin` and :class:`FitPause`."""
