"""Whether a module computes what it did, once norms of this package stand in for its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nispa.errors import GraphError
from nispa.graph.logits import logits_of

TOLERANCE = 1e-2
"""Of the largest logit: rounding stays far below, an activation that is lost far above."""


@torch.no_grad()
def refuse_other_logits(
    given: nn.Module, made: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Compares the logits of two modules on random numbers, in training and in evaluation.

    Args:
        given: A copy of the user's module.
        made: The same with other norms. Both may change.
        arguments: What they are called with; numbers that are not whole are drawn anew.
        named: The same, by keyword.

    Raises:
        GraphError: They differ; it names the first module that does.
    """
    from nispa.graph.trace import in_mode, seeded  # takes long to import

    generator = torch.Generator().manual_seed(0)
    drawn = [_drawn(each, generator) for each in arguments]
    drawn_named = {name: _drawn(each, generator) for name, each in named.items()}
    for training in (False, True):
        results: list[dict[str, Tensor]] = []
        for module in (given, made):
            # It may not take such numbers. Whatever its code raises, it still runs on the example.
            with in_mode(module, training=training), seeded(0), contextlib.suppress(Exception):
                torch.manual_seed(0)
                results.append(_results(module, drawn, drawn_named))
        if len(results) < 2:
            return
        wanted, found = results
        if not _alike(wanted[""], found[""]):
            both = [name for name in wanted if name in found]
            path = next(name for name in both if not _alike(wanted[name], found[name]))
            place = f"'{path}' ({type(given.get_submodule(path)).__name__})" if path else "it"
            raise GraphError(
                f"the module would compute other logits than it does: the first result to change "
                f"is that of {place}. Does a class there extend a norm of PyTorch's? Let it hold "
                "the norm as a module, and compute the rest around it"
            )


def _drawn(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.rand(value.shape, generator=generator)


def _results(
    module: nn.Module, arguments: list[Any], named: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The first result of each module by its path, in the order of passes, and the logits by ''."""
    results: dict[str, Tensor] = {}

    def note(path: str, _: nn.Module, __: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            results.setdefault(path, result.clone())

    with contextlib.ExitStack() as stack:
        for path, part in module.named_modules():
            if path:
                stack.callback(part.register_forward_hook(partial(note, path)).remove)
        results[""] = logits_of(module(*arguments, **named))
    return results


def _alike(wanted: Tensor, found: Tensor) -> bool:
    if not wanted.is_floating_point() or not bool(wanted.isfinite().all()):
        return True
    return bool((wanted - found).abs().max() <= TOLERANCE * wanted.abs().max())
