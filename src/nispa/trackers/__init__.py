"""Experiment trackers by name: programs and services that show a run's curve while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

from nispa.errors import ConfigError, InputError, unknown_name
from nispa.files import wording
from nispa.trackers.base import Opened, Tracker
from nispa.trackers.following import tracked
from nispa.trackers.mlflow import MLflow
from nispa.trackers.tensorboard import TensorBoard
from nispa.trackers.wandb import WandB

__all__ = ["TRACKERS", "Opened", "Tracker", "open_trackers", "tracked"]

TRACKERS: MappingProxyType[str, Callable[[], Tracker]] = MappingProxyType(
    {cls.name: cls for cls in (TensorBoard, WandB, MLflow)}
)


def open_trackers(names: Iterable[str]) -> list[Tracker]:
    """Makes the trackers of these names, without repetitions; writes and sends nothing yet.

    Raises:
        UnknownNameError: No tracker has that name.
        ConfigError: Its library is missing, or its destination is not configured.
    """
    return [_open(name) for name in dict.fromkeys(names)]


def _open(name: str) -> Tracker:
    if name not in TRACKERS:
        raise unknown_name("tracker", name, TRACKERS)
    try:
        return TRACKERS[name]()
    except InputError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"tracker '{name}' needs a library that is missing ({wording(error)}); install it "
            f"with: pip install {name}"
        ) from error
    except Exception as error:  # what an older library lacks, a configuration it cannot read
        raise ConfigError(
            f"tracker '{name}' cannot be used: {wording(error)}; an update may help: "
            f"pip install --upgrade {name}"
        ) from error
