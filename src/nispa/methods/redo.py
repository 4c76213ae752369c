"""ReDo: units that say almost nothing begin anew, every so many steps.

Sokar, Agarwal, Castro and Evci, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
ICML 2023, arXiv 2302.12902.

Every ``period`` steps, with h_u the activations of unit u on the batch and the mean over the units
v of its layer, its score is

    mean abs(h_u) / (mean_v mean abs(h_v) + 1e-9)

A unit is dormant if its score is at most ``tau``. Dormant units get new inputs, outputs of 0 and a
bias of 0, and the optimiser's moments of these values become 0 (:mod:`nispa.methods.renewing`).
Outputs of the network are never renewed.

It works against the loss of plasticity, not against forgetting. The add-on
:class:`DormantRenewal` serves any step; the method adds it to fine-tuning.

Differences from the paper and from the published code:
- Steps are counted over all tasks, there over the run of one agent. Published for deep Q-learning
  are scores of at most 0 up to 0.1, and a period of 1,000 steps and more.
- Sparse networks keep their pattern: live inputs are drawn again, live outputs become 0.
- New inputs are drawn as the network's first values are; there from Xavier's uniform distribution.
- Each task has a new optimiser, as with every method here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.methods.base import Learning
from nispa.methods.finetune import Finetune, FinetuneConfig
from nispa.methods.parts import Network, PositiveNumber
from nispa.methods.renewing import Streams, activations, drawing, renew, renewable, streams_of
from nispa.network.models import NetworkConfig, SparseNetwork
from nispa.training.fit import Batch, Step
from nispa.training.pausing import Carried


@settings
class RedoConfig(FinetuneConfig):
    """Settings of ReDo."""

    tau: float = setting(
        0.025, "a unit whose score is at most this is dormant; published: 0 to 0.1", ge=0, le=1000
    )
    period: int = setting(1000, "steps between two looks at the units", ge=1, le=1_000_000_000)


def scores(said: Tensor) -> Tensor:
    """The score of each unit, ``(units,)``, from activations ``(samples, units)``."""
    sizes = said.abs().mean(0)
    return sizes / (sizes.mean() + 1e-9)


class DormantRenewal:
    """Begins the dormant units of a network anew: an add-on to any step.

    Attributes:
        network: The network; frozen units never begin anew.
        steps: Steps so far.
    """

    def __init__(
        self, network: SparseNetwork, config: RedoConfig, first: NetworkConfig, steps: int = 0
    ) -> None:
        """Goes on after a number of steps; ``first`` says how first values were drawn."""
        self.network, self.steps = network, steps
        self._config, self._first, self._free = config, first, renewable(network)

    def around(
        self,
        step: Step,
        optimiser: torch.optim.Optimizer,
        streams: Streams,
    ) -> Step:
        """A step that renews dormant units when it is time; arguments as in ``cbp.py``."""

        def renewing(batch: Batch) -> Tensor:
            loss = step(batch)
            self.steps += 1
            if self.steps % self._config.period == 0:
                draw = drawing(self._first, lambda name: streams(batch, name))
                renew(self.network, self.dormant(batch), draw, optimiser)
            return loss

        return renewing

    @property
    def carried(self) -> Carried:
        """The number of steps, for a fit that is interrupted; those after the kept epoch count."""
        return Carried(lambda: ({}, {"steps": self.steps}), self._go_on)

    def _go_on(self, _: Mapping[str, Tensor], values: Any) -> None:
        steps = values["steps"]
        if type(steps) is not int or steps < 0:
            raise ValueError(f"there cannot have been {steps!r} steps")
        self.steps = steps

    def dormant(self, batch: Batch) -> dict[str, Tensor]:
        """The dormant units that can begin anew, per hidden group, ``(units,)`` bool."""
        return {
            name: (scores(said) <= self._config.tau) & self._free[name]
            for name, said in activations(self.network, batch).units.items()
        }


class Redo(Finetune):
    """Fine-tuning with ReDo.

    Attributes:
        steps: Steps so far.
    """

    name = "redo"
    published = "Sokar et al., ICML 2023"
    config_class = RedoConfig
    carries = (Network(), PositiveNumber("steps"))
    config: RedoConfig
    steps: float

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone, and renews dormant units meanwhile."""
        addon = DormantRenewal(self.network, self.config, self.network_config, int(self.steps))
        streams = streams_of(self.seed, task.index)
        report = yield from self.tune(
            task,
            lambda step: addon.around(step, self.optimiser, streams),
            carried=[addon.carried],
        )
        self.steps = float(addon.steps)
        return report
