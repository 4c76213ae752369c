"""The networks of a method: drawn, and as tensors of its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from nispa.errors import ConfigError, FormatError
from nispa.methods.carried import MethodState, take_tensors
from nispa.network.models import NetworkSpec, SparseNetwork

if TYPE_CHECKING:
    from nispa.methods.base import Method


def network_state(network: SparseNetwork, prefix: str = "network.") -> dict[str, Tensor]:
    """Copies of a network's tensors under ``prefix``, on the CPU."""
    return {
        prefix + name: value.detach().cpu().clone() for name, value in network.state_dict().items()
    }


def load_network(
    method: Method, state: MethodState, prefix: str = "network.", spec: NetworkSpec | None = None
) -> SparseNetwork:
    """The method's network with the values that :func:`network_state` gave.

    Args:
        method: The method.
        state: Where the values are.
        prefix: What their names begin with.
        spec: What they are loaded into; None for the method's own.

    Raises:
        FormatError: The tensors do not fit the network.
    """
    tensors = take_tensors(state, prefix)
    if not tensors:  # before anything is built: a header may promise what the file does not hold
        raise FormatError(f"the saved values of '{prefix}' are missing")
    network = (spec or method.spec()).empty()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        text = " ".join(str(error).partition(":\n")[2].split())[:300]
        raise FormatError(f"the saved values do not fit the network: {text}") from None
    return network.to(method.device)


def draw_network(method: Method, seed: int) -> SparseNetwork:
    """The method's network with first values drawn from ``seed``.

    Raises:
        ConfigError: No output has a path from the input.
    """
    network = method.spec().draw(seed)
    method.unreached = tuple(each for each in network.unreached() if each < method.problem.outputs)
    if len(method.unreached) == method.problem.outputs:
        raise ConfigError(without_path(method, method.unreached, seed))
    return network.to(method.device)


def without_path(method: Method, outputs: Sequence[int], seed: int) -> str:
    """Says that outputs of a fresh network cannot be reached, and with which density they can."""
    spec = method.spec()
    density, left = spec.config.density, len(outputs)
    while left and density < 1.0:
        density = min(1.0, float(f"{1.5 * density:.2g}"))
        left = len(spec.at_density(density).draw(seed).unreached())
    named = ", ".join(map(str, outputs[:10])) + (" and more" if len(outputs) > 10 else "")
    cure = f"density={density:g} reaches all of them"
    if left:
        cure = "no density reaches all of them; let layers lead from the input to each"
    return (
        f"density={spec.config.density:g} leaves {len(outputs)} of {spec.outputs} outputs "
        f"({named}) without a path from the input, so that their classes cannot be told apart; "
        f"{cure}"
    )
