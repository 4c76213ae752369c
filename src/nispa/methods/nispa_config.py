"""The settings of NISPA, named as in the paper where the paper names them."""

from __future__ import annotations

from typing import Literal

from nispa.base.config import setting, settings
from nispa.mechanism.grow import GROWTH_RULES, PUBLISHED_NAMES, growth_rule
from nispa.mechanism.schedule import SCHEDULES, TAU_MIN, check_schedule, tau
from nispa.methods.base import MethodConfig
from nispa.methods.defaults import SHARE_FACTOR
from nispa.methods.epochs import Keep
from nispa.methods.growth import DynamicConfig


@settings
class NispaConfig(DynamicConfig, MethodConfig):
    """Settings of NISPA, named as in the paper where the paper names them."""

    epochs_per_phase: int = setting(
        5, "epochs of training in each phase", ge=1, le=1_000_000, aliases=("e",)
    )
    accuracy_drop: float = setting(
        0.75, "tolerated loss of validation accuracy, in points", ge=0, le=100, aliases=("a_f",)
    )
    drop_errors: float = setting(
        0.0,
        "a loss of accuracy counts only beyond so many standard errors of the difference, from the "
        "validation images that one phase has right and the other wrong",
        ge=0,
        le=100,
    )
    unit_share: float = setting(
        0.0,
        "a task ends once it keeps at most this share of the plastic units, averaged over layers; "
        "0 never ends it so",
        ge=0,
        le=1,
    )
    share_factor: float = setting(
        SHARE_FACTOR,
        "where unit_share is derived, how many times the task's share of all classes to come it "
        "is; the last task may keep all",
        gt=0,
        le=100,
    )
    max_share_per_task: float = setting(
        1.0,
        "share of each layer's units that one task may keep beside those of earlier tasks, where "
        "many tasks must fit; 1 sets no limit",
        gt=0,
        le=1,
    )
    grow_when_full: float = setting(
        0.0,
        "for nispa alone: a task that finds a layer with no more than a tenth of its units plastic "
        "first makes all hidden layers wider, by this share of their first size; 0 never does",
        ge=0,
        le=10,
    )
    stop_when_full: bool = setting(
        True,
        "a task that finds no plastic unit it could use ends after min_phases and one more, since "
        "rewiring has nothing to move",
    )
    keep: Keep = setting(
        "best", "the epoch a phase ends with: best on the validation images, or the last"
    )
    settle_epochs: int = setting(
        0,
        "further epochs of training for the network of the last good phase, before its units "
        "become stable",
        ge=0,
        le=1_000_000,
    )
    settle_fresh: bool = setting(False, "draw all plastic values again before settle_epochs")
    schedule: str = setting("cosine", "how tau falls", choices=lambda: tuple(SCHEDULES))
    k: float = setting(30.0, "parameter of the tau schedule", gt=0)
    tau_min: float = setting(TAU_MIN, "a task ends when tau is not above this share", ge=0, lt=1)
    min_phases: int = setting(2, "accuracy may end a task only after this many phases", ge=2)
    max_phases: int | None = setting(None, "end a task in this phase at the latest", ge=3)
    growth: str = setting(
        "full",
        "where new connections come from",
        choices=lambda: (*GROWTH_RULES, *PUBLISHED_NAMES),
    )
    growth_init: Literal["normal", "uniform", "zero"] = setting(
        "normal", "values of new connections, like those of the layer or zero"
    )
    refill: bool = setting(
        False, "candidates get back, from kept units, as many connections as they lost"
    )
    restart: bool = setting(True, "draw plastic weights again after each task")
    restart_init: Literal["fan_in", "fan_out"] = setting(
        "fan_in", "Kaiming-normal mode of that draw"
    )
    restart_level: bool = setting(
        False, "scale drawn weights, so that each layer's sums are as large as in a fresh network"
    )
    other_logits: Literal["slice", "zero", "keep"] = setting(
        "slice",
        "logits of classes that do not compete: left out, multiplied by 0 (published), or kept in "
        "the soft-max",
    )
    demote_unsupported: bool = setting(True, "candidates that nothing stable feeds stay plastic")
    revive_with_growth: bool = setting(
        True, "a revived unit's connection starts like a grown one, not at 0 (published)"
    )
    carry_over: bool = setting(
        True, "connections that found no place are tried again at the next rewiring"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        growth_rule(self.growth)
        check_schedule(self.schedule, self.k, self.tau_min)


def last_phase(config: NispaConfig) -> int:
    """The phase in which a task ends at the latest."""
    last = config.max_phases or _ENDLESS
    return next(
        (t for t in range(1, last) if tau(config.schedule, t, config.k) <= config.tau_min), last
    )


_ENDLESS = 10_000
