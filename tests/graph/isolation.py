"""Whether units that are kept repeat their values when all others change: by dense PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nispa.graph.units import Layer, Norm, UnitGraph

Sets = dict[str, Tensor]


def random_sets(graph: UnitGraph, generator: torch.Generator, share: float = 0.5) -> Sets:
    """Inputs, and a random choice of each other group."""
    return {
        group.name: torch.ones(group.size, dtype=torch.bool)
        if group.kind == "input"
        else torch.rand(group.size, generator=generator) < share
        for group in graph.groups
    }


def check_isolated(
    model: nn.Module, graph: UnitGraph, inputs: Any, kept: Sets, generator: torch.Generator
) -> bool:
    """Asserts that kept units repeat their values bit for bit; tells whether others moved.

    Connections into kept units from others are dropped. Rows and values of kept units stay, all
    other numbers are drawn anew. Then the model is as it was.
    """
    model.eval()
    state = everything(model)
    first = {name: value.clone() for name, value in state.items()}
    try:
        return _moved(model, graph, inputs, kept, generator)
    finally:
        for norm in graph.norms:
            model.get_submodule(norm.module).__dict__.pop("forward", None)
        for name, value in first.items():
            state[name].copy_(value)


def _moved(
    model: nn.Module, graph: UnitGraph, inputs: Any, kept: Sets, generator: torch.Generator
) -> bool:
    state = everything(model)
    changing = {name for name in state if "running_" in name}
    assert {name for name, _ in model.named_parameters()} | changing <= mapped(graph)
    rest = {name: ~units for name, units in kept.items()}
    for layer in graph.layers:
        rows = rows_of(layer, state)
        rows[layer.between(rest, kept)] = 0.0
    for norm in graph.norms:
        if norm.mixes:
            restrict(model.get_submodule(norm.module), norm, kept)
    before = watched(model, graph, inputs, kept)
    redraw(graph, state, kept, generator)
    after = watched(model, graph, inputs, kept)
    logits = kept[graph.output.name]
    for name, value in before.items():
        if name != "logits":
            assert torch.equal(value, after[name]), name
    assert torch.equal(before["logits"][:, logits], after["logits"][:, logits])
    return not torch.equal(before["logits"], after["logits"])


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first names."""
    return {
        **{name: value.detach() for name, value in model.named_parameters()},
        **dict(model.named_buffers()),
    }


def rows_of(layer: Layer, state: Mapping[str, Tensor]) -> Tensor:
    """A layer's part of its parameter, what it writes first; a view."""
    whole = state[layer.weight]
    rows = whole.transpose(0, 1) if layer.turned else whole
    return rows[layer.first_row : layer.first_row + len(layer.rows)]


def mapped(graph: UnitGraph) -> set[str]:
    """Parameters and buffers that the graph says something about."""
    return {layer.weight for layer in graph.layers} | {values.name for values in graph.values}


def redraw(
    graph: UnitGraph, state: Mapping[str, Tensor], kept: Sets, generator: torch.Generator
) -> None:
    """Draws all anew that belongs to no kept unit."""
    for layer in graph.layers:
        rows = rows_of(layer, state)
        free = ~layer.rows.spread(kept)
        rows[free] = torch.randn(rows[free].shape, generator=generator)
    for values in graph.values:
        if values.kind == "shared":
            continue  # somebody is kept
        tensor = state[values.name]
        free = ~values.spread(kept, tuple(tensor.shape))
        drawn = torch.randn(tensor.shape, generator=generator)
        if values.name.endswith("running_var"):
            drawn = drawn.abs() + 0.1
        tensor[free] = drawn[free]


def watched(model: nn.Module, graph: UnitGraph, inputs: Any, kept: Sets) -> dict[str, Tensor]:
    """Logits, and what each module with a weight of its own computes for kept units."""
    seen: dict[str, Tensor] = {}
    handles = []
    for layer in graph.layers:
        if layer.module is None:
            continue
        module, rows = model.get_submodule(layer.module), layer.rows.spread(kept)

        def watch(
            module: nn.Module,
            _: Any,
            result: Tensor,
            *,
            name: str = layer.name,
            rows: Tensor = rows,
        ) -> None:
            dim = result.dim() - 1
            if not isinstance(module, nn.Linear):
                dim -= 1 if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) else 2
            number = sum(key.startswith(f"{name}:") for key in seen)
            seen[f"{name}:{number}"] = result.movedim(dim, 0)[rows].clone()

        handles.append(module.register_forward_hook(watch))
    try:
        with torch.no_grad(), slow_path():
            result = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    logits = result["logits"] if isinstance(result, Mapping) else result
    seen["logits"] = logits[0] if isinstance(logits, tuple) else logits
    return seen


@contextmanager
def slow_path() -> Iterator[None]:
    """Within it transformer layers call their modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def restrict(module: nn.Module, norm: Norm, kept: Sets) -> None:
    """Lets kept units be normalised by statistics over kept units alone."""
    masks = [units.spread(kept) for units in norm.sets]
    eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
    assert isinstance(eps, float)

    def normalised(x: Tensor, mask: Tensor) -> Tensor:
        """Over the last dimension, ``(..., entries)``."""
        result = torch.empty_like(x)
        for index, over in ((~mask, torch.ones_like(mask)), (mask, mask)):
            part = x[..., over]
            mean = torch.zeros(1) if norm.kind == "rms" else part.mean(-1, keepdim=True)
            square = (part - mean).square().mean(-1, keepdim=True)
            result[..., index] = (x[..., index] - mean) * (square + eps).rsqrt()
        return result

    def over_features(x: Tensor) -> Tensor:
        dims = len(module.normalized_shape)  # type: ignore[arg-type]
        assert len(masks) == 1
        y = normalised(x.flatten(-dims), masks[0]).reshape(x.shape)
        return scaled(y, ())

    def over_channels(x: Tensor) -> Tensor:
        parts = x.chunk(len(masks), 1)
        pixels = x[0, 0].numel()
        done = [
            normalised(part.flatten(1), mask.repeat_interleave(pixels)).reshape(part.shape)
            for part, mask in zip(parts, masks, strict=True)
        ]
        return scaled(torch.cat(done, 1), (-1, *[1] * (x.dim() - 2)))

    def scaled(y: Tensor, shape: tuple[int, ...]) -> Tensor:
        for name, change in (("weight", torch.mul), ("bias", torch.add)):
            value = getattr(module, name, None)
            if value is not None:
                y = change(y, value.reshape(shape) if shape else value)
        return y

    module.forward = over_channels if norm.kind == "group" else over_features
