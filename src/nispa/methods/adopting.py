"""A trained network as the first task: its classes are kept, and nothing is trained for it.

The network begins with the values of the user's module. Sets of units are tried, from all units to
ever fewer, as the method itself chooses them: what leads into them from other units is cut, and the
accuracy on the examples is measured. The last set whose accuracy is within the margin of the
module's own becomes stable. From then on it is a task as any other: its logits stay the same, bit
for bit, and all other units learn what comes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nispa.data.tasks import Task
from nispa.errors import ConfigError
from nispa.methods.base import Method
from nispa.methods.events import Adoption
from nispa.methods.stable import freeze_stable, with_outputs
from nispa.network.keeping import drop_into
from nispa.network.models import DataSet
from nispa.training.fit import accuracy


class AdoptsTrained(Method):
    """A method with stable units that can begin with a trained network.

    Attributes:
        stable: Stable units per group, ``(units,)`` bool.
    """

    config: Any
    stable: dict[str, Tensor]

    @abstractmethod
    def cuts(self, task: Task, train: DataSet) -> Iterator[dict[str, Tensor]]:
        """Sets of units to keep, per group, ``(units,)`` bool, from more to fewer.

        Args:
            task: The task.
            train: Its images, to measure activity on.
        """

    @property
    @abstractmethod
    def margin(self) -> tuple[str, float]:
        """The setting that says what accuracy may be lost, and its value in points."""

    def adopt(self, task: Task) -> Adoption:
        """Keeps as few units as hold the accuracy of the module that the network came from.

        Args:
            task: Its classes, and examples of them, which are its validation images, too.

        Raises:
            ConfigError: The network does not come from a trained module, a task was learned, or not
                even all units hold the accuracy.
            IsolationError: Logits to keep change with values that are not kept.
        """
        self.check(task, self.learned)
        model, network = self.problem.model, self.network
        if model is None or model.values != "model":
            raise ConfigError(
                "adopt needs a learner that was made with a trained module and its values: pass "
                "model=..., values='model' and density=1.0"
            )
        if self.learned:
            raise ConfigError(
                f"adopt is for the first task, and {len(self.learned)} are learned; make a new "
                "learner"
            )
        train, examples = self.prepare_both(network, task)
        classes, (setting, points) = self.class_mask(task.classes), self.margin
        before = accuracy(model.as_given().to(self.device), classes.predict, examples)
        assert before is not None  # refused by check
        first = {name: value.clone() for name, value in network.state_dict().items()}
        best: tuple[dict[str, Tensor], float] | None = None
        for units in self.cuts(task, train):
            kept = with_outputs(network.topology, units, task.classes)
            drop_into(network, kept)
            found = accuracy(network, classes.predict, examples)
            network.load_state_dict(first)  # each cut is one of the whole network, not of the last
            assert found is not None
            if best is None and found < before - points / 100:
                density = self.network_config.density
                raise ConfigError(
                    f"the model tells {100 * before:.1f} % of the examples right, but as a network "
                    f"of density={density:g} with all units that may be kept only "
                    f"{100 * found:.1f} %; pass a larger density (1 keeps all connections), "
                    f"{setting} or max_share_per_task, or let it learn on: learn"
                )
            if found < before - points / 100:
                break
            best = kept, found
        assert best is not None  # cuts begin with one
        self.stable, after = best
        self.take_note(drop_into(network, self.stable))
        freeze_stable(network, self.stable)
        if getattr(self.config, "restart", True):
            self.redraw_plastic(task, self.config.restart_init)
        self.learned.append(task.info)
        return Adoption(before, after, self.census().stable)

    def take_note(self, dropped: dict[str, int]) -> None:
        """Takes note of connections that were cut, by layer."""

    def every_unit(self) -> dict[str, Tensor]:
        """All hidden units, and what is stable, per group, ``(units,)`` bool."""
        hidden = self.network.topology.hidden
        every = {group.name: torch.ones(group.size, dtype=torch.bool) for group in hidden}
        return {**self.stable, **every}
