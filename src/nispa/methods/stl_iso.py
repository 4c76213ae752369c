"""Single-task learning at equal size: all tasks' networks together have NISPA's live connections.

Like ``stl``, with the density divided by the number of tasks, which must therefore be known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from nispa.errors import ConfigError
from nispa.methods.base import Problem
from nispa.methods.stl import Stl
from nispa.network.models import NetworkConfig


class StlIso(Stl):
    """One network per task, each with an equal share of the live connections."""

    name = "stl-iso"
    forgets_nothing = "yes"

    def __init__(
        self,
        problem: Problem,
        network: NetworkConfig,
        config: Any,
        *,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        """Raises ConfigError if the number of tasks is unknown."""
        if problem.tasks is None:
            raise ConfigError("stl-iso divides the density by the number of tasks; pass tasks=")
        share = replace(network, density=network.density / problem.tasks)
        super().__init__(problem, share, config, seed=seed, device=device)
