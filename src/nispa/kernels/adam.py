"""Adam on a whole GPU.

PyTorch's fused Adam gives each 65,536 values of a tensor to one of a GPU's many processors. Sparse
layers have few values, so most processors would have nothing to do. Here each tensor is cut into
smaller pieces first; the arithmetic for a value is the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PIECES = 64
"""About how many pieces all values together are cut into."""
LEAST = 2048
"""Smallest number of values in a piece."""


class _InPieces:
    """The part that Adam and AdamW share: cuts tensors where PyTorch has collected them.

    ``_init_group`` is private to PyTorch. It fills lists of tensors, one entry a parameter; their
    pieces are put in place of these. Pieces are views, so updates land in the parameters.
    """

    state: Any

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        # Views and counters are made once: making them takes as long as a small update.
        self._counters: dict[Tensor, tuple[Tensor, ...]] = {}
        self._cut: dict[Tensor, tuple[int, int, tuple[Tensor, ...]]] = {}

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[misc]
        values, gradients, means, squares, _, steps = lists
        # A multiple of four, so that each piece begins where the GPU reads four values at once.
        size = max(LEAST, 4 * math.ceil(sum(value.numel() for value in values) / PIECES / 4))
        steps[:] = [step for value in values for step in self._steps(value, size)]
        gradients[:] = [part for each in gradients for part in each.flatten().split(size)]
        for tensors in (values, means, squares):  # which stay at their addresses, unlike gradients
            tensors[:] = [part for tensor in tensors for part in self._pieces(tensor, size)]
        return has_complex

    def _pieces(self, tensor: Tensor, size: int) -> tuple[Tensor, ...]:
        """Views of a tensor, of ``size`` values each."""
        known = self._cut.get(tensor)
        if known is None or known[:2] != (size, tensor.data_ptr()):
            parts = tuple(tensor.detach().view(-1).split(size))
            known = self._cut[tensor] = size, tensor.data_ptr(), parts
        return known[2]

    def _steps(self, values: Tensor, size: int) -> tuple[Tensor, ...]:
        """The counter of steps, one for each piece, since PyTorch increments each entry.

        The first stands in the state as ``step``, so that a saved state has the right number.
        """
        state, count = self.state[values], math.ceil(values.numel() / size)
        known = self._counters.get(values, ())
        if len(known) != count or known[0] is not state["step"]:
            known = self._counters[values] = state["step"].repeat(count).unbind()
            state["step"] = known[0]
        return known


class AdamInPieces(_InPieces, torch.optim.Adam):
    """Fused Adam over small pieces."""


class AdamWInPieces(_InPieces, torch.optim.AdamW):
    """Fused AdamW over small pieces."""
