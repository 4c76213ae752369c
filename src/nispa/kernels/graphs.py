"""Repeats a computation of gradients on a GPU as one recorded graph.

A step over a small sparse network is many short kernels; launching them one by one takes longer
than they run. Recorded once, they are launched as a whole. See "CUDA Graphs" in PyTorch's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Gradients = Callable[[Tensor, Tensor], Tensor]
"""From images and labels to a detached loss, after replacing the ``grad`` of parameters."""


class Recorded:
    """Gradients of batches of one shape, recorded at the second batch and replayed from then on.

    What is computed must be the same every time: only images, labels and the parameters' values
    may change, and those in place. Batches of another shape are computed as they come.
    """

    def __init__(self, gradients: Gradients, parameters: Sequence[nn.Parameter]) -> None:
        """A computation that is not recorded yet."""
        self._gradients = gradients
        self._parameters = [values for values in parameters if values.numel()]
        self._shape: torch.Size | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Any, labels: Tensor) -> Tensor:
        """The loss of a batch, detached; the gradients are in place."""
        if self._shape is None:
            self._shape = images.shape
            return self._warm_up(images, labels)
        if images.shape != self._shape:
            return self._gradients(images, labels)
        if self._graph is None:
            self._record(images, labels)
        assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for values, gradient in zip(self._parameters, self._recorded, strict=True):
            values.grad = gradient
        return self._loss.clone()

    def _warm_up(self, images: Tensor, labels: Tensor) -> Tensor:
        """The first batch, on a stream of its own: libraries set themselves up outside a graph."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):
                loss = self._gradients(images, labels)
        here.wait_stream(aside)
        return loss

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        for values in self._parameters:  # so that the graph has gradients of its own
            values.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._gradients(self._images, self._labels)
        self._recorded = [values.grad for values in self._parameters]
        self._graph = graph
