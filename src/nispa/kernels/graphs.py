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
"""From tensors to a detached one; it may replace the ``grad`` of parameters and update values."""

Found = TypeVar("Found")
_Shape = tuple[tuple[torch.Size, torch.dtype], ...]


class Recorded:
    """A computation on tensors, recorded at its second call with a shape and replayed from then on.

    What is computed must be the same every time: only the tensors given and the values of
    parameters may change, and those in place.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Iterable[nn.Parameter],
        replayed: Callable[[], object] = lambda: None,
    ) -> None:
        """A computation that is not recorded yet.

        Args:
            compute: What to repeat.
            parameters: All that it may give a ``grad`` or change.
            replayed: Called after each replay, for whatever ``compute`` does besides.
        """
        self._compute = compute
        self._parameters = [values for values in parameters if values.numel()]
        self._replayed = replayed
        self._graphs: dict[_Shape, _Graph | None] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        """What ``compute`` gives, and leaves as the ``grad`` of the parameters."""
        shape = tuple((each.shape, each.dtype) for each in given)
        if shape not in self._graphs:  # libraries set themselves up outside a graph
            self._graphs[shape] = None
            return aside(lambda: self._compute(*given), given[0].device)
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
        self._given = [each.clone() for each in given]
        for values in parameters:  # so that the graph has gradients of its own
            values.grad = None
        self._found, self._replay = capture(lambda: compute(*self._given), self._given[0].device)
        self._gradients = [values.grad for values in parameters]

    def replay(self, given: Sequence[Tensor]) -> Tensor:
        for mine, each in zip(self._given, given, strict=True):
            mine.copy_(each)
        self._replay()
        for values, gradient in zip(self._parameters, self._gradients, strict=True):
            values.grad = gradient
        torch.autograd.graph.increment_version(self._parameters)  # which a replay does not
        return self._found.clone()


def capture(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Records ``work`` without doing it.

    Returns:
        The memory of what it gives, and what does it all again.
    """
    pool, graph = _pool(device), torch.cuda.CUDAGraph()

    def record() -> Tensor:
        graph.capture_begin(pool=pool)
        try:
            return work()
        finally:
            graph.capture_end()

    return aside(record, device), graph.replay


def aside(work: Callable[[], Found], device: torch.device) -> Found:
    """Does something on the stream where graphs are recorded, and lets the current one wait."""
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        stream = _kept(_streams, here.device, torch.cuda.Stream)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            found = work()
        here.wait_stream(stream)
    return found


@dataclass(frozen=True)
class _Pool:
    """Memory that all graphs of a device share, and a graph of nothing that keeps it open."""

    handle: Any
    graph: torch.cuda.CUDAGraph
    held: Tensor


def _pool(device: torch.device) -> Any:
    return _kept(_pools, device, lambda: aside(_open_pool, device)).handle


def _open_pool() -> _Pool:
    handle, graph = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    held = torch.zeros(1, device=torch.cuda.current_device())
    graph.capture_begin(pool=handle)
    held.add_(1)
    graph.capture_end()
    return _Pool(handle, graph, held)


_streams: dict[torch.device, Any] = {}
_pools: dict[torch.device, Any] = {}


def _kept(found: dict[torch.device, Any], device: torch.device, make: Callable[[], Any]) -> Any:
    if device not in found:
        found[device] = make()
    return found[device]
