"""A check at run time that kept logits repeat, whatever else is learned.

All that can still change is drawn anew, a batch is run as in training, and then the logits of kept
classes must be equal bit for bit. So a trace that missed a path can never forget silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.errors import IsolationError
from nispa.graph.units import UnitSets
from nispa.network.operations import counting
from nispa.network.traced import TracedNetwork

SAMPLES = 8  # of random input


def check_isolation(
    network: TracedNetwork,
    stable: UnitSets,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> None:
    """Checks that logits of stable outputs do not depend on anything plastic.

    The network is put back as it was: values, statistics, modes and random state.

    Args:
        network: A network that has learned.
        stable: The units that stay what they are, the outputs of kept classes among them.
        example: What it is called with; None for random samples.
        seed: Of what is drawn.

    Raises:
        IsolationError: They do; it names the first module whose stable units moved.
    """
    kept = stable[network.graph.output.name]
    if not kept.any():
        return
    if example is None:
        drawn = torch.randn((SAMPLES, *network.input_shape), generator=stream(seed, "example"))
        example = drawn.to(next(network.parameters()).device)
    kept = kept.to(next(network.parameters()).device)
    with usual_modes(), counting(None), _put_back(network), torch.no_grad():
        torch.manual_seed(seed)
        network.eval()
        first = called(network, example)  # a module that is watched may take another way
        alone = _alone(network, example, first)
        before = _watched(network, stable, example)
        _draw(network, stream(seed, "isolation"))
        network.train()
        called(network, example)  # moves statistics, as training does
        network.eval()
        last = called(network, example)
        alone_after = _alone(network, example, last)
        after = _watched(network, stable, example)
    pairs = [(first, last), (alone, alone_after), (before["logits"], after["logits"])]
    if all(torch.equal(one[:, kept], other[:, kept]) for one, other in pairs):
        return
    found = next(
        (
            name
            for name, value in before.items()
            if name != "logits" and not torch.equal(value, after.get(name, value[:0]))
        ),
        None,
    )
    what = "values are not finite" if not _finite(before, after) else "stable units change"
    place = f"in '{found.partition(':')[0]}'" if found else "behind the last layer"
    raise IsolationError(
        f"logits of kept classes change with values that are not kept; first {place} {what}. Is "
        "there a branch that the trace did not take (on self.training, on random numbers, on the "
        "number of samples), a fast path, or a value that forward keeps for the next call?"
    )


def called(network: TracedNetwork, example: Any) -> Tensor:
    """The logits of an example, whatever way it is passed on."""
    if isinstance(example, Mapping):
        logits: Tensor = network(**example)
    else:
        logits = network(*(example if isinstance(example, (tuple, list)) else (example,)))
    return logits


def _alone(network: TracedNetwork, example: Any, logits: Tensor) -> Tensor:
    """The logits of one sample, for which a module may have a way of its own.

    None of those given, ``(0, classes)``, where it does not run on one.
    """
    try:
        return called(network, tree_map_only(Tensor, lambda value: value[:1], example))
    except Exception:  # noqa: BLE001 - whatever the module's own code raises
        return logits[:0]


def _watched(network: TracedNetwork, stable: UnitSets, example: Any) -> dict[str, Tensor]:
    """Logits, and what each layer's module computes for stable units, in order of the calls."""
    seen: dict[str, Tensor] = {}
    handles = []
    for layer in network.graph.layers:
        if layer.module is None:
            continue
        rows = layer.rows.spread(stable)
        behind = len(layer.kernel)

        def watch(
            _: nn.Module, __: Any, result: Tensor, *, name: str = layer.name, rows: Tensor = rows,
            behind: int = behind,
        ) -> None:  # fmt: skip
            calls = sum(key.startswith(f"{name}:") for key in seen)
            rows = rows.to(result.device)
            seen[f"{name}:{calls}"] = result.movedim(-1 - behind, 0)[rows].clone()

        handles.append(network.body.get_submodule(layer.module).register_forward_hook(watch))
    try:
        seen["logits"] = called(network, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _draw(network: TracedNetwork, generator: torch.Generator) -> None:
    """Moves all that is learned by as much as its own size."""
    for value in network.parameters():
        if value.numel():
            size = float(value.square().mean().sqrt()) or 0.1
            noise = torch.randn(value.shape, generator=generator).to(value)
            value.add_(noise, alpha=size)


def _finite(*seen: Mapping[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for each in seen for value in each.values())


@contextmanager
def _put_back(network: TracedNetwork) -> Iterator[None]:
    """Puts back values, buffers, modes and random state, whatever happens within."""
    tensors = [*network.parameters(), *network.buffers()]
    first = [tensor.detach().clone() for tensor in tensors]
    draws = network.draws
    modes = [(module, module.training) for module in network.modules()]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, first, strict=True):
                    tensor.copy_(value)
            network.draws = draws
            network.eval()  # lets go of what modules keep of the values drawn
            for module, mode in modes:
                module.training = mode
