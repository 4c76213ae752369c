"""Adam on a whole GPU.

PyTorch's fused Adam gives each 65,536 values of a tensor to one of a GPU's many processors. Sparse
layers have few values, so most processors would have nothing to do. Here a tensor is given to it in
smaller pieces; what is computed for a value is the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PIECES = 64
"""Into about so many pieces all values together are cut."""
LEAST = 2048
"""Values of a piece, at least."""


class _InPieces:
    """What both rules share: tensors are cut where PyTorch's Adam has collected them."""

    state: Any

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._counts: dict[Tensor, tuple[Tensor, ...]] = {}
        self._cut: dict[Tensor, tuple[int, int, tuple[Tensor, ...]]] = {}

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        found: bool = super()._init_group(group, *lists)  # type: ignore[misc]
        values, gradients, means, squares, _, steps = lists
        size = max(LEAST, 4 * math.ceil(sum(each.numel() for each in values) / PIECES / 4))
        steps[:] = [step for each in values for step in self._steps(each, size)]
        gradients[:] = [part for each in gradients for part in each.flatten().split(size)]
        for tensors in (values, means, squares):  # which stay where they are
            tensors[:] = [part for each in tensors for part in self._pieces(each, size)]
        return found

    def _pieces(self, tensor: Tensor, size: int) -> tuple[Tensor, ...]:
        known = self._cut.get(tensor)
        if known is None or known[:2] != (size, tensor.data_ptr()):
            parts = tuple(tensor.detach().view(-1).split(size))
            known = self._cut[tensor] = size, tensor.data_ptr(), parts
        return known[2]

    def _steps(self, values: Tensor, size: int) -> tuple[Tensor, ...]:
        """The number of steps, once for each piece; the first is the state's ``step``."""
        state, count = self.state[values], math.ceil(values.numel() / size)
        known = self._counts.get(values, ())
        if len(known) != count or known[0] is not state["step"]:
            known = self._counts[values] = state["step"].repeat(count).unbind()
            state["step"] = known[0]
        return known


class Adam(_InPieces, torch.optim.Adam):
    """Fused Adam over small pieces."""


class AdamW(_InPieces, torch.optim.AdamW):
    """Fused AdamW over small pieces."""
