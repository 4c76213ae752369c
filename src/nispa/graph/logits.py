"""The logits among what a module returns. Apart, since tracing takes long to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOGITS = "logits"


def logits_of(result: Any) -> Any:
    """The logits among what a module returns: itself, the first of a tuple, or ``logits``."""
    if isinstance(result, Mapping):
        tensors = list(result.values())
        return result.get(LOGITS, tensors[0] if len(tensors) == 1 else None)
    named = getattr(result, LOGITS, None)
    if named is not None:
        return named
    return result[0] if isinstance(result, (tuple, list)) and result else result
