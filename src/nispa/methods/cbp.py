"""Continual backprop: in each step a few of the least useful units begin anew.

Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood and Sutton, "Loss of plasticity in deep continual
learning", Nature 632, 2024.

Each hidden unit has an age a, a utility u and a mean activation m. After each update, with h its
activations on the batch, w_in and w_out its input and output weights, and eta ``utility_decay``:

    a <- a + 1
    m <- eta m + (1 - eta) mean(h),        m' = m / (1 - eta^a)
    u <- eta u + (1 - eta) y,              u' = u / (1 - eta^a)

where y, by ``utility``, is

    contribution:       mean abs(w_out) * mean abs(h)
    zero_contribution:  mean abs(w_out) * mean abs(h - m')
    adaptable:          mean abs(w_out) * mean abs(h - m') / mean abs(w_in)

In each layer a share ``replacement_rate`` of the units with a > ``maturity`` is renewed, those with
the smallest u'. Shares of a unit add up from step to step until they make a whole one. A renewed
unit gets new inputs, outputs of 0 and a bias of 0; w_out m' is added to the biases of its readers;
its a, u, m and the optimiser's moments become 0 (:mod:`nispa.methods.renewing`).

It works against the loss of plasticity, not against forgetting. The add-on
:class:`ContinualBackprop` serves any step; the method adds it to fine-tuning.

Differences from the paper and from the published code:
- Sparse networks keep their pattern: live inputs are drawn again, live outputs become 0. Means of
  weights count other positions as 0, so for a dense network they are the published ones.
- New inputs are drawn as the network's first values are, normally and with the same deviation as
  the published uniform ones.
- The published code sets m to 0 just before it computes w_out m', which is then 0. Here it is moved
  into the biases before.
- Adam's count of steps, one for all values of a layer, stays; the published one counts for each
  value. SGD, which is published, has none.
- The published code can also replace by chance instead of adding up.
- Each task has a new optimiser, as with every method here.
- In a network of any module, layers may read a unit at several places and after a norm. Then what
  each of them reads of it on average in the batch, not m', is moved into its biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.data.tasks import Task
from nispa.errors import FormatError
from nispa.methods.base import Learning, Method, MethodState, Part
from nispa.methods.carried import take_tensors
from nispa.methods.finetune import Finetune, FinetuneConfig
from nispa.methods.parts import Network
from nispa.methods.renewing import (
    Streams,
    activations,
    drawing,
    per_column,
    renew,
    renewable,
    sizes,
    streams_of,
)
from nispa.network.models import NetworkConfig, SparseNetwork
from nispa.network.reads import Reads
from nispa.training.fit import Batch, Step

Utility = Literal["contribution", "zero_contribution", "adaptable"]

LEAST = 1e-30
"""What a mean of input weights is at least, so that a utility is finite."""


@settings
class CbpConfig(FinetuneConfig):
    """Settings of continual backprop, with the paper's symbols as aliases."""

    replacement_rate: float = setting(
        1e-4, "share of the mature units renewed in each step", ge=0, le=1, aliases=("rho",)
    )
    maturity: int = setting(100, "a unit is safe for so many steps", ge=0, le=1_000_000_000)
    utility_decay: float = setting(
        0.99, "share of the past in running means of utility and activation", ge=0, lt=1,
        aliases=("eta",),
    )  # fmt: skip
    utility: Utility = setting(
        "adaptable",
        "what makes a unit useful: its contribution, that of its changes, or the latter over the "
        "size of its inputs",
    )


def running(before: Tensor, now: Tensor, decay: float) -> Tensor:
    """A running mean with one more value."""
    return decay * before + (1 - decay) * now


def corrected(mean: Tensor, age: Tensor, decay: float) -> Tensor:
    """A running mean without the pull of the 0 that it began with, ``age`` values ago."""
    return mean / (1 - decay**age)


def usefulness(
    kind: Utility, said: Tensor, mean: Tensor, outputs: Tensor, inputs: Tensor
) -> Tensor:
    """The y of each unit, ``(units,)``.

    Args:
        kind: Of utility.
        said: h, ``(samples, units)``.
        mean: m', ``(units,)``.
        outputs: Mean sizes of output weights, ``(units,)``.
        inputs: Of input weights.
    """
    if kind == "contribution":
        return outputs * said.abs().mean(0)
    changes = outputs * (said - mean).abs().mean(0)
    return changes / inputs.clamp(min=LEAST) if kind == "adaptable" else changes


def due(fraction: float, rate: float, mature: int) -> tuple[int, float]:
    """How many units to renew now, and the fraction of a unit that is left for the next step."""
    total = fraction + rate * mature
    return int(total), total - int(total)


def least(utility: Tensor, among: Tensor, count: int) -> Tensor:
    """Which ``count`` units have the smallest utility; ``(units,)`` bool.

    Args:
        utility: ``(units,)``; of equal ones the first count as smaller.
        among: The units to choose from, ``(units,)`` bool.
        count: At most as many as there are.
    """
    places = among.nonzero().squeeze(1)
    chosen = torch.zeros_like(among)
    chosen[places[utility[places].argsort(stable=True)[:count]]] = True
    return chosen


Records = dict[str, Tensor]
"""Per hidden group ``(3, units)`` float32: age, u and m; and ``"fractions"``, ``(groups,)``."""


