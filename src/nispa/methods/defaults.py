"""From data to settings: what the preset ``default`` takes where no benchmark belongs to the data.

Pure functions of a few facts, the same for every method. :func:`network` is asked when a network is
built; :data:`RULES` when a task is known. docs/defaults.md tells why each rule is as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nispa.base.shapes import Shape, is_image
from nispa.data.augment import OFF
from nispa.network.models import ARCHITECTURES

CONVNET_FROM = 16
"""Pixels of the shorter side from which on images get convolutions."""
ROOMS, LEAST_WIDE, MOST_WIDE = 30.0, {"convnet": 1.5}, 3.0
"""See :func:`width`."""
OF_THE_PAPER = ("mlp", "convnet")
"""Networks for which the rules were first chosen; the others are those of any module."""
SHARE_FACTOR = 1.5
"""See :func:`unit_share`."""
MIN_UPDATES, MAX_UPDATES, USUAL_EPOCHS = 50, 1000, 5
"""Of a phase."""
EPOCHS_IN_ONE = 8
"""How many times these epochs a whole fit takes, with at least sixteen times these updates."""
FEWEST_PHASES, LEAST_PHASES, PUBLISHED_K = 2, 7, 30.0
"""Phases after which a task may end: where a last fit starts afresh; and where it does not, with
the published schedule."""


@dataclass(frozen=True)
class Facts:
    """Facts about a task that are known before it is learned.

    Attributes:
        images: Training images of an epoch.
        shape: The shape of one.
        classes: Classes that no earlier task had.
        outputs: Outputs that no earlier task took, those of this task included.
        optimiser: Name of the optimiser.
        kind: The network's architecture.
        k: Parameter of the tau schedule.
        incremental: What each task adds: ``"task"``, ``"class"`` or ``"domain"``.
        share_factor: See :func:`unit_share`.
        fresh: Whether a last fit starts afresh, as the user says; None follows the rules.
        all_outputs: Outputs of all tasks; None: those that no earlier task took.
    """

    images: int
    classes: int
    outputs: int
    optimiser: str = "adam"
    kind: str = "convnet"
    k: float = PUBLISHED_K
    shape: Shape = ()
    incremental: str = "task"
    share_factor: float = SHARE_FACTOR
    fresh: bool | None = None
    all_outputs: int | None = None

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return math.ceil(self.images / batch_size(self))


def architecture(input_shape: Shape) -> str:
    """A ConvNet for images, an MLP for what is smaller or no image."""
    large = is_image(input_shape) and min(input_shape[1:]) >= CONVNET_FROM
    return "convnet" if large else "mlp"


def width(kind: str, outputs: int, tasks: int | None) -> float:
    """By what factor a network is wider than the published one: at most 3, a ConvNet at least 1.5.

    A task of C classes needs room for about sqrt(C) times what the simplest needs, and all tasks
    need theirs side by side; the published sizes are taken to be enough for thirty such rooms. In
    the published ConvNet a task that keeps a fifth of the units has no more than 13 first channels.

    Args:
        kind: Name of the architecture.
        outputs: Classes of all tasks to come.
        tasks: How many tasks they come in; None takes about as many as a task has classes.
    """
    many = tasks or max(1.0, math.sqrt(outputs))
    needed = many * math.sqrt(outputs / many) / ROOMS
    return min(MOST_WIDE, max(LEAST_WIDE.get(kind, 1.0), needed))


def network(kind: str, input_shape: Shape, outputs: int, tasks: int | None) -> dict[str, Any]:
    """The network's settings.

    Args:
        kind: Name of the architecture.
        input_shape: The shape of a sample.
        outputs: See :func:`width`.
        tasks: See :func:`width`.
    """
    suggested = ARCHITECTURES[kind].suggest(input_shape, width(kind, outputs, tasks))
    return {"architecture": kind, **suggested}


def memory(outputs: int) -> int:
    """Samples that a method with a memory keeps: a hundred a class, within [200, 5,000]."""
    return max(outputs, min(5000, max(200, 100 * outputs)))


def batch_size(facts: Facts) -> int:
    """An eighth of the images as a power of two, within [16, 128]."""
    eighth = max(1, facts.images // 8)
    return min(128, max(16, 1 << (eighth.bit_length() - 1)))


def epochs_per_phase(facts: Facts, least: int = MIN_UPDATES) -> int:
    """Five; more where these are fewer than 50 updates, fewer where they are over 1,000."""
    most = max(1, MAX_UPDATES // facts.updates)
    return max(math.ceil(least / facts.updates), min(USUAL_EPOCHS, most))


def epochs(facts: Facts) -> int:
    """Eight times five; more where these are fewer than 800 updates, fewer where over 8,000."""
    return EPOCHS_IN_ONE * epochs_per_phase(facts, least=2 * MIN_UPDATES)


def min_phases(facts: Facts) -> int:
    """Two, as few as there can be, where a last fit trains the values afresh; else seven.

    Phases choose the units then, and more of them only leave a task with less than its share.
    Without that fit, a task that ends sooner has had fewer updates than in one go. With a faster
    schedule fewer than seven, or tau would have fallen too far by then for accuracy to return.
    """
    if _afresh(facts):
        return FEWEST_PHASES
    return max(FEWEST_PHASES, min(LEAST_PHASES, int(LEAST_PHASES * facts.k / PUBLISHED_K)))


def settle_fresh(facts: Facts) -> bool:
    """Where tasks have outputs of their own; else plastic values hold what was learned before."""
    return facts.incremental == "task"


def _afresh(facts: Facts) -> bool:
    return settle_fresh(facts) if facts.fresh is None else facts.fresh


def max_share_per_task(facts: Facts) -> float:
    """The task's share of all classes, where a last fit starts afresh; the last may keep all.

    A residual network loses accuracy in phases long before a task is down to its share, and the
    task would keep most units. Nearly all tasks of the paper's networks get down to their share.
    """
    own, left = max(1, facts.classes), max(1, facts.outputs)
    if facts.kind in OF_THE_PAPER or own >= left or not _afresh(facts):
        return 1.0
    return own / max(left, facts.all_outputs or left)


def unit_share(facts: Facts) -> float:
    """The task's share of the classes still to come, its own included, times ``share_factor``.

    Half as much again by default: later tasks reuse what earlier ones keep, so they need fewer
    units of their own. The last task may keep all.
    """
    own, left = max(1, facts.classes), max(1, facts.outputs)
    return 1.0 if own >= left else min(1.0, facts.share_factor * own / left)


def augment(facts: Facts) -> str:
    """Crops of images that are large enough for a ConvNet, moved by up to an eighth of a side.

    They are not mirrored: left and right may be what tells classes apart.
    """
    return "crop" if architecture(facts.shape) == "convnet" else OFF


RULES: Mapping[str, Callable[[Facts], Any]] = {
    "learning_rate": lambda facts: ARCHITECTURES[facts.kind].learning_rates[facts.optimiser],
    "batch_size": batch_size,
    "augment": augment,
    "decay": lambda _: "linear",
    "keep": lambda _: "last",
    "epochs": epochs,
    "retrain_epochs": lambda facts: epochs(facts) // 2,
    "epochs_per_phase": epochs_per_phase,
    "settle_epochs": epochs,
    "settle_fresh": settle_fresh,
    "restart_level": lambda facts: facts.incremental == "task" and facts.kind in OF_THE_PAPER,
    "refill": lambda _: True,
    "min_phases": min_phases,
    "drop_errors": lambda _: 2.0,
    "unit_share": unit_share,
    "max_share_per_task": max_share_per_task,
}
"""The settings that follow the data of each task, by their names."""


def sentence(network: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """The derived settings in one line; empty if there are none.

    Args:
        network: Settings of the network, derived or given.
        tasks: Those of each task.
    """
    parts = []
    for name in tasks[0] if tasks else ():
        values = [task[name] for task in tasks]
        if isinstance(values[0], str) or min(values) == max(values):
            parts.append(f"{name} {_short(values[0])}")
        else:
            parts.append(f"{name} {_short(min(values))} to {_short(max(values))}")
    if not parts:
        return ""
    sizes = ", ".join(f"{name} {_short(value)}" for name, value in network.items())
    return f"network: {sizes}; derived from the data: {', '.join(parts)}"


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "-".join(str(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
