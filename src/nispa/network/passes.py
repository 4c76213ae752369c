"""Whether the passes of a traced network run on compiled kernels, and what they keep for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nispa.kernels import dispatch
from nispa.kernels.slabs import Memory, Place
from nispa.network import laid_out_operators as laid_out_operators  # makes them known
from nispa.network.laid_out import Session

if TYPE_CHECKING:
    from nispa.network.traced import TracedNetwork


class Passes:
    """What a network keeps from pass to pass. A copy of a network starts without.

    Passes are of four kinds: of training or not, with gradients or not. What one kind shows says
    nothing about the others, or predictions would depend on whether a network was trained before.

    Attributes:
        plain: The kinds in which the module does what only plain tensors allow, as a pass has
            shown.
        proven: The kinds of which a pass has gone through.
    """

    def __init__(self) -> None:
        self.plain: set[tuple[bool, bool]] = set()
        self.proven: set[tuple[bool, bool]] = set()
        self._session: Session | None = None

    # Sessions hold addresses and libraries, which must be neither copied nor saved.
    def __deepcopy__(self, memo: dict[int, object]) -> Passes:
        return Passes()

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()

    def session(self, network: TracedNetwork) -> Session | None:
        """For a pass over live connections, or None where full weights must do."""
        library, _ = dispatch.library()  # type: ignore[attr-defined]
        weight = next(iter(network.layers.values())).weight
        if (
            library is None
            or kind_of(network) in self.plain
            or not (weight.is_cpu and weight.dtype == torch.float32)
            or torch.is_autocast_enabled("cpu")
            or _watched()
        ):
            return None
        if self._session is None or self._session.place.library is not library:
            self._session = Session(Place(library, Memory()))
        return self._session

    def back(self, network: TracedNetwork) -> Callable[[], None]:
        """Puts statistics back as they are now, should the first pass turn out to be in vain."""
        proven = kind_of(network) in self.proven
        buffers = [] if proven else [b for _, norm in network.norms for b in norm.buffers()]
        first, draws = [buffer.clone() for buffer in buffers], network.draws

        def put_back() -> None:
            with torch.no_grad():
                for buffer, value in zip(buffers, first, strict=True):
                    buffer.copy_(value)
            network.draws = draws

        return put_back


def kind_of(network: TracedNetwork) -> tuple[bool, bool]:
    """The kind of a pass that begins now."""
    return network.training, torch.is_grad_enabled()


def _watched() -> bool:
    """Whether somebody follows the operations, whom kernels would pass by."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
    )