class ContinualBackprop(nn.Module):
    """A network whose least useful units begin anew: an add-on to any step.

    Attributes:
        network: The network; frozen units never begin anew.
    """

    fractions: Tensor

    def __init__(
        self, network: SparseNetwork, config: CbpConfig, first: NetworkConfig, records: Records
    ) -> None:
        """Goes on from some records.

        Args:
            network: The network.
            config: Rates.
            first: How the network's first values were drawn.
            records: What :meth:`records` gave, or :func:`no_records`.
        """
        super().__init__()
        self.network, self._config, self._first = network, config, first
        self._groups = [group.name for group in network.topology.hidden]
        for number, name in enumerate(self._groups):
            self.register_buffer(f"group{number}", records[name].clone())
        self.register_buffer("fractions", records[FRACTIONS].clone())
        self._free = renewable(network)

    def records(self) -> Records:
        """What outlives a fit."""
        found = {name: self._record(number).clone() for number, name in enumerate(self._groups)}
        return {**found, FRACTIONS: self.fractions.clone()}

    def _record(self, number: int) -> Tensor:
        found: Tensor = self.get_buffer(f"group{number}")
        return found

    def around(
        self,
        step: Step,
        optimiser: torch.optim.Optimizer,
        streams: Streams,
    ) -> Step:
        """A step that renews units after each update.

        Args:
            step: One update, by ``optimiser``, from images that are not prepared.
            optimiser: Whose moments renewed units lose.
            streams: From a batch and a layer's name to the stream that draws new inputs.
        """

        def renewing(batch: Batch) -> Tensor:
            seen = activations(self.network, batch)
            loss = step(batch)
            self.after(seen, optimiser, lambda name: streams(batch, name))
            return loss

        return renewing

    @torch.no_grad()
    def after(
        self,
        seen: Reads,
        optimiser: torch.optim.Optimizer,
        streams: Callable[[str], torch.Generator],
    ) -> dict[str, Tensor]:
        """Takes note of a step, and renews the units that are due.

        Args:
            seen: What units said before the update.
            optimiser: See :meth:`around`.
            streams: From a layer's name to a stream.

        Returns:
            The units renewed, per hidden group, ``(units,)`` bool.
        """
        config, decay = self._config, self._config.utility_decay
        inputs, outputs = sizes(self.network)
        chosen, means = {}, {}
        for number, name in enumerate(self._groups):
            if name not in seen.units:
                continue
            said, (age, utility, mean) = seen.units[name], self._record(number)
            age += 1
            mean.copy_(running(mean, said.mean(0), decay))
            means[name] = corrected(mean, age, decay)
            now = usefulness(config.utility, said, means[name], outputs[name], inputs[name])
            utility.copy_(running(utility, now, decay))
            mature = (age > config.maturity) & self._free[name]
            fraction = float(self.fractions[number])
            count, left = due(fraction, config.replacement_rate, int(mature.sum()))
            self.fractions[number] = left
            chosen[name] = least(corrected(utility, age, decay), mature, count)
            self._record(number)[:, chosen[name]] = 0
        if any(bool(units.any()) for units in chosen.values()):
            told = per_column(self.network, means) if seen.means is None else seen.means
            renew(self.network, chosen, drawing(self._first, streams), optimiser, told)
        return chosen


FRACTIONS = "fractions"


def no_records(network: SparseNetwork) -> Records:
    """The records of a network that has not learned yet."""
    hidden = network.topology.hidden
    found = {group.name: torch.zeros(3, group.size) for group in hidden}
    return {**found, FRACTIONS: torch.zeros(len(hidden), dtype=torch.float64)}


class UnitRecords(Part):
    """The age, utility and mean activation of each hidden unit."""

    def first(self, method: Method, parts: Mapping[str, Any]) -> Records:
        """Nothing known."""
        return {name: each.to(method.device) for name, each in no_records(parts["network"]).items()}

    def save(self, value: Records) -> MethodState:
        """A tensor for each group."""
        copies = {f"importance.{name}": each.detach().cpu().clone() for name, each in value.items()}
        return MethodState(copies, {})

    def load(self, state: MethodState, method: Method, parts: Mapping[str, Any]) -> Records:
        """Numbers for every unit."""
        found, wanted = take_tensors(state, "importance."), no_records(parts["network"])
        if found.keys() != wanted.keys():
            raise FormatError("the saved utilities are not those of the network's hidden groups")
        for name, each in wanted.items():
            if found[name].shape != each.shape or found[name].dtype != each.dtype:
                raise FormatError(f"the saved utilities of '{name}' do not fit its units")
            if not bool(found[name].isfinite().all()):
                raise FormatError(f"a saved utility of '{name}' is not finite")
            if name != FRACTIONS and bool((found[name][:2] < 0).any()):
                raise FormatError(f"a saved age or utility of '{name}' is negative")
        if not bool(((found[FRACTIONS] >= 0) & (found[FRACTIONS] < 1)).all()):
            raise FormatError("a saved fraction of a unit is not in [0, 1)")
        return {name: each.to(method.device) for name, each in found.items()}


class Cbp(Finetune):
    """Fine-tuning with continual backprop.

    Attributes:
        units: Age, utility and mean activation of each hidden unit.
    """

    name = "cbp"
    published = "Dohare et al., Nature 2024"
    config_class = CbpConfig
    carries = (Network(), UnitRecords("units", "importance"))
    config: CbpConfig
    units: Records

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task alone, and renews units meanwhile."""
        addon = ContinualBackprop(self.network, self.config, self.network_config, self.units)

        streams = streams_of(self.seed, task.index)
        report = yield from self.tune(
            task, lambda step: addon.around(step, self.optimiser, streams), addon
        )
        self.units = addon.records()
        return report
