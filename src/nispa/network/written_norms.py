"""Norms that a user's module writes out, made those of PyTorch, which the trace knows.

Language models bring an RMSNorm of their own, and ConvNeXt a LayerNorm over channels that stand
first. Operator by operator they are means and products over units, which the trace refuses. Whether
a module is such a norm is found by computing both on random numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nispa.network.replacing import become

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""Tried after the numbers that a module keeps as attributes."""
SCALES = (1.0, 3e-3)
"""Of random numbers; the variance of the second is about as large as a usual epsilon."""


class ChannelsFirst(nn.Module):
    """A norm over the channels of each pixel.

    Attributes:
        norm: Over the last dimension.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same."""
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


def recognise_norms(model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Makes modules that compute a LayerNorm or an RMSNorm these norms, where they are.

    Args:
        model: The module; its values stay.
        given: What it is called with.
        named: The same, by keyword.
    """
    candidates = [module for module in model.modules() if _may_be_norm(module)]
    if not candidates:
        return
    for module, shape in _shapes_read(model, candidates, given, named).items():
        made = _same_norm(module, shape) if shape else None
        if made is not None:
            become(module, made)


def _may_be_norm(module: nn.Module) -> bool:
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    return (
        not type(module).__module__.startswith("torch.")
        and not module._modules
        and not module._buffers
        and module._parameters.keys() <= {"weight", "bias"}
        and weight is not None
        and weight.dim() == 1
        and (bias is None or bias.shape == weight.shape)
    )


@torch.no_grad()
def _shapes_read(
    model: nn.Module,
    modules: list[nn.Module],
    given: tuple[Any, ...],
    named: Mapping[str, Any],
) -> dict[nn.Module, tuple[int, ...]]:
    """The shape that each module is called with; empty if it is called otherwise than with one."""
    from nispa.graph.trace import in_mode, seeded  # takes long to import

    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, read: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        alone = len(read) == 1 and not by_name and isinstance(read[0], Tensor)
        before = shapes.get(module)
        shape = tuple(read[0].shape) if alone and read[0].is_floating_point() else ()
        shapes[module] = shape if before is None or len(before) == len(shape) else ()

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    # Whatever the module's own code raises, the trace runs into it, too, and says so.
    with contextlib.suppress(Exception), in_mode(model, training=False), seeded(0):
        model(*given, **named)
    for handle in handles:
        handle.remove()
    return shapes


@torch.no_grad()
def _same_norm(module: nn.Module, shape: tuple[int, ...]) -> nn.Module | None:
    """A norm of PyTorch's that computes what a module does, with its parameters."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    last = len(shape) - 1
    for dim in dict.fromkeys((last, 1)):
        if not 0 < dim <= last or shape[dim] != len(weight):
            continue
        for norm in _norms(module, len(weight), bias is not None):
            made = norm if dim == last else ChannelsFirst(norm)
            if not _agree(module, made, norm, shape):
                continue
            if dim == last and isinstance(module, type(norm)):
                return None  # it is one already
            norm.weight = weight
            if bias is not None:
                norm.bias = bias
            return made
    return None


def _norms(module: nn.Module, size: int, biased: bool) -> Iterator[Any]:
    own = [value for value in vars(module).values() if isinstance(value, float) and value > 0]
    for eps in dict.fromkeys([*own, *EPSILONS]):
        yield nn.LayerNorm(size, eps, bias=biased)
        if not biased:
            yield nn.RMSNorm(size, eps)


def _agree(module: nn.Module, made: nn.Module, norm: Any, shape: tuple[int, ...]) -> bool:
    """Whether two modules compute the same, in training and in evaluation."""
    generator, training = torch.Generator().manual_seed(0), module.training
    for scale in SCALES:
        x = scale * torch.randn(shape, generator=generator)
        values = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in module._parameters.items()
            if value is not None
        }
        for name, value in values.items():
            getattr(norm, name).copy_(value)
        wanted = made(x)
        for mode in (True, False):
            y: Any = None
            with contextlib.suppress(Exception):  # whatever its own code raises: then it is no norm
                y = functional_call(module.train(mode), values, (x.clone(),))
            module.training = training
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
                return False
            if not torch.allclose(y, wanted, rtol=1e-4, atol=1e-5):
                return False
    return True
