"""Norms of a user's module, made those of this package and back, where they are.

A norm becomes another in place, as lazy modules of PyTorch's do: a module may hold it by several
names, or in a plain list, and hooks on it stay.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nispa.errors import GraphError
from nispa.graph.units import UnitGraph
from nispa.network.holding import Norms
from nispa.network.norms import GenerationNorm, UnitBatchNorm

BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MIXING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def replaced_norms(body: nn.Module, graph: UnitGraph) -> list[tuple[Any, Norms]]:
    """Makes norms of ``body`` those that hold statistics still.

    Returns:
        What the trace says of each, and its module.

    Raises:
        GraphError: The statistics of one cannot be held still.
    """
    found: list[tuple[Any, Norms]] = []
    for norm in graph.norms:
        if not norm.mixes and norm.kind != "batch":
            continue
        module = body.get_submodule(norm.module)
        kind = next((each for each in (*BATCH, *MIXING) if isinstance(module, each)), None)
        if kind is None:
            raise GraphError(
                f"'{norm.module}' is a {type(module).__name__}, whose statistics cannot be held "
                "still; use nn.BatchNorm1d, 2d or 3d, nn.LayerNorm, nn.RMSNorm or nn.GroupNorm"
            )
        if norm.beside and _has_own_forward(module, kind):
            raise GraphError(
                f"'{norm.module}' is a {type(module).__name__}, whose forward is not the norm "
                f"alone ({', '.join(norm.beside)}), and would be lost; take nn.{kind.__name__}, "
                "and compute the rest in a module around it"
            )
        made = UnitBatchNorm(module) if isinstance(module, BATCH) else GenerationNorm(module)  # type: ignore[arg-type]
        if isinstance(made, GenerationNorm) and len(made.generation) != len(norm.sets):
            raise GraphError(
                f"'{norm.module}' normalises several sets of units; use a norm for each"
            )
        become(module, made)
        found.append((norm, module))  # type: ignore[arg-type]
    return found


def become(module: nn.Module, other: nn.Module) -> None:
    """Makes ``module`` what ``other`` is, with its own hooks on passes and further attributes."""
    kept = ("_forward_", "_backward_", "_is_full_backward_")
    new = {name: value for name, value in vars(other).items() if not name.startswith(kept)}
    vars(module).update(new)
    vars(module).pop("forward", None)
    module.__class__ = type(other)


def _has_own_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a norm's class, or the norm, has another forward pass than PyTorch's."""
    mine = type(module)
    return (
        "forward" in vars(module)
        or mine.forward is not kind.forward
        or mine.__call__ is not nn.Module.__call__
    )
