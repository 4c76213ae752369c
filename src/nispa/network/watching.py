"""What the layers of a traced module read, seen while it runs.

A product that reads a weight is known by that weight's memory, whichever way the module calls it:
as a layer, as a function, or packed into an attention of PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Reader = Callable[[Tensor, int], None]
"""Takes what a weight is multiplied with, and the dimension of its columns in it."""


class Watch(TorchDispatchMode):
    """While in force, tells readers what their weights are multiplied with."""

    def __init__(self, weights: Sequence[tuple[Tensor, Mapping[int, Reader]]]) -> None:
        """Readers of weights.

        Args:
            weights: Full weights, ``(rows, columns, *kernel)``, and for each the readers by the
                first of the rows that they are for.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {
            weight.untyped_storage().data_ptr(): (weight, readers) for weight, readers in weights
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operator, and looks at its operands."""
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            inputs, weight = (args[place] for place in _PRODUCTS[name])
            found = self._known.get(weight.untyped_storage().data_ptr())
            if found is not None:
                whole, readers = found
                first = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0)
                rows = weight.shape[0] if name == "convolution" else weight.shape[-1]
                for row, reader in readers.items():
                    if first <= row < first + rows:
                        reader(inputs, 1 if name == "convolution" else inputs.dim() - 1)
        return func(*args, **(kwargs or {}))


_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "convolution": (0, 1)}
"""Operators below autograd, with the places of the input and of the weight."""


def column_activity(inputs: Tensor, dim: int) -> Tensor:
    """Total activation of each column in a batch, ``(columns,)`` float64.

    Of activations that are never negative their sum; of others the sum of distances from the mean,
    since a constant offset carries nothing.
    """
    other = [place for place in range(inputs.dim()) if place != dim]
    mean = inputs.mean(other, keepdim=True) if other else inputs
    centre = torch.where(inputs.amin() < 0, mean, torch.zeros_like(mean))
    return (inputs - centre).abs().sum(other, dtype=torch.float64)
