"""Tells whether tensors have changed since they were last looked at, without comparing values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from torch import Tensor

Versions = list[tuple[Tensor, int]]
"""Tensors, each with the number of changes in place that PyTorch had counted."""

# PyTorch counts no changes of inference tensors. Each look at one gets a number of its own, so that
# it always counts as changed.
_UNCOUNTED = itertools.count(-1, -1)


def change_count(tensor: Tensor) -> int:
    """How often a tensor was changed in place; another number at each call if nobody counts."""
    return next(_UNCOUNTED) if tensor.is_inference() else tensor._version


def versions_of(tensors: Iterable[Tensor]) -> Versions:
    """The versions of tensors now, to be compared with later ones."""
    return [(tensor, change_count(tensor)) for tensor in tensors]


def same_versions(first: Versions, second: Versions) -> bool:
    """Whether both are the same tensors, as many of them, with no change in between."""
    return all(
        one is other and before == after
        for (one, before), (other, after) in zip(first, second, strict=True)
    )
