"""Norms that a user's module writes out, made those of PyTorch, which the trace knows.

Language models bring an RMSNorm of their own, and ConvNeXt a LayerNorm over channels that stand
first. Operator by operator they are means and products over units, which the trace refuses. Others
extend a norm of PyTorch's by an activation behind it, which would be lost with the module's forward
pass. Whether a module computes such a norm is found by computing both on random numbers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nispa.network.replacing import become

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""Tried after the numbers that a module keeps as attributes."""
SCALES = (1.0, 3e-3)
"""Of random numbers; the variance of the second is about as large as a usual epsilon."""
OFFSETS = (0.0, 1.0)
"""Added to a weight: some modules keep how far it is from 1."""
KEEPING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
"""Norms that are never written out, only extended."""


@dataclass(frozen=True)
class Reading:
    """How parameters of a module are taken for those of a norm.

    Attributes:
        names: Of the parameter that is the weight, and of the one that is the bias if there is one.
        offset: What is added to the weight.
    """

    names: tuple[str, ...]
    offset: float

    def give(self, norm: Any, values: Mapping[str, Tensor]) -> None:
        """Gives a norm the values of a module's parameters, parameters themselves if they fit."""
        for name, own in zip(("weight", "bias"), self.names, strict=False):
            value, offset = values[own], self.offset if name == "weight" else 0.0
            if value.dim() != 1 or offset:
                value = value.detach().flatten() + offset
            if not isinstance(value, nn.Parameter):
                value = nn.Parameter(value, values[own].requires_grad)
            setattr(norm, name, value)


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


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation (Woo et al. 2023, arXiv 2301.00808).

    A channel is scaled by its length over the pixels, divided by the mean length of all channels.
    That is the square of an RMSNorm of the square roots of lengths, which the trace knows.

    Attributes:
        norm: Over channels, which stand last.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = self.norm((length + 1e-12).sqrt()).square()  # no root of 0, whose slope is infinite
        y: Tensor = self.bias + self.weight * (x * share) + x
        return y


def recognise_norms(model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Makes modules that compute a LayerNorm or an RMSNorm these norms, where they are.

    Args:
        model: The module; its values stay.
        given: What it is called with.
        named: The same, by keyword.
    """
    used = [id(value) for module in model.modules() for value in module._parameters.values()]
    candidates = [
        module
        for module in model.modules()
        if _may_be_norm(module) and all(used.count(id(each)) == 1 for each in _own(module).values())
    ]
    if not candidates:
        return
    for module, shape in _shapes_read(model, candidates, given, named).items():
        made = (_same_norm(module, shape) or _norm_and_rest(module, shape)) if shape else None
        if made is not None:
            become(module, made)


def _may_be_norm(module: nn.Module) -> bool:
    own = list(_own(module).values())
    inside = [*module.children()]
    return (
        not type(module).__module__.startswith("torch.")
        and not any(each.state_dict() for each in inside)
        and (len(own) in (1, 2) or (bool(inside) and isinstance(module, KEEPING)))
        and all(each.numel() == own[0].numel() == max(each.shape, default=0) for each in own)
    )


def _behind(module: nn.Module) -> list[nn.Module]:
    """Modules without parameters that a norm may call after it has normalised."""
    return [each for each in module.children() if not isinstance(each, nn.Identity)]


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module._parameters.items() if value is not None}


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
    own, behind = _own(module), _behind(module)
    size = next((each.numel() for each in own.values()), 0)
    last = len(shape) - 1
    for dim in dict.fromkeys((last, 1)):
        if not 0 < dim <= last or shape[dim] != size:
            continue
        for norm, names, offset in itertools.product(
            _norms(module, size, len(own) == 2, len(shape)), itertools.permutations(own), OFFSETS
        ):
            reading = Reading(names, offset)
            made = norm if dim == last else ChannelsFirst(norm)
            made = nn.Sequential(made, *behind) if behind else made
            if not _agree(module, made, norm, reading, shape):
                continue
            if dim == last and isinstance(module, type(norm)) and not offset and not behind:
                return None  # it is one already
            reading.give(norm, own)
            return made
    return None


@torch.no_grad()
def _norm_and_rest(module: nn.Module, shape: tuple[int, ...]) -> nn.Module | None:
    """PyTorch's norm that a module's class extends, then the modules in it; None if it is not."""
    kind = next((each for each in type(module).__mro__ if each in KEEPING), None)
    behind = _behind(module)
    if kind is None or not behind:
        return None
    norm = kind.__new__(kind)
    nn.Module.__init__(norm)
    vars(norm).update(
        {name: value for name, value in vars(module).items() if name not in vars(norm)}
    )
    norm._parameters, norm._buffers = dict(module._parameters), dict(module._buffers)
    made, training = nn.Sequential(norm, *behind), module.training
    generator = torch.Generator().manual_seed(0)
    alike = True
    for mode in (True, False):
        x = torch.randn(shape, generator=generator)
        state = {
            name: torch.rand(value.shape, generator=generator) if value.dim() else value.clone()
            for name, value in module.state_dict().items()
        }
        other = {f"0.{name}": value.clone() for name, value in state.items()}
        wanted = functional_call(made.train(mode), other, (x.clone(),))
        y: Any = None
        with contextlib.suppress(Exception):  # whatever its own code raises
            y = functional_call(module.train(mode), state, (x,))
        alike &= isinstance(y, Tensor) and y.shape == wanted.shape
        alike = alike and torch.allclose(y, wanted, rtol=1e-4, atol=1e-5)
        alike = alike and all(torch.equal(state[name], other[f"0.{name}"]) for name in state)
    module.train(training)
    return made if alike else None


def _norms(module: nn.Module, size: int, biased: bool, dims: int) -> Iterator[Any]:
    own = [value for value in vars(module).values() if isinstance(value, float) and value > 0]
    for eps in dict.fromkeys([*own, *EPSILONS]):
        yield nn.LayerNorm(size, eps, bias=biased)
        if not biased:
            yield nn.RMSNorm(size, eps)
        elif dims == 4:
            yield ResponseNorm(size, eps)


def _agree(
    module: nn.Module, made: nn.Module, norm: Any, reading: Reading, shape: tuple[int, ...]
) -> bool:
    """Whether two modules compute the same, in training and in evaluation."""
    generator, training = torch.Generator().manual_seed(0), module.training
    buffers = dict(module.named_buffers())
    for scale in SCALES:
        x = scale * torch.randn(shape, generator=generator)
        values = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in _own(module).items()
        }
        reading.give(norm, values)
        wanted = made(x)
        for mode in (True, False):
            y: Any = None
            kept = {name: value.clone() for name, value in buffers.items()}
            with contextlib.suppress(Exception):  # whatever its own code raises: then it is no norm
                y = functional_call(module.train(mode), {**values, **kept}, (x.clone(),))
            module.training = training
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
                return False
            if not torch.allclose(y, wanted, rtol=1e-4, atol=1e-5):
                return False
            if not all(torch.equal(kept[name], value) for name, value in buffers.items()):
                return False  # it keeps statistics
    return True
