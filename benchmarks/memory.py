"""Memory: bytes of weights, optimiser and indices counted, and what a process takes at most.

    python -m benchmarks.memory nispa      # also: masked, nothing (libraries and images alone)

Counted are tensors and arrays that stay between steps. The peak is the process's resident memory as
the system reports it, libraries and the data set included.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contestants import (
    Contestant,
    Dense,
    Masked,
    nispa,
    plain,
    swapped,
)
from benchmarks.networks import Case, make_loss, make_network, make_samples
from nispa.kernels.native import Library
from nispa.network.models import SparseNetwork

Array = Tensor | np.ndarray[Any, Any]
Seen = set[tuple[str, int]]
STEPS = 5
WHAT = ("nispa", "masked", "dense", "nothing")


def measure(what: str, case: Case) -> dict[str, Any]:
    """Trains a few steps; gives bytes by kind, and the peak of this process.

    Args:
        what: One of :data:`WHAT`.
        case: What to train.
    """
    torch.set_num_threads(case.threads)
    samples, counted = make_samples(case), {}
    if what != "nothing":
        network, loss = make_network(case), make_loss(case).loss
        if what == "nispa":
            contestant = nispa(network, samples, case.batch, loss, cache=case.cache)
        else:
            module = swapped(network, Masked if what == "masked" else Dense)
            contestant = plain(module, samples, case.batch, loss)
        for _ in range(STEPS):
            contestant()
        counted = count(contestant)
    return {"what": what, "counted": counted, "peak_resident": peak_resident()}


def count(contestant: Contestant) -> dict[str, int]:
    """Bytes of a contestant by kind; what a kind shares with an earlier one counts there."""
    module = contestant.module
    parameters = list(module.parameters())
    seen: Seen = set()
    kinds: dict[str, Iterable[Any]] = {
        "weights and biases": [*parameters, *_values(module)],
        "gradients": [value.grad for value in parameters],
        "Adam's state": list(contestant.optimiser.state.values()),
        "positions of live values": [b for b in module.buffers() if b.dtype == torch.int64],
        "masks": list(module.buffers()),
    }
    counted = {
        kind: _bytes(array for thing in things for array in held(thing, seen))
        for kind, things in kinds.items()
    }
    if isinstance(module, SparseNetwork):
        # What the kernels keep from step to step.
        arrays = list(held(module._compiled_segments, seen))
        tables = [a for a in arrays if isinstance(a, np.ndarray) and a.dtype != np.float32]
        room = [a for a in arrays if isinstance(a, np.ndarray) and a.dtype == np.float32]
        counted["kernels: tables of connections"] = _bytes(tables)
        counted["kernels: copied values, sums of parts"] = _bytes(room)
        counted["kernels: activations"] = _bytes(a for a in arrays if isinstance(a, Tensor))
    return {kind: size for kind, size in counted.items() if size}


def _values(module: nn.Module) -> list[Tensor]:
    """Frozen values."""
    return [
        buffer
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and name.rpartition(".")[2].startswith("frozen")
    ]


def held(root: Any, seen: Seen) -> Iterator[Array]:
    """Every tensor and array that can be reached from an object, each piece of memory once.

    Args:
        root: Where to start; it must live on.
        seen: What was met before; what is met now is added.
    """
    mark = _mark(root)
    if mark in seen:
        return
    seen.add(mark)
    if isinstance(root, Tensor):
        yield root
    elif isinstance(root, np.ndarray):
        if _owner(root) is not None:
            yield root if root.base is None else root.base
    elif not isinstance(root, (str, int, float, type, Library)):
        for child in _children(root):
            yield from held(child, seen)


def _mark(thing: Any) -> tuple[str, int]:
    """What tells one piece of memory, or one object, from the others."""
    if isinstance(thing, Tensor):
        return "memory", thing.untyped_storage().data_ptr()
    if isinstance(thing, np.ndarray):
        owner = _owner(thing)
        return ("object", id(thing)) if owner is None else ("memory", owner.ctypes.data)
    return "object", id(thing)


def _owner(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The array that holds the memory, or None if it belongs to a tensor, which is met itself."""
    owner = array if array.base is None else array.base
    return owner if isinstance(owner, np.ndarray) else None


def _children(thing: Any) -> Iterable[Any]:
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, (list, tuple)):
        return thing
    return getattr(thing, "__dict__", {}).values()


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(
        a.untyped_storage().nbytes() if isinstance(a, Tensor) else int(a.nbytes) for a in arrays
    )


def peak_resident() -> int:
    """The most resident memory that this process had, in bytes."""
    import resource  # not on Windows, where the rest works

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    case = Case("convnet", given.density, 128, threads=given.threads)
    print(json.dumps(measure(given.what, case)))


if __name__ == "__main__":
    main()
