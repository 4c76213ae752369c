"""Growth on demand: a network that is nearly full gets wider, at the same density.

Not in the paper, whose network has a fixed size. Every hidden layer gets plastic units, behind
those it has, and every layer as many connections as its density asks for. They enter plastic units
alone, so no stable unit reads anything that it did not read before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nispa.base.capacity import NEARLY
from nispa.base.seeding import stream
from nispa.data.tasks import Task
from nispa.errors import ConfigError, FormatError
from nispa.mechanism.grow import choose
from nispa.methods.carried import MethodState, Part, Tally
from nispa.network.initialise import kaiming_values, layer_densities
from nispa.network.layers import SparseLayer
from nispa.network.models import NetworkConfig, SparseNetwork
from nispa.network.topology import Topology, UnitSets

if TYPE_CHECKING:
    from nispa.methods.nispa import Nispa

CHECKED = 256
"""Images on which old logits are compared."""
MOST = 1000
"""How often a network may have grown."""


class Widenings(Part):
    """How often the network has grown; listed before the network, whose sizes follow."""

    def first(self, method: object, parts: Mapping[str, object]) -> int:
        """Never."""
        return 0

    def save(self, value: int) -> MethodState:
        """A number, if it is not 0."""
        return MethodState({}, {self.name: value} if value else {})

    def load(self, state: MethodState, method: object, parts: Mapping[str, object]) -> int:
        """0 in files of methods that do not grow."""
        value = state.values.get(self.name, 0)
        if type(value) is not int or not 0 <= value <= MOST:
            raise FormatError(f"'{self.name}' must be a whole number within [0, {MOST}]")
        return value

    def count(self, value: int, tally: Tally) -> None:
        """Nothing."""


def nearly_full(topology: Topology, stable: UnitSets) -> bool:
    """Whether a hidden layer has few plastic units left."""
    plastic = [(int((~stable[group.name]).sum()), group.size) for group in topology.hidden]
    return any(free <= NEARLY * size for free, size in plastic)


def wider(config: NetworkConfig, share: float, times: int) -> NetworkConfig:
    """A network's settings after it has grown.

    Args:
        config: Those of before.
        share: By what share of its first size each hidden layer grows, rounded up.
        times: How often it has grown.
    """
    sizes: dict[str, Any] = {
        name: tuple(size + times * math.ceil(share * size) for size in getattr(config, name))
        for name in config.kind.sizes
    }
    return replace(config, **sizes)


@dataclass(frozen=True)
class Widened:
    """A network that has grown.

    Attributes:
        network: The network.
        stable: Its stable units per group, ``(units,)`` bool.
        owed: Connections per layer that found no place.
    """

    network: SparseNetwork
    stable: dict[str, Tensor]
    owed: dict[str, int]


@torch.no_grad()
def widened(method: Nispa, task: Task) -> Widened:
    """The method's network with more plastic units; the method itself does not change.

    Raises:
        ConfigError: Logits of earlier tasks would not stay as they are, bit for bit. Compiled
            kernels sum over live connections, in their order; dense products may sum in another
            order once a layer is wider.
    """
    old, config = method.network, method.network_config
    wide = method.spec({"widenings": method.widenings + 1}).empty().to(method.device)
    wide.load_state_dict(
        {
            f"{path}.{name}": value
            for path, layer in old.named_modules()
            if isinstance(layer, SparseLayer)
            for name, value in _placed(layer, wide.layers[layer.spec.name]).items()
        }
    )
    stable = {
        group.name: torch.cat(
            [units := method.stable[group.name], units.new_zeros(group.size - len(units))]
        )
        for group in wide.topology.groups
    }
    owed = {
        name: _connect(method, task, wide, name, stable, share)
        for name, share in layer_densities(
            wide.topology,
            config.density,
            config.distribution,
            config.kind.dense | wide.dense,
            config.min_inputs,
        ).items()
    }
    images, _ = next(iter(task.train.to(method.device).batches(CHECKED)))
    outputs = list(method.classes_seen)
    if not torch.equal(old.eval()(images)[:, outputs], wide.eval()(images)[:, outputs]):
        raise ConfigError(
            "grow_when_full cannot keep the logits of earlier tasks bit for bit here: products are "
            "dense, which sum wider layers in another order; learn on the CPU with compiled "
            "kernels (nispa doctor tells whether they run), or set grow_when_full=0"
        )
    return Widened(wide, stable, owed)


def _placed(layer: SparseLayer, wide: SparseLayer) -> dict[str, Tensor]:
    """The state of a layer at the places that its values have in a wider one."""
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    columns, more = layer.shape[1], torch.arange(layer.biases, wide.biases).to(layer.weight.device)
    for name in ("plastic_index", "frozen_index"):
        index = state[name].long()
        state[name] = index // columns * wide.shape[1] + index % columns
    state["bias"] = torch.cat([state["bias"], state["bias"].new_zeros(len(more))])
    state["bias_index"] = torch.cat([state["bias_index"].long(), more])
    return state


def _connect(
    method: Nispa,
    task: Task,
    network: SparseNetwork,
    name: str,
    stable: Mapping[str, Tensor],
    share: float,
) -> int:
    """Brings a layer to its share of live connections; returns how many find no place."""
    layer, config = network.layers[name], method.network_config
    wanted = round(share * layer.position_count) - layer.live_count
    allowed = ~layer.pattern & ~layer.spec.rows_in(stable).unsqueeze(1)
    places = choose(allowed, max(0, wanted), stream(method.seed, "places", task.index, name))
    pattern = layer.pattern
    pattern.view(-1)[places] = True
    drawn = kaiming_values(
        layer.spec,
        pattern,
        method.config.restart_init,
        config.fan,
        stream(method.seed, "grown values", task.index, name),
        config.gain,
    )
    rank = pattern.flatten().cumsum(0) - 1  # of a place among the live ones
    layer.rewire(pattern, places, drawn[rank[places]])
    return max(0, wanted - len(places)) if method.config.carry_over else 0
