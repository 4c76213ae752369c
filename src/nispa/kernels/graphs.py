"""Repeats a computation on a GPU as one recorded graph.

A step over a small sparse network is many short kernels; launching them one by one takes longer
than they run. Recorded once, they are launched as a whole. See "CUDA Graphs" in PyTorch's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Compute = Callable[..., Tensor]
"""From tensors to a detached one; it may set the ``grad`` of parameters and update their values."""

Result = TypeVar("Result")
_Shape = tuple[tuple[torch.Size, torch.dtype], ...]


class Recorded:
    """A computation on tensors, recorded at its second call with a shape and replayed from then on.

    The computation must be the same every time: only the arguments and the values of parameters
    may change, and values in place. A graph holds addresses, not tensors.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Iterable[nn.Parameter],
        replayed: Callable[[], object] = lambda: None,
    ) -> None:
        """A computation that is not recorded yet.

        Args:
            compute: The computation.
            parameters: All that it may give a ``grad`` or change.
            replayed: Called after each replay, for whatever ``compute`` does besides.
        """
        self._compute = compute
        self._parameters = [values for values in parameters if values.numel()]
        self._replayed = replayed
        self._graphs: dict[_Shape, _Graph | None] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        """The result of ``compute``, which sets the ``grad`` of the parameters as usual."""
        shape = tuple((tensor.shape, tensor.dtype) for tensor in given)
        # The first call is not recorded: libraries set themselves up in it, which must not become
        # part of a graph. So a shape that never comes again is never recorded, either.
        if shape not in self._graphs:
            self._graphs[shape] = None
            return on_side_stream(lambda: self._compute(*given), given[0].device)
        graph = self._graphs[shape]
        if graph is None:
            graph = self._graphs[shape] = _Graph(self._compute, given, self._parameters)
        else:
            self._replayed()
        return graph.replay(given)


class _Graph:
    """One recorded graph and the tensors that it reads and writes."""

    def __init__(
        self, compute: Compute, given: Sequence[Tensor], parameters: Sequence[nn.Parameter]
    ) -> None:
        self._parameters = parameters
        self._inputs = [tensor.clone() for tensor in given]
        for values in parameters:  # so that the graph makes gradient tensors of its own
            values.grad = None
        device = self._inputs[0].device
        self._result, self._replay = capture(lambda: compute(*self._inputs), device)
        self._gradients = [values.grad for values in parameters]

    def replay(self, given: Sequence[Tensor]) -> Tensor:
        for own, tensor in zip(self._inputs, given, strict=True):
            # A graph reads from the addresses that it was recorded with.
            own.copy_(tensor)
        self._replay()
        for values, gradient in zip(self._parameters, self._gradients, strict=True):
            values.grad = gradient
        # A replay changes values without counting it; whoever compares versions must notice.
        torch.autograd.graph.increment_version(self._parameters)
        # The next replay writes into the same memory.
        return self._result.clone()


def capture(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Records ``work`` without doing it.

    Returns:
        The memory of its result, and a function that runs the graph.
    """
    # One pool for all: graphs run one after the other, so they can share their scratch memory.
    pool, graph = _pool(device), torch.cuda.CUDAGraph()

    def record() -> Tensor:
        graph.capture_begin(pool=pool)
        try:
            return work()
        finally:
            graph.capture_end()

    return on_side_stream(record, device), graph.replay


def on_side_stream(work: Callable[[], Result], device: torch.device) -> Result:
    """Runs ``work`` on the stream where graphs are recorded, and lets the current stream wait."""
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        stream = _once(_streams, here.device, torch.cuda.Stream)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            result = work()
        here.wait_stream(stream)
    return result


@dataclass(frozen=True)
class _Pool:
    """Memory that all graphs of a device share.

    Attributes:
        handle: The pool, for ``capture_begin``.
        graph: A graph of nothing, which keeps the pool open while no other graph is left.
        held: The tensor that this graph writes.
    """

    handle: Any
    graph: torch.cuda.CUDAGraph
    held: Tensor


def _pool(device: torch.device) -> Any:
    return _once(_pools, device, lambda: on_side_stream(_open_pool, device)).handle


def _open_pool() -> _Pool:
    handle, graph = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    held = torch.zeros(1, device=torch.cuda.current_device())
    graph.capture_begin(pool=handle)
    held.add_(1)
    graph.capture_end()
    return _Pool(handle, graph, held)


_streams: dict[torch.device, Any] = {}
_pools: dict[torch.device, Any] = {}


def _once(made: dict[torch.device, Any], device: torch.device, make: Callable[[], Any]) -> Any:
    """The one thing of its kind for a device, made when it is asked for first."""
    if device not in made:
        made[device] = make()
    return made[device]
