"""Values of units that are no connections: scales of norms, depthwise kernels, positions.

They are always live. As in a sparse layer, what is plastic is a parameter and what is frozen a
buffer, so that no optimiser moves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class UnitValues(nn.Module):
    """A tensor whose entries are plastic or frozen one by one.

    Attributes:
        value: The plastic entries, ``(plastic,)``.
        index: Their places in the flat tensor, ``(plastic,)`` int64, ascending.
        base: The flat tensor: frozen entries as they are, elsewhere the first values.
    """

    index: Tensor
    base: Tensor

    def __init__(self, first: Tensor) -> None:
        """All entries plastic, with the ``first`` values."""
        super().__init__()
        self.shape = tuple(first.shape)
        flat = first.detach().flatten().clone()
        self.value = nn.Parameter(flat.clone())
        self.register_buffer("index", torch.arange(len(flat), device=flat.device))
        self.register_buffer("base", flat)

    def full(self) -> Tensor:
        """The tensor as the module reads it."""
        return self.base.index_copy(0, self.index, self.value).view(self.shape)

    @property
    def frozen(self) -> Tensor:
        """The frozen entries, bool, on the CPU."""
        frozen = torch.ones(len(self.base), dtype=torch.bool)
        frozen[self.index.cpu()] = False
        return frozen.view(self.shape)

    @torch.no_grad()
    def hold(self, entries: Tensor) -> None:
        """Freezes entries as they are now, bool of the tensor's shape; frozen ones stay."""
        chosen = entries.flatten()[self.index.cpu()].to(self.index.device)
        self.base = self.base.index_copy(0, self.index[chosen], self.value[chosen])
        self.value = nn.Parameter(self.value[~chosen].clone())
        self.index = self.index[~chosen]

    @torch.no_grad()
    def restart(self) -> None:
        """Gives plastic entries their first values again."""
        self.value.copy_(self.base[self.index])

    @torch.no_grad()
    def renew(self, entries: Tensor) -> Tensor:
        """Gives some plastic entries their first values again.

        Args:
            entries: Bool, of the tensor's shape; frozen ones are left out.

        Returns:
            Which of ``value`` they are, ``(plastic,)`` bool.
        """
        chosen = entries.flatten()[self.index.cpu()].to(self.index.device)
        self.value[chosen] = self.base[self.index[chosen]]
        return chosen

    @torch.no_grad()
    def thaw(self, entries: Tensor) -> None:
        """Makes frozen entries plastic, bool of the tensor's shape.

        What they are now takes the place of their first values, which freezing wrote over.
        """
        chosen = (entries & self.frozen).flatten().nonzero().squeeze(1).to(self.index)
        index = torch.cat([self.index, chosen])
        order = index.argsort()
        self.value = nn.Parameter(torch.cat([self.value, self.base[chosen]])[order].clone())
        self.index = index[order]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        value, index = state_dict.get(prefix + "value"), state_dict.get(prefix + "index")
        base = state_dict.get(prefix + "base")
        if base is not None and base.shape != self.base.shape:
            error_msgs.append(f"{prefix.rstrip('.')}: {tuple(base.shape)} values in all, "
                              f"not {tuple(self.base.shape)}")  # fmt: skip
            return
        if value is not None and index is not None:
            if problem := self._problem_with(value, index):
                error_msgs.append(f"{prefix.rstrip('.')}: {problem}")
                return
            if value.shape != self.value.shape:  # else in place: an optimiser stays valid
                self.value = nn.Parameter(self.value.new_empty(value.shape))
                self.index = self.index.new_empty(index.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem_with(self, value: Tensor, index: Tensor) -> str:
        if value.dtype != self.value.dtype or index.dtype != torch.int64 or index.dim() != 1:
            return "values must be numbers of the network's type, places int64"
        if value.shape != index.shape:
            return "values and places do not fit each other"
        if bool((index.diff() <= 0).any()):
            return "places must rise"
        if len(index) and (int(index[0]) < 0 or int(index[-1]) >= len(self.base)):
            return f"a place lies outside the {len(self.base)} values"
        return ""
